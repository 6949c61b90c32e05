"""How AutoFT connects: bounded waits, a name others can read, keep-alives on both ends, and no pooler that swaps sessions."""

from __future__ import annotations

import os
import select
import socket
import sqlite3
import time
from contextlib import closing
from typing import Any

import psycopg2
import psycopg2.extensions
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2

from autoft.errors import StorageError
from storage.urls import StorageURL

# A silent peer is given up after 10 s + 3 x 5 s on either side; a server then frees the lock of a machine that vanished.
_CLIENT_LIMITS: dict[str, object] = {
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
_SERVER_KEEPALIVES = "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; SET tcp_user_timeout = 25000"
# A role of the same name as our own schema would find that first on the default search_path, "$user", public: Optuna's tables and a study's
# lock would be looked for in two places, before our schema is made and after. Optuna's tables are never meant to be there.
_NOT_OUR_SCHEMA = (
    "SELECT set_config('search_path', regexp_replace(current_setting('search_path'), '\"\\$user\"\\s*,?\\s*', ''), false) WHERE current_user = 'autoft'"
)
_POOLER_PROBE_SECONDS = 3.0


def application_name() -> str:
    """`autoft:<host>:<pid>`, cut to what Postgres keeps (63 bytes)."""
    return f"autoft:{socket.gethostname()[:40]}:{os.getpid()}"


def connect_postgres(url: StorageURL, *, read_only: bool = False, keeps_locks: bool = False) -> Any:
    """A psycopg2 connection. The password goes to libpq and into no string that is kept.

    Args:
        url: a Postgres URL.
        read_only: every transaction of this connection is read-only.
        keeps_locks: the connection will hold session-level locks, so a transaction-mode pooler is refused.

    Raises:
        StorageError: a transaction-mode pooler stands in between.
        psycopg2.Error: the server cannot be reached or refuses; `storage_errors` turns it into a line for people.
    """
    arguments = _connect_arguments(url)
    connection = psycopg2.connect(**arguments)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(_SERVER_KEEPALIVES)
            cursor.execute(_NOT_OUR_SCHEMA)
        if keeps_locks:
            _refuse_transaction_pooler(connection, arguments, url)
        connection.autocommit = False
        if read_only:
            connection.set_session(readonly=True)
    except BaseException:
        connection.close()
        raise
    return connection


def connect_sqlite(url: StorageURL) -> sqlite3.Connection:
    """A connection that can only read, and never makes the file.

    Opened with mode=rw all the same: a writer that was killed may have left a journal, which a mode=ro connection cannot roll back.
    """
    connection = sqlite3.connect(f"{url.path.as_uri()}?mode=rw", uri=True, timeout=30, check_same_thread=False)
    connection.execute("PRAGMA query_only = ON")
    return connection


def _connect_arguments(url: StorageURL) -> dict[str, Any]:
    _, given = PGDialect_psycopg2().create_connect_args(url.sqlalchemy)  # type: ignore[no-untyped-call]
    return {**_CLIENT_LIMITS, **given, "application_name": application_name()}


def backend_pid(connection: Any) -> int:
    """Process id of the server process behind a connection."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def _refuse_transaction_pooler(connection: Any, arguments: dict[str, Any], url: StorageURL) -> None:
    """Session-level locks need one server process for the life of the connection.

    A direct connection was told its server's process id when it began. Behind a pooler that id is the pooler's invention; then a
    second client opens a transaction, and if it is served by the process that was ours, or ours changes, sessions are not kept.
    """
    ours = backend_pid(connection)
    if ours == connection.info.backend_pid:
        return
    with closing(psycopg2.connect(**arguments, async_=True)) as other:
        deadline = time.monotonic() + _POOLER_PROBE_SECONDS
        if not _wait(other, deadline):
            return
        with other.cursor() as cursor:
            cursor.execute("BEGIN; SELECT pg_backend_pid()")
            if not _wait(other, deadline):  # it waits for our server process: the pool keeps sessions
                return
            theirs = int(cursor.fetchone()[0])
            swapped = theirs == ours or backend_pid(connection) != ours
    if swapped:
        raise StorageError(
            f"database {url.safe}: a pooler in transaction mode stands before Postgres, so a study's lock would not stay with us; "
            "connect to Postgres itself or use the pooler's session mode"
        )


def _wait(connection: Any, deadline: float) -> bool:
    """Drive an asynchronous connection until it is idle; False when the deadline passes first."""
    while (state := connection.poll()) != psycopg2.extensions.POLL_OK:
        reading = [connection] if state == psycopg2.extensions.POLL_READ else []
        writing = [connection] if state == psycopg2.extensions.POLL_WRITE else []
        if not any(select.select(reading, writing, [], max(0.0, deadline - time.monotonic()))):
            return False
    return True
