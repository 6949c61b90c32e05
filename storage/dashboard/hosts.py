"""Which names a request may come under.

A web page elsewhere can make its own name point at this machine (DNS rebinding); a browser then takes our answers for that page's own. Such a
request carries the page's name in its Host header, so only names of ours are answered. An address is no name: nobody can rebind it.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from ipaddress import ip_address
from urllib.parse import urlsplit

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9_.-]{1,253}))(?::\d{1,5})?")


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class Hosts:
    """The names of one dashboard."""

    def __init__(self, bound: str, address: str, allowed: Iterable[str]) -> None:
        """`bound` is what was asked for, `address` the socket's own."""
        self._any_address = address in ("0.0.0.0", "::")
        names = {bound, address, *(host_name(name) or "" for name in allowed), *_LOOPBACK_NAMES}
        if not is_loopback(address):
            names.add(socket.gethostname())
        self._names = {_plain(name) for name in names} - {""}

    def allows(self, header: str | None) -> bool:
        """Whether a Host header is one of ours, whatever its port."""
        name = host_name(header)
        return name is not None and (name in self._names or (self._any_address and _is_address(name)))


def host_name(header: str | None) -> str | None:
    """The name in a Host header, lower case, without port and brackets; None if it is not one."""
    match = _HOST.fullmatch(header or "")
    return _plain(match.group(1) or match.group(2)) if match else None


def same_origin(origin: str, host: str | None) -> bool:
    """Whether an Origin header names the site that a Host header does."""
    parts = urlsplit(origin)
    return parts.scheme in ("http", "https") and host is not None and parts.netloc.lower() == host.lower()


def _plain(name: str) -> str:
    return name.strip().strip("[]").rstrip(".").lower()


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
