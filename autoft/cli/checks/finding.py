"""What a check says, and how one is run so that it can neither hang nor end the others."""

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from autoft.errors import AutoFTError, StorageError
from storage import StorageURL

logger = logging.getLogger(__name__)

Status = Literal["ok", "warning", "problem", "skipped"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the checks are about.

    storage: the database named in the environment; None: the embedded one; or why the name cannot be used.
    """

    runs: Path
    study: Path | None = None
    storage: StorageURL | StorageError | None = None


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's: what was looked at, how it is, and what to do. exit_code counts where it is a problem."""

    check: str
    status: Status
    detail: str
    advice: str = ""
    exit_code: int = 2


def ok(check: str, detail: str) -> Finding:
    """As it should be."""
    return Finding(check, "ok", detail)


def warning(check: str, detail: str, advice: str) -> Finding:
    """Studies run, but not as well or as safely as they could."""
    return Finding(check, "warning", detail, advice)


def problem(check: str, detail: str, advice: str, exit_code: int = 2) -> Finding:
    """A study would not run."""
    return Finding(check, "problem", detail, advice, exit_code)


def skipped(check: str, detail: str) -> Finding:
    """Not looked at, and why."""
    return Finding(check, "skipped", detail)


def run_check(name: str, check: Callable[[Asked], Iterable[Finding]], asked: Asked, seconds: float) -> list[Finding]:
    """The findings of one check, whatever happens in it; what it found before it failed is kept."""
    found: list[Finding] = []
    failed: list[Finding] = []

    def work() -> None:
        try:
            for finding in check(asked):
                found.append(finding)
        except AutoFTError as error:
            failed.append(problem(name, str(error), "mend this and run autoft doctor again", error.exit_code))
        except Exception as error:  # a check that is wrong must not hide what the others find
            logger.debug("check %s failed", name, exc_info=True)
            failed.append(warning(name, f"could not be checked: {type(error).__name__}: {_first_line(error)}", "report this as a bug of autoft"))

    thread = threading.Thread(target=work, name=f"doctor-{name}", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return [*found, problem(name, f"no answer within {seconds:g} s", "something hangs: a network, a driver or a file system")]
    return [*found, *failed]


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else "no message"
