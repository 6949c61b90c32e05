"""Processes of the suite: each in a session of its own, its output kept, and none of them left at the end."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

Event = dict[str, Any]
_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


class Program:
    """A running program. Lines of its stdout that are JSON objects are its events."""

    def __init__(self, command: Sequence[str], *, env: dict[str, str], cwd: Path) -> None:
        self.process = subprocess.Popen(
            list(command), env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            errors="replace", start_new_session=True,
        )
        self.events: list[Event] = []
        self.noted = False  # for whoever watches it: whether its end was seen
        self.stdout = ""
        self.stderr = ""
        self._coming: queue.Queue[Event | None] = queue.Queue()
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read_stdout, self._read_stderr)]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def code(self) -> int | None:
        """Its exit code, or None while it runs."""
        return self.process.poll()

    def wait_for(self, name: str, seconds: float = 120, **expected: Any) -> Event:
        """The next event of that name with these values. Raises AssertionError when it does not come."""
        deadline = time.monotonic() + seconds
        try:
            while (event := self._coming.get(timeout=max(0.01, deadline - time.monotonic()))) is not None:
                if event["event"] == name and all(event.get(key) == value for key, value in expected.items()):
                    return event
        except queue.Empty:
            raise AssertionError(f"no {name} {expected} within {seconds} s\n{self.tail()}") from None
        raise AssertionError(f"ended before {name} {expected} with {self.process.wait()}\n{self.tail()}")

    def wait(self, seconds: float = 120) -> int:
        """Its exit code. Raises AssertionError if it has not ended by then."""
        try:
            found = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s\n{self.tail()}") from None
        for reader in self._readers:
            reader.join(5)  # a grandchild may keep the pipe open
        return found

    def kill(self, number: int = signal.SIGKILL) -> None:
        """SIGKILL the process alone, as the kernel does when memory runs out."""
        self.process.send_signal(number)
        self.process.wait(30)

    def tail(self) -> str:
        """The end of what it said."""
        return f"{self.stdout[-2000:]}\n{self.stderr[-4000:]}".strip()

    def _read_stdout(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.stdout += line
            with contextlib.suppress(ValueError):
                event = json.loads(line) if line.startswith("{") else None
                if isinstance(event, dict) and "event" in event:
                    self.events.append(event)
                    self._coming.put(event)
        self._coming.put(None)

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.stderr += line


def run_bounded(command: Sequence[str], *, env: dict[str, str] | None = None, cwd: Path | None = None, seconds: float = 120) -> str:
    """Run a program to its end; what it said. Raises AssertionError if it fails or takes too long."""
    done = subprocess.run(list(command), env=env, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, start_new_session=True)
    assert done.returncode == 0, f"{command[0]} {command[1:3]} ended with {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout + done.stderr


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that has ended and was not collected by its parent does not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def eventually(condition: Callable[[], bool], seconds: float = 15, every: float = 0.05) -> bool:
    """Whether a condition becomes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


def descendants() -> list[psutil.Process]:
    """Every process this one started, directly or not: within `nothing_left` orphans too are its children."""
    return [process for process in psutil.Process().children(recursive=True) if is_alive(process)]


def title(process: psutil.Process) -> str:
    """The first word of a process's command line, or its name."""
    try:
        return (process.cmdline() or [process.name()])[0]
    except psutil.Error:
        return ""


def kill_tree(pid: int) -> None:
    """SIGKILL a process and all its descendants."""
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        for process in [top, *top.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Whatever is started within the block, however deep and however detached, is killed at its end.

    The process becomes the reaper of its orphaned descendants (prctl(2), PR_SET_CHILD_SUBREAPER), so that it knows all of them.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    try:
        yield
    finally:
        deadline = time.monotonic() + 30
        while (left := [process for process in descendants() if process.pid not in before]) and time.monotonic() < deadline:
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.1)
            collect(psutil.Process().children())


def collect(processes: Iterable[psutil.Process]) -> None:
    """Take note of the end of orphans, whose ids stay in use until somebody does: Postgres would take them for alive."""
    for process in processes:
        with contextlib.suppress(ChildProcessError, psutil.NoSuchProcess):
            if process.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(process.pid, os.WNOHANG)
