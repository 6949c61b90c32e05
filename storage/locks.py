"""One coordinator per study: a Postgres session lock that fences writes, or a file lock beside a SQLite database."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg2

from autoft.errors import StorageUnavailable, StudyLocked, StudyNotFound
from storage.attributes import BEAT_ATTR, OWNER_ATTR
from storage.connections import application_name, backend_pid, connect_postgres
from storage.urls import StorageURL

logger = logging.getLogger(__name__)

_STARTED = datetime.now(UTC)  # this process, nearly

STALE_SECONDS = 20.0  # without a sign of life for so long, an owner may be cut off, and whoever asks for the study waits
TAKEOVER_SECONDS = 60.0  # ... and for so long, it is deposed: its session is ended, and it finds that out when it writes
_SETTLE_SECONDS = 10.0  # how long the lock of a process that is certainly gone may linger, as in its last children or in the server

_HOLDERS = """
SELECT l.classid::bigint, l.objid::bigint, l.pid, a.application_name, a.backend_start
FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@dataclass(frozen=True)
class Holder:
    """Who holds a study."""

    host: str | None
    pid: int | None  # on that host
    backend: int | None  # Postgres server process
    label: str
    since: datetime | None

    def describe(self) -> str:
        since = f" since {self.since.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if self.since else ""
        return f"{self.label}{since}"

    def is_gone(self) -> bool:
        """True where the holder ran on this machine and its process no longer exists."""
        if self.pid is None or self.host != socket.gethostname()[:40]:
            return False
        if self.pid == os.getpid():  # ourselves, or before us a process of our number, as the first of a container that was started again
            return self.since is not None and self.since < _STARTED
        try:
            os.kill(self.pid, 0)
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except ProcessLookupError:
            return True
        except OSError:  # another user's process, or no /proc here
            return False
        return state in "ZX"  # killed, and not yet collected by its parent


def _locked(url: StorageURL, study: str, holder: Holder | None) -> StudyLocked:
    who = holder.describe() if holder else "another process"
    return StudyLocked(f"study {study!r} is run by {who} (in {url.safe}); wait for it to finish or stop it, then run this again")


def lock_key(schema: str, study: str) -> int:
    """The 64-bit key of a study's advisory lock. Studies of one name in two schemas are two studies."""
    digest = hashlib.sha256(f"autoft\0{schema}\0{study}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def current_schema(connection: Any) -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_schema()")
        return str(cursor.fetchone()[0])


def holders(connection: Any) -> dict[int, Holder]:
    """Every advisory lock of the connection's database: key to holder."""
    with connection.cursor() as cursor:
        cursor.execute(_HOLDERS)
        rows = cursor.fetchall()
    found = {}
    for high, low, backend, application, since in rows:
        key = int.from_bytes(((high << 32) | low).to_bytes(8, "big"), "big", signed=True)
        found[key] = _read_holder(application or "", backend, since)
    return found


def _read_holder(application: str, backend: int, since: datetime | None) -> Holder:
    match = re.fullmatch(r"autoft:(.*):(\d+)", application)
    if match:
        host, pid = match.group(1), int(match.group(2))
        return Holder(host, pid, backend, f"process {pid} on host {host}", since)
    return Holder(None, None, backend, f"database session {backend} ({application or 'unnamed'})", since)


class PostgresStudyLock:
    """Opens the one connection Optuna writes through; each new connection takes the study's lock or raises.

    After `adopt`, a reconnection also checks that nobody else owned the study in between.
    """

    def __init__(self, url: StorageURL, study: str) -> None:
        self._url = url
        self._study = study
        self._connection: Any = None
        self._backend: int | None = None
        self._owned: tuple[int, str] | None = None

    def connect(self) -> Any:
        """A psycopg2 connection that holds the lock.

        Raises:
            StudyLocked: somebody else holds the study, or did since our last connection.
            StudyNotFound: the study was deleted since our last connection.
        """
        connection = connect_postgres(self._url, keeps_locks=True)
        try:
            connection.autocommit = True
            self._take(connection)
            self._check_still_ours(connection)
            self._beat(connection)
            self._backend = backend_pid(connection)
            connection.autocommit = False
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def adopt(self, study_id: int, token: str) -> None:
        """From now on a reconnection insists that the study's owner attribute still carries `token`."""
        self._owned = (study_id, token)

    def descriptor(self) -> int | None:
        """Of the connection's socket; None where there is none."""
        try:
            return None if self._connection is None else int(self._connection.fileno())
        except psycopg2.Error:  # closed
            return None

    def release(self) -> None:
        """Close the connection; the lock is free when this returns."""
        if self._connection is None:
            return
        try:
            self._connection.rollback()
            with self._connection.cursor() as cursor:
                if self._owned is not None:  # so that nobody waits for a sign of life
                    cursor.execute(
                        "UPDATE study_system_attributes SET value_json = (value_json::jsonb || '{\"left\": true}')::text "
                        "WHERE study_id = %s AND key = %s AND value_json::jsonb ->> 'token' = %s",
                        (self._owned[0], OWNER_ATTR, self._owned[1]),
                    )
                    self._connection.commit()
                cursor.execute("SELECT pg_advisory_unlock_all()")
            self._connection.close()
        except psycopg2.Error:
            pass  # the connection is lost, and the lock with it
        self._connection = None

    def _take(self, connection: Any) -> None:
        """Take the lock, waiting for an owner that may be gone. An owner that comes back never ends another's session.

        The lock may be free though the owner lives: it was lost with a connection that it has not had to make again yet. Then, as where it
        is held, the owner's sign of life decides; it is given up only after not having moved for `STALE_SECONDS` before our eyes.
        """
        key = lock_key(current_schema(connection), self._study)
        began = time.monotonic()
        deadline, seen_at, waiting = began + _SETTLE_SECONDS, began, False
        seen = self._attribute(connection, BEAT_ATTR)
        while True:
            if self._try(connection, key):
                owner = self._live_owner(connection)
                if self._owned is not None or owner is None:
                    return
                _unlock(connection, key)
                holder: Holder | None = owner
            else:
                holder = holders(connection).get(key)
                if self._owned is not None and holder is not None and not self._is_our_old_session(holder):
                    self._check_still_ours(connection)
                    if not holder.is_gone():
                        raise _locked(self._url, self._study, holder)
            if (beat := self._attribute(connection, BEAT_ATTR)) != seen:
                seen, seen_at = beat, time.monotonic()
                if waiting and holder is not None:
                    raise _locked(self._url, self._study, holder)
            still = time.monotonic() - seen_at
            if holder is not None and self._is_our_old_session(holder):
                _end_session(connection, holder)  # the server has not noticed yet that this connection of ours is lost
            elif holder is not None and not holder.is_gone():
                silent = self._silent_seconds(connection)
                if holder.backend is not None and (silent is None or silent < STALE_SECONDS):
                    raise _locked(self._url, self._study, holder)
                if not waiting:
                    waiting, deadline = True, time.monotonic() + TAKEOVER_SECONDS + _SETTLE_SECONDS
                    logger.warning("%s owned study %r and has been silent for %.0f s; waiting for a sign of life", holder.describe(), self._study, silent or 0)
                if holder.backend is not None and silent is not None and silent > TAKEOVER_SECONDS and still > STALE_SECONDS:
                    _end_session(connection, holder)
            if time.monotonic() > deadline:
                if holder is not None and self._is_our_old_session(holder):
                    raise StorageUnavailable(f"database {self._url.safe}: the server has not ended our lost session yet")
                raise _locked(self._url, self._study, holder)
            time.sleep(1.0 if waiting else 0.05)

    def _live_owner(self, connection: Any) -> Holder | None:
        """The study's owner, where it gave a sign of life lately and has not left nor is known to be gone."""
        silent, text = self._silent_seconds(connection), self._attribute(connection, OWNER_ATTR)
        if silent is None or silent > STALE_SECONDS or text is None:
            return None
        owner = json.loads(text)
        if owner.get("left"):
            return None
        found = Holder(owner["host"], owner["pid"], None, f"process {owner['pid']} on host {owner['host']}", datetime.fromisoformat(owner["since"]))
        return None if found.is_gone() else found

    def _silent_seconds(self, connection: Any) -> float | None:
        """How long ago the study's owner gave a sign of life, by the database's clock; None where it never did."""
        beat = self._attribute(connection, BEAT_ATTR)
        if beat is None:
            return None
        with connection.cursor() as cursor:
            cursor.execute("SELECT extract(epoch FROM clock_timestamp()) - %s::float8", (beat,))
            return float(cursor.fetchone()[0])

    def _attribute(self, connection: Any, key: str) -> str | None:
        """A system attribute of the study as it is stored, in JSON; None where there is none, or no such study."""
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT a.value_json FROM study_system_attributes a JOIN studies s ON s.study_id = a.study_id WHERE s.study_name = %s AND a.key = %s",
                (self._study, key),
            )
            row = cursor.fetchone()
        return None if row is None else str(row[0])

    def _beat(self, connection: Any) -> None:
        """A first sign of life with the lock, so that nobody takes the last owner's silence for ours."""
        with connection.cursor() as cursor:
            cursor.execute(
                "UPDATE study_system_attributes SET value_json = round(extract(epoch FROM clock_timestamp())::numeric, 1)::text "
                "WHERE key = %s AND study_id = (SELECT study_id FROM studies WHERE study_name = %s)",
                (BEAT_ATTR, self._study),
            )

    @staticmethod
    def _try(connection: Any, key: int) -> bool:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_try_advisory_lock(%s)", (key,))
            return bool(cursor.fetchone()[0])

    def _is_our_old_session(self, holder: Holder) -> bool:
        if (holder.host, holder.pid) != (socket.gethostname()[:40], os.getpid()):
            return False
        return self._owned is not None or (self._backend is not None and holder.backend == self._backend)

    def _check_still_ours(self, connection: Any) -> None:
        if self._owned is None:
            return
        study_id, token = self._owned
        with connection.cursor() as cursor:
            cursor.execute("SELECT value_json FROM study_system_attributes WHERE study_id = %s AND key = %s", (study_id, OWNER_ATTR))
            row = cursor.fetchone()
        if row is None:
            raise StudyNotFound(f"study {self._study!r} was deleted from {self._url.safe} while this process ran it")
        owner = json.loads(row[0])
        if owner["token"] != token:
            label = f"process {owner['pid']} on host {owner['host']}"
            raise _locked(self._url, self._study, Holder(None, None, None, label, datetime.fromisoformat(owner["since"])))


def _end_session(connection: Any, holder: Holder) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s)", (holder.backend,))


def _unlock(connection: Any, key: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_unlock(%s)", (key,))


def new_owner(token: str) -> dict[str, Any]:
    """What the owner attribute of a study says."""
    _, host, pid = application_name().rsplit(":", 2)
    return {"token": token, "host": host, "pid": int(pid), "since": datetime.now(UTC).isoformat(timespec="seconds")}


def lock_file(url: StorageURL, study: str) -> Path:
    """The lock file of a study in a SQLite database, beside it."""
    return url.path.with_name(f"{url.path.name}.{hashlib.sha256(study.encode()).hexdigest()[:12]}.lock")


class FileStudyLock:
    """The lock of a study in SQLite: `flock`, which the kernel drops when the process ends, however it ends."""

    def __init__(self, url: StorageURL, study: str) -> None:
        self._url = url
        self._study = study
        self._file: int | None = None

    def take(self) -> None:
        """Raises StudyLocked, naming the process, where another one holds it."""
        path = lock_file(self._url, self._study)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        began = time.monotonic()
        while not _try_flock(file, fcntl.LOCK_EX):
            holder = _holder_written_in(file)
            patience = _SETTLE_SECONDS if holder and holder.is_gone() else 0.3  # `read_file_holder` takes it for an instant
            if time.monotonic() - began > patience:
                os.close(file)
                raise _locked(self._url, self._study, holder)
            time.sleep(0.02)
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(new_owner("")).encode(), 0)
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def read_file_holder(url: StorageURL, study: str) -> Holder | None:
    """Who holds a study in SQLite, if anybody."""
    try:
        file = os.open(lock_file(url, study), os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return None if _try_flock(file, fcntl.LOCK_SH) else _holder_written_in(file)
    finally:
        os.close(file)


@contextmanager
def exclusive(path: Path) -> Iterator[int]:
    """Hold a file's lock, waiting for it; yields the descriptor."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
    finally:
        os.close(file)


def _try_flock(file: int, operation: int) -> bool:
    try:
        fcntl.flock(file, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder_written_in(file: int) -> Holder | None:
    try:
        owner = json.loads(os.pread(file, 4096, 0))
        label = f"process {owner['pid']} on host {owner['host']}"
        return Holder(owner["host"], owner["pid"], None, label, datetime.fromisoformat(owner["since"]))
    except (ValueError, KeyError, TypeError):
        return None
