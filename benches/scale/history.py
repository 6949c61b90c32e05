"""A study's database with a long history, without running it: rows as Optuna's API would have written them, inserted in bulk."""

import json
import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution, distribution_to_json
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autoft.config import StudyConfig
from autoft.hyperband import IndexedHyperband
from autoft.samplers import make_pruner
from autoft.search_space import sample_hyperparameters
from autoft.trial import report_steps
from storage import StorageURL
from storage.tables import engine_of

_BATCH = 1000  # trials inserted at once
_BEGAN = datetime(2026, 1, 1)


def insert_trials(url: StorageURL, study_id: int, trials: Sequence[FrozenTrial]) -> None:
    """Write trials with everything on them, in their order; numbers must follow those that are there."""
    with engine_of(url) as engine, engine.begin() as connection:
        for start in range(0, len(trials), _BATCH):
            batch = trials[start : start + _BATCH]
            rows = [
                {
                    "study_id": study_id,
                    "number": trial.number,
                    "state": trial.state,
                    "datetime_start": _utc(trial.datetime_start),
                    "datetime_complete": _utc(trial.datetime_complete),
                }
                for trial in batch
            ]
            table: Any = models.TrialModel.__table__
            returned = connection.execute(sqlalchemy.insert(table).returning(table.c.trial_id, sort_by_parameter_order=True), rows)
            ids = list(returned.scalars())
            for model, rows in _rows_of(ids, batch):
                if rows:
                    connection.execute(sqlalchemy.insert(model), rows)
    _analyze(url)


def _rows_of(ids: Sequence[int], trials: Sequence[FrozenTrial]) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    pairs = list(zip(ids, trials, strict=True))
    reported, valued = models.TrialIntermediateValueModel, models.TrialValueModel
    yield models.TrialParamModel, [
        {"trial_id": trial_id, "param_name": name, "param_value": kind.to_internal_repr(trial.params[name]), "distribution_json": distribution_to_json(kind)}
        for trial_id, trial in pairs
        for name, kind in trial.distributions.items()
    ]
    for model, attributes in ((models.TrialUserAttributeModel, "user_attrs"), (models.TrialSystemAttributeModel, "system_attrs")):
        yield model, [
            {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
            for trial_id, trial in pairs
            for key, value in getattr(trial, attributes).items()
        ]
    yield reported, [
        {"trial_id": trial_id, "step": step, "intermediate_value": stored, "intermediate_value_type": kind}
        for trial_id, trial in pairs
        for step, value in trial.intermediate_values.items()
        for stored, kind in [reported.intermediate_value_to_stored_repr(value)]
    ]
    yield valued, [
        {"trial_id": trial_id, "objective": objective, "value": stored, "value_type": kind}
        for trial_id, trial in pairs
        for objective, value in enumerate(trial.values or ())
        for stored, kind in [valued.value_to_stored_repr(value)]
    ]


def _analyze(url: StorageURL) -> None:
    """What autovacuum does within minutes of such growth."""
    with engine_of(url) as engine, engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sqlalchemy.text("ANALYZE"))


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.astimezone(UTC).replace(tzinfo=None)


def make_trials(config: StudyConfig, study_name: str, n: int, seed: int = 0, first: int = 0, running: bool = False) -> list[FrozenTrial]:
    """Trials such as the study's coordinator leaves: parameters from the prior, reports, what TPE and Hyperband note, the run's details.

    Args:
        first: number of the first one.
        running: they have been asked and handed out, and nothing more.
    """
    rng = np.random.default_rng([seed, first])
    space = _space(config)
    study = _Notes(study_name, StudyDirection.MAXIMIZE if config.direction == "maximize" else StudyDirection.MINIMIZE)
    pruner, steps = make_pruner(config), report_steps(config)
    trials = []
    for number in range(first, first + n):
        params = {name: _draw(rng, kind) for name, kind in space.items()}
        at = _BEGAN + timedelta(seconds=7 * number)
        trial = FrozenTrial(
            number=number, state=TrialState.RUNNING, value=None, values=None, datetime_start=at, datetime_complete=None, params=params,
            distributions=dict(space), user_attrs={}, system_attrs={"tpe:relative_params:0": json.dumps(params)}, intermediate_values={},
            trial_id=number,
        )  # fmt: skip
        trials.append(trial)
        if not running:
            study.trial = trial
            _finish(trial, study, pruner, steps, score_of(params))
    return trials


def score_of(params: dict[str, Any]) -> float:
    """A smooth score in (0, 1) of parameters by name, best at the middle of every range but the seed's, which adds a little noise."""
    distance = sum((math.log10(value) - centre) ** 2 for name, value in params.items() if (centre := _CENTRES.get(name.partition("/")[0])) is not None and value > 0)
    noise = math.sin(float(params.get("seed", 0)))
    return 1 / (1 + distance / 4) * 0.95 + 0.02 * (1 + noise)


_CENTRES = {"lr": -4.0, "weight_decay": -1.0, "loss_weight": -1.5}


class _Notes:
    """The part of a study a pruner needs, with one trial that is written to."""

    def __init__(self, name: str, direction: StudyDirection) -> None:
        self.study_name, self.direction, self._study_id, self._storage = name, direction, 0, self
        self.trial: FrozenTrial | None = None

    def get_trials(self, deepcopy: bool = True, states: Any = None) -> list[FrozenTrial]:
        return []

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        assert self.trial is not None
        self.trial.system_attrs[key] = value


def _finish(trial: FrozenTrial, study: Any, pruner: optuna.pruners.BasePruner, steps: Sequence[int], score: float) -> None:
    state = TrialState.COMPLETE
    for index, step in enumerate(steps, 1):
        trial.intermediate_values[step] = score * index / len(steps)
        if isinstance(pruner, IndexedHyperband) and step < steps[-1] and pruner.prune(study, trial):
            state = TrialState.PRUNED
            break
    last = trial.last_step or 0
    details: dict[str, Any] = {"worker": "simulated", "seconds": 60.0 * last / steps[-1], "samples": 64 * last, "attempts": 1}
    if state == TrialState.COMPLETE:
        details |= {"ci_low": score - 0.02, "ci_high": score + 0.02}
    trial.user_attrs["run"] = details
    trial.values = [trial.intermediate_values[last]]
    trial.state = state
    assert trial.datetime_start is not None
    trial.datetime_complete = trial.datetime_start + timedelta(seconds=60)


def _space(config: StudyConfig) -> dict[str, BaseDistribution]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    sample_hyperparameters(study.ask(), config.search_space)
    return study.trials[0].distributions


def _draw(rng: np.random.Generator, kind: BaseDistribution) -> Any:
    if isinstance(kind, IntDistribution):
        return int(rng.integers(kind.low, kind.high, endpoint=True))
    assert isinstance(kind, FloatDistribution), "the paper's space has floats and a seed"
    if kind.log:
        return float(np.exp(rng.uniform(np.log(kind.low), np.log(kind.high))))
    return float(rng.uniform(kind.low, kind.high))
