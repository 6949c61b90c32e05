"""The seam where errors of SQLAlchemy, psycopg2, sqlite3 and Optuna's storage become ours: one clear line, never the password."""

from __future__ import annotations

import functools
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote

import optuna
import psycopg2
import sqlalchemy.exc
from optuna.storages import BaseStorage, RDBStorage

from autoft.errors import StorageError, StorageUnavailable, StudyNotFound
from storage.owner import OwnerStorage
from storage.urls import StorageURL

FOREIGN_ERRORS: tuple[type[Exception], ...] = (
    sqlalchemy.exc.SQLAlchemyError,
    psycopg2.Error,
    sqlite3.Error,
    optuna.exceptions.StorageInternalError,
)

# What a server that is stopped, restarting, cut off, full or overloaded makes of a call; the rest is wrong for good.
_AWAY = (
    psycopg2.OperationalError,
    psycopg2.InterfaceError,
    sqlite3.OperationalError,
    sqlalchemy.exc.DisconnectionError,
    sqlalchemy.exc.TimeoutError,
    sqlalchemy.exc.PendingRollbackError,  # the connection broke within a transaction; the next call has a new session
    sqlalchemy.exc.ResourceClosedError,
    psycopg2.errors.ReadOnlySqlTransaction,  # a server that is no longer the primary; the next connection may find the new one
)
_FOR_GOOD = ("permission denied", "no such table", "no such column", "syntax error")


@contextmanager
def storage_errors(url: StorageURL | None = None) -> Iterator[None]:
    """Raise `StorageError` for whatever the database or its drivers raise inside, `StorageUnavailable` where it may come back.

    Errors of ours pass unchanged.

    Args:
        url: named in the message, and its password masked should a driver repeat it.
    """
    try:
        yield
    except FOREIGN_ERRORS as error:
        where = f"database {url.safe}" if url else "database"
        innermost, broke = _innermost(error)
        away = broke or (isinstance(innermost, _AWAY) and not any(text in str(innermost) for text in _FOR_GOOD))
        raise (StorageUnavailable if away else StorageError)(f"{where}: {_reason(innermost, url)}") from None


def guarded(database: RDBStorage, url: StorageURL) -> GuardedStorage:
    """The owner's storage over `database`, whose calls raise our errors, and after an error begin with a clean session."""
    return GuardedStorage(database, url)


def _innermost(error: BaseException) -> tuple[BaseException, bool]:
    """The driver's own error, and whether SQLAlchemy saw the connection break."""
    while isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    original = getattr(error, "orig", None)
    return original if isinstance(original, BaseException) else error, bool(getattr(error, "connection_invalidated", False))


def _reason(error: BaseException, url: StorageURL | None) -> str:
    """A driver's message, on one line and without the password."""
    text = " ".join(str(error).split()) or type(error).__name__
    password = url.sqlalchemy.password if url else None
    for secret in {str(password), quote(str(password), safe="")} if password else ():
        text = text.replace(secret, "***")
    if "permission denied for schema" in text:
        text += "; grant CREATE on it, or name a schema of your own in the URL: ?options=-csearch_path%3Doptuna"
    return text if len(text) <= 500 else text[:497] + "..."


def _translated(name: str) -> Callable[..., Any]:
    method = getattr(OwnerStorage, name)

    @functools.wraps(method)
    def call(self: GuardedStorage, *args: Any, **kwargs: Any) -> Any:
        began = self._busy.setdefault(threading.get_ident(), now := time.monotonic())
        try:
            with storage_errors(self.url):
                return method(self, *args, **kwargs)
        except StorageError as error:
            self.forget_session(with_connection="read-only transaction" in str(error))
            self.doubt()
            raise
        except KeyError as error:
            if name == "get_study_id_from_name" or "does not exist" not in str(error):
                raise
            raise StudyNotFound(f"the study was deleted from {self.url.safe} while this process ran it") from None
        finally:
            if began is now:  # a call within another leaves the outer one's time
                self._busy.pop(threading.get_ident(), None)

    return call


class GuardedStorage(OwnerStorage):
    """See `guarded`."""

    def __init__(self, database: RDBStorage, url: StorageURL) -> None:
        super().__init__(database)
        self.url = url
        self._busy: dict[int, float] = {}  # thread -> when its call began

    @property
    def busy_since(self) -> float | None:
        """Monotonic time since when a call waits for the database; None: none does."""
        return min(list(self._busy.values()), default=None)

    def answered(self) -> None:
        """A call that goes on counts as one that has just begun."""
        if threading.get_ident() in self._busy:
            self._busy[threading.get_ident()] = time.monotonic()

    def forget_session(self, with_connection: bool) -> None:
        with suppress(*FOREIGN_ERRORS):  # where the connection is lost, so is what it had begun
            self._backend.remove_session()
        if with_connection:
            self._backend.engine.dispose()


for _name in BaseStorage.__abstractmethods__ | {"get_best_trial", "get_n_trials", "finished_trials", "write"}:
    setattr(GuardedStorage, _name, _translated(_name))
