"""A real Postgres on a TCP port that can be killed and started again. The programs are those of the embedded server."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import psycopg2

from storage.embedded import make_cluster, run_tool, start_cluster
from tests.chaos.processes import collect, eventually, is_alive
from tests.postgres_fixtures import free_port

ROLE = "tuner"  # owns the database, and is no superuser
SUPERUSER = "postgres"
DATABASE = "chaos"


@dataclass(frozen=True)
class Database:
    """A server in a scratch folder: everybody is trusted on its private socket, over TCP a password is asked for."""

    data: Path
    port: int
    password: str
    place: Callable[[Callable[[], None]], None]  # calls a function where the server is to run, for instance on another network

    def url(self, host: str = "127.0.0.1") -> str:
        return f"postgresql://{ROLE}:{quote(self.password, safe='')}@{host}:{self.port}/{DATABASE}"

    def socket_url(self) -> str:
        return f"postgresql://{ROLE}@/{DATABASE}?host={self.data}&port={self.port}"

    def start(self) -> None:
        self.place(lambda: start_cluster(self.data, self.data, f"-p {self.port}"))

    def stop(self, mode: str = "immediate") -> None:
        """`pg_ctl stop`: "immediate" gives no session the time to end."""
        run_tool("pg_ctl", "stop", "-m", mode, "-w", "-D", str(self.data))

    def kill(self) -> None:
        """SIGKILL every process of the server, as a power cut would end them."""
        postmaster = psutil.Process(self.pid())
        family = [postmaster, *postmaster.children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        assert eventually(lambda: not any(is_alive(process) for process in family)), family
        collect(family)

    def pid(self) -> int:
        """Process id of the postmaster."""
        return int((self.data / "postmaster.pid").read_text().split()[0])

    def answers(self) -> bool:
        """Whether it takes connections now."""
        try:
            psycopg2.connect(host=str(self.data), port=self.port, user=SUPERUSER, dbname="postgres", connect_timeout=3).close()
        except psycopg2.OperationalError:
            return False
        return True

    def execute(self, statement: str, values: tuple[Any, ...] = (), database: str = DATABASE) -> list[tuple[Any, ...]]:
        """Run one statement as the superuser, over the socket, unnoticed by whoever uses the database; its rows."""
        connection = psycopg2.connect(host=str(self.data), port=self.port, user=SUPERUSER, dbname=database, connect_timeout=10)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement, values or None)
                return list(cursor.fetchall()) if cursor.description else []
        finally:
            connection.close()

    def finished(self, study: str) -> int:
        """Finished trials of a study; 0 where there is none yet."""
        try:
            (row,) = self.execute(
                "SELECT count(*) FROM trials JOIN studies USING (study_id) WHERE study_name = %s AND state IN ('COMPLETE', 'PRUNED')", (study,)
            )
        except psycopg2.errors.UndefinedTable:
            return 0
        return int(row[0])

    def dump(self) -> dict[str, str]:
        """Every row of every table that is not the server's own, as text, by table."""
        names = self.execute("SELECT quote_ident(schemaname) || '.' || quote_ident(tablename) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')")
        return {name: "\n".join(str(row[0]) for row in self.execute(f"SELECT t::text FROM {name} t")) for (name,) in names}

    def remade(self) -> None:
        """The database anew, with nothing in it."""
        self.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)", database="postgres")
        self.execute(f"CREATE DATABASE {DATABASE} OWNER {ROLE}", database="postgres")


@contextlib.contextmanager
def postgres(
    listen: str = "127.0.0.1", trusted: str = "127.0.0.1/32", settings: str = "", place: Callable[[Callable[[], None]], None] = lambda start: start()
) -> Iterator[Database]:
    """A fresh server with an empty database; removed at the end.

    Args:
        listen: addresses it listens on, as in listen_addresses.
        trusted: network whose clients may log in with the password.
        settings: further lines of postgresql.conf.
        place: see `Database`.
    """
    folder = Path(tempfile.mkdtemp(prefix="autoft-chaos-pg-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp"))
    folder.chmod(0o755)
    data = folder / "data"
    data.mkdir()
    database = Database(data, free_port(), _password(), place)
    try:
        make_cluster(data, SUPERUSER, "--no-sync")
        with (data / "postgresql.conf").open("a") as file:
            file.write(f"listen_addresses = '{listen}'\nmax_connections = 60\nshared_buffers = 32MB\n{settings}")
        (data / "pg_hba.conf").write_text(f"local all all trust\nhost all all {trusted} scram-sha-256\n")
        database.start()
        database.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD %s", (database.password,), database="postgres")
        database.remade()
        yield database
    finally:
        with contextlib.suppress(Exception):
            database.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _password() -> str:
    """One that looks different in a URL, in JSON and in Python."""
    return 'ch4os{' + secrets.token_hex(8) + '}"\\/x+y'


def wait_until_up(database: Database, seconds: float = 60) -> None:
    """Raises AssertionError if the server does not answer in time."""
    assert eventually(database.answers, seconds, every=0.2), "the database does not answer"
    time.sleep(0.1)
