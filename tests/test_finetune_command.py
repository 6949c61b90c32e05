"""`autoft finetune`: named and given hyperparameters, what it leaves, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from autoft.cli.main import main
from autoft.report.schema import check_summary
from tests.studies import write_study


@pytest.fixture
def study(tmp_path: Path, tiny_vit: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOFT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return write_study(tmp_path, tiny_vit, search__seed=4)


def finetune(study: Path, hyperparameters: str, *more: str) -> int:
    return main(["finetune", str(study), "--hyperparameters", hyperparameters, "--threads", "1", *more])


def test_a_named_configuration_is_tuned_scored_and_named_in_the_table(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune(study, "published/fmow") == 0
    out = capsys.readouterr().out
    assert "Published FMoW configuration" in out and "Published FMoW configuration + WiSE-FT" in out and "AutoFT" not in out
    folder = Path("runs/tiny-published-fmow")
    summary = json.loads((folder / "summary.json").read_text())
    check_summary(summary)
    assert summary["method"] == "published/fmow" and summary["final"]["hyperparameters"]["seed"] == 32
    assert summary["cost"]["search_samples"] == 0 and {row["model"] for row in summary["evaluations"]} == {"zero_shot", "final", "wise_ft"}
    assert (folder / "checkpoints" / "wise_ft" / "open_clip_model.safetensors").is_file()
    before = (folder / "stages" / "final.json").stat().st_mtime_ns
    assert finetune(study, "published/fmow") == 0
    assert (folder / "stages" / "final.json").stat().st_mtime_ns == before, "what is done is not done again"


def test_plain_baselines_take_the_studys_seed(study: Path) -> None:
    assert finetune(study, "flyp", "--json") == 0
    hp = json.loads(Path("runs/tiny-flyp/summary.json").read_text())["final"]["hyperparameters"]
    assert hp["seed"] == 4 and hp["loss_weights"] == {"contrastive": 1.0} and hp["lr"] == 1e-3


def test_a_file_of_hyperparameters_or_a_runs_summary_is_taken(study: Path) -> None:
    given = {"lr": 1e-3, "weight_decay": 0.0, "loss_weights": {"cross_entropy": 1.0, "hinge": 0.1}, "seed": 3}
    Path("mine.json").write_text(json.dumps(given))
    Path("summary.json").write_text(json.dumps({"search": {"best_trial": {"hyperparameters": given}}}))
    for name in ("mine", "summary"):
        assert finetune(study, f"{name}.json", "--json") == 0
        assert json.loads(Path(f"runs/tiny-{name}/summary.json").read_text())["final"]["hyperparameters"] == given


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["--hyperparameters mine.json", "neither a file nor a built-in", "published/fmow"]),
        ("{", ["mine.json", "not a JSON file"]),
        ({"lr": 0, "weight_decay": 0.1, "loss_weights": {"cross_entropy": 1}}, ["lr", "greater than 0"]),
        ({"lr": 1, "weight_decay": 0.1, "loss_weights": {"hing": 1}}, ["loss_weights.hing", "hinge"]),
        ({"lr": 1, "weight_decay": 0.1, "loss_weights": {}}, ["loss_weights"]),
        ({"lr": 1, "weight_decay": 0.1}, ["loss_weights", "is missing"]),
        ([1], ["mine.json"]),
    ],
)
def test_wrong_hyperparameters_are_refused_before_anything_is_made(study: Path, content: Any, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        Path("mine.json").write_text(content if isinstance(content, str) else json.dumps(content))
    assert finetune(study, "mine.json") == 2
    error = capsys.readouterr().err
    assert error.startswith("autoft finetune: ") and all(word in error for word in words) and "Traceback" not in error
    assert not Path("runs").exists()
