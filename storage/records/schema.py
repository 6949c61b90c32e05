"""Our tables in a database: made, migrated, and known by their revision. Alembic does it, in one transaction and one process at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import psycopg2.errors
import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import DBAPIError

from autoft import __version__
from autoft.errors import StorageError
from storage.records.names import VERSION_TABLE, Place, place_in, place_of
from storage.records.tables import tables_in
from storage.seam import storage_errors
from storage.tables import engine_of, one_at_a_time
from storage.urls import StorageURL

_DENIED = (
    "{reason}. Let the database's owner run: CREATE SCHEMA {schema} AUTHORIZATION {role}; where the schema is there already: "
    "GRANT USAGE, CREATE ON SCHEMA {schema} TO {role}; GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {role}; "
    "GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {role}"
)


class RecordsDenied(StorageError):
    """The database does not let this user make or write our tables; a run can go on, unrecorded."""


def init_records(url: StorageURL) -> None:
    """Make our tables where there are none. Safe when many processes do so at once on an empty database.

    Raises:
        RecordsDenied: the user may not make them.
        StorageError: they are there and older or newer than this program, or another program's are in their place.
    """
    with storage_errors(url), denied(url):
        if _stand(url):
            return
        with one_at_a_time(url), writing(url) as connection:
            revision = revision_in(connection, url)
            if revision is None:
                _migrate(connection, needed_revision())
            else:
                check_revision(url, revision)


def upgrade(url: StorageURL) -> tuple[str | None, str]:
    """Bring our tables to what this program needs, making them where there are none; returns the revisions before (None: none) and after.

    Raises:
        RecordsDenied, StorageError: as `init_records`; nothing is changed then.
    """
    with storage_errors(url), denied(url), one_at_a_time(url), writing(url) as connection:
        before = revision_in(connection, url)
        _refuse_newer(url, before)
        _migrate(connection, needed_revision())
        return before, needed_revision()


def downgrade(url: StorageURL, revision: str = "base") -> None:
    """Bring our tables back to an earlier revision; with "base" nothing that was recorded stays."""
    with storage_errors(url), denied(url), one_at_a_time(url), writing(url) as connection:
        _refuse_newer(url, revision_in(connection, url))
        command.downgrade(_config(connection), revision)


def needed_revision() -> str:
    """The revision this program works with."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None
    return head


def _version_in(connection: sqlalchemy.Connection, place: Place) -> str | None:
    if not sqlalchemy.inspect(connection).has_table(VERSION_TABLE, schema=place.schema):
        return None
    heads = MigrationContext.configure(connection, opts=_versions(place)).get_current_heads()
    return heads[0] if heads else None


def revision_in(connection: sqlalchemy.Connection, url: StorageURL) -> str | None:
    """The revision our tables are at; None: there are none. Raises StorageError where others have their names."""
    place = place_of(url)
    if (found := _version_in(connection, place)) is not None:
        return found
    inspector = sqlalchemy.inspect(connection)
    taken = [table.name for table in tables_in(place).metadata.sorted_tables if inspector.has_table(table.name, schema=place.schema)]
    if taken and (found := _version_in(connection, place)) is not None:  # another process has made them since we looked, all at once
        return found
    if taken:
        where = f"schema {place.schema}" if place.schema else "the file"
        raise StorageError(f"database {url.safe}: {where} already holds another program's tables ({', '.join(taken)}); rename it, or use another database")
    return None


def check_revision(url: StorageURL, revision: str) -> None:
    """Raise StorageError unless this is the revision this program works with."""
    _refuse_newer(url, revision)
    if revision != needed_revision():
        raise StorageError(
            f"database {url.safe}: the tables of recorded runs are at revision {revision}, autoft {__version__} needs {needed_revision()}; "
            "make a backup, then run: autoft db upgrade"
        )


def is_newer(revision: str | None) -> bool:
    """Whether a revision is one this program does not know."""
    script = ScriptDirectory.from_config(_config())
    return revision is not None and revision not in {known.revision for known in script.walk_revisions()}


def configuration(connection: sqlalchemy.Connection) -> dict[str, Any]:
    """How Alembic is set up, for a migration and for the comparison of the models with a database."""
    place = place_in(connection.dialect.name)

    def ours(name: str | None, kind: str, parents: Any) -> bool:
        if kind == "schema":
            return name == place.schema
        return kind != "table" or (name or "").startswith(place.prefix)

    return {
        **_versions(place),
        "target_metadata": tables_in(place).metadata,
        "include_schemas": place.schema is not None,
        "include_name": ours,
        "transactional_ddl": True,  # of SQLite too: `writing` has begun the transaction
    }


@contextmanager
def writing(url: StorageURL) -> Iterator[sqlalchemy.Connection]:
    """A connection in one transaction, which is committed if the block ends without an error."""
    with engine_of(url) as engine, engine.begin() as connection:
        if url.is_sqlite:
            connection.exec_driver_sql("PRAGMA foreign_keys = ON")
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # Python's driver begins none before a CREATE TABLE
        yield connection


@contextmanager
def reading(url: StorageURL) -> Iterator[sqlalchemy.Connection | None]:
    """A connection that cannot write, or None where there is no SQLite file."""
    if url.is_sqlite and not url.path.exists():
        yield None
        return
    with engine_of(url, read_only=True) as engine, engine.connect() as connection:
        yield connection


@contextmanager
def denied(url: StorageURL) -> Iterator[None]:
    """Raise `RecordsDenied`, saying what to grant, where Postgres says that the user may not."""
    try:
        yield
    except DBAPIError as error:
        if not isinstance(error.orig, psycopg2.errors.InsufficientPrivilege):
            raise
        reason = str(error.orig).splitlines()[0].removeprefix("ERROR:").strip()
        role = url.sqlalchemy.username or "the user"
        text = _DENIED.format(reason=reason, schema=place_of(url).schema, role=role)
        raise RecordsDenied(f"database {url.safe}: {text}") from None


def _stand(url: StorageURL) -> bool:
    """Whether our tables are there and are the ones this program needs; takes no lock."""
    with reading(url) as connection:
        revision = None if connection is None else revision_in(connection, url)
    if revision is not None:
        check_revision(url, revision)
    return revision is not None


def _refuse_newer(url: StorageURL, revision: str | None) -> None:
    if is_newer(revision):
        raise StorageError(
            f"database {url.safe}: the tables of recorded runs are at revision {revision}, which autoft {__version__} does not know: "
            "a newer autoft made them; update this one"
        )


def _migrate(connection: sqlalchemy.Connection, revision: str) -> None:
    schema = place_in(connection.dialect.name).schema
    if schema is not None and schema not in sqlalchemy.inspect(connection).get_schema_names():
        connection.execute(sqlalchemy.schema.CreateSchema(schema))  # IF NOT EXISTS would need the right to make it even where it exists
    command.upgrade(_config(connection), revision)


def _config(connection: sqlalchemy.Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(files("storage.records") / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _versions(place: Place) -> dict[str, Any]:
    return {"version_table": VERSION_TABLE, "version_table_schema": place.schema}
