"""What is written to one trial, as one transaction of few statements instead of one transaction a value."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session


@dataclass
class Change:
    """Values to be set on a trial, by name or step; what is None or empty stays as it is.

    Attributes:
        params: (value in Optuna's internal representation, distribution).
        at: the moment `state` is entered: `datetime_start` of a running trial, `datetime_complete` of a finished one.
    """

    params: dict[str, tuple[float, BaseDistribution]] = field(default_factory=dict)
    user_attrs: dict[str, Any] = field(default_factory=dict)
    system_attrs: dict[str, Any] = field(default_factory=dict)
    reports: dict[int, float] = field(default_factory=dict)
    values: Sequence[float] | None = None
    state: TrialState | None = None
    at: datetime | None = None

    def followed_by(self, later: Change) -> Change:
        """Both changes as one."""
        return Change(
            self.params | later.params,
            self.user_attrs | later.user_attrs,
            self.system_attrs | later.system_attrs,
            self.reports | later.reports,
            later.values if later.values is not None else self.values,
            later.state if later.state is not None else self.state,
            later.at if later.at is not None else self.at,
        )

    def applied_to(self, trial: FrozenTrial) -> FrozenTrial:
        """The trial as the database will read it; the one given stays as it is."""
        changed = copy.copy(trial)
        changed.params = trial.params | {name: kind.to_external_repr(value) for name, (value, kind) in self.params.items()}
        changed.distributions = trial.distributions | {name: kind for name, (_, kind) in self.params.items()}
        changed.user_attrs = trial.user_attrs | _as_json(self.user_attrs)
        changed.system_attrs = trial.system_attrs | _as_json(self.system_attrs)
        changed.intermediate_values = trial.intermediate_values | self.reports
        if self.values is not None:
            changed.values = list(self.values)
        if self.state is not None:
            changed.state = self.state
            if self.state == TrialState.RUNNING:
                changed.datetime_start = self.at
            elif self.state.is_finished():
                changed.datetime_complete = self.at
        return changed


def write_changes(database: RDBStorage, changes: Mapping[int, Change]) -> None:
    """Make the changes of some trials, by trial id, in one transaction. Doing it twice is the same as doing it once.

    Raises:
        UpdateFinishedTrialError: a trial is finished in the database.
        KeyError: there is no such trial.
    """
    with _create_scoped_session(database.scoped_session) as session:
        for trial_id, change in changes.items():
            trial: Any = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=change.state is not None)
            database.check_trial_is_updatable(trial_id, trial.state)
            if change.state is not None:
                trial.state = change.state
                if change.state == TrialState.RUNNING:
                    trial.datetime_start = change.at
                elif change.state.is_finished():
                    trial.datetime_complete = change.at
            for table, key, rows in _rows(trial_id, change):
                if rows:
                    _upsert(session, table, key, rows)


def _rows(trial_id: int, change: Change) -> list[tuple[sqlalchemy.Table, str, list[dict[str, Any]]]]:
    """Per table what is written, and the column that identifies a row of the trial."""
    of = {"trial_id": trial_id}
    params = [
        {**of, "param_name": name, "param_value": value, "distribution_json": distribution_to_json(distribution)}
        for name, (value, distribution) in change.params.items()
    ]
    reports = [
        {**of, "step": step, "intermediate_value": stored, "intermediate_value_type": kind}
        for step, value in change.reports.items()
        for stored, kind in [models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)]
    ]
    values = [
        {**of, "objective": objective, "value": stored, "value_type": kind}
        for objective, value in enumerate(change.values or ())
        for stored, kind in [models.TrialValueModel.value_to_stored_repr(value)]
    ]
    return [
        (_table(models.TrialParamModel), "param_name", params),
        (_table(models.TrialSystemAttributeModel), "key", _attribute_rows(trial_id, change.system_attrs)),
        (_table(models.TrialUserAttributeModel), "key", _attribute_rows(trial_id, change.user_attrs)),
        (_table(models.TrialIntermediateValueModel), "step", reports),
        (_table(models.TrialValueModel), "objective", values),
    ]


def _table(model: Any) -> sqlalchemy.Table:
    table = model.__table__
    assert isinstance(table, sqlalchemy.Table)
    return table


def _attribute_rows(trial_id: int, attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"trial_id": trial_id, "key": key, "value_json": json.dumps(value)} for key, value in attributes.items()]


def _upsert(session: Session, table: sqlalchemy.Table, key: str, rows: list[dict[str, Any]]) -> None:
    insert = (postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert)(table)
    changed = {name: insert.excluded[name] for name in rows[0] if name not in ("trial_id", key)}
    session.connection().execute(insert.on_conflict_do_update(index_elements=["trial_id", key], set_=changed), rows)


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """As they come back from the database: tuples as lists, keys as text."""
    return {key: json.loads(json.dumps(value)) for key, value in values.items()}
