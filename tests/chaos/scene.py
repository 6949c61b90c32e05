"""What every scenario starts from: a scratch folder, a tiny study, and coordinators that are launched as a user launches them."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.diary import Diary
from tests.chaos.processes import Program
from tests.studies import write_model, write_study

ROOT = Path(__file__).parents[2]
ON_CPU = ("--threads-per-worker", "1", "--device", "cpu", "--json")
IN_PROCESS = ("--executor", "in-process", *ON_CPU)
QUICK_END: dict[str, Any] = {"final__epochs": 1, "wise_ft__alphas": [1.0]}


@dataclass(frozen=True)
class Scene:
    """A scratch folder with a study file in it, and the environment programs are started with."""

    folder: Path
    study: Path
    env: dict[str, str]
    diary: Diary

    @property
    def name(self) -> str:
        return self.study.stem

    def run_dir(self, runs: str = "runs") -> Path:
        return self.folder / runs / self.name

    def launch(self, *flags: object, inside: Sequence[str] = (), program: Sequence[str] = ("-m", "autoft.cli.main"), **env: str) -> Program:
        """`autoft launch` on the study, in a process of its own."""
        command = [*inside, sys.executable, *program, "launch", str(self.study), *map(str, flags)]
        return Program(command, env={**self.env, **env}, cwd=self.folder)


@contextlib.contextmanager
def scene(diary: Diary, **changes: Any) -> Iterator[Scene]:
    """A fresh scratch folder with a tiny study; `changes` are `section__field=value`. Removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="autoft-chaos-", dir="/tmp"))
    diary.hidden |= {str(folder): "SCRATCH", str(ROOT): "CHECKOUT"}
    try:
        study = write_study(folder, write_model(folder / "model"), **changes)
        yield Scene(folder, study, environment(folder), diary)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def environment(folder: Path, **more: str) -> dict[str, str]:
    """This process's environment without what would reach the user's own studies, caches and cluster."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AUTOFT_", "RAY_", "PG"))}
    own = {"AUTOFT_HOME": str(folder / "home"), "AUTOFT_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    return {**kept, **own, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **more}
