"""Helpers for tests that run the command line in a process of its own, watch its events, and kill it at a given one."""

from __future__ import annotations

import atexit
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
Event = dict[str, Any]


def environment(home: Path, **more: str) -> dict[str, str]:
    """An environment with studies, caches and Ray's choice of cluster of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AUTOFT_", "RAY_", "PG"))}
    own = {"AUTOFT_HOME": str(home), "AUTOFT_CACHE_DIR": os.environ["AUTOFT_CACHE_DIR"], "PYTHONPATH": str(ROOT)}
    return {**kept, **own, "OMP_NUM_THREADS": "1", **more}


class Launch:
    """`autoft ...` in a session of its own; its events are read as they come."""

    def __init__(self, *arguments: object, env: dict[str, str], cwd: Path) -> None:
        command = [sys.executable, "-m", "autoft.cli.main", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        atexit.register(self.process.kill)  # should a test fail before it has ended
        self.events: list[Event] = []
        self.stdout = ""
        self.stderr = ""
        self._coming: queue.Queue[Event | None] = queue.Queue()
        self._readers = [threading.Thread(target=self._read_stdout, daemon=True), threading.Thread(target=self._read_stderr, daemon=True)]
        for reader in self._readers:
            reader.start()

    def wait_for(self, name: str, seconds: float = 120, **expected: Any) -> Event:
        """The next event of that name with these values."""
        deadline = time.monotonic() + seconds
        try:
            while (event := self._coming.get(timeout=max(0.01, deadline - time.monotonic()))) is not None:
                if event["event"] == name and all(event.get(key) == value for key, value in expected.items()):
                    return event
        except queue.Empty:
            raise AssertionError(f"no {name} {expected} within {seconds} s\n{self.stdout[-3000:]}\n{self.stderr}") from None
        raise AssertionError(f"ended before {name} {expected}: {self.process.wait()}\n{self.stderr}")

    def family(self) -> list[psutil.Process]:
        """The process and everything it started that still is its descendant."""
        try:
            process = psutil.Process(self.process.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> None:
        """SIGKILL the process, as the kernel does when memory runs out; returns when its descendants are gone too.

        Ray's two agents may stay for a minute, in which they try to tell the cluster's head that the node is lost.
        """
        heirs = [process for process in self.family()[1:] if "Agent" not in process.cmdline()[0]]
        self.process.kill()
        self.process.wait()
        assert eventually(lambda: not any(is_alive(process) for process in heirs)), heirs
        self.finish(-signal.SIGKILL)

    def finish(self, code: int = 0, seconds: float = 120) -> Launch:
        """Wait for the end and check the exit code."""
        found = self.process.wait(seconds)
        for reader in self._readers:
            reader.join(10)
        assert found == code, f"exit code {found}, expected {code}\n{self.stdout[-3000:]}\n{self.stderr[-5000:]}"
        return self

    def _read_stdout(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.stdout += line
            if line.startswith("{"):
                event = json.loads(line)
                self.events.append(event)
                self._coming.put(event)
        self._coming.put(None)

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.stderr += line


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that has ended and was not collected by its parent does not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def eventually(condition: Callable[[], bool], seconds: float = 15) -> bool:
    """Whether a condition becomes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def trials_of(url: str, study: str) -> list[Any]:
    """The trials of a study in a database."""
    from storage import load_study_readonly, parse_storage_url

    return load_study_readonly(parse_storage_url(url, "test"), study).get_trials(deepcopy=False)


def outcome(trials: list[Any]) -> list[tuple[int, str, dict[str, Any], float | None]]:
    """What must not depend on who ran a study and what died meanwhile."""
    return [(trial.number, trial.state.name, trial.params, trial.value) for trial in trials]


def results(run_dir: Path) -> Event:
    """A summary without what a clock says."""
    summary = json.loads((run_dir / "summary.json").read_text())
    for name in ("search_seconds", "final_seconds", "workers"):
        del summary["cost"][name]
    return {name: value for name, value in summary.items() if name not in ("versions", "study")}
