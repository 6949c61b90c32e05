"""Asking ahead and telling behind: a worker that becomes free goes on at once, and nothing else changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState

from autoft.config import StudyConfig, load_config
from autoft.errors import Interrupted
from autoft.executor import Event, Job, Reported
from autoft.lifeline import Wish
from autoft.trial import Report
from tests.studies import write_study
from tests.test_outage import Patient, Steered, search, table
from tests.test_search import ScriptedExecutor, by_lr, finished


@pytest.fixture
def make_config(tmp_path: Path, tiny_vit: Path) -> Callable[..., StudyConfig]:
    return lambda **changes: load_config(write_study(tmp_path, tiny_vit, **{"search__n_trials": 12, "search__pruner": "none", **changes}))


class Counted(InMemoryStorage):
    """Knows how many calls have been made of it."""

    calls = 0

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if callable(found) and not name.startswith("_"):
            Counted.calls += 1
        return found


def test_a_free_worker_goes_on_before_anything_is_asked_or_told(make_config: Any, tmp_path: Path) -> None:
    """Between the end of a trial and the next one on its worker the study is not touched at all."""
    storage, between, freed = Counted(), [], [0]

    class Watching(Patient):
        def poll(self, timeout_seconds: float) -> list[Event]:
            events = super().poll(timeout_seconds)
            if events:
                freed[0] = Counted.calls
            return events

        def submit(self, job: Job) -> None:
            super().submit(job)
            between.append(Counted.calls - freed[0])

    search(make_config(), storage, tmp_path, None, Watching(by_lr, 2, ahead=2))
    assert len(between) == 12
    assert between[2:] == [0] * 10, "all but the first two, which had to be asked for"
    between.clear()
    search(make_config(), Counted(), tmp_path / "without", None, Watching(by_lr, 2, ahead=0))
    assert min(between) > 0, "without it each waits"


@pytest.mark.parametrize("ahead", [1, 3, 20])
def test_the_table_is_the_same(make_config: Any, tmp_path: Path, ahead: int) -> None:
    found = [table(search(make_config(), InMemoryStorage(), tmp_path / str(n), None, ScriptedExecutor(by_lr, 2, n))[0]) for n in (0, ahead)]
    assert len(found[0]) == 12
    assert found[0] == found[1]


def test_no_more_is_asked_than_is_to_be_run(make_config: Any, tmp_path: Path) -> None:
    lifeline, seen = Steered(), []

    class Seeing(Patient):
        def poll(self, timeout_seconds: float) -> list[Event]:
            seen.append(sum(trial.state == TrialState.RUNNING for trial in study_of(storage).trials))
            return super().poll(timeout_seconds)

    storage = InMemoryStorage()
    study, _ = search(make_config(), storage, tmp_path, lifeline, Seeing(by_lr, 2, ahead=3))
    assert max(seen) == 2 + 3
    assert len(study.trials) == 12


def study_of(storage: BaseStorage) -> optuna.Study:
    return optuna.load_study(study_name="s", storage=storage)


def test_what_was_asked_ahead_is_held_while_the_study_is_paused(make_config: Any, tmp_path: Path) -> None:
    lifeline, polls, submitted = Steered(), [0], list[int]()

    class Pausing(Patient):
        def poll(self, timeout_seconds: float) -> list[Event]:
            polls[0] += 1
            if polls[0] == 8:
                lifeline.wished = Wish.PAUSE
                submitted.append(len(self.submitted))
            if polls[0] == 30:
                submitted.append(len(self.submitted))
                lifeline.wished = Wish.RUN
            return super().poll(timeout_seconds)

    study, _ = search(make_config(), InMemoryStorage(), tmp_path, lifeline, Pausing(by_lr, 2, ahead=2))
    assert submitted[0] == submitted[1] < 12
    assert len(table(study)) == 12


def test_the_next_run_runs_what_was_asked_ahead_and_put_back(make_config: Any, tmp_path: Path) -> None:
    undisturbed, _ = search(make_config(), InMemoryStorage(), tmp_path / "undisturbed")
    lifeline, storage = Steered(), optuna.storages.get_storage(f"sqlite:///{tmp_path / 'studies.db'}")

    def answer(job: Job, attempt: int) -> list[Event]:
        if job.number == 5:
            lifeline.wished = Wish.STOP
        return by_lr(job, attempt)

    with pytest.raises(Interrupted):
        search(make_config(), storage, tmp_path, lifeline, Patient(answer, 2, ahead=3))
    waiting = [trial for trial in study_of(storage).trials if trial.state == TrialState.WAITING]
    assert waiting and all(trial.params for trial in waiting)
    study, _ = search(make_config(), storage, tmp_path, None, ScriptedExecutor(by_lr, 2, ahead=3))
    assert [(t.number, t.params, t.value) for t in study.trials] == [(t.number, t.params, t.value) for t in undisturbed.trials]


@pytest.mark.parametrize("ahead", [0, 2])
def test_poor_trials_are_pruned_all_the_same(make_config: Any, tmp_path: Path, ahead: int) -> None:
    """Every trial from the sixth on reports worse than the median, and says so to the end unless it is stopped."""

    class Reporting(ScriptedExecutor):
        def poll(self, timeout_seconds: float) -> list[Event]:
            if not self.jobs or (ahead and not timeout_seconds):
                return []
            job = self.jobs[0]
            self.attempts[job.number] = step = self.attempts.get(job.number, 0) + 1
            if step < 8 and job.number not in self.pruned:
                return [Reported(job.number, Report(step, -float(job.number)))]
            self.jobs.pop(0)
            return [finished(job, -float(job.number))]

    executor = Reporting(by_lr, 1, ahead)
    config = make_config(search__pruner="median", search__n_trials=9, trial__steps=16, trial__reports=16)
    study, _ = search(config, InMemoryStorage(), tmp_path, None, executor)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 5 + [TrialState.PRUNED] * 4
    assert executor.pruned == {5, 6, 7, 8}
    assert all(len(trial.intermediate_values) < 7 for trial in study.trials[5:])
