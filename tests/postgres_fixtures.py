"""Fixtures with a real Postgres: one server a session, one database a test, cloned from a template that has Optuna's tables.

`tests/conftest.py` imports them, so that every suite shares the one server. Each URL is the text a user would give.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg2
import pytest

from storage.embedded import make_cluster, run_tool, start_cluster
from storage.tables import prepare_tables
from storage.urls import parse_storage_url

PASSWORD = "S3cr{et-9f2c41"
ROLE = "tuner"  # owns the databases, and is no superuser
_SUPERUSER = "postgres"
_TEMPLATE = "autoft_template"
_numbers = itertools.count()


@dataclass(frozen=True)
class PostgresServer:
    """A server with a private socket, where everybody is trusted, and a TCP port on 127.0.0.1, where a password is asked for."""

    data: Path
    port: int

    def socket_url(self, database: str) -> str:
        return f"postgresql://{ROLE}@/{database}?host={self.data}&port={self.port}"

    def password_url(self, database: str) -> str:
        return f"postgresql://{ROLE}:{quote(PASSWORD)}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres", user: str = _SUPERUSER) -> list[tuple[object, ...]]:
        """Run one statement over the socket; its rows."""
        connection = psycopg2.connect(host=str(self.data), port=self.port, user=user, dbname=database)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def create_database(self, template: str = "template1") -> str:
        name = f"test_{next(_numbers)}"
        self.execute(f"CREATE DATABASE {name} OWNER {ROLE} TEMPLATE {template}")
        return name

    def drop_database(self, name: str) -> None:
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def start(self) -> None:
        start_cluster(self.data, self.data, f"-p {self.port} -c listen_addresses=127.0.0.1 -c max_connections=200 -c fsync=off -c shared_buffers=32MB")

    def stop(self, mode: str) -> None:
        run_tool("pg_ctl", "stop", "-m", mode, "-w", "-D", str(self.data))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def fast_folder() -> Iterator[Path]:
    """A folder for databases: in memory where there is room, and not in pytest's own, which another user cannot get through."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**30
    folder = Path(tempfile.mkdtemp(prefix="autoft-test-", dir=memory if roomy else "/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with fast_folder() as folder:
        server = PostgresServer(folder / "data", free_port())
        server.data.mkdir()
        make_cluster(server.data, _SUPERUSER, "--no-sync")
        (server.data / "pg_hba.conf").write_text("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
        server.start()
        try:
            server.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'")
            server.execute(f"CREATE DATABASE {_TEMPLATE} OWNER {ROLE}")
            prepare_tables(parse_storage_url(server.socket_url(_TEMPLATE), "template"))
            yield server
        finally:
            server.stop("immediate")


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[str]:
    """Name of a database of this test's own, with Optuna's tables and no study."""
    name = postgres_server.create_database(_TEMPLATE)
    yield name
    postgres_server.drop_database(name)


@pytest.fixture
def database_url(postgres_server: PostgresServer, database: str) -> str:
    """`database` over the socket, without a password."""
    return postgres_server.socket_url(database)


@pytest.fixture
def password_database_url(postgres_server: PostgresServer, database: str) -> str:
    """`database` over TCP, with a password that has a brace in it, percent-encoded."""
    return postgres_server.password_url(database)


@pytest.fixture
def empty_database(postgres_server: PostgresServer) -> Iterator[str]:
    """Name of a database with nothing in it."""
    name = postgres_server.create_database()
    yield name
    postgres_server.drop_database(name)


@pytest.fixture
def empty_database_url(postgres_server: PostgresServer, empty_database: str) -> str:
    return postgres_server.socket_url(empty_database)
