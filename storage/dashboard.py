"""The stock optuna-dashboard on a storage, served from this process: the password is in no command line and no file."""

from __future__ import annotations

import errno
import io
import logging
import socketserver
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from optuna.storages import RDBStorage
from optuna_dashboard import wsgi

from autoft.errors import ClusterError
from storage.seam import storage_errors
from storage.tables import open_tables, prepare_tables
from storage.urls import StorageURL

logger = logging.getLogger(__name__)

_Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
_READS = ("GET", "HEAD", "OPTIONS")


def serve_dashboard(url: StorageURL, host: str = "127.0.0.1", port: int = 8080) -> None:
    """Serve the dashboard until interrupted. It has no log-in: whoever reaches the port can change and delete studies.

    Raises:
        StorageError: the database cannot be reached or used.
        ClusterError: the port is taken, or the address is not one of this machine.
    """
    with make_dashboard_server(url, host, port) as server:
        server.serve_forever()


def make_dashboard_server(url: StorageURL, host: str = "127.0.0.1", port: int = 8080) -> DashboardServer:
    """The server, bound but not serving yet; port 0 takes a free one. Raises as `serve_dashboard` does."""
    with storage_errors(url):
        prepare_tables(url)  # by the owner, once, so that no visitor's request ever does
        database = open_tables(url, engine_kwargs={"pool_size": 2, "max_overflow": 4, "pool_pre_ping": True}, create=False)
    try:
        return DashboardServer((host, port), database)
    except (OSError, OverflowError) as error:
        database.engine.dispose()
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        reason = "the port is in use" if taken else getattr(error, "strerror", None) or str(error)
        raise ClusterError(f"cannot serve the dashboard on {host}:{port}: {reason}; choose another host or port") from None


class DashboardServer(socketserver.ThreadingMixIn, WSGIServer):
    """One thread a request. `with server:` closes the port and the database's connections."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], database: RDBStorage) -> None:
        self._database = database
        super().__init__(address, _Handler)
        self.set_app(_guarded(wsgi(database)))

    @property
    def url(self) -> str:
        """Where a browser on this machine finds it."""
        host, port = self.server_address[:2]
        shown = "127.0.0.1" if host in ("0.0.0.0", "") else str(host)
        return f"http://{shown}:{port}"

    def server_bind(self) -> None:
        """As the base class, but without asking the name service what this host is called, which may hang."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def server_close(self) -> None:
        super().server_close()
        self._database.engine.dispose()

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("request from %s failed", client_address, exc_info=True)


class _Handler(WSGIRequestHandler):
    """Logs to the module's logger; the base class prints."""

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)

    def get_stderr(self) -> Any:
        return _LogWriter()


class _LogWriter(io.TextIOBase):
    def write(self, text: str) -> int:
        if text.strip():
            logger.warning("%s", text.rstrip())
        return len(text)


def _guarded(application: Any) -> _Application:
    """Refuse what a stock dashboard lets any visitor or any web page do: migrate the schema, and write from another site."""

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")
        origin = environ.get("HTTP_ORIGIN")
        foreign = origin is not None and urlsplit(origin).netloc != environ.get("HTTP_HOST")
        if method not in _READS and (foreign or path.rstrip("/") == "/incompatible-rdb-schema"):
            start_response("403 Forbidden", [("Content-Type", "application/json")])
            return [b'{"reason": "refused"}']
        answer: Iterable[bytes] = application(environ, start_response)
        return answer

    return guarded
