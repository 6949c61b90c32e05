"""Which of the drivers' errors mean that the database may come back."""

from __future__ import annotations

import optuna
import psycopg2
import pytest
import sqlalchemy
import sqlalchemy.exc

from autoft.errors import StorageError, StorageUnavailable, StudyLocked
from storage import StorageURL, storage_errors
from storage.tables import engine_of
from tests.postgres_fixtures import PostgresServer


def _internal(cause: Exception) -> Exception:
    """As Optuna hands it on."""
    error = optuna.exceptions.StorageInternalError("An exception is raised during the commit.")
    error.__cause__ = cause
    return error


def _wrapped(original: BaseException, broke: bool = False) -> Exception:
    """As SQLAlchemy hands it on."""
    return sqlalchemy.exc.DBAPIError("SELECT 1", None, original, connection_invalidated=broke)


@pytest.mark.parametrize(
    "error",
    [
        psycopg2.OperationalError("server closed the connection unexpectedly"),
        _wrapped(psycopg2.OperationalError("the database system is starting up")),
        _internal(_wrapped(psycopg2.OperationalError("terminating connection due to administrator command"))),
        _internal(sqlalchemy.exc.PendingRollbackError("Can't reconnect until invalid transaction is rolled back.")),
        _internal(_wrapped(psycopg2.DatabaseError("error with status PGRES_TUPLES_OK and no message from the libpq"), broke=True)),
    ],
)
def test_what_may_come_back(error: Exception) -> None:
    with pytest.raises(StorageUnavailable), storage_errors():
        raise error


@pytest.mark.parametrize(
    "error",
    [
        psycopg2.errors.UndefinedTable('relation "studies" does not exist'),
        _internal(_wrapped(psycopg2.errors.StringDataRightTruncation("value too long for type character varying(512)"))),
    ],
)
def test_what_is_wrong_for_good(error: Exception) -> None:
    with pytest.raises(StorageError) as found, storage_errors():
        raise error
    assert not isinstance(found.value, StorageUnavailable)


def test_ours_pass() -> None:
    with pytest.raises(StudyLocked), storage_errors():
        raise StudyLocked("by another")


def test_a_session_that_ends_within_a_transaction(url: StorageURL, postgres_server: PostgresServer) -> None:
    with engine_of(url) as engine, engine.connect() as connection:
        pid = connection.scalar(sqlalchemy.text("SELECT pg_backend_pid()"))
        postgres_server.execute(f"SELECT pg_terminate_backend({pid})")
        for _ in range(2):  # the second time SQLAlchemy says that it waits for a rollback
            with pytest.raises(StorageUnavailable), storage_errors(url):
                connection.execute(sqlalchemy.text("SELECT 1"))
