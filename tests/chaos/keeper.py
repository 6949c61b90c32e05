"""Keeps one coordinator of a study running, as a supervisor would, and counts how the earlier ones ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tests.chaos.database import Database
from tests.chaos.diary import Diary
from tests.chaos.processes import Event, Program

DATABASE_ERROR = 3  # exit code


class Keeper:
    """Launches a coordinator, and the next one when it has ended; 0 is the end of the study.

    Attributes:
        given_up: coordinators that ended by themselves: exit code, last words, and whether they had not handed out a trial yet.
        outages: when the database was away, by the clock that events have.
    """

    def __init__(self, launch: Callable[[], Program], database: Database, diary: Diary) -> None:
        self._launch, self._database, self._diary = launch, database, diary
        self.programs: list[Program] = []
        self.given_up: list[dict[str, Any]] = []
        self.outages: list[tuple[float, float]] = []
        self._down_since: float | None = None
        self.is_done = False
        self._next_launch = 0.0

    @property
    def current(self) -> Program | None:
        """The coordinator that runs, if one does."""
        return self.programs[-1] if self.programs and self.programs[-1].code() is None else None

    @property
    def events(self) -> list[Event]:
        """Events of all coordinators so far."""
        return [event for program in self.programs for event in program.events]

    def look(self) -> None:
        """Note how the last coordinator ended, and launch another one while the study is not done."""
        if self.is_done or self.current is not None:
            return
        if self.programs and (code := self.programs[-1].code()) is not None and not self.programs[-1].noted:
            self._ended(self.programs[-1], code)
        if not self.is_done and self._down_since is None and time.monotonic() >= self._next_launch:
            self.programs.append(self._launch())
            self._diary.note("coordinator launched", count=len(self.programs))

    def kill(self) -> Program | None:
        """SIGKILL the coordinator; None if none runs."""
        program = self.current
        if program is not None:
            program.kill()
            program.noted = True
        return program

    def database_down(self) -> None:
        """From now on the database does not answer."""
        self._down_since = time.time()

    def database_up(self) -> None:
        """It does again."""
        assert self._down_since is not None
        self.outages.append((self._down_since, time.time()))
        self._down_since = None

    @property
    def is_down(self) -> bool:
        """Whether the database has been taken away."""
        return self._down_since is not None

    def ended_for_want_of_the_database(self, *, while_starting: bool) -> int:
        """Coordinators that ended by themselves because the database was away: before they had handed out a trial, or after."""
        return sum(end["code"] == DATABASE_ERROR and end["while_starting"] == while_starting for end in self.given_up)

    def _ended(self, program: Program, code: int) -> None:
        program.wait(10)
        program.noted = True
        if code == 0:
            self.is_done = True
            self._diary.note("coordinator done")
            return
        said = program.stderr.strip().splitlines()[-1:] or [""]
        while_starting = not any(event["event"] == "trial_started" for event in program.events)
        self.given_up.append({"code": code, "while_starting": while_starting, "said": said[0][:300]})
        self._diary.note("coordinator ended by itself", **self.given_up[-1])
        self._next_launch = time.monotonic() + 1.0
