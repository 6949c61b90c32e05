"""`points`: SIGKILL after each kind of durable step of a run in one process; the resumed run must equal one that was never killed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.database import Database, postgres
from tests.chaos.diary import Diary
from tests.chaos.scene import IN_PROCESS, Scene, scene
from tests.chaos.trials import outcome, trials_of

LEAST = 20  # points
MOST = 28
SMALL = 5
RUN_SECONDS = 180.0
KILLED = -9
TORN = "torn:journal.jsonl"
CLOCK = ("search_seconds", "final_seconds", "confirm_seconds", "workers")  # of summary.json's cost


class Server:
    """A process that has imported everything and forks one launch after the other."""

    def __init__(self, where: Scene, hash_seed: str) -> None:
        command = [sys.executable, "-m", "tests.chaos.launch_with_kill", "--many"]
        env = {**where.env, "PYTHONHASHSEED": hash_seed}
        self._process = subprocess.Popen(command, env=env, cwd=where.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert self._answer(RUN_SECONDS)["event"] == "ready"

    def run(self, point: str, which: int | str, env: dict[str, str], output: Path, command: list[str]) -> int:
        """One launch; its exit code."""
        request = {"point": point, "which": which, "env": env, "output": str(output), "command": command}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._answer(RUN_SECONDS)["code"])

    def _answer(self, seconds: float) -> dict[str, Any]:
        import selectors

        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                self._process.kill()
                raise AssertionError(f"no answer from the launches within {seconds} s")
        line = self._process.stdout.readline()
        assert line, "the server of launches has died"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(10)


@dataclass
class _Field:
    """One study that is run again and again, each time on a fresh database and in a fresh run folder."""

    where: Scene
    database: Database
    first: Server  # is killed
    second: Server  # goes on, with another order of sets and dictionaries of strings

    def run(self, server: Server, runs: str, point: str = "none", which: int | str = 0) -> tuple[int, str]:
        """A launch; its exit code and what it said."""
        output = self.where.folder / f"{runs}.log"
        begin = output.stat().st_size if output.exists() else 0
        env = {"AUTOFT_STORAGE_URL": self.database.url(), "AUTOFT_CACHE_DIR": str(self.where.folder / f"cache-{runs}")}
        command = ["launch", str(self.where.study), "--runs", runs, *IN_PROCESS]
        code = server.run(point, which, env, output, command)
        return code, output.read_text()[begin:]

    def found(self, runs: str) -> dict[str, Any]:
        """Everything a run is to come to."""
        run_dir = self.where.run_dir(runs)
        return {
            "trials": outcome(trials_of(self.database, self.where.name)),
            "summary": results(run_dir),
            "files": {str(path.relative_to(run_dir)): _hash(path) for path in sorted((run_dir / "checkpoints").rglob("*")) if path.is_file()},
            "journal": Counter(json.loads(line)["number"] for line in (run_dir / "journal.jsonl").read_text().splitlines()),
        }


def run(diary: Diary, *, trials: int, workers: int, small: bool, full: bool) -> None:
    """Record the steps of an undisturbed run, choose points among them, and kill at each."""
    settings = {"search__n_trials": 3, "search__seed": diary.seed, "trial__steps": 3, "final__epochs": 2, "wise_ft__alphas": [0.5, 1.0], "search__confirm": {"top": 2, "repeats": 1}}
    with scene(diary, **settings) as where, postgres() as database, _field(where, database) as field:
        steps = where.folder / "steps"
        code, said = field.run(field.first, "reference", "record", str(steps))
        assert code == 0, said[-3000:]
        reference = field.found("reference")
        counts = Counter(steps.read_text().split("\n")[:-1])
        diary.note("undisturbed", steps=sum(counts.values()), kinds=len(counts))
        points = choose(counts, random.Random(diary.seed), SMALL if small else MOST)
        wrong, left = {}, {}
        for index, (point, n) in enumerate(points):
            problem, rest = _try(field, f"point-{index}", point, n, reference)
            if rest:
                left[f"{point} #{n}"] = rest
            diary.note("killed", after=point, occurrence=n, of=counts[point], **({"problem": problem} if problem else {}))
            if problem:
                wrong[f"{point} #{n}"] = problem
        diary.figures |= {"durable_steps": sum(counts.values()), "kinds_of_steps": len(counts), "points": len(points), "equal": len(points) - len(wrong)}
        diary.check(f"the process was killed at {SMALL if small else LEAST} points or more", len(points) >= (SMALL if small else LEAST), len(points))
        diary.check("every resumed run equals the one that was never killed", not wrong, wrong)
        diary.check("nothing half-made is left in the run folder", not left, left)


@contextlib.contextmanager
def _field(where: Scene, database: Database) -> Iterator[_Field]:
    first, second = Server(where, "1"), Server(where, "2")
    try:
        yield _Field(where, database, first, second)
    finally:
        first.stop()
        second.stop()


def choose(counts: Counter[str], chance: random.Random, most: int) -> list[tuple[str, int]]:
    """A random occurrence of each kind of step; of `most` kinds, if there are more, the torn line among them."""
    kinds = sorted(counts, key=lambda kind: (kind != TORN, chance.random()))[:most]
    return [(kind, chance.randint(1, counts[kind])) for kind in sorted(kinds)]


def _try(field: _Field, runs: str, point: str, n: int, reference: dict[str, Any]) -> tuple[str | None, list[str]]:
    """Kill at a point and go on; what is wrong with the result, and which half-made files are still there."""
    field.database.remade()
    code, said = field.run(field.first, runs, point, n)
    if code != KILLED:
        return f"was not reached: exit code {code}: {said[-300:]}", []
    code, said = field.run(field.second, runs)
    if code != 0 or "Traceback" in said:
        return f"the same command ended with {code}: {said[-600:]}", []
    found = field.found(runs)
    different = [f"{part}: {_difference(found[part], reference[part])}" for part in reference if found[part] != reference[part]]
    left = sorted(path.name for path in field.where.run_dir(runs).rglob(".*") if path.name.endswith((".partial", ".old")))
    for folder in (field.where.folder / runs, field.where.folder / f"cache-{runs}"):
        shutil.rmtree(folder, ignore_errors=True)
    return "; ".join(different) or None, left


def _difference(found: Any, wanted: Any) -> str:
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
        return ", ".join(f"{key}: {found.get(key)!r} instead of {wanted.get(key)!r}"[:200] for key in keys[:3])
    return f"{found!r} instead of {wanted!r}"[:400]


def results(run_dir: Path) -> dict[str, Any]:
    """A summary without what a clock says."""
    summary = json.loads((run_dir / "summary.json").read_text())
    for name in CLOCK:
        summary["cost"].pop(name, None)
    return {name: value for name, value in summary.items() if name != "versions"}


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


