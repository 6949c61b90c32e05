"""`autoft pause`, `resume`, `stop` and `cancel` from another terminal, and the states a study is in."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage import embedded, leave_embedded
from tests.launching import Launch, environment, eventually
from tests.postgres_fixtures import fast_folder
from tests.studies import write_study

IN_PROCESS = ("--executor", "in-process", "--threads-per-worker", "1", "--device", "cpu", "--json")


class Terminal:
    """A folder with a study, and a database of its own."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder, self.env = folder, env

    def launch(self, *flags: str) -> Launch:
        return Launch("launch", "tiny.yaml", *flags, *IN_PROCESS, env=self.env, cwd=self.folder)

    def say(self, *words: str) -> str:
        command = [sys.executable, "-m", "autoft.cli.main", *words]
        return subprocess.run(command, env=self.env, cwd=self.folder, check=True, capture_output=True, text=True, timeout=120).stdout

    def status(self) -> dict[str, Any]:
        return json.loads(self.say("status", "tiny", "--json"))  # type: ignore[no-any-return]


@pytest.fixture
def terminal(tmp_path: Path, tiny_vit: Path) -> Iterator[Terminal]:
    write_study(tmp_path, tiny_vit, search__n_trials=500, trial__steps=20, final__epochs=1)
    with fast_folder() as home:
        yield Terminal(tmp_path, environment(home))
        if home in embedded._users:
            leave_embedded(home)


@pytest.mark.slow
def test_a_study_is_paused_resumed_and_stopped_from_another_terminal(terminal: Terminal) -> None:
    run = terminal.launch()
    run.wait_for("trial_started", trial=1)
    assert "no new trial is started" in terminal.say("pause", "tiny")
    run.wait_for("paused")
    found = terminal.status()
    assert (found["state"], found["n_running"]) == ("paused", 0)
    assert "@" in found["reason"] and f"process {run.process.pid} " in found["owner"] and found["last_sign_of_life"]
    before = len(run.events)
    assert "it goes on" in terminal.say("resume", "tiny")
    run.wait_for("resumed")
    assert terminal.status()["state"] == "running"
    assert next(event["event"] for event in run.events[before:]) == "resumed", "nothing happened meanwhile"
    run.wait_for("trial_started")
    terminal.say("stop", "tiny")
    run.finish(0)
    assert run.stderr.splitlines()[0].startswith("autoft launch: stopped on request with ")
    assert "Nothing is lost. Go on with: autoft launch tiny.yaml" in run.stderr
    found = terminal.status()
    assert (found["state"], found["owner"], found["n_running"], found["n_failed"]) == ("paused", None, 0, 0)
    assert found["reason"].startswith("stopped on request with ")
    assert "nobody runs study tiny" in terminal.say("stop", "tiny")
    enough = found["n_complete"] + found["n_pruned"] + 2
    run = terminal.launch("--set", f"search.n_trials={enough}").finish()
    assert any(event["event"] == "resuming" for event in run.events), "and the wish is forgotten"
    found = terminal.status()
    assert (found["state"], found["n_complete"] + found["n_pruned"], found["reason"]) == ("complete", enough, None)


@pytest.mark.slow
def test_cancel_gives_running_trials_up_and_a_killed_owner_is_told_apart(terminal: Terminal) -> None:
    run = terminal.launch("--set", "trial.steps=4000")
    run.wait_for("trial_started", trial=0)
    terminal.say("cancel", "tiny")
    run.finish()
    assert run.stderr.startswith("autoft launch: cancelled on request with 0 of 500")
    found = terminal.status()
    assert (found["state"], found["n_running"], found["n_failed"]) == ("paused", 0, 1)
    listed = json.loads(terminal.say("show", "tiny", "--json"))["trials"][0]
    assert listed["state"] == "FAIL" and listed["failure_kind"] == "cancelled"

    run = terminal.launch("--set", "trial.steps=4000")
    run.wait_for("trial_started")
    run.process.send_signal(signal.SIGKILL)
    run.finish(-signal.SIGKILL)
    assert eventually(lambda: terminal.status()["owner"] is None)
    found = terminal.status()
    assert (found["state"], found["n_running"]) == ("paused", 1)
    assert "ended without a word" in found["reason"]
    assert terminal.say("pause", "tiny").startswith("nobody runs study tiny; it will wait, once launched")


@pytest.mark.slow
def test_a_study_that_cannot_run_is_failed_and_says_why(terminal: Terminal) -> None:
    run = terminal.launch("--set", "search_space.base_lr=1e30", "--set", "search.n_trials=3", "--set", "search.enqueue=[]").finish(6)
    found = terminal.status()
    assert found["state"] == "failed"
    assert found["reason"] in run.stderr
