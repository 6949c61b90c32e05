"""The bounded history: what is chosen, that nothing changes below the bound, and that an ask does not visit what it knows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import TPESampler
from optuna.samplers._tpe.sampler import _split_trials, default_gamma
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from autoft.config import SearchConfig
from autoft.history import History
from autoft.samplers import SeededSampler, derive_seed

SPACE = {"lr": FloatDistribution(1e-5, 1e-1, log=True), "decay": FloatDistribution(0.0, 1.0), "weight": FloatDistribution(0.1, 10.0, log=True)}


class LoggedStorage(InMemoryStorage):
    """Keeps a log of what ended, as the owner's storage does, and counts how many entries are looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.log = Counting()

    def finished_trials(self, study_id: int) -> Counting:
        known = {trial.number for trial in list.__iter__(self.log)}
        self.log.extend(t for t in self.get_all_trials(study_id, deepcopy=False) if t.state.is_finished() and t.number not in known)
        return self.log


class Counting(list[FrozenTrial]):
    visited = 0

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        self.visited += len(found) if isinstance(index, slice) else 1
        return found

    def __iter__(self) -> Iterator[FrozenTrial]:
        self.visited += len(self)
        return super().__iter__()


class Plain(optuna.samplers.BaseSampler):
    """Optuna's TPE seeded as ours, with nothing between it and the study."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_trial(self, study: Any, trial: Any) -> None:
        self.inner = TPESampler(seed=derive_seed(self.seed, trial.number))

    def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
        return self.inner.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
        return self.inner.sample_relative(study, trial, search_space)

    def sample_independent(self, study: Any, trial: Any, name: str, kind: Any) -> Any:
        return TPESampler(seed=derive_seed(self.seed, trial.number, name)).sample_independent(study, trial, name, kind)


def config(**changes: Any) -> SearchConfig:
    return SearchConfig(n_trials=1000, sampler="tpe", seed=5, **changes)


def random_trials(n: int, seed: int = 0, objectives: int = 1) -> list[FrozenTrial]:
    """Complete, pruned and failed ones with ties, in the order of their numbers."""
    rng = np.random.default_rng(seed)
    trials = []
    for _ in range(n):
        params = {"lr": float(10 ** rng.uniform(-5, -1)), "decay": float(rng.random()), "weight": float(10 ** rng.uniform(-1, 1))}
        scores = [round(float(rng.random()), 1 if objectives == 1 else 3) for _ in range(objectives)]
        kind = rng.choice(["complete", "pruned", "failed"], p=[0.7, 0.2, 0.1]) if objectives == 1 else "complete"
        steps = {int(step): float(rng.choice([np.nan, 0.25, 0.5])) for step in range(1, rng.integers(1, 4))}
        state = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}[str(kind)]
        values = scores if kind == "complete" else None
        trials.append(create_trial(state=state, values=values, params=params, distributions=SPACE, intermediate_values=steps if kind == "pruned" else {}))
    return trials


def study_of(trials: list[FrozenTrial], directions: list[str] | None = None, storage: Any = None) -> optuna.Study:
    study = optuna.create_study(directions=directions or ["maximize"], storage=storage)
    study.add_trials(trials)
    return study


def run(study: optuna.Study, n: int, workers: int = 4) -> list[dict[str, Any]]:
    """Several trials at a time; some are pruned, and one parameter is drawn by half of the trials only."""
    running: list[optuna.Trial] = []
    for number in range(n):
        trial = study.ask()
        value = sum(trial.suggest_float(name, kind.low, kind.high, log=kind.log) for name, kind in SPACE.items())
        if number % 2:
            value += trial.suggest_float("sometimes", 0.0, 1.0)
        trial.report(value, 1)
        running.append(trial)
        if len(running) == workers:
            ended = running.pop(number % workers)
            if ended.number % 5:
                study.tell(ended, ended.params["decay"])
            else:
                study.tell(ended, state=TrialState.PRUNED)
    return [trial.params for trial in study.get_trials(deepcopy=False)]


@pytest.mark.parametrize("storage", [InMemoryStorage, LoggedStorage])
def test_below_the_bound_suggestions_are_optunas_own(storage: Callable[[], Any]) -> None:
    ours, theirs = study_of([], storage=storage()), study_of([])
    ours.sampler, theirs.sampler = SeededSampler(config()), Plain(5)
    assert run(ours, 60) == run(theirs, 60)


def test_beyond_the_bound_they_differ_and_do_not_depend_on_how_the_history_came_about() -> None:
    trials = random_trials(80)
    drawn = []
    for storage, history in ((InMemoryStorage(), History(20, 5)), (LoggedStorage(), History(20, 5)), (LoggedStorage(), History(200, 5))):
        study = study_of(trials[:50], storage=storage)
        study.sampler = SeededSampler(config(), history)
        study.sampler._seen(study)  # type: ignore[attr-defined]
        study.add_trials(trials[50:])
        drawn.append(run(study, 12)[-12:])
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_newest_and_the_best_are_chosen(direction: str) -> None:
    study = study_of(random_trials(200), [direction])
    finished = [t for t in study.get_trials(deepcopy=False) if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    for newest, best in ((30, 10), (150, 3), (1, 170), (1000, 10)):
        good, _ = _split_trials(study, finished, best)
        expected = sorted({t.number for t in good} | {t.number for t in finished[-newest:]})
        assert [t.number for t in History(newest, best).chosen(study)] == expected


def test_tpes_good_group_is_that_of_the_whole_history() -> None:
    study = study_of(random_trials(900))
    finished = [t for t in study.get_trials(deepcopy=False) if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    chosen = History(newest=260, best=25).chosen(study)
    assert len(chosen) < len(finished) / 2
    whole, _ = _split_trials(study, finished, default_gamma(len(finished)))
    part, _ = _split_trials(study, chosen, default_gamma(len(chosen)))
    assert whole == part and len(whole) == 25


def test_the_order_in_which_trials_end_does_not_matter() -> None:
    trials = random_trials(120)
    expected = History(30, 10).chosen(study_of(trials))
    for seed in range(3):
        storage = LoggedStorage()
        study = study_of(trials, storage=storage)
        ended = [study.get_trials(deepcopy=False)[index] for index in np.random.default_rng(seed).permutation(120)]
        history = History(30, 10)
        for start in range(0, 120, 7):
            list.extend(storage.log, ended[start : start + 7])
            storage.finished_trials = lambda study_id: storage.log  # type: ignore[method-assign]  # noqa: B023
            found = history.chosen(study)
        assert [t.number for t in found] == [t.number for t in expected]


def test_of_several_objectives_the_undominated_are_kept() -> None:
    study = study_of(random_trials(150, objectives=2), ["maximize", "minimize"])
    trials = study.get_trials(deepcopy=False)

    def beats(one: FrozenTrial, other: FrozenTrial) -> bool:
        pairs = [(a - b) * sign for a, b, sign in zip(one.values, other.values, (1, -1), strict=True)]
        return min(pairs) >= 0 and max(pairs) > 0

    front = {t.number for t in trials if not any(beats(o, t) for o in trials)}
    assert len(front) > 4
    assert {t.number for t in History(10, 100).chosen(study)} == front | set(range(140, 150))
    assert {t.number for t in History(1, 3).chosen(study)} == set(sorted(front)[-3:]) | {149}


def test_running_trials_are_seen_and_bounded() -> None:
    study = study_of(random_trials(12))
    running = [study.ask().number for _ in range(9)]
    view = History(newest=4, best=2).view(study)
    assert [t.number for t in view.get_trials(states=(TrialState.RUNNING,))] == running[-4:]
    assert {t.number for t in view._get_trials()} == {t.number for t in History(4, 2).chosen(study)} | set(running[-4:])


def test_a_parameter_that_an_old_trial_lacks_is_not_drawn_jointly() -> None:
    old = create_trial(value=0.5, params={"lr": 1e-3}, distributions={"lr": SPACE["lr"]})
    study = study_of([old, *random_trials(60)])
    assert set(History(newest=5, best=2).view(study).search_space) == {"lr"}


@pytest.mark.parametrize("n", [100, 800])
def test_an_ask_visits_only_what_ended_since_the_last(n: int) -> None:
    storage = LoggedStorage()
    study = study_of(random_trials(n), storage=storage)
    study.sampler = SeededSampler(config(), History(newest=50, best=10))
    counts = []
    for _ in range(3):
        storage.log.visited = 0
        trial = study.ask()
        for name, kind in SPACE.items():
            trial.suggest_float(name, kind.low, kind.high, log=kind.log)
        counts.append(storage.log.visited)
        study.tell(trial, 0.5)
    assert counts == [n, 1, 1]
    assert len(study.sampler._seen(study)._get_trials()) <= 60 + 1  # type: ignore[attr-defined]


def test_rows_of_running_trials_follow_their_parameters() -> None:
    from autoft.tpe import Rows

    rows = Rows()
    space = {name: SPACE[name] for name in ("decay", "lr")}
    partial = create_trial(state=TrialState.RUNNING, params={"lr": 1e-3}, distributions={"lr": SPACE["lr"]})
    whole = create_trial(state=TrialState.RUNNING, params={"lr": 1e-3, "decay": 0.5}, distributions=space)
    assert rows.columns([partial], space, lambda t: t.params)["lr"].shape == (0,)
    for trial, kept in itertools.product([whole], range(2)):
        found = rows.columns([trial], space, lambda t: t.params if not kept else pytest.fail("known"))  # noqa: B023
        assert {name: column.tolist() for name, column in found.items()} == {"decay": [0.5], "lr": [1e-3]}
