"""`autoft compare` on a tiny study: one rule for all methods, resumable, and every figure where it belongs."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoft.cli.main import main
from autoft.compare import COMPARED, LR_FACTOR, check_methods, comparison_config, tuning_space
from autoft.comparison.records import read_comparison
from autoft.config import StudyConfig, load_config
from autoft.errors import ConfigError, TrialCodeError
from autoft.losses import TERMS
from autoft.methods import METHODS, Setting
from tests.studies import write_study

QUICK = ["--executor", "in-process", "--threads-per-worker", "1", "--evaluations", "2"]
METHODS_RUN = "zero_shot,linear_probe,finetune,wise_ft,soup,saft,autoft"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_vit: Path) -> Path:
    return write_study(tmp_path_factory.mktemp("compare"), tiny_vit)


@pytest.fixture
def config(study: Path) -> StudyConfig:
    return load_config(study)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOFT_STORAGE_URL", f"sqlite:///{tmp_path / 'studies.db'}")
    monkeypatch.setenv("AUTOFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AUTOFT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def test_every_method_of_the_command_line_is_built_or_built_on_another() -> None:
    assert set(COMPARED) - set(METHODS) == {"zero_shot", "wise_ft", "soup", "autoft", "autoft_extended"}


@pytest.mark.parametrize("method", [name for name in COMPARED if name in METHODS])
def test_all_methods_have_the_same_learning_rates_to_choose_from(method: str, config: StudyConfig) -> None:
    space = tuning_space(method, Setting(config.search_space, 1000, 0), described=True)
    assert space.lr_factor == (LR_FACTOR if METHODS[method].tunes_lr else (1.0, 1.0))
    assert space.weight_decay[0] == space.weight_decay[1] and space.seed == (0, 0)


@pytest.mark.parametrize("described", [True, False])
def test_the_extended_search_uses_descriptions_where_there_are_some(described: bool, config: StudyConfig) -> None:
    knobs = tuning_space("autoft_extended", Setting(config.search_space, 1000, 0), described).knobs
    assert ("loss_weight/drm" in knobs) == described and "loss_weight/ldifs" in knobs


def test_wise_ft_tries_as_many_alphas_as_others_have_evaluations(config: StudyConfig) -> None:
    found = comparison_config(config, 8)
    assert found.wise_ft is not None and len(found.wise_ft.alphas) == 8 == found.search.n_trials
    assert found.wise_ft.select_on == "val_ood" and found.search.objectives == ("val_ood",)


def test_unknown_and_impossible_methods_are_named(config: StudyConfig) -> None:
    with pytest.raises(ConfigError, match="there is no method 'finetunee'; they are zero_shot"):
        check_methods(["finetunee"], config)
    with pytest.raises(ConfigError, match="saft is listed twice"):
        check_methods(["saft", "saft"], config)
    with pytest.raises(ConfigError, match=r"drm needs data\.descriptions"):
        check_methods(["drm"], config)


def test_a_comparison_is_whole_and_a_second_start_computes_nothing(
    study: Path, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [str(study), "--methods", METHODS_RUN, "--seeds", "2", "--runs", str(home / "runs"), *QUICK]
    assert main(["compare", *flags, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    folder = home / "runs" / f"{load_config(study).study}-compare"
    comparison = read_comparison(folder / "comparison.json")
    assert {run.method for run in comparison.runs} == set(METHODS_RUN.split(","))
    assert all(run.error is None and run.evaluations and run.val_ood is not None for run in comparison.runs)
    seeds = {method: sorted({row["seed"] for row in rows if row["model"] == method}, key=str) for method in METHODS_RUN.split(",")}
    assert seeds.pop("zero_shot") == [None] and all(found == [0, 1] for found in seeds.values())
    _check_rows(rows)
    _check_budget(comparison)
    assert (folder / "comparison.html").is_file() and not list(folder.glob("cells/*/checkpoints"))
    before = {path: path.stat().st_mtime_ns for path in folder.glob("cells/*.json")}
    monkeypatch.setattr("autoft.full_finetune.finetune", _never)
    monkeypatch.setattr("autoft.trial.finetune", _never)
    monkeypatch.setenv("AUTOFT_STORAGE_URL", f"sqlite:///{home / 'studies.db'}")
    assert main(["compare", *flags, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == rows
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("cells/*.json")}


def _never(*_: Any, **__: Any) -> Any:
    raise AssertionError("nothing was to be trained")


def _check_rows(rows: list[dict[str, Any]]) -> None:
    """In the form of summary.json's evaluations."""
    keys = {"model", "seed", "dataset", "split", "metric", "value", "ci_low", "ci_high", "n"}
    assert all(set(row) == keys and row["ci_low"] <= row["value"] <= row["ci_high"] for row in rows)


def _check_budget(comparison: Any) -> None:
    used = {method.name: method.tuning_evaluations for method in comparison.methods}
    assert used.pop("zero_shot") == 0 and used.pop("linear_probe") == 1
    assert used.pop("wise_ft") == 2 + 2 and used.pop("soup") == 2 + 3  # plain fine-tuning's, and their own looks at VAL_OOD
    assert set(used.values()) == {2}
    scored = {method.name: len(method.tuning_scores) for method in comparison.methods}
    assert scored["finetune"] == scored["saft"] == scored["autoft"] == 2


@pytest.mark.slow
def test_interrupted_after_a_few_trainings_it_ends_the_same(study: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A comparison stopped between trainings and continued gives the figures of one that was not."""
    from autoft.errors import Interrupted

    methods = ["--methods", "finetune,saft", "--seeds", "2", "--json", *QUICK]
    assert main(["compare", str(study), "--runs", str(home / "a"), *methods]) == 0
    whole = json.loads(capsys.readouterr().out)
    stop = _StopAfter(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autoft.compare.records.Records.write", stop.wrap())
        patch.setenv("AUTOFT_STORAGE_URL", f"sqlite:///{home / 'other.db'}")
        assert main(["compare", str(study), "--runs", str(home / "b"), *methods]) == Interrupted("").exit_code
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOFT_STORAGE_URL", f"sqlite:///{home / 'other.db'}")
        assert main(["compare", str(study), "--runs", str(home / "b"), *methods]) == 0
    assert json.loads(capsys.readouterr().out) == whole


class _StopAfter:
    """Interrupts when so many trainings have left their records."""

    def __init__(self, count: int) -> None:
        self.count = count

    def wrap(self) -> Callable[..., None]:
        from autoft.compare.records import Records
        from autoft.errors import Interrupted

        finish = Records.write

        def wrapped(*args: Any) -> None:
            finish(*args)
            self.count -= 1
            if self.count == 0:
                raise Interrupted("stopped by the test")

        return wrapped


def test_a_training_is_kept_whatever_else_is_compared_later(study: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fewer methods, then more again, train nothing that was trained; more evaluations change no run whose setting stays."""
    flags = ["--seeds", "1", "--runs", str(home / "runs"), "--json", *QUICK]
    for methods in ("finetune,wise_ft,saft", "finetune", "finetune,wise_ft,saft"):
        os.environ["AUTOFT_STORAGE_URL"] = f"sqlite:///{home / 'studies.db'}"
        assert main(["compare", str(study), "--methods", methods, *flags]) == 0
        capsys.readouterr()
        cells = home / "runs" / "tiny-compare" / "cells"
        times = {path.name: path.stat().st_mtime_ns for path in cells.glob("*.json")}
        if methods == "finetune,wise_ft,saft" and "before" not in locals():
            before = times
    assert times == before and set(times) == {"finetune-0.json", "wise_ft-0.json", "saft-0.json"}


def test_a_diverging_member_spoils_neither_plain_fine_tuning_nor_the_soup(
    study: Path, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from autoft.full_finetune import FullFinetune

    run = FullFinetune.run

    def diverging(self: FullFinetune) -> Any:
        if self._method == "soup-2":
            raise TrialCodeError("the full fine-tune of soup-2 diverged")
        return run(self)

    monkeypatch.setattr(FullFinetune, "run", diverging)
    flags = ["--methods", "finetune,wise_ft,soup,saft", "--seeds", "1", "--runs", str(home / "runs"), "--json", *QUICK]
    assert main(["compare", str(study), *flags]) == 0
    capsys.readouterr()
    comparison = read_comparison(home / "runs" / "tiny-compare" / "comparison.json")
    assert all(found.error is None and found.evaluations for found in comparison.runs) and len(comparison.runs) == 4


def test_a_run_that_diverges_is_recorded_by_name_and_the_others_go_on(
    study: Path, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from autoft.full_finetune import FullFinetune

    run = FullFinetune.run

    def diverging(self: FullFinetune) -> Any:
        if self._method == "saft" and self._recipe.hyperparameters.seed == 1:
            raise TrialCodeError("the full fine-tune of saft diverged at lr 7")
        return run(self)

    monkeypatch.setattr(FullFinetune, "run", diverging)
    assert main(["compare", str(study), "--methods", "finetune,saft", "--seeds", "2", "--runs", str(home / "runs"), *QUICK]) == 0
    assert "saft" in capsys.readouterr().out.lower()
    comparison = read_comparison(home / "runs" / "tiny-compare" / "comparison.json")
    failed = [(found.method, found.seed, found.error) for found in comparison.runs if found.error]
    assert failed == [("saft", 1, "the full fine-tune of saft diverged at lr 7")]
    assert len([found for found in comparison.runs if found.evaluations]) == 3


def test_a_method_that_cannot_be_tuned_does_not_stop_the_others(
    study: Path, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from autoft.losses import METHOD_TERMS

    def broken(outputs: Any) -> Any:
        raise ValueError("this term cannot be computed here")

    monkeypatch.setitem(METHOD_TERMS, "lipsum", replace(METHOD_TERMS["lipsum"], compute=broken))  # type: ignore[arg-type]
    monkeypatch.setattr("autoft.losses.TERMS", {**TERMS, "lipsum": METHOD_TERMS["lipsum"]})
    assert main(["compare", str(study), "--methods", "finetune,lipsum_ft", "--seeds", "1", "--runs", str(home / "runs"), *QUICK]) == 0
    assert "lipsum_ft FAILED" in capsys.readouterr().err
    comparison = read_comparison(home / "runs" / "tiny-compare" / "comparison.json")
    assert {found.method: found.error is None for found in comparison.runs} == {"finetune": True, "lipsum_ft": False}

