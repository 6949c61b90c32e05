"""`full_disk`: the run folder is on a file system that fills up, while results are written and while a checkpoint is. Then there is room again."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open

from tests.chaos.database import Database, postgres
from tests.chaos.diary import Diary
from tests.chaos.points import results
from tests.chaos.processes import Program
from tests.chaos.scene import IN_PROCESS, Scene, scene
from tests.chaos.trials import outcome, trials_of

DISK_BYTES = 40 * 1024**2
RUN_SECONDS = 300.0
_FULL = re.compile("No space left on device|disk is full")


def run(diary: Diary, *, trials: int, workers: int, small: bool, full: bool) -> None:
    """Fill the disk at three moments of one study, each time go on, and compare the end with an undisturbed run."""
    if os.geteuid() != 0:
        diary.check("a small file system can be mounted", False, "needs root, for mount -t tmpfs")
        return
    chance = random.Random(diary.seed)
    settings = {"search__n_trials": 30, "search__seed": diary.seed, "trial__steps": 10, "final__epochs": 3, "wise_ft__alphas": [0.5, 1.0]}
    with scene(diary, **settings) as where, postgres() as database, small_disk(where.folder / "disk") as disk:
        reference = _undisturbed(where, database)
        database.remade()
        moments: list[tuple[str, dict[str, Any]]] = [("trial_ended", {"trial": chance.randint(2, 6)}), ("epoch_ended", {"epoch": 1}), ("stage_started", {"stage": "wise_ft"})]
        diary.figures["times_filled"] = len(moments)
        for event, which in moments:
            _fill_and_go_on(diary, where, database, disk, event, which)
        last = _launch(where, database)
        diary.check("with room again, the same command ends the study", last.wait(RUN_SECONDS) == 0, last.tail()[-500:])
        if last.code() == 0:
            found = (outcome(trials_of(database, where.name)), results(disk / where.name))
            diary.check("and comes to what an undisturbed run comes to", found == reference)
        left = sorted(path.name for path in disk.rglob(".*") if path.name.endswith((".partial", ".old")))
        diary.check("nothing half-made is left in the run folder", not left, left)


def _launch(where: Scene, database: Database, runs: str = "disk") -> Program:
    return where.launch("--runs", runs, *IN_PROCESS, AUTOFT_STORAGE_URL=database.url())


def _undisturbed(where: Scene, database: Database) -> tuple[Any, Any]:
    program = _launch(where, database, "undisturbed")
    assert program.wait(RUN_SECONDS) == 0, program.tail()
    return outcome(trials_of(database, where.name)), results(where.run_dir("undisturbed"))


def _fill_and_go_on(diary: Diary, where: Scene, database: Database, disk: Path, event: str, which: dict[str, Any]) -> None:
    """Launch, fill the disk at an event, see how the run ends, and make room again."""
    moment = " ".join([event, *(f"{name}={value}" for name, value in which.items())])
    program = _launch(where, database)
    program.wait_for(event, RUN_SECONDS, **which)
    ballast = fill(disk)
    diary.note("disk filled", at_event=moment)
    code = program.wait(RUN_SECONDS)
    said = program.stderr.strip()
    diary.note("run ended", code=code, said=said[-300:])
    diary.check(f"{moment}: the run ends with a code for people's mistakes, not for bugs", code not in (0, 1, None) and code > 0, code)
    diary.check(f"{moment}: one message that says the disk is full, no traceback", _is_clear(said), said[-600:])
    broken = damaged(disk / where.name)
    diary.check(f"{moment}: nothing in the run folder is truncated", not broken, broken)
    ballast.unlink()


def _is_clear(said: str) -> bool:
    errors = [line for line in said.splitlines() if line.startswith("autoft launch:")]
    return "Traceback" not in said and len(errors) == 1 and _FULL.search(errors[0]) is not None


def damaged(run_dir: Path) -> list[str]:
    """Files that are not whole: JSON and checkpoints that cannot be read, journal lines that cannot (but for a torn last one)."""
    found = []
    for path in run_dir.rglob("*"):
        if path.is_dir() or ".partial" in str(path.relative_to(run_dir)):
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".safetensors":
                with safe_open(path, "pt") as file:
                    assert len(list(file.keys())) > 0
            elif path.suffix == ".jsonl":
                lines = path.read_text().split("\n")[:-1]
                numbers = Counter(json.loads(line)["number"] for line in lines)
                assert max(numbers.values(), default=1) == 1, numbers
            elif path.suffix in (".csv", ".html", ".yaml", ".md"):
                assert path.stat().st_size > 0
        except Exception as error:
            found.append(f"{path.name}: {type(error).__name__}: {error}"[:200])
    return found


def fill(disk: Path) -> Path:
    """Write a file until nothing more fits; returns it. What lies on the disk can still grow to the end of its last page."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (2**20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)
    return ballast


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A small tmpfs; unmounted at the end."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)], check=True, timeout=20)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False, timeout=20)
