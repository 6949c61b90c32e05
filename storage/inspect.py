"""What the server behind a storage URL is like, for `autoft doctor`. It only looks; `storage.records.check` says what tables there are."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from autoft.errors import StorageError
from storage.connections import connect_postgres
from storage.seam import storage_errors
from storage.urls import StorageURL

_HERE = ("localhost", "127.0.0.1", "::1")
_FACTS = """
SELECT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
       current_setting('max_connections')::int,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
       current_setting('fsync') = 'on' AND current_setting('full_page_writes') = 'on'
"""


@dataclass(frozen=True, kw_only=True)
class ServerFacts:
    """What was found.

    Attributes:
        superuser: the role may do anything.
        connections, max_connections: in use, and allowed.
        durable: what is committed survives a power cut.
        encrypted: None where the server is on this machine.
        pooler: why what stands before Postgres cannot be used; None where nothing is wrong.
        clock_ahead_seconds: the server's clock minus this machine's.
    """

    superuser: bool
    connections: int
    max_connections: int
    durable: bool
    encrypted: bool | None
    pooler: str | None
    clock_ahead_seconds: float


def inspect_server(url: StorageURL) -> ServerFacts:
    """Look at a Postgres server. Raises StorageError where it cannot be reached or refuses."""
    with storage_errors(url), closing(connect_postgres(url, read_only=True)) as connection, connection.cursor() as cursor:
        cursor.execute(_FACTS)
        superuser, most, used, durable = cursor.fetchone()
        return ServerFacts(
            superuser=bool(superuser),
            connections=int(used),
            max_connections=int(most),
            durable=bool(durable),
            encrypted=bool(connection.info.ssl_in_use) if is_remote(url) else None,
            pooler=_pooler(url),
            clock_ahead_seconds=_clock_ahead(cursor),
        )


def is_remote(url: StorageURL) -> bool:
    """Whether the way to the server leaves this machine."""
    query = url.sqlalchemy.query
    hosts = [url.sqlalchemy.host, query.get("host"), query.get("hostaddr")]
    return any(isinstance(host, str) and not host.startswith("/") and host not in _HERE for host in hosts)


def _pooler(url: StorageURL) -> str | None:
    try:
        connect_postgres(url, keeps_locks=True).close()
    except StorageError as error:
        return str(error)
    return None


def _clock_ahead(cursor: Any) -> float:
    """Of a few answers, the quickest: its time is known best. Seconds."""
    answers = []
    for _ in range(3):
        began, before = time.time(), time.monotonic()
        cursor.execute("SELECT extract(epoch FROM clock_timestamp())")
        took = time.monotonic() - before
        answers.append((took, float(cursor.fetchone()[0]) - began - took / 2))
    return min(answers)[1]
