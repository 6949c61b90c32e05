"""The bench of trials as one program goes through the loops that trials use."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from autoft.config import load_config
from autoft.pace import Pace
from autoft.workspace import Workspace
from benches import together as bench
from tests.runs import one_thread
from tests.studies import write_study


def test_both_sides_do_the_same_steps(tmp_path: Path, tiny_vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(write_study(tmp_path, tiny_vit))
    monkeypatch.setattr(bench, "workspace_of", lambda *_: Workspace.load(config, "cpu", tmp_path / "cache"))
    monkeypatch.setattr(bench, "_memory_of", lambda model, count, *_: 100 * count)
    monkeypatch.setattr(bench, "measured_rule", lambda workspace, hp: Pace(2, {1: 1.0, 2: 0.5}))
    args = argparse.Namespace(rounds=2, steps=1, counts=[2, 3], dry_run=False)
    with one_thread():
        found = bench.measure("demo", args, tmp_path)
    assert {count: figure["memory"] for count, figure in found["trials"].items()} == {"2": 2.0, "3": 3.0}
    assert all(figure["ratio"] > 0 and figure["paired_ratio"]["n"] == 2 for figure in found["trials"].values())
    assert found["chosen"] == 2
    assert "| demo | 3 |" in bench.table({"demo": found})


def test_memory_is_of_a_running_program(tmp_path: Path, tiny_vit: Path) -> None:
    workspace = Workspace.load(load_config(write_study(tmp_path, tiny_vit)), "cpu", tmp_path / "cache")
    with one_thread():
        peaks: list[Any] = [bench.peak_bytes(workspace, count) for count in (1, 2)]
    assert all(peak is None or peak > 2**20 for peak in peaks)


