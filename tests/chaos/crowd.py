"""`crowd`: many coordinators of one study started at once on an empty database. One runs it, the others say who does."""

from __future__ import annotations

import re
import signal
import socket
from collections import Counter
from collections.abc import Sequence

from tests.chaos.database import Database, postgres
from tests.chaos.diary import Diary
from tests.chaos.processes import Program, eventually
from tests.chaos.scene import IN_PROCESS, QUICK_END, Scene, scene
from tests.chaos.trials import check_trials, trials_of

COORDINATORS = 8
OWNED = 5  # exit code: the study is owned by another process
LOUD = ("Traceback", "UniqueViolation", "already exists", "deadlock")


def run(diary: Diary, *, trials: int, workers: int, small: bool, full: bool) -> None:
    """Each has a run folder of its own, so that they have nothing but the database to agree through."""
    count = 4 if small else COORDINATORS
    endless = {"search__n_trials": 10_000, "search__seed": diary.seed, "trial__steps": 60}
    with scene(diary, **endless, **QUICK_END) as where, postgres() as database:
        programs = [_launch(where, database, n) for n in range(count)]
        diary.note("coordinators launched", count=count)
        eventually(lambda: sum(program.code() is None for program in programs) <= 1, 400, every=0.2)
        left = [program for program in programs if program.code() is None]
        refused = [program for program in programs if program.code() == OWNED]
        codes = ["runs" if program.code() is None else str(program.code()) for program in programs]
        diary.note("one is left", codes=codes)
        diary.figures |= {"coordinators": count, "ended": dict(Counter(codes))}
        diary.check("one runs the study, the others end with exit code 5", len(left) == 1 and len(refused) == count - 1, codes)
        _check_words(diary, programs, refused, left)
        errors = [line for line in (database.data / "log").read_text(errors="replace").splitlines() if " ERROR: " in line]
        diary.check("no error in the server's log", not errors, errors[:5])
        if len(left) == 1:
            _finish(diary, where, database, left[0], programs.index(left[0]))


def _launch(where: Scene, database: Database, number: int, *flags: str) -> Program:
    return where.launch("--runs", f"runs-{number}", *flags, *IN_PROCESS, AUTOFT_STORAGE_URL=database.url())


def _check_words(diary: Diary, programs: Sequence[Program], refused: Sequence[Program], left: Sequence[Program]) -> None:
    for program in refused:
        program.wait(10)
    named = [re.compile(rf"study 'tiny' is run by process {owner.pid} on host {re.escape(socket.gethostname()[:40])}(?!\w)") for owner in left]
    strange = [program.stderr[-300:] for program in refused if not any(words.search(program.stderr) for words in named)]
    diary.check("each of the others names the owner's process and host", not strange, strange)
    loud = [program.stderr[-300:] for program in programs if any(word in program.stderr for word in LOUD)]
    diary.check("no error from making tables, no traceback", not loud, loud)


def _finish(diary: Diary, where: Scene, database: Database, owner: Program, number: int) -> None:
    """The owner stops when it is told, and what it leaves is whole."""
    if not any(event["event"] == "trial_ended" for event in owner.events):
        owner.wait_for("trial_ended", 120)
    owner.process.send_signal(signal.SIGTERM)
    diary.check("the owner stops on SIGTERM", owner.wait(120) == 128 + signal.SIGTERM, owner.tail()[-300:])
    finished = database.finished(where.name)
    last = _launch(where, database, number, "--set", f"search.n_trials={finished + 1}")
    diary.check("the same command goes on", last.wait(300) == 0, last.tail()[-300:])
    check_trials(diary, trials_of(database, where.name), finished + 1, where.run_dir(f"runs-{number}") / "journal.jsonl")
