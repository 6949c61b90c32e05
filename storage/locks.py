"""One coordinator per study: a Postgres session lock that fences writes, or a file lock beside a SQLite database."""

from __future__ import annotations

import fcntl
import hashlib
import json
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

from autoft.errors import StudyLocked, StudyNotFound
from storage.connections import application_name, backend_pid, connect_postgres
from storage.urls import StorageURL

OWNER_ATTR = "autoft:owner"  # study system attribute: whoever took the lock last
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

    def release(self) -> None:
        """Close the connection; the lock is free when this returns."""
        if self._connection is None:
            return
        try:
            self._connection.rollback()
            with self._connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock_all()")
            self._connection.close()
        except psycopg2.Error:
            pass  # the connection is lost, and the lock with it
        self._connection = None

    def _take(self, connection: Any) -> None:
        key = lock_key(current_schema(connection), self._study)
        deadline = time.monotonic() + _SETTLE_SECONDS
        while not self._try(connection, key):
            holder = holders(connection).get(key)
            if holder is not None and self._is_our_old_session(holder):
                with connection.cursor() as cursor:  # the server has not noticed yet that this connection of ours is lost
                    cursor.execute("SELECT pg_terminate_backend(%s)", (holder.backend,))
            elif holder is not None and not holder.is_gone():
                raise _locked(self._url, self._study, holder)
            if time.monotonic() > deadline:
                raise _locked(self._url, self._study, holder)
            time.sleep(0.05)

    @staticmethod
    def _try(connection: Any, key: int) -> bool:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_try_advisory_lock(%s)", (key,))
            return bool(cursor.fetchone()[0])

    def _is_our_old_session(self, holder: Holder) -> bool:
        ours = self._backend is not None and holder.backend == self._backend
        return ours and (holder.host, holder.pid) == (socket.gethostname()[:40], os.getpid())

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
