"""Says why nothing runs: a demand the cluster cannot meet waits without a word in Ray."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from workers.capacity import Node, shortage
from workers.cluster import WorkerSpec, plural

logger = logging.getLogger(__name__)

WARN_SECONDS = 60.0

Observe = Callable[[dict[str, Any]], None]


class Waiting:
    """Warns, at most every `WARN_SECONDS`, while no worker is ready; and once each time when fewer fit than are wanted.

    Args:
        look: the cluster's nodes.
        observe: takes the event "waiting", with the warning as its "message".
        now: seconds, now.
    """

    def __init__(self, spec: WorkerSpec, look: Callable[[], Sequence[Node]], observe: Observe, now: float) -> None:
        self._spec, self._look, self._observe = spec, look, observe
        self._since = self._warned = now
        self._unplaced_since: float | None = None
        self._told_unplaced = False

    def note(self, now: float, ready: int, loading: int, unplaced: int) -> None:
        """What the workers do: run or can run trials; load model and data; wait for room in the cluster."""
        if ready:
            self._since = self._warned = now
            self._note_some(now, ready, unplaced)
        elif now - self._warned >= WARN_SECONDS:
            self._warned = now
            busy = f"{plural(loading, 'worker')} loading model and data; " if loading else ""
            self._say(f"no worker has been ready for {now - self._since:.0f} s: {busy}{shortage(self._look(), self._spec)}", now)

    def _note_some(self, now: float, ready: int, unplaced: int) -> None:
        if not unplaced:
            self._unplaced_since, self._told_unplaced = None, False
            return
        self._unplaced_since = now if self._unplaced_since is None else self._unplaced_since
        if not self._told_unplaced and now - self._unplaced_since >= WARN_SECONDS:
            self._told_unplaced = True
            found = shortage(self._look(), self._spec)
            self._say(f"{ready} of {plural(ready + unplaced, 'worker')} found room in the cluster, the study goes on with {ready}: {found}", now)

    def _say(self, message: str, now: float) -> None:
        logger.warning("%s", message)
        self._observe({"event": "waiting", "message": message, "seconds": round(now - self._since, 1)})
