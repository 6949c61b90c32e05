"""Asks the cluster every few seconds, without waiting for the answer: a head that is gone gives none."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from autoft.errors import ClusterError

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
SILENT_SECONDS = 40.0  # after 60 Ray ends the process without a word of ours

T = TypeVar("T")


class Watch(Generic[T]):
    """Calls `look` in a thread of its own, at most every `LOOK_SECONDS` and one call at a time."""

    def __init__(self, look: Callable[[], T]) -> None:
        self._look = look
        self._asked = time.monotonic()
        self._asking: threading.Thread | None = None
        self._answers: list[T] = []

    def news(self, now: float) -> T | None:
        """What was seen since the last call, if anything was. Never blocks.

        Raises:
            ClusterError: the cluster has not answered for `SILENT_SECONDS`.
        """
        if self._asking is not None and not self._asking.is_alive():
            self._asking = None
        if self._asking is None and now - self._asked >= LOOK_SECONDS:
            self._asked = now
            self._asking = threading.Thread(target=self._ask, daemon=True)
            self._asking.start()
        if self._asking is not None and now - self._asked > SILENT_SECONDS:
            message = f"the head of the Ray cluster has not answered for {now - self._asked:.0f} s; start it and its workers again, then this study"
            logger.error("%s", message)  # leaving the cluster may take Ray so long that it ends the process
            raise ClusterError(message)
        return self._answers.pop() if self._answers else None

    def _ask(self) -> None:
        try:
            self._answers[:] = [self._look()]
        except Exception as error:  # of Ray, whose errors here are many; if it lasts, it shows elsewhere
            logger.info("the cluster cannot be looked at: %s", error)
