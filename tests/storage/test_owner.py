"""What the owner of a study keeps in memory is what the database holds, whatever fails; and a trial costs the same few statements at any length."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import optuna
import pytest
import sqlalchemy.exc
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState, create_trial

import storage.owner
from autoft.config import SearchConfig
from autoft.errors import StorageUnavailable
from autoft.one_write import one_write
from autoft.samplers import SeededSampler
from storage import StorageURL, StudyHandle, load_study_readonly, open_study
from storage.changes import Change

LR = FloatDistribution(1e-5, 1e-1, log=True)


def opened(url: StorageURL) -> StudyHandle:
    return open_study(url, "mine", directions=["maximize"], create=True)


def in_database(url: StorageURL) -> list[Any]:
    """Read by Optuna's own storage over another connection."""
    return [vars(trial) for trial in load_study_readonly(url, "mine").get_trials()]


def in_memory(handle: StudyHandle) -> list[Any]:
    return [vars(trial) for trial in handle.study.get_trials()]


def live(study: optuna.Study) -> None:
    """Everything that can be written to trials."""
    study.enqueue_trial({"lr": 1e-3, "kind": "b"}, user_attrs={"name": ("x", 1)})
    for number in range(6):
        trial = study.ask()
        with one_write(study._storage):
            trial.suggest_float("lr", LR.low, LR.high, log=True)
            trial.suggest_int("seed", 0, 1000)
            trial.suggest_categorical("kind", ["a", "b"])
        trial.report([0.5, math.inf, -math.inf, math.nan, 0.25, 0.125][number], 2)
        trial.report(0.5, 4)
        trial.set_user_attr("run", {"seconds": 1.5, "repeats": (0.5, 0.25)})
        trial.set_user_attr("run", {"seconds": 2.5})
        if number == 1:
            study.tell(trial, state=TrialState.FAIL)
        elif number == 2:
            study.tell(trial, state=TrialState.PRUNED)
        elif number != 4:
            study.tell(trial, 0.1 * number)


def test_memory_is_the_database(url: StorageURL) -> None:
    with opened(url) as handle:
        live(handle.study)
        handle.study.add_trial(create_trial(value=0.75, params={"lr": 1e-2}, distributions={"lr": LR}))
        assert repr(in_memory(handle)) == repr(in_database(url))  # NaN is no equal of NaN
        assert [t.number for t in handle.study.get_trials()] == list(range(7))
        by_state = {state: [t.number for t in handle.study.get_trials(states=(state,))] for state in TrialState}
        assert by_state == {
            TrialState.RUNNING: [4], TrialState.COMPLETE: [0, 3, 5, 6], TrialState.PRUNED: [2], TrialState.FAIL: [1], TrialState.WAITING: [],
        }  # fmt: skip
        ended = [t.number for t in handle.storage.finished_trials(handle.study._study_id)]  # type: ignore[attr-defined]
        assert ended == [0, 1, 2, 3, 5, 6]
    with opened(url) as handle:
        assert repr(in_memory(handle)) == repr(in_database(url))


def test_rows_are_those_of_optunas_own_storage(url: StorageURL) -> None:
    reference = optuna.create_study(study_name="mine", direction="maximize", storage="sqlite:///:memory:", sampler=optuna.samplers.RandomSampler(seed=1))
    live(reference)
    with opened(url) as handle:
        handle.study.sampler = optuna.samplers.RandomSampler(seed=1)
        live(handle.study)

    def without_times(trials: list[Any]) -> list[Any]:
        return [{name: value for name, value in trial.items() if "datetime" not in name} for trial in trials]

    assert repr(without_times(in_database(url))) == repr(without_times([vars(trial) for trial in reference.get_trials()]))


def test_a_finished_trial_cannot_be_changed(url: StorageURL) -> None:
    with opened(url) as handle:
        trial = handle.study.ask()
        handle.study.tell(trial, 0.5)
        for write in (lambda: trial.set_user_attr("a", 1), lambda: trial.report(0.5, 9), lambda: trial.suggest_float("late", 0, 1)):
            with pytest.raises(UpdateFinishedTrialError):
                write()


def test_a_parameter_keeps_its_kind(url: StorageURL) -> None:
    with opened(url) as handle:
        handle.study.ask().suggest_float("lr", 0, 1)
    with opened(url) as handle, pytest.raises(ValueError, match="istribution"):
        handle.study.ask().suggest_int("lr", 0, 1)


def test_a_block_is_written_whole_or_not_at_all(url: StorageURL) -> None:
    with opened(url) as handle:
        trial = handle.study.ask()
        with pytest.raises(ZeroDivisionError), one_write(handle.storage):
            trial.suggest_float("lr", 0, 1)
            trial.set_user_attr("a", 1)
            raise ZeroDivisionError
        assert in_memory(handle)[0]["_params"] == in_memory(handle)[0]["_user_attrs"] == {}
        with one_write(handle.storage), one_write(handle.storage):
            trial.set_user_attr("a", 1)
            assert handle.storage.get_trial(trial._trial_id).user_attrs == {"a": 1}, "seen within the block"
            assert in_database(url)[0]["_user_attrs"] == {}
        assert repr(in_memory(handle)) == repr(in_database(url))
        assert in_database(url)[0]["_user_attrs"] == {"a": 1}


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_a_call_that_failed_leaves_no_wrong_memory(url: StorageURL, monkeypatch: pytest.MonkeyPatch, done: bool) -> None:
    """The connection breaks before the write, or after it with the answer lost."""
    write, fails = storage.owner.write_changes, [False]

    def flaky(*args: Any) -> None:
        if done or not fails[0]:
            write(*args)
        if fails[0]:
            raise sqlalchemy.exc.PendingRollbackError("lost")

    monkeypatch.setattr(storage.owner, "write_changes", flaky)
    with opened(url) as handle:
        trial = handle.study.ask()
        trial.report(0.5, 2)
        fails[0] = True
        for action in (lambda: trial.set_user_attr("a", 1), lambda: trial.report(0.5, 4), lambda: handle.study.tell(trial, 0.5)):
            with pytest.raises(StorageUnavailable):
                action()
            assert repr(in_memory(handle)) == repr(in_database(url))
        assert handle.study.get_trials()[0].state == (TrialState.COMPLETE if done else TrialState.RUNNING)
        fails[0] = False
        handle.study.tell(trial, 0.5, skip_if_finished=True)
        assert [t.number for t in handle.storage.finished_trials(handle.study._study_id)] == [0]  # type: ignore[attr-defined]
        assert repr(in_memory(handle)) == repr(in_database(url))


def test_a_trial_that_was_made_unnoticed_is_found(url: StorageURL) -> None:
    with opened(url) as handle:
        handle.study.ask()
        lost = load_other(url)
        handle.storage.doubt()  # type: ignore[attr-defined]
        assert [t.number for t in handle.study.get_trials()] == [0, lost]
        assert handle.study.ask().number == 2


def load_other(url: StorageURL) -> int:
    from storage.tables import open_tables

    database = open_tables(url, engine_kwargs={}, create=False)
    number = optuna.load_study(study_name="mine", storage=database).ask().number
    database.remove_session()
    database.engine.dispose()
    return number


def _statements(handle: StudyHandle, action: Callable[[], None]) -> int:
    seen: list[str] = []

    def count(*args: Any) -> None:
        seen.append(args[2])

    engine = handle._database.engine
    sqlalchemy.event.listen(engine, "before_cursor_execute", count)
    try:
        action()
    finally:
        sqlalchemy.event.remove(engine, "before_cursor_execute", count)
    return len(seen)


def test_a_trial_costs_the_same_statements_however_long_the_study_and_however_many_run(url: StorageURL) -> None:
    counts = []
    with opened(url) as handle:
        study = handle.study
        study.sampler = SeededSampler(SearchConfig(n_trials=100))
        running: list[Any] = []

        def one() -> None:
            trial = study.ask()
            with one_write(study._storage):
                for name in ("a", "b", "c", "d"):
                    trial.suggest_float(name, 0, 1)
            trial.report(0.5, 1)
            with one_write(study._storage):
                trial.set_user_attr("run", {"seconds": 1.0})
                study.tell(trial, 0.5)

        for n, ask in ((11, 1), (12, 10)):
            study.add_trials([create_trial(value=0.5, params=dict.fromkeys("abcd", 0.5), distributions=dict.fromkeys("abcd", FloatDistribution(0, 1))) for _ in range(n)])
            running += [study.ask() for _ in range(ask)]
            counts.append(_statements(handle, one))
    assert counts[0] == counts[1] <= 12


def test_threads_ask_and_tell_side_by_side(url: StorageURL) -> None:
    """One asks ahead, another tells: no block takes up what the other thread writes."""
    with opened(url) as handle:
        study = handle.study
        first = [study.ask() for _ in range(6)]

        def tell(trial: optuna.Trial) -> None:
            with one_write(study._storage):
                trial.set_user_attr("run", trial.number)
                study.tell(trial, float(trial.number))

        def ask(_: optuna.Trial) -> int:
            trial = study.ask()
            with one_write(study._storage):
                trial.suggest_float("lr", 0, 1)
                trial.suggest_float("decay", 0, 1)
            return trial.number

        with ThreadPoolExecutor(2) as threads:
            told, asked = [threads.submit(lambda what=what: [what(trial) for trial in first]) for what in (tell, ask)]
            told.result()
            assert sorted(asked.result()) == list(range(6, 12))
        assert repr(in_memory(handle)) == repr(in_database(url))
        assert [t.user_attrs for t in study.get_trials()] == [{"run": n} for n in range(6)] + [{}] * 6


def test_changes_follow_each_other() -> None:
    one = Change(params={"a": (1.0, LR)}, user_attrs={"x": 1, "y": 1}, values=[1.0])
    two = Change(params={"b": (0.0, CategoricalDistribution(["p", "q"]))}, user_attrs={"x": 2}, reports={3: 0.5}, state=TrialState.FAIL)
    trial = create_trial(state=TrialState.RUNNING, params={"n": 3}, distributions={"n": IntDistribution(0, 9)})
    before = copy.deepcopy(trial)
    both, after = one.followed_by(two).applied_to(trial), two.applied_to(one.applied_to(trial))
    assert trial == before and both == after
    assert (both.params, both.user_attrs, both.intermediate_values, both.values) == ({"n": 3, "a": 1.0, "b": "p"}, {"x": 2, "y": 1}, {3: 0.5}, [1.0])
