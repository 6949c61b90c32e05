"""A search whose database goes away in the middle of any call: nothing is lost, told twice or pruned blindly."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from autoft.config import StudyConfig, load_config
from autoft.errors import ClusterError, Interrupted, StorageError, StorageUnavailable, StudyLocked
from autoft.executor import Event, Failed, FailureKind, Job, Reported
from autoft.journal import Journal
from autoft.ledger import study_id
from autoft.lifeline import Outage, Wish
from autoft.search import Coordinator
from autoft.trial import Report
from tests.studies import write_study
from tests.test_search import ScriptedExecutor, by_lr, finished

CALLS = sorted(name for name in optuna.storages.BaseStorage.__abstractmethods__ if "study" not in name or "attr" in name)


class Steered:
    """A lifeline whose answers a test sets."""

    def __init__(self) -> None:
        self.there, self.wished, self.owner = True, Wish.RUN, True

    def reachable(self) -> bool:
        return self.there

    def returns(self) -> int:
        return 0

    def wish(self) -> Wish:
        return self.wished

    def check_owner(self) -> None:
        if not self.owner:
            raise StudyLocked("study 's' was taken over by process 1 on host h")


class Flaky(InMemoryStorage):
    """Fails at chosen calls: before the call is done, or after it (an answer lost on the way)."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.fails: Callable[[int], str | None] = lambda call: None


def _flaky(name: str) -> Callable[..., Any]:
    def call(self: Flaky, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        fails = self.fails(self.calls)
        if fails == "before":
            raise StorageUnavailable("away")
        result = getattr(InMemoryStorage, name)(self, *args, **kwargs)
        if fails == "after":
            raise StorageUnavailable("away")
        return result

    return call


for _name in CALLS:
    setattr(Flaky, _name, _flaky(_name))


class Patient(ScriptedExecutor):
    """Its trials end only while the coordinator has nothing better to do than to wait, as trials do that take long."""

    def poll(self, timeout_seconds: float) -> list[Event]:
        return super().poll(timeout_seconds) if timeout_seconds else []


@pytest.fixture
def config(tmp_path: Path, tiny_vit: Path) -> StudyConfig:
    return load_config(write_study(tmp_path, tiny_vit, search__n_trials=6, search__pruner="none"))


def reporting(job: Job, attempt: int) -> list[Event]:
    score = by_lr(job, attempt)[0].result.score  # type: ignore[union-attr]
    return [Reported(job.number, Report(2, score)), finished(job, score)]


def search(config: StudyConfig, storage: Any, folder: Path, lifeline: Steered | None = None, executor: ScriptedExecutor | None = None, **more: Any) -> Any:
    fails = getattr(storage, "fails", None)
    storage.fails = lambda call: None  # until the search itself begins
    study = optuna.create_study(direction="maximize", storage=storage, study_name="s", load_if_exists=True)
    journal = Journal(folder / "journal.jsonl", study_id(study))
    storage.calls, storage.fails = 0, fails
    events: list[dict[str, Any]] = []
    lifeline = lifeline or Steered()
    Coordinator(config, study, executor or ScriptedExecutor(reporting, 2), journal, events.append, lambda: False, lifeline, **more).run()
    return study, events


def table(study: optuna.Study) -> list[Any]:
    return [(t.number, t.params, t.value, t.state, t.intermediate_values) for t in study.trials if t.state == TrialState.COMPLETE]


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoft.lifeline.WAIT_SECONDS", 0.0)


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_call_that_fails_anywhere_changes_nothing(config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, ahead: int) -> None:
    """Every single call of a search fails once, alone: before it is done, or after, when nobody knows that it was."""
    quick(monkeypatch)
    logging.disable(logging.WARNING)
    config = config.model_copy(update={"search": config.search.model_copy(update={"n_trials": 4})})
    quiet = Flaky()
    undisturbed, _ = search(config, quiet, tmp_path / "undisturbed", None, ScriptedExecutor(reporting, 3, ahead))
    calls = quiet.calls
    assert len(table(undisturbed)) == 4
    for failing in range(1, calls + 1):
        storage = Flaky()
        storage.fails = lambda call, failing=failing: when if call == failing else None  # type: ignore[misc]
        executor = ScriptedExecutor(reporting, 3, ahead)
        study, events = search(config, storage, tmp_path / f"{failing}", None, executor)
        assert len({job.number for job in executor.submitted}) == len(executor.submitted), f"call {failing}"
        storage.fails = lambda call: None
        assert table(study) == table(undisturbed), f"call {failing}"
        others = [trial for trial in study.trials if trial.state != TrialState.COMPLETE]
        assert all(trial.state == TrialState.FAIL and trial.user_attrs["failure_kind"] == "cancelled" for trial in others), f"call {failing}"
        assert [e["event"] for e in events if e["event"].startswith("outage")] == ["outage_began", "outage_ended"], f"call {failing}"
    logging.disable(logging.NOTSET)


def test_workers_go_on_and_nothing_is_asked_or_pruned_meanwhile(config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    config = config.model_copy(update={"search": config.search.model_copy(update={"pruner": "median"})})
    storage, lifeline = Flaky(), Steered()
    away = {"polls": 0}

    class Slow(ScriptedExecutor):
        """One event a poll; the database leaves after the fourth."""

        def __init__(self) -> None:
            super().__init__(reporting, 2)
            self.events: list[Event] = []

        def poll(self, timeout_seconds: float) -> list[Event]:
            away["polls"] += 1
            if away["polls"] == 4:
                lifeline.there, storage.fails = False, lambda call: "before"
            if away["polls"] == 40:
                assert not self.pruned
                lifeline.there, storage.fails = True, lambda call: None
            self.events += super().poll(timeout_seconds)
            return [self.events.pop(0)] if self.events else []

    executor = Slow()
    submitted: dict[int, int] = {}
    monkeypatch.setattr(executor, "submit", lambda job: (submitted.setdefault(job.number, away["polls"]), ScriptedExecutor.submit(executor, job)))
    study, _ = search(config, storage, tmp_path, lifeline, executor)
    assert not any(4 < poll < 40 for poll in submitted.values()), "nothing was asked during the outage"
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert len(lines) == 6 and all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in study.trials)
    assert all(len(trial.intermediate_values) == 1 for trial in study.trials), "reports made meanwhile have arrived"


def test_an_outage_that_does_not_end_ends_the_run_with_everything_in_the_journal(config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    storage = Flaky()
    lifeline = Steered()

    def answer(job: Job, attempt: int) -> list[Event]:
        if job.number == 3:
            storage.fails = lambda call: "before"
        return reporting(job, attempt)

    outage = Outage(lifeline, lambda event: None, limit_seconds=0.2)
    with pytest.raises(StorageError, match="has been away for 0 minutes; every result is in the run folder's journal"):
        search(config, storage, tmp_path, lifeline, ScriptedExecutor(answer), outage=outage)
    storage.fails = lambda call: None
    told = [trial.number for trial in optuna.load_study(study_name="s", storage=storage).trials if trial.state == TrialState.COMPLETE]
    assert told == [0, 1, 2]
    ran: list[int] = []
    study, _ = search(config, storage, tmp_path, None, ScriptedExecutor(lambda job, attempt: (ran.append(job.number), reporting(job, attempt))[1]))
    assert ran == [4, 5], "trial 3 is told from the journal"
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 6


def test_pause_starts_nothing_new_and_resume_goes_on(config: StudyConfig, tmp_path: Path) -> None:
    lifeline, polls = Steered(), {"n": 0}

    class Counting(ScriptedExecutor):
        def poll(self, timeout_seconds: float) -> list[Event]:
            polls["n"] += 1
            if polls["n"] == 2:
                lifeline.wished = Wish.PAUSE
            if polls["n"] == 20:
                assert not self.jobs, "those that ran have ended"
                assert len(self.submitted) < 6
                lifeline.wished = Wish.RUN
            return super().poll(timeout_seconds)

    study, events = search(config, InMemoryStorage(), tmp_path, lifeline, Counting(by_lr, 2))
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 6
    assert [event["event"] for event in events if event["event"] in ("paused", "resumed")] == ["paused", "resumed"]


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize(("wish", "left"), [(Wish.STOP, {}), (Wish.CANCEL, {"cancelled"})])
def test_stop_lets_trials_end_and_cancel_does_not(config: StudyConfig, tmp_path: Path, wish: Wish, left: set[str], ahead: int) -> None:
    lifeline, storage = Steered(), InMemoryStorage()

    def answer(job: Job, attempt: int) -> list[Event]:
        if job.number == 3:  # the newest first: 2 still runs
            lifeline.wished = wish
        return by_lr(job, attempt)

    with pytest.raises(Interrupted, match="on request with") as stopped:
        search(config, storage, tmp_path, lifeline, Patient(answer, 2, ahead))
    assert stopped.value.exit_code == 0
    study = optuna.load_study(study_name="s", storage=storage)
    assert not [trial for trial in study.trials if trial.state == TrialState.RUNNING]
    assert sum(trial.state == TrialState.WAITING for trial in study.trials) <= ahead, "what was asked ahead is left to the next run"
    assert {trial.user_attrs["failure_kind"] for trial in study.trials if trial.state == TrialState.FAIL} == set(left)
    study, _ = search(config, storage, tmp_path)
    assert len(table(study)) == 6, "the same launch goes on"


def test_a_deposed_coordinator_stops_at_once(config: StudyConfig, tmp_path: Path) -> None:
    lifeline, storage = Steered(), InMemoryStorage()

    def answer(job: Job, attempt: int) -> list[Event]:
        lifeline.owner = job.number != 2
        return by_lr(job, attempt)

    with pytest.raises(StudyLocked, match="process 1 on host h"):
        search(config, storage, tmp_path, lifeline, ScriptedExecutor(answer))
    assert len(optuna.load_study(study_name="s", storage=storage).trials) == 3


def test_a_trial_that_takes_too_long_runs_once_more_and_is_then_given_up(config: StudyConfig, tmp_path: Path) -> None:
    def answer(job: Job, attempt: int) -> list[Event]:
        if job.number == 1 or (job.number == 2 and attempt == 1):
            return [Failed(job.number, FailureKind.TIMEOUT, "trial 1 took longer than 5 s", "w")]
        return by_lr(job, attempt)

    executor = ScriptedExecutor(answer)
    study, _ = search(config, InMemoryStorage(), tmp_path, None, executor)
    assert executor.attempts[1] == 2 and executor.attempts[2] == 2
    assert {trial.number: trial.user_attrs.get("failure_kind") for trial in study.trials if trial.state == TrialState.FAIL} == {1: "timeout"}
    assert len(table(study)) == 6


def test_only_trials_given_up_in_a_row_end_the_search(config: StudyConfig, tmp_path: Path) -> None:
    def odd_ones_hang(job: Job, attempt: int) -> list[Event]:
        return [Failed(job.number, FailureKind.TIMEOUT, "it took too long", "w")] if job.number % 2 else by_lr(job, attempt)

    study, _ = search(config, InMemoryStorage(), tmp_path / "odd", None, ScriptedExecutor(odd_ones_hang))
    assert [trial.state == TrialState.COMPLETE for trial in study.trials] == [True, False] * 5 + [True]
    hang = ScriptedExecutor(lambda job, attempt: [Failed(job.number, FailureKind.TIMEOUT, "it took too long", "w")])
    with pytest.raises(ClusterError, match=r"5 trials in a row were given up \(timeout\): it took too long"):
        search(config, InMemoryStorage(), tmp_path / "all", None, hang)
