"""The seam where errors of SQLAlchemy, psycopg2, sqlite3 and Optuna's storage become ours: one clear line, never the password."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

import optuna
import psycopg2
import sqlalchemy.exc

from autoft.errors import StorageError
from storage.urls import StorageURL

FOREIGN_ERRORS: tuple[type[Exception], ...] = (
    sqlalchemy.exc.SQLAlchemyError,
    psycopg2.Error,
    sqlite3.Error,
    optuna.exceptions.StorageInternalError,
)


@contextmanager
def storage_errors(url: StorageURL | None = None) -> Iterator[None]:
    """Raise `StorageError` for whatever the database or its drivers raise inside; errors of ours pass unchanged.

    Args:
        url: named in the message, and its password masked should a driver repeat it.
    """
    try:
        yield
    except FOREIGN_ERRORS as error:
        where = f"database {url.safe}" if url else "database"
        raise StorageError(f"{where}: {_reason(error, url)}") from None


def _reason(error: BaseException, url: StorageURL | None) -> str:
    """The innermost driver message, on one line."""
    while isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    original = getattr(error, "orig", None)
    if isinstance(original, BaseException):
        error = original
    text = " ".join(str(error).split()) or type(error).__name__
    password = url.sqlalchemy.password if url else None
    for secret in {str(password), quote(str(password), safe="")} if password else ():
        text = text.replace(secret, "***")
    if "permission denied for schema" in text:
        text += "; grant CREATE on it, or name a schema of your own in the URL: ?options=-csearch_path%3Doptuna"
    return text if len(text) <= 500 else text[:497] + "..."
