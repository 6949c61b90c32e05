"""Optuna's storage for the process that owns a study: what it wrote it knows, and need not read again.

Optuna's own cache reads every unfinished trial from the database whenever trials are listed, several times an ask: with 512 workers that is
512 trials each time. The owner of a study is the only one that writes its trials, and the study's lock fences it, so here every trial is kept in
memory, running ones included, and follows the writes. After a call that failed it is not known what was written; then, and only then, what was
not finished is read again.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState

from storage.changes import Change, write_changes
from storage.reading import read_trials


@dataclass
class _Known:
    """The trials of one study."""

    trials: dict[int, FrozenTrial] = field(default_factory=dict)  # by trial id, which rises with the number
    unfinished: dict[int, FrozenTrial] = field(default_factory=dict)
    finished: list[FrozenTrial] = field(default_factory=list)  # in the order in which they ended, or were read
    distributions: dict[str, BaseDistribution] = field(default_factory=dict)  # first of each parameter
    certain: bool = False

    def put(self, trial: FrozenTrial) -> None:
        trial_id = trial._trial_id
        before = self.trials.get(trial_id)
        if before is not None and before.state.is_finished():
            return
        self.trials[trial_id] = trial
        if trial.state.is_finished():
            self.unfinished.pop(trial_id, None)
            self.finished.append(trial)
        else:
            self.unfinished[trial_id] = trial
        for name, distribution in trial.distributions.items():
            self.distributions.setdefault(name, distribution)


class OwnerStorage(_CachedStorage):
    """One process, any of its threads. `together` makes the writes of a block one transaction."""

    def __init__(self, database: RDBStorage) -> None:
        super().__init__(database)
        self._known: dict[int, _Known] = {}
        self._study_of: dict[int, int] = {}  # trial id -> study id
        self._ids: dict[str, int] = {}
        self._memory = threading.RLock()  # held for moments
        self._turn = threading.RLock()  # held while trials are written or read: between the two, memory agrees with the database
        self._local = threading.local()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Keep back what this thread writes to trials within the block, and write it as one when the block ends; nothing if it raises.

        Within the block this thread's `get_trial` shows what was kept back; lists of trials do not.
        """
        if self._kept() is not None:
            yield
            return
        kept: dict[int, Change] = {}
        self._local.kept = kept
        try:
            yield
        finally:
            self._local.kept = None
        if kept:
            self.write(kept)

    def write(self, changes: Mapping[int, Change]) -> None:
        """Write changes of trials, by trial id, to the database and then to memory."""
        with self._turn:
            write_changes(self._backend, changes)
            with self._memory:
                for trial_id, change in changes.items():
                    if (known := self._known.get(self._study_of.get(trial_id, -1))) is not None:
                        known.put(change.applied_to(known.trials[trial_id]))

    def doubt(self) -> None:
        """Read unfinished trials, and later ones than are known, before the next look at them."""
        with self._memory:
            for known in self._known.values():
                known.certain = False

    def answered(self) -> None:
        """Called whenever the database has answered within a call that asks it more than once."""

    def finished_trials(self, study_id: int) -> Sequence[FrozenTrial]:
        """Every finished trial, failed ones included, in the order in which it ended: a list that only grows. Not to be changed."""
        return self._current(study_id).finished

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        with self._turn:
            known = self._current(study_id)
            if template_trial is None:
                trial = self._new_trial(study_id, len(known.trials))
            else:
                trial = self._backend.get_trial(self._backend.create_new_trial(study_id, template_trial))
            with self._memory:
                self._study_of[trial._trial_id] = study_id
                known.put(trial)
        return trial._trial_id

    def _new_trial(self, study_id: int, number: int) -> FrozenTrial:
        """A running trial. Optuna counts the study's trials in the database to number it; their count is known here."""
        now = datetime.now()
        with _create_scoped_session(self._backend.scoped_session) as session:
            models.StudyModel.find_or_raise_by_id(study_id, session)
            trial: Any = models.TrialModel(study_id=study_id, number=number, state=TrialState.RUNNING, datetime_start=now)
            session.add(trial)
            session.flush()
            trial_id = int(trial.trial_id)
        return FrozenTrial(
            number=number, state=TrialState.RUNNING, value=None, values=None, datetime_start=now, datetime_complete=None, params={},
            distributions={}, user_attrs={}, system_attrs={}, intermediate_values={}, trial_id=trial_id,
        )  # fmt: skip

    def set_trial_param(self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution) -> None:
        known = self._known_of(trial_id)
        if (first := known.distributions.get(param_name)) is not None:
            check_distribution_compatibility(first, distribution)
        self._change(trial_id, Change(params={param_name: (param_value_internal, distribution)}))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._change(trial_id, Change(user_attrs={key: value}))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._change(trial_id, Change(system_attrs={key: value}))

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self._change(trial_id, Change(reports={step: intermediate_value}))

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        with self._turn:  # of two threads that take the same waiting trial, one gets it
            if state == TrialState.RUNNING and self.get_trial(trial_id).state == TrialState.RUNNING:
                return False
            self._change(trial_id, Change(values=values, state=state, at=datetime.now()))
            return True

    def get_trial(self, trial_id: int) -> FrozenTrial:
        trial = self._known_of(trial_id).trials[trial_id]
        kept = self._kept()
        if kept is not None and trial_id in kept:
            return kept[trial_id].applied_to(trial)
        return trial if trial.state.is_finished() else Change().applied_to(trial)  # a copy: Optuna's Trial writes to it

    def get_all_trials(self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        known = self._current(study_id)
        with self._memory:
            if states is None:
                trials = list(known.trials.values())
            elif any(state in states for state in TrialState if state.is_finished()):
                trials = [trial for trial in known.trials.values() if trial.state in states]
            else:
                trials = [trial for trial in known.unfinished.values() if trial.state in states]
        trials.sort(key=lambda trial: trial.number)
        return copy.deepcopy(trials) if deepcopy else trials

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        known = self._current(study_id)
        with self._memory:
            found = [trial_id for trial_id, trial in known.trials.items() if trial.number == trial_number]
        if not found:
            raise KeyError(f"no trial {trial_number} in study {study_id}")
        return found[0]

    def get_study_id_from_name(self, study_name: str) -> int:
        if study_name not in self._ids:
            self._ids[study_name] = super().get_study_id_from_name(study_name)
        return self._ids[study_name]

    def delete_study(self, study_id: int) -> None:
        with self._turn, self._memory:
            self._known.pop(study_id, None)
            self._ids = {name: other for name, other in self._ids.items() if other != study_id}
            super().delete_study(study_id)

    def _kept(self) -> dict[int, Change] | None:
        return getattr(self._local, "kept", None)

    def _change(self, trial_id: int, change: Change) -> None:
        self.check_trial_is_updatable(trial_id, self.get_trial(trial_id).state)
        kept = self._kept()
        if kept is None:
            self.write({trial_id: change})
        else:
            kept[trial_id] = kept[trial_id].followed_by(change) if trial_id in kept else change

    def _known_of(self, trial_id: int) -> _Known:
        study_id = self._study_of.get(trial_id)
        if study_id is None:
            with _create_scoped_session(self._backend.scoped_session) as session:
                trial: Any = models.TrialModel.find_or_raise_by_id(trial_id, session)
                study_id = int(trial.study_id)
        return self._current(study_id)

    def _current(self, study_id: int) -> _Known:
        """A study's trials, as they are in the database."""
        known = self._known.setdefault(study_id, _Known())
        if known.certain:
            return known
        with self._turn:
            for trials in read_trials(self._backend, study_id, list(known.unfinished), max(known.trials, default=-1)):
                with self._memory:
                    for trial in trials:
                        self._study_of[trial._trial_id] = study_id
                        known.put(trial)
                self.answered()
            known.certain = True
        return known
