"""Trials of a study read in slices, without the object mapper: ten thousand in seconds, and no call that lasts so long that it looks hung."""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from typing import Any

import sqlalchemy
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial

_SLICE = 500  # trials


def read_trials(database: RDBStorage, study_id: int, known: Collection[int], after: int) -> Iterator[list[FrozenTrial]]:
    """The trials with the given ids and those with higher ids than `after`, in slices, by id. Raises KeyError where the study is gone."""
    trials: Any = models.TrialModel.__table__
    for start in range(0, len(known), _SLICE):
        yield _slice(database, study_id, trials.c.trial_id.in_(sorted(known)[start : start + _SLICE]))
    while found := _slice(database, study_id, trials.c.trial_id > after):
        yield found
        after = found[-1]._trial_id


def _slice(database: RDBStorage, study_id: int, condition: Any) -> list[FrozenTrial]:
    trials: Any = models.TrialModel.__table__
    with _create_scoped_session(database.scoped_session) as session:
        models.StudyModel.find_or_raise_by_id(study_id, session)
        chosen = sqlalchemy.select(trials).where(trials.c.study_id == study_id, condition).order_by(trials.c.trial_id).limit(_SLICE)
        rows = session.execute(chosen).mappings().all()
        ids = [row["trial_id"] for row in rows]

        def of(model: Any) -> dict[int, list[Any]]:
            table = model.__table__
            (key,) = table.primary_key.columns
            found = defaultdict(list)
            if ids:
                for row in session.execute(sqlalchemy.select(table).where(table.c.trial_id.in_(ids)).order_by(key)):
                    found[row.trial_id].append(row)
            return found

        params, values, reports = of(models.TrialParamModel), of(models.TrialValueModel), of(models.TrialIntermediateValueModel)
        user_attrs, system_attrs = of(models.TrialUserAttributeModel), of(models.TrialSystemAttributeModel)
    return [
        FrozenTrial(
            number=row["number"],
            state=row["state"],
            value=None,
            values=[_value(value) for value in sorted(values[trial_id], key=lambda value: value.objective)] or None,
            datetime_start=_local(row["datetime_start"]),
            datetime_complete=_local(row["datetime_complete"]),
            params={param.param_name: _kind(param.distribution_json).to_external_repr(param.param_value) for param in params[trial_id]},
            distributions={param.param_name: _kind(param.distribution_json) for param in params[trial_id]},
            user_attrs={attribute.key: json.loads(attribute.value_json) for attribute in user_attrs[trial_id]},
            system_attrs={attribute.key: json.loads(attribute.value_json) for attribute in system_attrs[trial_id]},
            intermediate_values={report.step: _score(report) for report in reports[trial_id]},
            trial_id=trial_id,
        )
        for row in rows
        for trial_id in [row["trial_id"]]
    ]


@functools.lru_cache(maxsize=1024)
def _kind(text: str) -> BaseDistribution:
    """One object for all trials: distributions are never changed."""
    return json_to_distribution(text)


def _value(row: Any) -> float:
    return models.TrialValueModel.stored_repr_to_value(row.value, row.value_type)


def _score(row: Any) -> float:
    return models.TrialIntermediateValueModel.stored_repr_to_intermediate_value(row.intermediate_value, row.intermediate_value_type)


def _local(moment: datetime | None) -> datetime | None:
    """Optuna keeps UTC and shows local time, both without a zone."""
    return None if moment is None else moment.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
