"""Nodes of a cluster on this machine, each a real `autoft worker` in a process of its own."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil

from tests.launching import ROOT

START_SECONDS = 180  # on a busy machine


class Worker:
    """`autoft worker ...`, from when it says that it is there."""

    def __init__(self, folder: Path, *flags: object, **environment: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AUTOFT_STORAGE", "PG"))}
        places = {"RAY_TMPDIR": str(folder), "HOME": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "autoft.cli.main", "worker", *map(str, flags)],
            env={**kept, **places, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.said = ""
        self._there = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._there.wait(START_SECONDS), f"autoft worker takes too long\n{self.said}"

    @property
    def address(self) -> str:
        """HOST:PORT of the cluster's head."""
        return self.said.partition("cluster at ")[2].partition(";")[0]

    @property
    def job_server(self) -> str:
        """Of a head."""
        return self.said.partition("job server:")[2].partition(",")[0].strip()

    def tell(self, number: int = signal.SIGTERM) -> None:
        """Send a signal to the command itself."""
        self.process.send_signal(number)

    def wait(self, seconds: float = 90) -> int:
        """Until it has ended; its exit code."""
        code = self.process.wait(seconds)
        self._reader.join(5)
        return code

    def vanish(self) -> None:
        """As when a machine is taken away: every process of the node is killed at once, and nothing says goodbye."""
        for process in [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait(30)

    def close(self) -> None:
        """End it if it still runs."""
        if self.process.poll() is None:
            self.tell()
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self.vanish()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if line.startswith("Stop it with"):
                self._there.set()
        self._there.set()
