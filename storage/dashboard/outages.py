"""Whether a request failed because the database is away. optuna-dashboard makes an answer of every error, so it is noted where it arises."""

from __future__ import annotations

import logging
import sqlite3
import threading

import psycopg2
import sqlalchemy
from sqlalchemy import event

from storage.urls import StorageURL

logger = logging.getLogger(__name__)

_AWAY = (psycopg2.OperationalError, psycopg2.InterfaceError, sqlite3.OperationalError)


class Outages:
    """Errors of an engine's connections, by the thread that met them; told once an outage, not once a request."""

    def __init__(self, engine: sqlalchemy.Engine, url: StorageURL) -> None:
        self._here, self._url, self._is_out, self._lock = threading.local(), url, False, threading.Lock()
        event.listen(engine, "handle_error", self._note)

    def begin(self) -> None:
        """A request begins in this thread."""
        self._here.away = False

    @property
    def happened(self) -> bool:
        """Whether the database was away in this thread's request."""
        return bool(getattr(self._here, "away", False))

    def tell(self, is_out: bool) -> None:
        """Log that an outage begins or ends."""
        with self._lock:
            changed, self._is_out = is_out != self._is_out, is_out
        if changed:
            logger.warning("the dashboard %s the database %s", "cannot reach" if is_out else "reaches again", self._url.safe)

    def _note(self, context: sqlalchemy.engine.ExceptionContext) -> None:
        if isinstance(context.original_exception, _AWAY):
            self._here.away = True
