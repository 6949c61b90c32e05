"""The server: a socket, waitress, and the database, opened so that it cannot be written unless visitors may edit."""

from __future__ import annotations

import dataclasses
import errno
import logging
import secrets
import socket
import threading
from typing import Any

import optuna
import waitress.server
from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import RDBStorage
from optuna_dashboard import wsgi
from waitress import wasyncore

from autoft.errors import ClusterError, StorageError
from storage.connections import connect_postgres, connect_sqlite
from storage.dashboard.guard import Guard
from storage.dashboard.hosts import Hosts, is_loopback
from storage.dashboard.options import DashboardOptions
from storage.dashboard.outages import Outages
from storage.dashboard.sign_in import SignIn
from storage.seam import guarded, storage_errors
from storage.tables import open_tables, prepare_tables, reading
from storage.urls import StorageURL

_THREADS = 8
_LARGEST_BODY = 2**20
_LARGEST_UPLOAD = 2**27
_LOOP_SECONDS = 1.0


def serve_dashboard(url: StorageURL, host: str = "127.0.0.1", port: int = 8080, options: DashboardOptions | None = None) -> None:
    """Serve the dashboard until interrupted. Raises as `make_dashboard_server` does."""
    with make_dashboard_server(url, host, port, options) as server:
        server.serve_forever()


def make_dashboard_server(url: StorageURL, host: str = "127.0.0.1", port: int = 8080, options: DashboardOptions | None = None) -> DashboardServer:
    """The server, bound but not serving yet; port 0 takes a free one.

    On an address that other machines reach, or with `require_sign_in`, visitors sign in; without another way to do so, with a token made here.

    Raises:
        StorageError: the database cannot be reached or used.
        ClusterError: the port is taken, or the address is not one of this machine.
    """
    options = options or DashboardOptions()
    with storage_errors(url):
        database = _open(url, options.allow_edit)
    try:
        bound = _bind(host, port)
    except BaseException:
        database.engine.dispose()
        raise
    return DashboardServer(bound, host, database, url, options)


class DashboardServer:
    """Serves requests in a few threads. `with server:` closes the port and the database's connections.

    Attributes:
        url: where a browser finds it; on all addresses, under this machine's name.
        sign_in_url: `url` with the token that was made here; None where none was made.
        asks_sign_in: whether visitors have to sign in.
        reaches_others: whether other machines can reach it.
    """

    def __init__(self, bound: socket.socket, host: str, database: RDBStorage, url: StorageURL, options: DashboardOptions) -> None:
        address, port = bound.getsockname()[:2]
        self._database, self._ending, self._ended = database, threading.Event(), threading.Event()
        self._ended.set()
        self.reaches_others = not is_loopback(address)
        self.asks_sign_in = options.require_sign_in or options.names_visitors or self.reaches_others
        made = secrets.token_urlsafe(32) if self.asks_sign_in and not options.names_visitors else None
        options = dataclasses.replace(options, token=made or options.token)
        self.url = f"http://{_shown(host, address)}:{port}"
        self.sign_in_url = f"{self.url}/?token={made}" if made else None
        sign_in = SignIn(options, port) if self.asks_sign_in else None
        store = FileSystemArtifactStore(options.artifacts) if options.artifacts else None
        outages = Outages(database.engine, url)
        application = Guard(wsgi(guarded(database, url), store), Hosts(host, address, options.allowed_hosts), sign_in, outages, options)
        _quieten_dashboard(outages)
        self._map: dict[int, Any] = {}
        self._server = waitress.server.create_server(
            application,
            map=self._map,
            sockets=[bound],
            threads=_THREADS,
            ident=None,
            clear_untrusted_proxy_headers=False,  # peers.py reads them, and from trusted proxies only
            max_request_body_size=_LARGEST_UPLOAD if options.allow_edit and store else _LARGEST_BODY,
            channel_timeout=60,
            connection_limit=200,
        )

    def serve_forever(self, poll_seconds: float = _LOOP_SECONDS) -> None:
        """Serve until `shutdown`, called from another thread, or an interrupt."""
        self._ended.clear()
        try:
            while not self._ending.is_set():
                wasyncore.loop(timeout=poll_seconds, map=self._map, count=1, use_poll=True)
        finally:
            self._ended.set()

    def shutdown(self) -> None:
        """Make `serve_forever` return, and wait until it has."""
        self._ending.set()
        self._server.pull_trigger()
        self._ended.wait()

    def close(self) -> None:
        """Close the port, what is still open on it, and the database's connections."""
        self._server.task_dispatcher.shutdown(timeout=5)
        wasyncore.close_all(self._map, ignore_all=True)
        self._database.engine.dispose()

    def __enter__(self) -> DashboardServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(url: StorageURL, may_write: bool) -> RDBStorage:
    """Optuna's tables, made by us where they are missing, so that no visitor's request ever does."""
    if may_write:
        ready = False
    else:
        with reading(url) as connection:
            ready = connection is not None
    if not ready:
        prepare_tables(url)
    # As many connections as threads: none waits for another's, and a pool that is full is never taken for an outage.
    kwargs: dict[str, Any] = {"pool_size": 2, "max_overflow": _THREADS - 2, "pool_pre_ping": True}
    if not may_write:
        kwargs["creator"] = (lambda: connect_postgres(url, read_only=True)) if url.is_postgres else (lambda: connect_sqlite(url))
    database = open_tables(url, engine_kwargs=kwargs, create=False)
    if database.get_current_version() != database.get_head_version():
        database.engine.dispose()
        raise StorageError(
            f"database {url.safe}: its tables were made by another version of Optuna than {optuna.__version__}; `optuna storage upgrade` mends old ones"
        )
    return database


def _bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ClusterError."""
    try:
        if not 0 <= port <= 65535:  # getaddrinfo takes what is left of a larger one
            raise OverflowError("a port is a number from 0 to 65535")
        family, kind, protocol, _, address = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, OverflowError) as error:
        raise _cannot_serve(host, port, error) from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)
        return bound
    except (OSError, OverflowError) as error:
        bound.close()
        raise _cannot_serve(host, port, error) from None


def _cannot_serve(host: str, port: int, error: Exception) -> ClusterError:
    taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
    reason = "the port is in use" if taken else getattr(error, "strerror", None) or str(error)
    return ClusterError(f"cannot serve the dashboard on {host}:{port}: {reason}; choose another host or port")


def _shown(host: str, address: str) -> str:
    if address in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{address}]" if ":" in address else address


class _OneLine(logging.Filter):
    """Of an error in optuna-dashboard, the operator reads one line, and of an outage the line that outages.py writes."""

    def __init__(self, outages: Outages) -> None:
        super().__init__()
        self._outages = outages

    def filter(self, record: logging.LogRecord) -> bool:
        if self._outages.happened:
            return False
        line = record.getMessage().partition("\n")[0][:500]
        record.msg, record.args, record.exc_info = "dashboard: " + "".join(c if c.isprintable() else "?" for c in line), (), None
        return True


def _quieten_dashboard(outages: Outages) -> None:
    theirs = logging.getLogger("optuna_dashboard._bottle_util")
    for known in [known for known in theirs.filters if isinstance(known, _OneLine)]:
        theirs.removeFilter(known)
    theirs.addFilter(_OneLine(outages))
