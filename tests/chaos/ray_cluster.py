"""A real Ray cluster of several nodes on this machine, each started with `ray start`, so that one can be lost and another one join."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.chaos.processes import Program, descendants, eventually, is_alive, kill_tree, title
from tests.postgres_fixtures import free_port

OBJECT_STORE_BYTES = 80_000_000
START_SECONDS = 90
# Ray's own patience with a silent node is about 20 s; shorter here, so that a scenario need not wait for it.
IMPATIENT = {"RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "5"}


@dataclass(eq=False)
class Node:
    """One node: the `ray start --block` process and the raylet it started."""

    program: Program
    raylet: psutil.Process
    cpus: int


@dataclass
class RayCluster:
    """A head that computes nothing, and worker nodes.

    Attributes:
        inside: by which the programs are started elsewhere, for instance in a network namespace: ("ip", "netns", "exec", NAME).
    """

    folder: Path
    env: dict[str, str]
    token: str
    address: str = ""
    head: Node | None = None
    nodes: list[Node] = field(default_factory=list)

    def start_head(self, inside: Sequence[str] = (), ip: str | None = None) -> None:
        port = free_port()
        options = ["--head", f"--port={port}", "--num-cpus=0", "--no-monitor", "--include-dashboard=false", f"--temp-dir={self.folder}", *([f"--node-ip-address={ip}"] if ip else [])]
        self.head = self._start(options, inside, 0)
        self.address = f"{ip or self._ip()}:{port}"

    def add_node(self, cpus: int, inside: Sequence[str] = (), ip: str | None = None) -> Node:
        """Start a worker node; returns when its raylet runs."""
        options = [f"--address={self.address}", f"--num-cpus={cpus}", *([f"--node-ip-address={ip}"] if ip else [])]
        node = self._start(options, inside, cpus)
        self.nodes.append(node)
        return node

    def remove_node(self, node: Node) -> None:
        """SIGKILL a node's raylet and whatever else of it is left: the machine is gone."""
        self.nodes.remove(node)
        node.raylet.kill()
        kill_tree(node.program.pid)
        assert eventually(lambda: not is_alive(node.raylet))

    def workers(self, busy: bool = False) -> list[psutil.Process]:
        """Actor processes that run trials, or are loaded for it; `busy`: only those at work on one."""
        wanted = "ray::TrialWorker.run" if busy else "ray::TrialWorker"
        return [process for process in descendants() if title(process).startswith(wanted)]

    def _ip(self) -> str:
        """The address the head told its nodes to use."""
        assert self.head is not None
        found = [part for part in self.head.raylet.cmdline() if part.startswith("--node_ip_address=")]
        return found[0].partition("=")[2]

    def _start(self, options: list[str], inside: Sequence[str], cpus: int) -> Node:
        common = ["--block", f"--object-store-memory={OBJECT_STORE_BYTES}", "--disable-usage-stats"]
        program = Program([*inside, sys.executable, "-m", "ray.scripts.scripts", "start", *options, *common], env=self.env, cwd=self.folder)
        found: list[psutil.Process] = []

        def has_started() -> bool:
            if program.code() is not None:
                raise AssertionError(f"ray start {options[0]} ended with {program.code()}\n{program.tail()}")
            with contextlib.suppress(psutil.NoSuchProcess):
                found[:] = [child for child in psutil.Process(program.pid).children(recursive=True) if title(child).endswith("/raylet")]
            return bool(found) and "Ray runtime started" in program.stdout + program.stderr

        assert eventually(has_started, START_SECONDS, every=0.2), f"ray start {options[0]} takes too long\n{program.tail()}"
        return Node(program, found[0], cpus)


@contextlib.contextmanager
def ray_cluster(env: dict[str, str]) -> Iterator[RayCluster]:
    """A cluster without nodes yet, with a token of its own; everything of it is killed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # its sockets need a short path
    token = secrets.token_hex(32)
    (folder / "token").write_text(token)
    (folder / "token").chmod(0o600)
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"), "RAY_USAGE_STATS_ENABLED": "0", **IMPATIENT}
    cluster = RayCluster(folder, {**env, **own}, token)
    try:
        yield cluster
    finally:
        for node in [*cluster.nodes, *([cluster.head] if cluster.head else [])]:
            kill_tree(node.program.pid)
        eventually(lambda: _removed(folder), 10, every=0.2)


def _removed(folder: Path) -> bool:
    """Remove a folder; False if what is dying has written into it meanwhile."""
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()
