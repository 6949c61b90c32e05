"""What the environment says: where studies, caches and clusters are; and how a run is stopped."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import platformdirs

from storage import StorageURL, embedded_url, take_storage_url


def storage_url() -> StorageURL:
    """AUTOFT_STORAGE_URL or AUTOFT_STORAGE_URL_FILE, else the embedded Postgres, started if needed. Raises StorageError."""
    return take_storage_url() or embedded_url()


def cache_dir() -> Path:
    """Where decoded images are kept: AUTOFT_CACHE_DIR, else the user's cache folder."""
    return Path(os.environ.get("AUTOFT_CACHE_DIR") or platformdirs.user_cache_path("autoft") / "images")


def ray_address() -> str | None:
    """RAY_ADDRESS: an existing cluster; None: start Ray on this machine."""
    return os.environ.get("RAY_ADDRESS") or None


class StopSignal:
    """SIGINT and SIGTERM ask for a clean stop; a second one ends the process at once."""

    def __init__(self) -> None:
        self.number = 0
        self._event = threading.Event()

    def __call__(self) -> bool:
        """Whether to stop."""
        return self._event.is_set()

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals within the block."""
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def reinstall(self) -> None:
        """Take the signals back from a library that has installed handlers of its own."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._event.is_set():
            os._exit(128 + number)
        self.number = number
        self._event.set()
        os.write(sys.stderr.fileno(), b"\nstopping after the current step; once more to stop at once\n")
