"""`search.warm_start_from` on the command line: a second study begins with the first one's best configurations."""

import csv
import json
from pathlib import Path

import pytest

from autoft.cli.main import main
from tests.studies import write_study

IN_PROCESS = ("--executor", "in-process", "--threads-per-worker", "1", "--device", "cpu")


@pytest.fixture
def study(tmp_path: Path, tiny_vit: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOFT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return write_study(tmp_path, tiny_vit, search__n_trials=4, final__epochs=1, wise_ft=None)


def launch(monkeypatch: pytest.MonkeyPatch, study: Path, *settings: str) -> int:
    monkeypatch.setenv("AUTOFT_STORAGE_URL", f"sqlite:///{study.parent}/studies.db")  # taken out of the environment by every command
    return main(["launch", str(study), *IN_PROCESS, *(part for setting in settings for part in ("--set", setting))])


def trials(name: str) -> list[dict[str, str]]:
    with Path("runs", name, "trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_best_of_an_earlier_study_comes_first(study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(monkeypatch, study, "study=old") == 0
    assert launch(monkeypatch, study, "study=new", "search.warm_start_from=[old]", "search.warm_start_trials=2", "search.enqueue=[finetune]") == 0
    best = sorted(trials("old"), key=lambda row: (-float(row["score"]), int(row["number"])))[:2]
    found = trials("new")
    assert [row["name"] for row in found] == ["finetune", *(f"old #{row['number']}" for row in best), ""]
    for mine, theirs in zip(found[1:3], best, strict=True):
        assert mine["score"] == theirs["score"], "the same data and hyperparameters give the same score"
        assert float(mine["lr"]) == pytest.approx(float(theirs["lr"]))
    summary = json.loads(Path("runs/new/summary.json").read_text())
    assert summary["search"]["transfer"] == [{"study": "old", "n_trials": 2}]


def test_an_earlier_study_that_is_not_there_is_named(study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(monkeypatch, study, "study=new", "search.warm_start_from=[nowhere]") == 3
    assert "nowhere" in capsys.readouterr().err
    assert not Path("runs/new").exists()
