"""Who sends a request: the peer of the connection, or whom a trusted reverse proxy says it speaks for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from storage.dashboard.options import Network

Address = IPv4Address | IPv6Address
_USER = re.compile(r"[^\x00-\x1f\x7f]{1,200}")


class Peers:
    """Reads what proxies say, and only where a proxy says it."""

    def __init__(self, proxies: Sequence[Network], user_header: str | None) -> None:
        self._proxies = tuple(proxies)
        self._user_key = None if user_header is None else "HTTP_" + user_header.strip().upper().replace("-", "_")

    def user(self, environ: Mapping[str, Any]) -> str | None:
        """The user a trusted proxy has signed in."""
        if self._user_key is None or not self._from_proxy(environ):
            return None
        name = str(environ.get(self._user_key, "")).strip()
        return name if _USER.fullmatch(name) else None

    def is_encrypted(self, environ: Mapping[str, Any]) -> bool:
        """Whether a trusted proxy says that the visitor came over https."""
        return self._from_proxy(environ) and str(environ.get("HTTP_X_FORWARDED_PROTO", "")).strip().lower() == "https"

    def visitor(self, environ: Mapping[str, Any]) -> str:
        """The address failures are counted for; of IPv6 the /64 network, which one machine has whole."""
        address = _address(environ.get("REMOTE_ADDR"))
        if address is not None and self._trusts(address):
            said = [_address(part) for part in str(environ.get("HTTP_X_FORWARDED_FOR", "")).split(",")]
            address = next((one for one in reversed(said) if one is not None and not self._trusts(one)), address)
        if isinstance(address, IPv6Address):
            return str(IPv6Address(int(address) >> 64 << 64)) + "/64"
        return str(address)

    def _from_proxy(self, environ: Mapping[str, Any]) -> bool:
        address = _address(environ.get("REMOTE_ADDR"))
        return address is not None and self._trusts(address)

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._proxies)


def _address(text: object) -> Address | None:
    try:
        address = ip_address(str(text).strip().partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
