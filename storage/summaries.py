"""What `autoft list` shows: one summary a study, read without locks and without making tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import sqlalchemy
from optuna.storages import RDBStorage
from optuna.study._frozen import FrozenStudy

from storage.attributes import BEAT_ATTR, CREATED_ATTR, WISH_ATTR, Asked
from storage.locks import current_schema, holders, lock_key, read_file_holder
from storage.seam import storage_errors
from storage.tables import open_for_reading, reading
from storage.urls import StorageURL


@dataclass(frozen=True, kw_only=True)
class StudySummary:
    """One study in a list.

    Attributes:
        direction: "maximize" or "minimize"; those of several objectives are joined by commas.
        best_value: of the complete trials; None without one, or with several objectives.
        created: when the study was made, or its first trial began where another program made it. Times carry a time zone.
        updated: when a trial last began or ended.
        locked_by: who runs it now, for people.
        asked: what somebody last wished of it.
        last_sign_of_life: of its last owner, by the database's clock.
    """

    name: str
    direction: str
    n_trials: int
    n_complete: int
    n_pruned: int
    n_running: int
    n_failed: int
    best_value: float | None
    created: datetime | None
    updated: datetime | None
    locked_by: str | None
    asked: Asked | None
    last_sign_of_life: datetime | None
    user_attrs: dict[str, Any]


@dataclass
class _Counts:
    """Trials of one study."""

    states: dict[str, int] = field(default_factory=dict)
    times: list[datetime] = field(default_factory=list)


def list_studies(url: StorageURL) -> list[StudySummary]:
    """Every study of a database, by name; an empty list where Optuna's tables do not exist.

    Raises:
        StorageError: the database cannot be reached or used.
    """
    with storage_errors(url), reading(url) as connection:
        if connection is None:
            return []
        counts = _count_trials(connection)
        locked_by = _lock_reader(connection, url)
        database = open_for_reading(url)
        try:
            studies = sorted(database.get_all_studies(), key=lambda study: study.study_name)
            return [_summarise(study, counts.get(study._study_id, _Counts()), locked_by, database) for study in studies]
        finally:
            database.remove_session()
            database.engine.dispose()


def _count_trials(connection: sqlalchemy.Connection) -> dict[int, _Counts]:
    """Trials by study and state, without reading their parameters. Optuna stores times as naive UTC."""
    trials = sqlalchemy.table(
        "trials",
        sqlalchemy.column("study_id", sqlalchemy.Integer),
        sqlalchemy.column("state", sqlalchemy.String),
        sqlalchemy.column("datetime_start", sqlalchemy.DateTime),
        sqlalchemy.column("datetime_complete", sqlalchemy.DateTime),
    )
    study, state, start, complete = trials.c
    least, most = sqlalchemy.func.min, sqlalchemy.func.max
    query = sqlalchemy.select(study, state, sqlalchemy.func.count(), least(start), most(start), most(complete)).group_by(study, state)
    counts: dict[int, _Counts] = {}
    for study_id, state_name, n, *times in connection.execute(query):
        found = counts.setdefault(study_id, _Counts())
        found.states[state_name] = n
        found.times += [time.replace(tzinfo=UTC) for time in times if time is not None]
    return counts


def _lock_reader(connection: sqlalchemy.Connection, url: StorageURL) -> Callable[[str], str | None]:
    """A function from a study's name to who runs it."""
    if url.is_sqlite:
        return lambda study: holder.describe() if (holder := read_file_holder(url, study)) else None
    raw = connection.connection.dbapi_connection
    schema, found = current_schema(raw), holders(raw)
    return lambda study: holder.describe() if (holder := found.get(lock_key(schema, study))) else None


def _summarise(study: FrozenStudy, counts: _Counts, locked_by: Callable[[str], str | None], database: RDBStorage) -> StudySummary:
    states = counts.states
    created = study.system_attrs.get(CREATED_ATTR)
    one_objective = len(study.directions) == 1 and states.get("COMPLETE", 0) > 0
    return StudySummary(
        name=study.study_name,
        direction=",".join(direction.name.lower() for direction in study.directions),
        n_trials=sum(states.values()),
        n_complete=states.get("COMPLETE", 0),
        n_pruned=states.get("PRUNED", 0),
        n_running=states.get("RUNNING", 0),
        n_failed=states.get("FAIL", 0),
        best_value=database.get_best_trial(study._study_id).value if one_objective else None,
        created=datetime.fromisoformat(created) if created else min(counts.times, default=None),
        updated=max(counts.times, default=None),
        locked_by=locked_by(study.study_name),
        asked=Asked.read(study.system_attrs.get(WISH_ATTR)),
        last_sign_of_life=datetime.fromtimestamp(study.system_attrs[BEAT_ATTR], UTC) if BEAT_ATTR in study.system_attrs else None,
        user_attrs=dict(study.user_attrs),
    )
