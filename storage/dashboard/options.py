"""What a dashboard is started with. Secrets come from files and the environment, never from flags."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path

from autoft.errors import ConfigError
from storage.dashboard.hosts import host_name
from storage.urls import _take_variable

TOKEN_VARIABLE = "AUTOFT_DASHBOARD_TOKEN"
TOKEN_FILE_VARIABLE = "AUTOFT_DASHBOARD_TOKEN_FILE"
_SHORTEST_TOKEN = 16
Network = IPv4Network | IPv6Network


@dataclass(frozen=True)
class DashboardOptions:
    """The defaults are those of a person who looks at studies on their own machine.

    Attributes:
        allow_edit: let visitors change and delete studies; otherwise the database connections cannot write either.
        require_sign_in: ask for a sign-in even on loopback, where by default none is needed. Any other field about sign-in implies it.
        allowed_hosts: names of this dashboard in its visitors' address bars, beside those it knows itself.
        token: what is asked for at sign-in; None: one is made where it is needed.
        users: password hashes by user name; see `read_password_file`.
        proxies: networks of reverse proxies, believed when they say who the visitor is and whether the visitor's connection is encrypted.
        proxy_header: the header in which such a proxy names a user that has signed in there, such as X-Forwarded-User.
        artifacts: folder of the studies' artifacts; None: artifacts are not served.
        access_log: gets one line a request, without query strings; None: nothing is logged.
    """

    allow_edit: bool = False
    require_sign_in: bool = False
    allowed_hosts: tuple[str, ...] = ()
    token: str | None = field(default=None, repr=False)
    users: Mapping[str, str] = field(default_factory=dict, repr=False)
    proxies: tuple[Network, ...] = ()
    proxy_header: str | None = None
    artifacts: Path | None = None
    access_log: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        if self.proxy_header is not None and not self.proxies:
            raise ConfigError("--trust-proxy-header needs --proxy ADDRESS: a header is believed only when it comes from that address")
        if self.token is not None and (len(self.token) < _SHORTEST_TOKEN or not self.token.isascii() or not self.token.isprintable()):
            raise ConfigError(f"the dashboard's token must be at least {_SHORTEST_TOKEN} printable ASCII characters; `openssl rand -hex 32` makes one")
        for name in self.allowed_hosts:
            if host_name(name) is None:
                raise ConfigError(f"--allowed-host: {name!r} is not a host name such as dashboard.example.org")
        if self.artifacts is not None and not self.artifacts.is_dir():
            raise ConfigError(f"--artifacts: {self.artifacts} is not a folder")

    @property
    def names_visitors(self) -> bool:
        """Whether there is a way to sign in already, so that no token has to be made."""
        return self.token is not None or bool(self.users) or self.proxy_header is not None


def parse_network(text: str) -> Network:
    """An address or a network of proxies: `10.0.0.7`, `10.0.0.0/24`, `fd00::/64`. Raises ConfigError."""
    try:
        network = ip_network(text.strip(), strict=False)
    except ValueError:
        raise ConfigError(f"--proxy: {text!r} is neither an IP address nor a network such as 10.0.0.0/24") from None
    if network.prefixlen == 0:
        raise ConfigError(f"--proxy: {text} is every address there is; give the proxy's own")
    return network


def take_token() -> str | None:
    """The token given by AUTOFT_DASHBOARD_TOKEN or AUTOFT_DASHBOARD_TOKEN_FILE, taken out of the environment; None without either.

    Raises:
        ConfigError: both are set, or the file cannot be read or is empty.
    """
    token = (_take_variable(TOKEN_VARIABLE) or "").strip()
    file = os.environ.get(TOKEN_FILE_VARIABLE)
    if token and file:
        raise ConfigError(f"both {TOKEN_VARIABLE} and {TOKEN_FILE_VARIABLE} are set; give one of them")
    if not file:
        return token or None
    try:
        token = Path(file).expanduser().read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII text"
        raise ConfigError(f"{TOKEN_FILE_VARIABLE}: cannot read {file}: {reason}") from None
    if not token:
        raise ConfigError(f"{TOKEN_FILE_VARIABLE}: {file} is empty")
    return token
