"""Studies in the database: opened by their one owner, or read by anybody. The list of them is in summaries.py."""

from __future__ import annotations

import difflib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage

from autoft.config import Direction
from autoft.errors import StudyConflict, StudyNotFound
from autoft.lifeline import Wish
from storage.attributes import CREATED_ATTR, OWNER_ATTR, WISH_ATTR, Asked
from storage.locks import FileStudyLock, PostgresStudyLock, new_owner
from storage.pulse import Pulse
from storage.seam import guarded, storage_errors
from storage.tables import open_for_reading, open_tables, prepare_tables, reading
from storage.urls import StorageURL
from storage.watchdog import Watchdog


@dataclass
class StudyHandle:
    """A study this process owns until `close`. The caller sets `study.sampler` and `study.pruner`; they are not stored.

    Attributes:
        storage: what `study` writes through: one connection, which holds the study's lock.
        created: whether this call made the study.
        lifeline: beats until `close`.
    """

    url: StorageURL
    study: optuna.Study
    storage: BaseStorage
    created: bool
    lifeline: Pulse
    _watchdog: Watchdog | None = field(repr=False)
    _database: RDBStorage = field(repr=False)
    _lock: PostgresStudyLock | FileStudyLock = field(repr=False)

    def close(self) -> None:
        """Release the study. Calling it again does nothing."""
        self.lifeline.stop()
        if self._watchdog is not None:
            self._watchdog.stop()
        _close(self._database, self._lock)

    def __enter__(self) -> StudyHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_study(url: StorageURL, name: str, *, directions: Sequence[Direction], create: bool) -> StudyHandle:
    """Own a study, making tables and study where they are missing and `create` allows it.

    Everything Optuna writes goes through one connection that holds the study's lock, and a connection made later takes the lock
    again or fails: a coordinator that was replaced cannot write.

    Raises:
        StudyLocked: another process owns it; says which.
        StudyNotFound: there is none and `create` is False; nothing is made then.
        StudyConflict: the study has other directions.
        StorageError: the database cannot be reached or used.
    """
    with storage_errors(url):
        if create:
            prepare_tables(url)
        else:
            require_study(url, name)
        database, lock = _open_locked(url, name)
        try:
            return _own_study(url, name, list(directions), create, database, lock)
        except BaseException:
            _close(database, lock)
            raise


def load_study_readonly(url: StorageURL, name: str) -> optuna.Study:
    """A study to look at, without its lock. The connection cannot write, and no table is made.

    Raises:
        StudyNotFound: naming the studies with a similar name.
        StorageError: the database cannot be reached or used.
    """
    with storage_errors(url):
        require_study(url, name)
        return optuna.load_study(study_name=name, storage=optuna.storages.get_storage(open_for_reading(url)))


def _open_locked(url: StorageURL, name: str) -> tuple[RDBStorage, PostgresStudyLock | FileStudyLock]:
    one_connection = {"pool_size": 1, "max_overflow": 0, "pool_pre_ping": True}
    if url.is_postgres:
        session_lock = PostgresStudyLock(url, name)
        return open_tables(url, engine_kwargs={**one_connection, "creator": session_lock.connect}, create=False), session_lock
    file_lock = FileStudyLock(url, name)
    file_lock.take()
    return open_tables(url, engine_kwargs={"connect_args": {"timeout": 30}}, create=False), file_lock


def _own_study(
    url: StorageURL, name: str, directions: list[Direction], create: bool, database: RDBStorage, lock: PostgresStudyLock | FileStudyLock
) -> StudyHandle:
    storage = guarded(database, url)
    created = False
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        if not create:  # it was deleted since we looked
            raise _not_found(url, name, [study.study_name for study in storage.get_all_studies()]) from None
        study = optuna.create_study(study_name=name, storage=storage, directions=directions)
        created = True
    found = [direction.name.lower() for direction in study.directions]
    if found != directions:
        raise StudyConflict(f"study {name!r} in {url.safe} has direction {','.join(found)}, not {','.join(directions)}; choose another name")
    token = uuid.uuid4().hex
    owner = new_owner(token)
    storage.set_study_system_attr(study._study_id, OWNER_ATTR, owner)
    if created:
        storage.set_study_system_attr(study._study_id, CREATED_ATTR, owner["since"])
    if isinstance(lock, PostgresStudyLock):
        lock.adopt(study._study_id, token)
    _forget_old_wish(study, storage)
    pulse = Pulse(url, name, study._study_id, token)
    pulse.start()
    watchdog = None
    if isinstance(lock, PostgresStudyLock):
        watchdog = Watchdog(lambda: storage.busy_since, lock.descriptor)
        watchdog.start()
    return StudyHandle(url, study, storage, created, pulse, watchdog, database, lock)


def _forget_old_wish(study: optuna.Study, storage: BaseStorage) -> None:
    """Whoever launches a study wants it to run, whatever stopped it; only a pause lasts until it is taken back."""
    asked = Asked.read(storage.get_study_system_attrs(study._study_id).get(WISH_ATTR))
    if asked is not None and asked.wish in (Wish.STOP, Wish.CANCEL):
        storage.set_study_system_attr(study._study_id, WISH_ATTR, None)


def _close(database: RDBStorage, lock: PostgresStudyLock | FileStudyLock) -> None:
    database.remove_session()
    lock.release()
    database.engine.dispose()


def require_study(url: StorageURL, name: str) -> int:
    """The id of a study in Optuna's tables. Raises StudyNotFound, naming the studies with a similar name."""
    with reading(url) as connection:
        rows = [] if connection is None else list(connection.execute(sqlalchemy.text("SELECT study_name, study_id FROM studies")))
    ids = {str(study): int(study_id) for study, study_id in rows}
    if name not in ids:
        raise _not_found(url, name, list(ids))
    return ids[name]


def _not_found(url: StorageURL, name: str, names: list[str]) -> StudyNotFound:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    else:
        hint = f"there are {len(names)}: {', '.join(sorted(names)[:10])}{', ...' if len(names) > 10 else ''}" if names else "it holds none yet"
    return StudyNotFound(f"no study {name!r} in {url.safe}; {hint}")
