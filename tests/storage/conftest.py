"""Helpers of the storage tests: real processes, forked or new; Postgres comes from tests/postgres_fixtures.py."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storage import StorageURL, parse_storage_url
from tests.postgres_fixtures import fast_folder

ROOT = Path(__file__).parents[2]
_fork = multiprocessing.get_context("fork")


@pytest.fixture
def url(database_url: str) -> StorageURL:
    return parse_storage_url(database_url, "test")


@pytest.fixture(params=["postgres", "sqlite"])
def either_url(request: pytest.FixtureRequest) -> Iterator[StorageURL]:
    """A prepared Postgres, then a SQLite file that does not exist yet."""
    if request.param == "postgres":
        yield parse_storage_url(request.getfixturevalue("database_url"), "test")
        return
    with fast_folder() as folder:
        yield parse_storage_url(f"sqlite:///{folder}/studies.db", "test")


class Child:
    """A forked process that runs `function(send)`, and then waits to be told to end."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._here, there = _fork.Pipe()
        self.process = _fork.Process(target=_run_child, args=(there, function, arguments), daemon=True)
        self.process.start()
        there.close()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def result(self, timeout: float = 30) -> Any:
        assert self._here.poll(timeout), "the child said nothing"
        return self._here.recv()

    def finish(self) -> None:
        self._here.send("finish")
        self.process.join(30)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.process.join()  # with a limit it would wait for its children too


def _run_child(pipe: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        held = function(*arguments)  # kept alive until told to finish
        pipe.send("ok")
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
        return
    pipe.recv()
    if hasattr(held, "close"):
        held.close()


@pytest.fixture
def child() -> Iterator[Callable[..., Child]]:
    children: list[Child] = []

    def start(function: Callable[..., Any], *arguments: Any) -> Child:
        children.append(Child(function, *arguments))
        return children[-1]

    yield start
    for started in children:
        if started.process.is_alive():
            started.kill()


def python(script: str, *arguments: str, **keywords: Any) -> subprocess.Popen[str]:
    """A new interpreter that can import the packages; its output is piped."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **keywords.pop("env", {})}
    environment.pop("PYTEST_CURRENT_TEST", None)  # it repeats the test's parameters
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **keywords
    )


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
