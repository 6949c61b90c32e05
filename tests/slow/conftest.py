"""Whole runs through the command line, as a person starts them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.postgres_fixtures import fast_folder


@dataclass(frozen=True)
class Home:
    """A user's data folder, caches and run folders, away from the real ones."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """Environment of a command."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AUTOFT_STORAGE")}
        return {**clean, "AUTOFT_HOME": str(self.folder / "home"), "AUTOFT_CACHE_DIR": str(self.folder / "cache")}

    @property
    def runs(self) -> Path:
        """Where run folders are."""
        return self.folder / "runs"

    def autoft(self, *arguments: str | Path, timeout_seconds: float = 1200, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end and check its exit code."""
        command = [sys.executable, "-m", "autoft.cli.main", *map(str, arguments)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=timeout_seconds)
        assert done.returncode == code, f"{' '.join(command[2:])} ended with {done.returncode}:\n{done.stderr[-4000:]}"
        return done

    def start(self, *arguments: str | Path) -> "subprocess.Popen[str]":
        """Start a command and leave it running."""
        command = [sys.executable, "-m", "autoft.cli.main", *map(str, arguments)]
        return subprocess.Popen(command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def summary(self, study: str) -> dict[str, Any]:
        """A run's summary.json."""
        value: dict[str, Any] = json.loads((self.runs / study / "summary.json").read_text(encoding="utf-8"))
        return value


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    """A fresh user."""
    with fast_folder() as folder:
        yield Home(folder)


@pytest.fixture
def check_run(home: Home) -> Callable[[str, int], dict[str, Any]]:
    """Checks that a run folder holds everything a finished study leaves; returns the summary."""

    def check(study: str, n_trials: int) -> dict[str, Any]:
        from autoft.report.schema import check_summary

        run, summary = home.runs / study, home.summary(study)
        check_summary(summary)
        assert summary["state"] == "complete"
        assert summary["search"]["n_complete"] + summary["search"]["n_pruned"] == n_trials
        for name in ("study.yaml", "journal.jsonl", "trials.csv", "report.html", "plots/history.png", "plots/alpha_curve.png"):
            assert (run / name).stat().st_size > 0
        status = json.loads(home.autoft("status", study, "--json").stdout)
        assert (status["state"], status["n_running"], status["n_complete"] + status["n_pruned"]) == ("complete", 0, n_trials)
        return summary

    return check
