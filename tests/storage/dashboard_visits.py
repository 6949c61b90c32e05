"""A dashboard that serves, and visits to it: bytes as they are given, so that a test can say what no browser would."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

from storage import StorageURL
from storage.dashboard import DashboardOptions, DashboardServer, make_dashboard_server

TOKEN = "a-token-that-nobody-guesses-7d1f"


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Site:
    """A dashboard and the port it is at."""

    server: DashboardServer
    port: int

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def token(self) -> str:
        """The one that was made and is shown in the terminal."""
        assert self.server.sign_in_url is not None
        return parse_qs(urlsplit(self.server.sign_in_url).query)["token"][0]

    def ask(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str | None) -> Answer:
        """One request. Header names are written with _ for -; a Host of None sends none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            given = {"Host": f"127.0.0.1:{self.port}", **{name.replace("_", "-"): value for name, value in headers.items()}}
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in given.items():
                if value is not None:
                    connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def write(self, path: str, method: str, content: object = None, **headers: str | None) -> Answer:
        """A request with a JSON body, as a program sends it."""
        return self.ask(path, method, json.dumps(content).encode(), **{"Content_Type": "application/json", **headers})

    def sign_in(self, token: str) -> str:
        """The Cookie header of a session."""
        answer = self.ask(f"/?token={token}")
        assert answer.status == 303, answer
        return answer.headers["set-cookie"].partition(";")[0]


@contextmanager
def serving(url: StorageURL, host: str = "127.0.0.1", **options: Any) -> Iterator[Site]:
    """A dashboard in a thread of its own."""
    with make_dashboard_server(url, host, 0, DashboardOptions(**options)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield Site(server, int(server.url.rpartition(":")[2]))
        server.shutdown()
        thread.join()
