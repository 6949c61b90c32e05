"""The owner's pulse: a thread with a connection of its own that leaves signs of life, reads wishes, and notices outages and successors.

The coordinator's one connection is fenced by the study's lock and may hang while the database is cut off; this one may hang too, but
nobody waits for it. It writes a single attribute, the beat, and that only while the owner attribute is still ours.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from contextlib import ExitStack
from typing import Any

import sqlalchemy

from autoft.errors import StorageError, StudyLocked
from autoft.lifeline import Wish
from storage.attributes import BEAT_ATTR, OWNER_ATTR, UPSERT, WISH_ATTR, Asked
from storage.seam import storage_errors
from storage.tables import engine_of
from storage.urls import StorageURL

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # how often wishes are read
BEAT_SECONDS = 5.0
_STOP_SECONDS = 2.0

_READ = sqlalchemy.text("SELECT key, value_json FROM study_system_attributes WHERE study_id = :study_id AND key IN (:owner, :wish)")
_NOW = {"postgresql": "SELECT extract(epoch FROM clock_timestamp())", "sqlite": "SELECT (julianday('now') - 2440587.5) * 86400.0"}


class Pulse:
    """Beats from `start` to `stop`. Every other method answers at once, from any thread."""

    def __init__(self, url: StorageURL, study: str, study_id: int, token: str) -> None:
        self._url, self._study, self._study_id, self._token = url, study, study_id, token
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"pulse of {study}", daemon=True)
        self._wish = Wish.RUN
        self._reachable = True
        self._returns = 0
        self._successor: str | None = None

    def start(self) -> None:
        """Begin; the first sign of life is there when this returns.

        Raises:
            StorageError: the database cannot be reached.
        """
        with storage_errors(self._url), engine_of(self._url) as engine, engine.connect() as connection:
            self._look(connection, beats=True)
        self._thread.start()

    def stop(self) -> None:
        """End; waits no longer than two seconds for a connection that hangs."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)

    def reachable(self) -> bool:
        """Whether the database answered the last time it was asked."""
        return self._reachable

    def returns(self) -> int:
        """How often the database has come back after it was away."""
        return self._returns

    def wish(self) -> Wish:
        """What was last wished of the study."""
        return self._wish

    def check_owner(self) -> None:
        """Raise StudyLocked if another process owns the study by now."""
        if self._successor is not None:
            raise StudyLocked(f"study {self._study!r} was taken over by {self._successor}; this process has stopped writing to it")

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                with storage_errors(self._url), ExitStack() as stack:
                    connection = stack.enter_context(stack.enter_context(engine_of(self._url)).connect())
                    self._beat_until_stopped(connection)
            except StorageError as error:
                self._reachable = False
                logger.debug("no pulse: %s", error)
                self._stopped.wait(LOOK_SECONDS)
            except Exception:
                logger.exception("the pulse of study %s faltered", self._study)
                self._stopped.wait(BEAT_SECONDS)

    def _beat_until_stopped(self, connection: sqlalchemy.Connection) -> None:
        beat_at = 0.0
        while True:
            beats = time.monotonic() - beat_at >= BEAT_SECONDS
            self._look(connection, beats)
            if not self._reachable:
                self._returns += 1
            self._reachable = True
            if beats:
                beat_at = time.monotonic()
            if self._stopped.wait(LOOK_SECONDS):
                return

    def _look(self, connection: sqlalchemy.Connection, beats: bool) -> None:
        rows = connection.execute(_READ, {"study_id": self._study_id, "owner": OWNER_ATTR, "wish": WISH_ATTR})
        found: dict[str, Any] = {key: json.loads(value) for key, value in rows}
        owner = found.get(OWNER_ATTR)
        if owner is None:
            self._successor = "nobody: it was deleted"
        elif owner["token"] != self._token:
            self._successor = f"process {owner['pid']} on host {owner['host']}"
        else:
            asked = Asked.read(found.get(WISH_ATTR))
            self._wish = asked.wish if asked else Wish.RUN
            if beats:
                now = float(connection.scalar(sqlalchemy.text(_NOW[connection.dialect.name])))
                connection.execute(UPSERT, {"study_id": self._study_id, "key": BEAT_ATTR, "value": json.dumps(round(now, 1))})
        connection.commit()
