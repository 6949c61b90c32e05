"""The coordinator against a real in-memory Optuna study and an executor that answers from a function."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from autoft.config import StudyConfig, load_config
from autoft.confirm import candidates
from autoft.errors import ClusterError, Interrupted, StudyConflict, TrialCodeError
from autoft.executor import Event, Failed, FailureKind, Finished, Job, Reported, Stopped
from autoft.journal import Entry, Journal
from autoft.ledger import count_finished, study_id
from autoft.search import Coordinator
from autoft.trial import Report, TrialResult, report_steps
from tests.studies import write_study

Answer = Callable[[Job, int], list[Event]]


def finished(job: Job, score: float) -> Finished:
    result = TrialResult(
        score=score, ci_low=score, ci_high=score, values={"val_ood": score}, repeats=(score,), steps=4, samples=48, seconds=0.1
    )
    return Finished(job.number, result, "w")


def by_lr(job: Job, attempt: int) -> list[Event]:
    """A smooth score of the parameters: best at lr 1e-3."""
    return [finished(job, -abs(math.log10(job.hyperparameters.lr) + 3))]


class ScriptedExecutor:
    """Answers each submitted job with the events of a function; the newest job first, so that order is not arrival order."""

    def __init__(self, answer: Answer, slots: int = 1, ahead: int = 0) -> None:
        self.answer, self.slots, self.ahead = answer, slots, ahead
        self.jobs: list[Job] = []
        self.pruned: set[int] = set()
        self.attempts: dict[int, int] = {}
        self.submitted: list[Job] = []

    def submit(self, job: Job) -> None:
        self.jobs.append(job)
        self.submitted.append(job)

    def poll(self, timeout_seconds: float) -> list[Event]:
        if not self.jobs:
            return []
        job = self.jobs.pop()
        self.attempts[job.number] = self.attempts.get(job.number, 0) + 1
        return self.answer(job, self.attempts[job.number])

    def prune(self, number: int) -> None:
        self.pruned.add(number)

    def run_stages(self, request: Any, emit: Any) -> None:
        raise AssertionError("not part of a search")

    def close(self) -> None:
        pass


@pytest.fixture
def make_config(tmp_path: Path, tiny_vit: Path) -> Callable[..., StudyConfig]:
    return lambda **changes: load_config(write_study(tmp_path, tiny_vit, **changes))


def new_study(direction: str = "maximize", storage: Any = None) -> optuna.Study:
    return optuna.create_study(direction=direction, storage=storage, study_name="s", load_if_exists=True)


def search(config: StudyConfig, study: optuna.Study, executor: ScriptedExecutor, folder: Path, stop: Callable[[], bool] = lambda: False) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    journal = Journal(folder / "journal.jsonl", study_id(study))
    Coordinator(config, study, executor, journal, events.append, stop).run()
    return events


@pytest.mark.parametrize("slots", [1, 3, 50])
def test_exactly_n_trials_however_many_workers(make_config: Any, tmp_path: Path, slots: int) -> None:
    study = new_study()
    search(make_config(search__n_trials=7), study, ScriptedExecutor(by_lr, slots), tmp_path)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 7


def test_parameters_do_not_depend_on_workers_or_order_with_the_random_sampler(make_config: Any, tmp_path: Path) -> None:
    tables = []
    for slots in (1, 2, 5):
        study = new_study()
        search(make_config(search__n_trials=8), study, ScriptedExecutor(by_lr, slots), tmp_path / str(slots))
        tables.append([(trial.number, trial.params, trial.value) for trial in study.trials])
    assert tables[0] == tables[1] == tables[2]
    assert len({json.dumps(params) for _, params, _ in tables[0]}) == 8


@pytest.mark.parametrize(("metric", "pick"), [("accuracy", max), ("cross_entropy", min)])
def test_the_best_trial_respects_the_direction(make_config: Any, tmp_path: Path, metric: str, pick: Any) -> None:
    config = make_config(metric=metric, search__n_trials=9)
    study = new_study(config.direction)
    executor = ScriptedExecutor(by_lr, 3)
    search(config, study, executor, tmp_path)
    best = candidates(study, config)[0]
    assert best.score == pick(t.value for t in study.trials)
    assert best.hyperparameters == next(job.hyperparameters for job in executor.submitted if job.number == best.number)


def test_defect_17_a_stopped_search_goes_on_where_it_was_and_equals_an_undisturbed_one(make_config: Any, tmp_path: Path) -> None:
    config = make_config(search__n_trials=10)
    undisturbed = new_study()
    search(config, undisturbed, ScriptedExecutor(by_lr, 2), tmp_path / "a")
    study, budget = new_study(), [4]

    def answer(job: Job, attempt: int) -> list[Event]:
        budget[0] -= 1
        return by_lr(job, attempt)

    with pytest.raises(Interrupted, match="of 10 trials finished"):
        search(config, study, ScriptedExecutor(answer, 2), tmp_path / "b", stop=lambda: budget[0] <= 0)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE, TrialState.RUNNING}
    events = search(config, study, ScriptedExecutor(by_lr, 2), tmp_path / "b")
    assert any(event.get("adopted") for event in events)
    assert [(t.number, t.params, t.value) for t in study.trials] == [(t.number, t.params, t.value) for t in undisturbed.trials]


def test_a_trial_interrupted_between_two_suggestions_gets_the_rest_it_would_have_had(make_config: Any, tmp_path: Path) -> None:
    from autoft.samplers import SeededSampler
    from autoft.search_space import sample_hyperparameters

    config = make_config(search__n_trials=3)
    undisturbed = new_study()
    search(config, undisturbed, ScriptedExecutor(by_lr), tmp_path / "a")
    study = new_study()
    study.sampler = SeededSampler(config.search)
    half = study.ask()
    half.suggest_float("lr", 1e-2 * 1e-3, 1e2 * 1e-3, log=True)
    assert len(half.params) == 1
    search(config, study, ScriptedExecutor(by_lr), tmp_path / "b")
    assert [t.params for t in study.trials] == [t.params for t in undisturbed.trials]
    assert sample_hyperparameters(study.trials[0], config.search_space) == sample_hyperparameters(undisturbed.trials[0], config.search_space)


def test_defect_17_the_pruner_gets_the_reports_and_a_pruned_trial_counts(make_config: Any, tmp_path: Path) -> None:
    config = make_config(search__n_trials=12, search__pruner="median", trial__reports=2)
    steps = report_steps(config)
    assert steps == [2, 4]
    study = new_study()
    executor = ScriptedExecutor(by_lr)

    def answer(job: Job, attempt: int) -> list[Event]:
        good = job.number < 6
        first: list[Event] = [Reported(job.number, Report(2, 0.9 if good else 0.1))]
        if attempt == 1:
            executor.jobs.append(job)
            return first
        if job.number in executor.pruned:
            return [Stopped(job.number, 24, 0.05, "w")]
        return [Reported(job.number, Report(4, 0.9)), finished(job, 0.9)]

    executor.answer = answer
    search(config, study, executor, tmp_path)
    states = [trial.state for trial in study.trials]
    assert states.count(TrialState.PRUNED) == 6, "the poor half is pruned"
    assert count_finished(study) == len(states) == 12
    assert all(trial.intermediate_values[2] in (0.9, 0.1) for trial in study.trials)


def test_a_lost_trial_runs_again_under_its_number_with_its_parameters(make_config: Any, tmp_path: Path) -> None:
    def answer(job: Job, attempt: int) -> list[Event]:
        if job.number % 2 and attempt < 3:
            return [Reported(job.number, Report(2, 0.5)), Failed(job.number, FailureKind.INFRASTRUCTURE, "node lost", "w")]
        return [Reported(job.number, Report(2, 0.5)), *by_lr(job, attempt)]

    study, executor = new_study(), ScriptedExecutor(answer, 2)
    search(make_config(search__n_trials=6), study, executor, tmp_path)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 6
    assert [trial.user_attrs["run"]["attempts"] for trial in study.trials] == [1, 3, 1, 3, 1, 3]
    for number in range(6):
        assert len({job.hyperparameters.digest() for job in executor.submitted if job.number == number}) == 1


def test_a_diverged_trial_is_told_as_pruned_and_never_retried(make_config: Any, tmp_path: Path) -> None:
    def answer(job: Job, attempt: int) -> list[Event]:
        if job.number == 1:
            return [Failed(1, FailureKind.DIVERGED, "the loss is not finite", "w")]
        return [finished(job, math.inf)] if job.number == 2 else by_lr(job, attempt)

    study, executor = new_study(), ScriptedExecutor(answer)
    search(make_config(search__n_trials=5), study, executor, tmp_path)
    assert [t.state for t in study.trials].count(TrialState.PRUNED) == 2
    assert study.trials[1].user_attrs["failure_kind"] == study.trials[2].user_attrs["failure_kind"] == "diverged"
    assert executor.attempts == dict.fromkeys(range(5), 1)
    assert math.isfinite(study.best_value)


@pytest.mark.parametrize(("kind", "error"), [(FailureKind.CODE, TrialCodeError), (FailureKind.OUT_OF_MEMORY, ClusterError)])
def test_what_would_fail_every_trial_stops_the_study(make_config: Any, tmp_path: Path, kind: FailureKind, error: type[Exception]) -> None:
    study = new_study()
    with pytest.raises(error, match="broken line 7"):
        search(make_config(), study, ScriptedExecutor(lambda job, _: [Failed(job.number, kind, "broken line 7", "w")]), tmp_path)
    assert [t.state for t in study.trials] == [TrialState.FAIL]
    assert study.trials[0].user_attrs["failure_kind"] == kind.value


def test_a_result_that_never_reached_the_database_comes_from_the_journal(make_config: Any, tmp_path: Path) -> None:
    config = make_config(search__n_trials=3)
    undisturbed = new_study()
    search(config, undisturbed, ScriptedExecutor(by_lr), tmp_path / "a")
    study = new_study()

    class Crash(Exception):
        pass

    def crash(event: dict[str, Any]) -> None:
        if event["event"] == "trial_started" and event["trial"] == 1:
            raise Crash

    journal = Journal(tmp_path / "b" / "journal.jsonl", study_id(study))
    with pytest.raises(Crash):
        Coordinator(config, study, ScriptedExecutor(by_lr), journal, crash, lambda: False).run()
    # The coordinator died after the journal's line of trial 1 was written and before it was told.
    reference = undisturbed.trials[1]
    entry = next(e for e in Journal(tmp_path / "a" / "journal.jsonl", study_id(undisturbed)).entries() if e.number == 1)
    journal.append(Entry(**{**vars(entry), "study_id": study_id(study)}))
    executor = ScriptedExecutor(by_lr)
    search(config, study, executor, tmp_path / "b")
    assert 1 not in executor.attempts, "trial 1 must not run again"
    assert (study.trials[1].params, study.trials[1].value) == (reference.params, reference.value)


def test_a_torn_last_line_is_dropped_and_its_trial_runs_again(make_config: Any, tmp_path: Path) -> None:
    study = new_study()
    search(make_config(search__n_trials=2), study, ScriptedExecutor(by_lr), tmp_path)
    path = tmp_path / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert len(list(Journal(path, study_id(study)).entries())) == 1
    search(make_config(search__n_trials=4), study, ScriptedExecutor(by_lr), tmp_path)
    assert count_finished(study) == 4


def test_another_studys_journal_is_refused(make_config: Any, tmp_path: Path) -> None:
    search(make_config(search__n_trials=1), new_study(), ScriptedExecutor(by_lr), tmp_path)
    with pytest.raises(StudyConflict, match="another study of the same name"):
        search(make_config(search__n_trials=1), new_study(), ScriptedExecutor(by_lr), tmp_path)


def test_tpe_learns(make_config: Any, tmp_path: Path) -> None:
    """TPE's later trials are nearer to the optimum than its first ten, which are drawn from the prior."""
    study = new_study()
    search(make_config(search__n_trials=40, search__sampler="tpe"), study, ScriptedExecutor(by_lr, 2), tmp_path)
    values = [trial.value for trial in study.trials]
    assert sum(values[20:]) / 20 > sum(values[:10]) / 10 + 0.2
