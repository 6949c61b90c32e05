"""The stages after the search: each computed once, resumed exactly, tests scored last and once."""

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from autoft.config import StudyConfig, load_config
from autoft.errors import Interrupted, TrialCodeError
from autoft.files import write_json
from autoft.finetune import finetune
from autoft.models import load_checkpoint
from autoft.stages import stage_result
from autoft.workspace import Workspace
from tests.runs import hyperparameters, load_workspace, one_thread, stages, started
from tests.studies import write_study

ALL = ["final", "wise_ft", "evaluate-zero_shot", "evaluate-final", "evaluate-wise_ft"]
LR = 3e-3
BASE: dict[str, Any] = {"final__epochs": 3, "metric": "cross_entropy"}  # a metric that tells any two models apart


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="module")
def study(home: Path, tiny_vit: Path) -> Callable[..., StudyConfig]:
    """The tiny study with changes, always over the same data."""
    return lambda **changes: load_config(write_study(home, tiny_vit, **BASE | changes))


@pytest.fixture(scope="module")
def finished(study: Callable[..., StudyConfig], home: Path) -> tuple[Path, list[dict[str, Any]]]:
    """A run folder with every stage done, and the events of doing them. Not to be changed: see `copied`."""
    events = stages(study(), home, hyperparameters(LR))
    return home / "run", events


@pytest.fixture
def copied(finished: tuple[Path, Any], home: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be run again with changes; the image cache is shared."""
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "cache").symlink_to(home / "cache")
    return tmp_path


@pytest.fixture
def empty(home: Path, tmp_path: Path) -> Path:
    """A place for a new run that shares the image cache."""
    (home / "cache").mkdir(exist_ok=True)
    (tmp_path / "cache").symlink_to(home / "cache")
    return tmp_path


def weights(run: Path) -> dict[str, bytes]:
    return {str(file.relative_to(run)): file.read_bytes() for file in sorted(run.rglob("*.safetensors"))}


def results(run: Path) -> dict[str, Any]:
    """Every stage's result without the time it took."""
    found = {}
    for stage in (run / "stages").iterdir():
        found[stage.stem] = {name: value for name, value in json.loads(stage.read_text())["result"].items() if name not in ("seconds", "peak_memory_bytes")}
    return found


# --- what the stages leave


def test_every_stage_leaves_its_record_and_checkpoint(finished: tuple[Path, list[dict[str, Any]]]) -> None:
    run, events = finished
    assert started(events) == ALL
    assert sorted(results(run)) == sorted(ALL)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["final", "wise_ft"]
    assert list((run / "training").iterdir()) == [], "the training state goes when the result is on record"
    final = results(run)["final"]
    assert final["hyperparameters"] == hyperparameters(LR).to_dict()
    assert (final["steps"], final["samples"]) == (12, 144)
    assert [epoch["epoch"] for epoch in final["epochs"]] == [1, 2, 3]


def test_the_final_checkpoint_is_the_best_epoch_on_val_id(finished: tuple[Path, Any], home: Path, tiny_vit: Path) -> None:
    final = results(finished[0])["final"]
    scores = [epoch["val_id"] for epoch in final["epochs"]]
    assert final["best_epoch"] == scores.index(min(scores)) + 1
    model, _, info = load_checkpoint(finished[0] / "checkpoints" / "final")
    workspace = load_workspace(home, tiny_vit, **BASE)
    workspace.model = model
    assert workspace.score("val_id") == pytest.approx(min(scores)) == info.scores["val_id"]
    assert (info.study, info.method, info.fingerprint, info.class_names) == ("tiny", "final", "f" * 16, ("red", "green", "blue"))


def test_wise_ft_chooses_on_validation_data_and_saves_that_interpolation(finished: tuple[Path, Any], home: Path, tiny_vit: Path) -> None:
    run = finished[0]
    sweep = results(run)["wise_ft"]
    assert [point["alpha"] for point in sweep["curve"]] == [0.0, 0.5, 1.0]
    best = min(sweep["curve"], key=lambda point: float(point["val_ood"]))
    assert sweep["alpha"] == best["alpha"]
    start = load_workspace(home, tiny_vit, **BASE).zero_shot.tensors
    for prefix, file in (("clip.", "open_clip_model.safetensors"), ("head.", "head.safetensors")):
        end = load_file(run / "checkpoints" / "final" / file)
        mixed = load_file(run / "checkpoints" / "wise_ft" / file)
        for name, tensor in mixed.items():
            expected = (1 - sweep["alpha"]) * start[prefix + name] + sweep["alpha"] * end[name]
            torch.testing.assert_close(tensor, expected)
    info = json.loads((run / "checkpoints" / "wise_ft" / "autoft.json").read_text())
    assert (info["alpha"], info["method"]) == (sweep["alpha"], "wise_ft")


def test_the_ends_of_the_alpha_curve_are_zero_shot_and_final(finished: tuple[Path, Any], home: Path, tiny_vit: Path) -> None:
    curve = results(finished[0])["wise_ft"]["curve"]
    workspace = load_workspace(home, tiny_vit, **BASE)
    for point, model in ((curve[0], None), (curve[-1], load_checkpoint(finished[0] / "checkpoints" / "final")[0])):
        workspace.model = model or workspace.model
        assert [workspace.score("val_id"), workspace.score("val_ood")] == pytest.approx([point["val_id"], point["val_ood"]])


def test_evaluations_are_those_of_the_saved_models_on_the_original_images(copied: Path, study: Any) -> None:
    """Through open_clip's own preprocessing, from the files alone."""
    run = copied / "run"
    stages(study(wise_ft__alphas=[0.25, 0.5]), copied, hyperparameters(LR))
    for method in ("final", "wise_ft"):
        model, _, _ = load_checkpoint(run / "checkpoints" / method)
        _, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{run / 'checkpoints' / method}")
        rows = results(run)[f"evaluate-{method}"]["evaluations"]
        assert {row["model"] for row in rows} == {method} and {row["seed"] for row in rows} == {5}
        for name, (split, dataset) in {"a": ("test_id", study().data.test_id["a"]), "b": ("test_ood", study().data.test_ood["b"])}.items():
            arrays = np.load(dataset.path)
            labels = torch.from_numpy(arrays["labels"])
            with torch.no_grad():
                logits = model(torch.stack([preprocess(Image.fromarray(image)) for image in arrays["images"]]))
            expected = {
                "accuracy": float((logits.argmax(dim=1) == labels).double().mean()),
                "cross_entropy": float(torch.nn.functional.cross_entropy(logits, labels)),
            }
            for row in rows:
                if row["dataset"] == name and row["metric"] in expected:
                    assert row["value"] == pytest.approx(expected[row["metric"]], rel=1e-4)
                    assert (row["split"], row["n"]) == (split, 30)
                    assert row["ci_low"] <= row["value"] <= row["ci_high"]


def test_each_test_set_gets_a_row_for_the_studys_metric_first_and_for_the_usual_ones(study: Any, empty: Path) -> None:
    events = stages(study(wise_ft=None, final__epochs=1), empty, hyperparameters(LR))
    rows = results(empty / "run")["evaluate-final"]["evaluations"]
    metrics = ["cross_entropy", "accuracy", "macro_f1", "worst_group_accuracy"]
    assert [(row["dataset"], row["metric"]) for row in rows] == list(itertools.product(["a", "b"], metrics))
    told = {(event["model"], event["dataset"]): event["value"] for event in events if event["event"] == "evaluated"}
    assert told["final", "a"] == rows[0]["value"], "the event tells the study's metric"


def test_without_wise_ft_there_is_no_interpolation(study: Any, empty: Path) -> None:
    events = stages(study(wise_ft=None), empty, hyperparameters(LR))
    assert started(events) == ["final", "evaluate-zero_shot", "evaluate-final"]
    assert [path.name for path in (empty / "run" / "checkpoints").iterdir()] == ["final"]
    assert "wise_ft" not in results(empty / "run")


# --- the rate and the objective of each full fine-tune


def _spy_on_training(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every step of every full fine-tune as (recipe, peak rate so far, terms)."""
    seen: list[Any] = []

    def spied(workspace: Workspace, recipe: Any, resume: Any = None) -> Iterator[Any]:
        for step in finetune(workspace, recipe, resume, report_norms=True):
            seen.append((recipe, step.optimizer.param_groups[0]["lr"], step.terms))
            yield step

    monkeypatch.setattr("autoft.full_finetune.finetune", spied)
    return seen


@pytest.mark.parametrize(("which", "expected"), [("searched", LR), ("base", 1e-3)])
def test_defect_1_the_final_run_uses_the_searched_rate_unless_base_is_asked_for(
    which: str, expected: float, study: Any, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = _spy_on_training(monkeypatch)
    stages(study(final__lr=which), empty, hyperparameters(LR))
    rates = [rate for _, rate, _ in seen]
    assert len(rates) == 12 and max(rates) == pytest.approx(expected)
    assert results(empty / "run")["final"]["hyperparameters"] == hyperparameters(expected).to_dict()
    for method in ("final", "wise_ft"):
        info = json.loads((empty / "run" / "checkpoints" / method / "autoft.json").read_text())
        assert info["hyperparameters"] == hyperparameters(expected).to_dict(), "a checkpoint says what it was made with"


def test_defect_2_distances_to_the_start_count_in_the_final_run(study: Any, empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _spy_on_training(monkeypatch)
    stages(study(), empty, hyperparameters(LR))
    for term in ("l1_init", "l2_init"):
        assert float(seen[0][2][term]) == 0
        assert all(float(terms[term]) > 0 for _, _, terms in seen[1:])


def test_the_baseline_is_cross_entropy_at_the_base_rate_through_the_same_loop(study: Any, empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _spy_on_training(monkeypatch)
    events = stages(study(evaluate__baselines=["finetune"]), empty, hyperparameters(LR))
    assert started(events) == ["final", "finetune", "wise_ft", "evaluate-zero_shot", "evaluate-final", "evaluate-finetune", "evaluate-wise_ft"]
    baseline = seen[12:]
    assert {tuple(terms) for _, _, terms in baseline} == {("cross_entropy",)}
    assert max(rate for _, rate, _ in baseline) == pytest.approx(1e-3)
    assert baseline[0][0].hyperparameters.weight_decay == 0.1
    assert load_checkpoint(empty / "run" / "checkpoints" / "finetune")[2].method == "finetune"


# --- once


def test_a_second_run_computes_nothing(copied: Path, study: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in (copied / "run").rglob("*")}
    assert started(stages(study(), copied, hyperparameters(LR))) == []
    assert {path: path.stat().st_mtime_ns for path in (copied / "run").rglob("*")} == before


@pytest.mark.parametrize(
    ("changes", "recomputed"),
    [
        ({"wise_ft__alphas": [0.0, 1.0]}, ["wise_ft", "evaluate-wise_ft"]),
        ({"wise_ft__select_on": "val_id"}, ["wise_ft", "evaluate-wise_ft"]),
        ({"wise_ft": None}, []),
        ({"final__epochs": 1}, ["final", "wise_ft", "evaluate-final", "evaluate-wise_ft"]),
        ({"final__clip_grad_norm": 1.0}, ["final", "wise_ft", "evaluate-final", "evaluate-wise_ft"]),
        ({"evaluate__baselines": ["finetune"]}, ["finetune", "evaluate-finetune"]),
        ({"data__test_id": {}}, ["evaluate-zero_shot", "evaluate-final", "evaluate-wise_ft"]),
    ],
    ids=str,
)
def test_a_change_recomputes_what_depends_on_it_and_nothing_else(changes: Any, recomputed: list[str], copied: Path, study: Any) -> None:
    assert started(stages(study(**changes), copied, hyperparameters(LR))) == recomputed


def test_a_test_set_that_changes_sides_is_reported_on_its_new_side(copied: Path, study: Any) -> None:
    config = study()
    data = config.data.model_copy(update={"test_id": {}, "test_ood": {**config.data.test_id, **config.data.test_ood}})
    stages(config.model_copy(update={"data": data}), copied, hyperparameters(LR))
    assert {row["split"] for row in results(copied / "run")["evaluate-final"]["evaluations"]} == {"test_ood"}


def test_a_better_trial_recomputes_the_final_run(copied: Path, study: Any) -> None:
    assert started(stages(study(), copied, hyperparameters(LR / 2))) == ["final", "wise_ft", "evaluate-final", "evaluate-wise_ft"]


def test_a_lost_checkpoint_or_a_damaged_record_is_made_again(copied: Path, study: Any) -> None:
    before = weights(copied / "run")
    shutil.rmtree(copied / "run" / "checkpoints" / "final")
    record = copied / "run" / "stages" / "evaluate-final.json"
    record.write_text(record.read_text()[:-30])
    assert started(stages(study(), copied, hyperparameters(LR))) == ["final", "evaluate-final"]
    assert weights(copied / "run") == before


# --- interrupted


def stop_after(calls: int) -> Callable[[], bool]:
    counter = itertools.count(1)
    return lambda: next(counter) > calls


@pytest.mark.parametrize("model", ["tiny_vit", "tiny_convnet"])
def test_defect_17_an_interrupted_fine_tune_goes_on_from_its_last_step_and_ends_the_same(
    model: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(write_study(tmp_path, request.getfixturevalue(model), **BASE, wise_ft=None))
    seen = _spy_on_training(monkeypatch)
    stages(config, tmp_path, hyperparameters(LR))
    (tmp_path / "run").rename(tmp_path / "undisturbed")
    seen.clear()
    with pytest.raises(Interrupted, match="at step 6 of 12 of final"):
        stages(config, tmp_path, hyperparameters(LR), stop_after(6))
    assert not (tmp_path / "run" / "stages" / "final.json").exists()
    assert len(seen) == 6
    with pytest.raises(Interrupted, match="at step 10 of 12 of final"):
        stages(config, tmp_path, hyperparameters(LR), stop_after(4))  # from step 6: again in the middle of an epoch
    seen.clear()
    stages(config, tmp_path, hyperparameters(LR))
    assert len(seen) == 2, "ten of twelve steps were on disk"
    assert weights(tmp_path / "run") == weights(tmp_path / "undisturbed")
    assert results(tmp_path / "run") == results(tmp_path / "undisturbed")


def test_stopped_at_any_step_it_ends_the_same(study: Any, empty: Path, finished: tuple[Path, Any]) -> None:
    """Every stage asks whether to stop; whatever is stopped, the next run ends as an undisturbed one."""
    stops = 0
    while True:
        try:
            stages(study(), empty, hyperparameters(LR), stop_after(5))
            break
        except Interrupted:
            stops += 1
            assert stops < 20
    assert stops > 3
    assert weights(empty / "run") == weights(finished[0])
    assert results(empty / "run") == results(finished[0])


def test_sweep_and_evaluation_stop_between_two_forward_passes_over_a_set(copied: Path, study: Any) -> None:
    messages = []
    for calls in (0, 1, 2, 3, 1, 2):
        with pytest.raises(Interrupted) as stopped:
            stages(study(wise_ft__alphas=[0.0, 1.0]), copied, hyperparameters(LR), stop_after(calls))
        messages.append(str(stopped.value))
    assert messages == [
        "stopped before wise_ft",
        "stopped before alpha 0 of wise_ft",
        "stopped before alpha 1 of wise_ft",
        "stopped before evaluate-wise_ft",
        "stopped before scoring wise_ft on a",
        "stopped before scoring wise_ft on b",
    ]


def test_a_crash_between_checkpoint_and_record_costs_an_epoch_at_most(study: Any, empty: Path, finished: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(path: Path, value: Any) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as broken, pytest.raises(OSError, match="No space left"):
        broken.setattr("autoft.stages.write_json", crash)
        stages(study(), empty, hyperparameters(LR))
    seen = _spy_on_training(monkeypatch)
    stages(study(), empty, hyperparameters(LR))
    assert len(seen) == 4
    assert weights(empty / "run") == weights(finished[0])


@pytest.mark.parametrize("damage", ["torn", "other key"])
def test_training_state_that_does_not_belong_is_not_used(damage: str, study: Any, empty: Path, finished: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other = hyperparameters(LR if damage == "torn" else LR / 3)
    with pytest.raises(Interrupted):
        stages(study(), empty, other, stop_after(6))
    state = empty / "run" / "training" / "final.pt"
    if damage == "torn":
        state.write_bytes(state.read_bytes()[:-100])
    seen = _spy_on_training(monkeypatch)
    stages(study(), empty, hyperparameters(LR))
    assert len(seen) == 12
    assert weights(empty / "run") == weights(finished[0])


def test_a_write_that_fails_leaves_the_training_state_before_it(study: Any, empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saves = itertools.count(1)
    save = torch.save

    def second_fails(value: Any, file: Any) -> None:
        if next(saves) == 2:
            file.write(b"half")
            raise OSError("No space left on device")
        save(value, file)

    with monkeypatch.context() as broken, pytest.raises(OSError, match="No space left"):
        broken.setattr(torch, "save", second_fails)
        stages(study(), empty, hyperparameters(LR))
    seen = _spy_on_training(monkeypatch)
    stages(study(), empty, hyperparameters(LR))
    assert len(seen) == 8, "the first epoch is still there"


def test_a_full_fine_tune_that_diverges_says_what_to_do(study: Any, empty: Path) -> None:
    with pytest.raises(TrialCodeError, match=r"full fine-tune of final diverged at lr 1e\+38.*final.warmup_fraction"):
        stages(study(), empty, hyperparameters(1e38))


# --- selection and tests


@pytest.mark.parametrize(("metric", "best"), [("accuracy", 2), ("cross_entropy", 1)])
def test_the_best_epoch_respects_the_direction(metric: str, best: int, study: Any, empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs score 0.2, 0.9, 0.9 on VAL_ID: the first of the best for accuracy, the lowest for cross-entropy."""
    scores = iter([0.2, 0.9, 0.9])
    with monkeypatch.context() as scripted:
        scripted.setattr(Workspace, "score", lambda self, name: next(scores) if name == "val_id" else 0.5)
        stages(study(metric=metric, wise_ft=None), empty, hyperparameters(LR))
    assert results(empty / "run")["final"]["best_epoch"] == best


@pytest.mark.parametrize(("metric", "alpha"), [("accuracy", 1.0), ("cross_entropy", 0.5)])
def test_alpha_respects_the_direction_and_ties_go_to_the_fine_tuned_side(
    metric: str, alpha: float, study: Any, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    val_ood = iter([0.5, 0.7, 0.3, 0.7])  # of the fine-tuned model, then of each alpha
    with monkeypatch.context() as scripted:
        scripted.setattr(Workspace, "score", lambda self, name: 0.5 if name == "val_id" else next(val_ood))
        stages(study(metric=metric), empty, hyperparameters(LR))
    assert results(empty / "run")["wise_ft"]["alpha"] == alpha


def test_no_test_set_is_scored_before_the_last_stage_and_each_model_scores_it_once(
    study: Any, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autoft.stages import StageRequest, load_workspace, run_stages

    now: list[str] = [""]
    scored: list[tuple[str, str]] = []
    logits = Workspace.logits

    def spied(self: Workspace, name: str) -> torch.Tensor:
        scored.append((now[0], name))
        return logits(self, name)

    def emit(event: dict[str, Any]) -> None:
        if event["event"] == "stage_started":
            now[0] = event["stage"]

    monkeypatch.setattr(Workspace, "logits", spied)
    config = study(evaluate__baselines=["finetune"])
    methods = {"final": hyperparameters(LR), "finetune": hyperparameters(LR)}
    request = StageRequest(config=config, run_dir=empty / "run", methods=methods, fingerprint="f" * 16, versions={})
    run_stages(request, load_workspace(config, "cpu", empty / "cache"), emit, lambda: False)
    models = ["zero_shot", "final", "finetune", "wise_ft"]
    assert [pair for pair in scored if pair[1] in ("a", "b")] == [(f"evaluate-{model}", name) for model in models for name in ("a", "b")]
    assert {name for stage, name in scored if stage in ("final", "finetune")} == {"val_id", "val_ood"}
    assert {name for stage, name in scored if stage == "wise_ft"} == {"val_id", "val_ood"}


def test_stage_result_reads_records_and_nothing_else(tmp_path: Path) -> None:
    assert stage_result(tmp_path, "final") is None
    (tmp_path / "stages").mkdir()
    write_json(tmp_path / "stages" / "final.json", {"key": "k", "result": {"steps": 3}})
    assert stage_result(tmp_path, "final") == {"steps": 3}
    (tmp_path / "stages" / "final.json").write_text("{")
    assert stage_result(tmp_path, "final") is None
