"""Ends a call that waits for a database which is frozen rather than gone.

A server that is stopped (a suspended container, a disk that hangs) still acknowledges packets, so that no time-out of TCP helps, and libpq waits
in C, where no signal reaches Python. Shutting the socket down turns the call into an ordinary outage.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

HANG_SECONDS = 60.0  # longer than any answer takes; ten thousand trials are read in slices of 500
_LOOK_SECONDS = 1.0


class Watchdog:
    """Watches the calls of one connection, from `start` to `stop`.

    Args:
        busy_since: monotonic time since when a call waits; None: none does.
        descriptor: of the connection's socket; None: there is none.
    """

    def __init__(self, busy_since: Callable[[], float | None], descriptor: Callable[[], int | None]) -> None:
        self._busy_since, self._descriptor = busy_since, descriptor
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog of the database", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stopped.set()

    def _run(self) -> None:
        ended: float | None = None  # the call that was ended last
        while not self._stopped.wait(_LOOK_SECONDS):
            since = self._busy_since()
            if since is None or since == ended or time.monotonic() - since < HANG_SECONDS:
                continue
            descriptor = self._descriptor()
            if descriptor is not None:
                ended = since
                logger.warning("the database has not answered for %.0f s; its connection is given up", time.monotonic() - since)
                _shut_down(descriptor)


def _shut_down(descriptor: int) -> None:
    try:
        with socket.socket(fileno=os.dup(descriptor)) as end:
            end.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it was closed meanwhile
