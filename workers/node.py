"""This machine as a node of a Ray cluster: its head, or one that offers cores and GPUs to a head elsewhere."""

import ctypes
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType

import ray
from ray.exceptions import AuthenticationError, RayError

from autoft.errors import ClusterError
from workers.cluster import OBJECT_STORE_BYTES, check_answers, first_line
from workers.inspect import inspect_token

logger = logging.getLogger(__name__)

START_SECONDS = 120.0
STOP_SECONDS = 20.0  # what Ray's processes are given to end
# Ray hands a node's environment to every worker on it, and workers need none of these.
SECRET_VARIABLES = ("AUTOFT_STORAGE_URL", "AUTOFT_STORAGE_URL_FILE", "PGPASSWORD", "PGPASSFILE", "OPENAI_API_KEY", "AUTOFT_DASHBOARD_TOKEN", "AUTOFT_DASHBOARD_TOKEN_FILE")
_DRAIN_VARIABLE = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"  # read by `ray start`


@dataclass(frozen=True, kw_only=True)
class NodeOffer:
    """What a node is, and what it gives to trials.

    address: HOST:PORT of the head to join; None: be a head.
    port: of a head, where the other nodes and studies find it; 0: a free one.
    job_server: HOST:PORT where a head takes detached launches.
    """

    cpus: int
    gpus: int
    address: str | None = None
    port: int = 6379
    job_server: str = "127.0.0.1:8265"


def check_versions(address: str) -> None:
    """Raise ClusterError unless the head lets us in and runs our versions of Ray and Python: its messages are pickled."""
    from ray._common.usage.usage_lib import get_cluster_metadata  # Ray has no public way to ask without starting a node
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    try:
        theirs = get_cluster_metadata(GcsClient(address=address)) or {}
    except AuthenticationError:
        asks = "another token than ours" if inspect_token().source else "a token, and there is none"
        raise ClusterError(
            f"the cluster at {address} asks for {asks}; copy the token file of its head, and name the copy with --token-file or RAY_AUTH_TOKEN_PATH"
        ) from None
    except (RayError, RuntimeError, OSError) as error:
        raise ClusterError(f"the cluster at {address} does not answer as it should: {first_line(error)}") from None
    ours = {"ray_version": ray.__version__, "python_version": ".".join(map(str, sys.version_info[:3]))}
    for name, what in (("ray_version", "Ray"), ("python_version", "Python")):
        if theirs.get(name, ours[name]) != ours[name]:
            raise ClusterError(f"the cluster at {address} runs {what} {theirs[name]} and this machine {ours[name]}; they have to be the same")


class Node:
    """Ray's processes on this machine, from `start` to `stop`.

    Args:
        drain_seconds: how long trials that run here may go on after a signal. Nothing new comes here then; the coordinator takes its idle
            workers away, and the others when their trial is done.
    """

    def __init__(self, offer: NodeOffer, drain_seconds: float) -> None:
        self._offer, self._drain_seconds = offer, drain_seconds
        self._said: deque[str] = deque(maxlen=200)
        self._process: subprocess.Popen[str] | None = None
        self._signalled: list[int] = []
        self.address = offer.address or ""
        self.job_server = ""  # of a head

    def start(self) -> None:
        """Start Ray's processes and wait until the cluster knows this node. Signals are noted from here on.

        Raises:
            ClusterError: the head does not answer, is of another version or asks for another token; or Ray cannot start.
        """
        if self._offer.address is not None:
            check_answers(self._offer.address, "--address")
            check_versions(self._offer.address)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)
        self._process = subprocess.Popen(
            start_command(self._offer),
            env=node_environment(os.environ, 0.0 if self._offer.address is None else self._drain_seconds),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C is for us: the node is to be drained first
            preexec_fn=_end_with_parent,
        )
        threading.Thread(target=self._read, daemon=True).start()
        self._wait(self._is_there, START_SECONDS, "did not start")

    def run(self) -> None:
        """Wait for SIGTERM or SIGINT, let trials that run here end, and stop. A second signal stops at once.

        Raises:
            ClusterError: Ray's processes ended by themselves, as they do when the head is gone.
        """
        assert self._process is not None
        while not self._signalled:
            if self._process.poll() is not None:
                head = "" if self._offer.address is None else f"; is the head at {self.address} gone?"
                raise ClusterError(f"the node ended by itself{head}\n{self._last_words()}")
            time.sleep(0.2)
        self.stop()

    def stop(self) -> None:
        """End Ray's processes; `ray start` drains the node when it is told to end."""
        if self._process is None:
            return
        self._process.terminate()
        heard, deadline = len(self._signalled), time.monotonic() + self._drain_seconds + STOP_SECONDS
        while self._process.poll() is None:
            if len(self._signalled) > heard or time.monotonic() > deadline:
                self._process.kill()  # its reaper ends the others
            time.sleep(0.1)

    def _is_there(self) -> bool:
        said = "\n".join(list(self._said))
        if self._offer.address is None and (found := re.search(r"--address='([^']+)'", said)):
            self.address = found[1]
        if found := re.search(r"RAY_API_SERVER_ADDRESS='([^']+)'", said):
            self.job_server = found[1]
        return bool(self.address) and "Ray runtime started." in said and (self._offer.address is not None or bool(self.job_server))

    def _wait(self, done: Callable[[], bool], seconds: float, otherwise: str) -> None:
        assert self._process is not None
        deadline = time.monotonic() + seconds
        while not done():
            if self._signalled:
                self.stop()
                raise KeyboardInterrupt
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise ClusterError(f"the node {otherwise}:\n{self._last_words()}")
            time.sleep(0.1)

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            self._said.append(line.rstrip())

    def _last_words(self) -> str:
        return "\n".join(list(self._said)[-12:]) or "Ray said nothing"

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signalled.append(number)


def start_command(offer: NodeOffer) -> list[str]:
    """`ray start` for this offer. It holds no secret: the token's path is in the environment."""
    command = [sys.executable, "-u", "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", "--log-style=record", "--log-color=false"]
    command += [f"--num-cpus={offer.cpus}", f"--num-gpus={offer.gpus}", f"--object-store-memory={OBJECT_STORE_BYTES}"]
    command += ["--dashboard-agent-listen-port=0"]  # its default is one port, and a machine may have several nodes
    if offer.address is not None:
        return [*command, f"--address={offer.address}"]
    host, _, port = offer.job_server.rpartition(":")
    return [*command, "--head", f"--port={offer.port}", "--include-dashboard=true", f"--dashboard-host={host}", f"--dashboard-port={port}"]


def node_environment(environment: Mapping[str, str], drain_seconds: float) -> dict[str, str]:
    """What Ray's processes get of our environment: no secrets of the database or a language model."""
    kept = {name: value for name, value in environment.items() if name not in SECRET_VARIABLES}
    return kept | {_DRAIN_VARIABLE: f"{drain_seconds:g}"}


def _end_with_parent() -> None:
    """Linux: the child gets SIGTERM when this process ends without a word, as by SIGKILL."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(1, signal.SIGTERM)
