"""Optuna's tables: made once, by one process at a time, and only where the schema is free for them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
import sqlalchemy
from sqlalchemy.pool import NullPool

from autoft.errors import StorageError
from storage.connections import connect_postgres, connect_sqlite
from storage.locks import exclusive
from storage.urls import StorageURL

_TABLES_LOCK = int.from_bytes(hashlib.sha256(b"autoft tables").digest()[:8], "big", signed=True)
_LOCK_TIMEOUT_SECONDS = 60
_OPTUNA_REVISION = re.compile(r"v\d+\.\d+\.\d+\.[a-z]+")  # Optuna's Alembic revisions are named like v3.2.0.a

_FOREIGN = (
    "database {where} already holds another program's tables with an Alembic version of their own ({revision}), which Optuna's would "
    "overwrite; keep the studies in a schema of their own by adding ?options=-csearch_path%3Doptuna to the storage URL"
)


def prepare_tables(url: StorageURL) -> None:
    """Make Optuna's tables where they are missing. Safe when many processes do so at once on an empty database.

    Raises:
        StorageError: the schema belongs to another program, or was made by another version of Optuna.
    """
    with one_at_a_time(url), engine_of(url) as engine:
        with engine.connect() as connection:
            if url.is_postgres:
                _make_schema(connection)
            _refuse_foreign_tables(connection, url)
        open_tables(url, engine_kwargs={"poolclass": NullPool}, create=True).engine.dispose()


def has_tables(connection: sqlalchemy.Connection, url: StorageURL) -> bool:
    """Whether Optuna's tables are there and finished. Raises StorageError where they are another program's."""
    inspector = sqlalchemy.inspect(connection)
    if not inspector.has_table("alembic_version"):
        return False
    revision = connection.scalar(sqlalchemy.text("SELECT version_num FROM alembic_version"))
    if revision is not None and not _OPTUNA_REVISION.fullmatch(revision):
        raise StorageError(_FOREIGN.format(where=url.safe, revision=revision))
    return revision is not None and inspector.has_table("studies")


def open_tables(url: StorageURL, *, engine_kwargs: dict[str, object], create: bool) -> optuna.storages.RDBStorage:
    """Optuna's storage on this database; the URL it keeps has no password, because connections come from `creator`.

    Args:
        engine_kwargs: for SQLAlchemy's engine; a `creator` in it decides how to connect.
        create: make missing tables and check the schema's version. Otherwise neither is done: the check holds two connections.
    """
    if url.is_postgres:
        engine_kwargs = {"creator": lambda: connect_postgres(url), **engine_kwargs}
        bare = "postgresql+psycopg2://"
    else:
        bare = f"sqlite:///{url.path}".replace("{", "{{").replace("}", "}}")  # Optuna formats its URL
    try:
        return optuna.storages.RDBStorage(
            bare, engine_kwargs=engine_kwargs, skip_table_creation=not create, skip_compatibility_check=not create
        )
    except RuntimeError as error:  # Optuna's own word for a schema it cannot use
        raise StorageError(f"database {url.safe}: {error}") from None


@contextmanager
def reading(url: StorageURL) -> Iterator[sqlalchemy.Connection | None]:
    """A read-only connection, or None where there is nothing to read yet: no SQLite file, or no tables of Optuna."""
    if url.is_sqlite and not url.path.exists():
        yield None
        return
    with engine_of(url, read_only=True) as engine, engine.connect() as connection:
        yield connection if has_tables(connection, url) else None


def open_for_reading(url: StorageURL) -> optuna.storages.RDBStorage:
    """Optuna's storage on a connection that cannot write; the tables must exist."""
    kwargs: dict[str, object] = {"pool_size": 1, "max_overflow": 1, "pool_pre_ping": True}
    if url.is_postgres:
        kwargs["creator"] = lambda: connect_postgres(url, read_only=True)
    else:
        kwargs["creator"] = lambda: connect_sqlite(url)
    return open_tables(url, engine_kwargs=kwargs, create=False)


@contextmanager
def engine_of(url: StorageURL, *, read_only: bool = False) -> Iterator[sqlalchemy.Engine]:
    """An engine that keeps no connections, for short errands; disposed of at the end."""
    if url.is_postgres:
        engine = sqlalchemy.create_engine(
            "postgresql+psycopg2://", creator=lambda: connect_postgres(url, read_only=read_only), poolclass=NullPool
        )
    elif read_only:
        engine = sqlalchemy.create_engine("sqlite://", creator=lambda: connect_sqlite(url), poolclass=NullPool)
    else:
        engine = sqlalchemy.create_engine(f"sqlite:///{url.path}", poolclass=NullPool)
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def one_at_a_time(url: StorageURL) -> Iterator[None]:
    """Hold the lock under which tables are made, waiting up to a minute for it."""
    if url.is_sqlite:
        try:
            with exclusive(url.path.with_name(url.path.name + ".lock")):
                yield
        except OSError as error:
            raise StorageError(f"database {url.safe}: {error.strerror}") from None
        return
    connection = connect_postgres(url, keeps_locks=True)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = %s", (_LOCK_TIMEOUT_SECONDS * 1000,))
            cursor.execute("SELECT pg_advisory_lock(%s)", (_TABLES_LOCK,))
            connection.commit()
        yield
    finally:
        connection.close()


def first_schema(connection: sqlalchemy.Connection) -> str | None:
    """The schema that tables without one go to: the first of the search path that exists, else the first one named there."""
    current = connection.scalar(sqlalchemy.text("SELECT current_schema()"))
    if current is not None:
        return str(current)
    path = str(connection.scalar(sqlalchemy.text("SHOW search_path"))).split(",")
    return next((entry for part in path if (entry := part.strip().strip('"')) not in ("", "$user")), None)


def _make_schema(connection: sqlalchemy.Connection) -> None:
    """Make the first schema of the search path where none of the path exists, as with a search_path set in the URL."""
    if connection.scalar(sqlalchemy.text("SELECT current_schema()")) is not None:
        return
    name = first_schema(connection)
    if name is None:
        raise StorageError("the database has no schema to make tables in; name one in the URL: ?options=-csearch_path%3Doptuna")
    connection.execute(sqlalchemy.schema.CreateSchema(name, if_not_exists=True))
    connection.commit()


def _refuse_foreign_tables(connection: sqlalchemy.Connection, url: StorageURL) -> None:
    if has_tables(connection, url):
        return
    inspector = sqlalchemy.inspect(connection)
    if inspector.has_table("alembic_version") and not inspector.has_table("version_info"):
        raise StorageError(_FOREIGN.format(where=url.safe, revision="none yet"))
