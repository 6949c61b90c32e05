"""What a database has, lacks and allows, found out without making or changing anything."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

import sqlalchemy
from alembic.script import ScriptDirectory
from sqlalchemy import text

from autoft.errors import StorageError
from storage.records.names import POSTGRES, place_of
from storage.records.schema import is_newer, needed_revision, reading, revision_in
from storage.records.tables import tables_in
from storage.seam import storage_errors
from storage.tables import first_schema, has_tables
from storage.urls import StorageURL


@dataclass(frozen=True)
class TableState:
    """The tables of one owner. schema: where they are or would be, None in SQLite; found: their revision, None: there are none."""

    schema: str | None
    found: str | None
    needed: str


@dataclass(frozen=True)
class DatabaseState:
    """What `check` found.

    Attributes:
        database: the URL, without secrets.
        server: what it is, with its version.
        optuna, records: Optuna's tables, and ours.
        can_create: the user may make what is missing. can_write: the user may write what is there.
        problems: what stands in the way of running studies, and what to do about it, one line each.
    """

    database: str
    server: str
    optuna: TableState
    records: TableState
    can_create: bool
    can_write: bool
    problems: tuple[str, ...]

    @property
    def usable(self) -> bool:
        """Whether studies can be run and recorded as it is."""
        return not self.problems


def check(url: StorageURL) -> DatabaseState:
    """Look at a database. Raises StorageError if it cannot be reached, or belongs to another program."""
    with storage_errors(url), reading(url) as connection:
        if connection is None:
            return _state(url, "no file yet", None, None, None, _writable(url), False)
        optuna = connection.scalar(text("SELECT version_num FROM alembic_version")) if has_tables(connection, url) else None
        ours = revision_in(connection, url)
        if url.is_sqlite:
            server = f"SQLite {connection.scalar(text('SELECT sqlite_version()'))}"
            return _state(url, server, None, optuna, ours, _writable(url), _writable(url))
        schema = first_schema(connection)
        server = f"PostgreSQL {connection.scalar(text('SHOW server_version'))}"
        return _state(url, server, schema, optuna, ours, _may_create(connection, schema), _may_write(connection, url, schema, optuna, ours))


def _state(
    url: StorageURL, server: str, schema: str | None, optuna: str | None, ours: str | None, can_create: bool, can_write: bool
) -> DatabaseState:
    theirs = TableState(schema, optuna, _optuna_needs())
    own = TableState(place_of(url).schema, ours, needed_revision())
    problems = tuple(_problems(theirs, own, can_create, can_write))
    return DatabaseState(url.safe, server, theirs, own, can_create, can_write, problems)


def _problems(optuna: TableState, ours: TableState, can_create: bool, can_write: bool) -> Iterator[str]:
    if optuna.found is None or ours.found is None:
        missing = " and ".join(name for name, state in (("Optuna's tables", optuna), ("the tables of recorded runs", ours)) if state.found is None)
        todo = "run: autoft db init" if can_create else "and this user may not make them: let the database's owner run autoft db init"
        yield f"{missing} are not there; {todo}"
    if optuna.found not in (None, optuna.needed):
        yield f"Optuna's tables are at {optuna.found}, the installed Optuna needs {optuna.needed}: run optuna storage upgrade, or install the other version"
    if is_newer(ours.found):
        yield f"the tables of recorded runs are at revision {ours.found}, made by a newer autoft than this one ({ours.needed}): update autoft"
    elif ours.found not in (None, ours.needed):
        yield f"the tables of recorded runs are at revision {ours.found}, this autoft needs {ours.needed}: run autoft db upgrade"
    if not can_write and (optuna.found is not None or ours.found is not None):
        yield "this user may not write: grant INSERT, UPDATE and DELETE on the tables and USAGE on their sequences, and see that the server is no read-only replica"


def _optuna_needs() -> str:
    """The newest revision the installed Optuna knows, from its own migrations: asking its storage object would write."""
    head = ScriptDirectory(str(files("optuna") / "storages" / "_rdb" / "alembic")).get_current_head()
    if head is None:
        raise StorageError("the installed Optuna has no migrations where its releases have them")
    return head


def _may_create(connection: sqlalchemy.Connection, schema: str | None) -> bool:
    """Whether Optuna's tables can be made in `schema`, and ours in ours, or the schemas themselves."""
    if _is_read_only(connection):
        return False
    known = set(sqlalchemy.inspect(connection).get_schema_names())
    anywhere = _has(connection, "has_database_privilege(current_database(), 'CREATE')")
    wanted = [name for name in (schema, POSTGRES.schema) if name is not None]
    return all(_has(connection, "has_schema_privilege(:schema, 'CREATE')", schema=name) if name in known else anywhere for name in wanted)


def _may_write(connection: sqlalchemy.Connection, url: StorageURL, schema: str | None, optuna: str | None, ours: str | None) -> bool:
    """Whether the tables that are there can be written."""
    if _is_read_only(connection):
        return False
    place = place_of(url)
    there = [(schema, name) for name in ("studies", "trials")] if optuna else []
    there += [(place.schema, table.name) for table in tables_in(place).metadata.sorted_tables] if ours else []
    quoted = [f'"{where}"."{name}"' for where, name in there]
    rights = ("INSERT", "UPDATE", "DELETE")  # asked one by one: a list of them asks for any
    return bool(there) and all(_has(connection, "has_table_privilege(:name, :right)", name=name, right=right) for name in quoted for right in rights)


def _is_read_only(connection: sqlalchemy.Connection) -> bool:
    """Of the server and the user; this connection itself is read-only by our own choice."""
    return _has(connection, "pg_is_in_recovery()") or connection.scalar(text("SHOW default_transaction_read_only")) == "on"


def _has(connection: sqlalchemy.Connection, function: str, **bound: str) -> bool:
    return bool(connection.scalar(text(f"SELECT {function}"), bound))


def _writable(url: StorageURL) -> bool:
    """Of SQLite: the file, and the folder for its journal."""
    folder = url.path.parent
    return os.access(folder, os.W_OK | os.X_OK) and (not url.path.exists() or os.access(url.path, os.W_OK))
