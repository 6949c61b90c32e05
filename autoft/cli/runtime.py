"""What the environment says: where studies, caches and clusters are; and how a run is stopped."""

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import platformdirs

from autoft.artifacts import safe_argument
from autoft.errors import Interrupted
from autoft.lifeline import ALWAYS_THERE, Lifeline, Wish, wants_end
from storage import StorageURL, embedded_url, take_storage_url


def storage_url() -> StorageURL:
    """AUTOFT_STORAGE_URL or AUTOFT_STORAGE_URL_FILE, else the embedded Postgres, started if needed. To be called once.

    Raises:
        StorageError: the URL is not valid, or the embedded Postgres cannot be started.
    """
    return take_storage_url() or embedded_url()


def home_dir() -> Path:
    """Where the embedded database and the demo are: AUTOFT_HOME, else the user's data folder."""
    return Path(os.environ.get("AUTOFT_HOME") or platformdirs.user_data_path("autoft")).expanduser()


def cache_dir() -> Path:
    """Where decoded images are kept: AUTOFT_CACHE_DIR, else the user's cache folder. AUTOFT_CACHE_BYTES bounds what this process keeps there.

    Raises:
        ConfigError: AUTOFT_CACHE_BYTES is no size.
    """
    from autoft.data.room import limit_cache, read_size

    limit = os.environ.get("AUTOFT_CACHE_BYTES", "").strip()
    limit_cache(read_size(limit, "AUTOFT_CACHE_BYTES") if limit else None)
    return Path(os.environ.get("AUTOFT_CACHE_DIR") or platformdirs.user_cache_path("autoft") / "images").expanduser()


def ray_address() -> str | None:
    """RAY_ADDRESS: an existing cluster; None: start Ray on this machine."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return address if address not in ("", "local") else None


@contextlib.contextmanager
def resumable(stop: "StopSignal") -> Iterator[None]:
    """Handle signals within the block; whatever stops it, the message says how to go on."""
    again = f"Nothing is lost. Go on with: {shlex.join(['autoft', *map(safe_argument, sys.argv[1:])])}"
    with stop.installed():
        try:
            yield
        except Interrupted as error:
            number = stop.number or (signal.SIGINT if error.exit_code else 0)
            raise Interrupted(f"{error}\n{again}", number) from None
        except KeyboardInterrupt:
            raise Interrupted(f"stopped\n{again}", stop.number or signal.SIGINT) from None


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """SIGINT and SIGTERM stop a run; a second one ends the process at once.

    They raise KeyboardInterrupt where the program stands, except within `deferred`, where calling this object says whether to stop.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.announces = True  # False where a live view says it
        self.lifeline: Lifeline = ALWAYS_THERE  # set when the study is open: other people's wishes
        self._deferred = False

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.number is not None

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals within the block."""
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        self._install()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def taken_back(self) -> Iterator[None]:
        """For a block in which a library installs handlers of its own: afterwards the signals are this object's again.

        One that came within the block raises KeyboardInterrupt at its end, whatever became of the exception of the library's handler;
        raised within a callback of compiled code it would have been lost.
        """
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)
        before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        try:
            yield
        except BaseException:  # the library's handler raises SystemExit; and what was interrupted may fail for that
            self._note(reading)
            raise
        else:
            self._note(reading)
        finally:
            signal.set_wakeup_fd(before)
            os.close(reading)
            os.close(writing)
            self._install()

    def _note(self, reading: int) -> None:
        """Raise KeyboardInterrupt if one of the two signals is among those written to the pipe."""
        with contextlib.suppress(BlockingIOError):
            came = [number for number in os.read(reading, 4096) if number in _SIGNALS]
            self.number = self.number or came[0] if came else self.number
        if self.number is not None:
            raise KeyboardInterrupt from None

    def _install(self) -> None:
        for number in _SIGNALS:
            signal.signal(number, self._handle)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within the block a signal is only noted, and whoever works looks at it between two steps."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def stops_trials(self) -> bool:
        """Whether trials that run are to end now."""
        return self() or self.lifeline.wish() == Wish.CANCEL

    def stops_stages(self) -> bool:
        """Whether the stages after the search are to end now, to go on another time."""
        return self() or wants_end(self.lifeline)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            os._exit(128 + number)
        self.number = number
        if not self._deferred:
            raise KeyboardInterrupt
        if self.announces:
            os.write(2, b"\nstopping after the current step; once more to stop at once\n")
