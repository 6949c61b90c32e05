"""The coordinator's line to its database and to the people who steer it: is the database there, do we still own the study, what is wished.

The database's side of it is `storage.pulse.Pulse`; a search without one (tests, an in-memory study) has `ALWAYS_THERE`.
"""

import logging
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from autoft.errors import Interrupted, StorageError, StorageUnavailable, StudyLocked

logger = logging.getLogger(__name__)

OUTAGE_LIMIT_SECONDS = 1800.0  # how long a database may be away before the run ends, resumable
WAIT_SECONDS = 0.2  # between two attempts
PROBE_SECONDS = 30.0  # ... where the pulse does not reach the database

T = TypeVar("T")
Observe = Callable[[dict[str, Any]], None]


class Wish(StrEnum):
    """What somebody asked of a study, as in W&B's sweeps: pause starts nothing new, stop lets what runs end, cancel does not."""

    RUN = "run"
    PAUSE = "pause"
    STOP = "stop"
    CANCEL = "cancel"


class Lifeline(Protocol):
    """What the coordinator asks between two steps. Answers at once, whatever the database does."""

    def reachable(self) -> bool:
        """Whether the database answered lately."""
        ...

    def returns(self) -> int:
        """How often the database has come back after it was away."""
        ...

    def wish(self) -> Wish:
        """The last wish that was read."""
        ...

    def check_owner(self) -> None:
        """Raise StudyLocked if another coordinator has taken the study over."""
        ...


class _AlwaysThere:
    def reachable(self) -> bool:
        return True

    def returns(self) -> int:
        return 0

    def wish(self) -> Wish:
        return Wish.RUN

    def check_owner(self) -> None:
        return


ALWAYS_THERE: Lifeline = _AlwaysThere()


def wants_end(lifeline: Lifeline) -> bool:
    """Whether somebody wishes the study to end, or it has another owner."""
    try:
        lifeline.check_owner()
    except StudyLocked:
        return True
    return lifeline.wish() in (Wish.STOP, Wish.CANCEL)


class Outage:
    """Whether the database is away, since when, and for how long we go on without it."""

    def __init__(self, lifeline: Lifeline, observe: Observe, limit_seconds: float = OUTAGE_LIMIT_SECONDS) -> None:
        self._lifeline, self._observe, self._limit = lifeline, observe, limit_seconds
        self._began: float | None = None
        self._tried = 0.0

    @property
    def is_on(self) -> bool:
        """Whether the last attempt failed."""
        return self._began is not None

    def began(self, error: StorageUnavailable) -> None:
        """An attempt failed.

        Raises:
            StorageError: the outage has lasted too long.
        """
        self._tried = time.monotonic()
        if self._began is None:
            self._began = self._tried
            logger.warning("the database is away; the run goes on without it for up to %.0f minutes (%s)", self._limit / 60, error)
            self._observe({"event": "outage_began", "message": str(error)})
        elif self._tried - self._began > self._limit:
            raise StorageError(f"the database has been away for {self._limit / 60:.0f} minutes; every result is in the run folder's journal ({error})")

    def ended(self) -> None:
        """An attempt succeeded."""
        if self._began is not None:
            seconds, self._began = time.monotonic() - self._began, None
            logger.warning("the database is back after %.0f s", seconds)
            self._observe({"event": "outage_ended", "seconds": seconds})

    def may_try(self) -> bool:
        """Whether an attempt is worth it now: always without an outage, else when the database answers, or has not been asked for long."""
        waited = time.monotonic() - self._tried
        return self._began is None or waited > PROBE_SECONDS or (waited > WAIT_SECONDS and self._lifeline.reachable())

    def patiently(self, action: Callable[[], T], should_stop: Callable[[], bool]) -> T:
        """Do something that may be done twice, again until the database has taken it.

        Raises:
            Interrupted: `should_stop()` said so meanwhile.
            StorageError: the outage has lasted too long.
        """
        while True:
            if self.may_try():
                try:
                    result = action()
                except StorageUnavailable as error:
                    self.began(error)
                else:
                    self.ended()
                    return result
            if should_stop():
                raise Interrupted("stopped while the database was away")
            time.sleep(WAIT_SECONDS)
