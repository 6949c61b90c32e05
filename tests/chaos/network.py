"""Networks that can be cut: Linux network namespaces joined by bridges, or where that is not allowed, a TCP proxy."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000  # setns(2)


def why_no_namespaces() -> str | None:
    """Why network namespaces cannot be made here; None if they can."""
    if shutil.which("ip") is None:
        return "there is no program `ip` (Debian: iproute2)"
    name = f"probe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, timeout=20)
    if made.returncode != 0:
        return f"`ip netns add` says: {made.stderr.strip()}"
    bridge = subprocess.run(["ip", "-n", name, "link", "add", "name", "probe", "type", "bridge"], capture_output=True, text=True, timeout=20)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=20)
    return f"`ip link add type bridge` says: {bridge.stderr.strip()}" if bridge.returncode != 0 else None


@dataclass
class Network:
    """Hosts that are network namespaces, each with one cable to every bridge it is on. The machine's own network is not touched."""

    tag: str = field(default_factory=lambda: f"chaos{os.getpid()}")
    hosts: list[str] = field(default_factory=list)

    @property
    def _hub(self) -> str:
        return f"{self.tag}-hub"

    def add_bridge(self, bridge: str) -> None:
        """A switch, in a namespace of its own."""
        if not self.hosts:
            _ip("netns", "add", self._hub)
            self.hosts.append("hub")
        _ip("-n", self._hub, "link", "add", "name", bridge, "type", "bridge")
        _ip("-n", self._hub, "link", "set", "dev", bridge, "up")

    def add_host(self, host: str, addresses: Mapping[str, str]) -> None:
        """A namespace with an address on each of some bridges."""
        inside = f"{self.tag}-{host}"
        _ip("netns", "add", inside)
        self.hosts.append(host)
        _ip("-n", inside, "link", "set", "dev", "lo", "up")
        for bridge, address in addresses.items():
            _ip("link", "add", "name", f"to-{bridge}", "netns", inside, "type", "veth", "peer", "name", f"{host}-{bridge}", "netns", self._hub)
            _ip("-n", self._hub, "link", "set", "dev", f"{host}-{bridge}", "master", bridge, "up")
            _ip("-n", inside, "address", "add", f"{address}/24", "dev", f"to-{bridge}")
            _ip("-n", inside, "link", "set", "dev", f"to-{bridge}", "up")

    def inside(self, host: str) -> tuple[str, ...]:
        """What to put before a command so that it runs on a host, under the host's name."""
        return ("ip", "netns", "exec", f"{self.tag}-{host}", "unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', host)

    def run_inside(self, host: str, function: Callable[[], T]) -> T:
        """Call a function in a thread that is on a host; what it starts is there too."""
        found: list[T] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                with Path(f"/run/netns/{self.tag}-{host}").open() as namespace:
                    if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), "setns")
                found.append(function())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return found[0]

    def cut(self, host: str, bridge: str, how: str = "down") -> None:
        """Take a host off a bridge. `down`: it sees that the cable is out; `silent`: packets go nowhere, and nobody is told."""
        _ip("-n", self._hub, "link", "set", "dev", f"{host}-{bridge}", *(("down",) if how == "down" else ("nomaster",)))

    def restore(self, host: str, bridge: str) -> None:
        """Undo `cut`."""
        _ip("-n", self._hub, "link", "set", "dev", f"{host}-{bridge}", "master", bridge, "up")

    def remove(self) -> None:
        for host in self.hosts:
            subprocess.run(["ip", "netns", "del", f"{self.tag}-{host}"], capture_output=True, timeout=20)
        self.hosts.clear()


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A network without hosts yet; its namespaces are gone at the end, when their processes are."""
    made = Network()
    try:
        yield made
    finally:
        made.remove()


class Proxy:
    """Forwards TCP connections to a port of this machine. While it is cut, bytes wait and new connections are not answered."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open = threading.Event()
        self._open.set()
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._open.clear()

    def restore(self) -> None:
        self._open.set()

    def close(self) -> None:
        self._closed = True
        self._listener.close()
        self._open.set()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            self._open.wait()
            with socket.create_connection(("127.0.0.1", self._target), 10) as server:
                while not self._closed:
                    ready, _, _ = select.select([client, server], [], [], 1.0)
                    self._open.wait()
                    for end in ready:
                        data = end.recv(65536)
                        if not data:
                            return
                        (server if end is client else client).sendall(data)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr.strip()}"
