"""The bench of methods: what it counts, and that it goes through the real loop."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from autoft.methods import METHODS
from benches import methods as bench
from tests.runs import one_thread
from tests.studies import write_study


def test_state_is_counted_however_deep() -> None:
    state = {
        "state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3, 4)}},
        "more": [(torch.zeros(5, dtype=torch.int64),), 7],
        "lr": 0.1,
    }
    assert bench.state_bytes(state) == 4 + 48 + 40


def test_every_method_is_built_in_and_has_a_place_for_its_goal() -> None:
    assert set(bench.MEASURED) <= METHODS.keys()
    assert {goal.partition("_")[2] for goal in bench.GOALS} <= set(bench.MEASURED)


def test_ratios_are_to_plain_and_what_fails_is_told(tmp_path: Path, tiny_vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {"finetune": 100, "saft": 80}
    monkeypatch.setattr(bench, "_memory_of", lambda name, *_: {"peak_bytes": peaks[name], "peak_bytes_at_start": None})
    names: list[Any] = ["finetune", "saft", "drm"]
    study = write_study(tmp_path, tiny_vit)
    missing = tmp_path / "none.json"
    args = argparse.Namespace(study=study, descriptions=missing, methods=names, rounds=2, steps=1, device="cpu", dry_run=False)
    with one_thread():
        figures = bench.measure(args, tmp_path / "cache")
    assert figures["finetune"]["state"] == 1.0 and 0 < figures["saft"]["state"] < 0.2
    assert (figures["finetune"]["memory"], figures["saft"]["memory"]) == (1.0, 0.8)
    assert figures["saft"]["step"] > 0 and figures["saft"]["paired_ratio"]["n"] == 2
    assert "descriptions" in figures["drm"]["error"]
    assert "goal: at most 0.01" in bench.table(figures) and "| drm | ConfigError" in bench.table(figures)


def test_without_the_study_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["methods", "--study", str(tmp_path / "none.yaml")])
    bench.main()
    assert "skipped: there is no study file" in capsys.readouterr().out
