"""Our Hyperband decides as Optuna's does, without going through the study's trials each time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.pruners import HyperbandPruner
from optuna.trial import TrialState

from autoft.hyperband import IndexedHyperband

SETTINGS = {"min_resource": 1, "max_resource": 27, "reduction_factor": 3}


def play(study: optuna.Study, n: int, seed: int, at_once: int = 6) -> list[tuple[int, int, bool]]:
    """Trials side by side, reporting in a random order: (trial, step, pruned)."""
    rng = np.random.default_rng(seed)
    decisions, running = [], {}
    for _ in range(40 * n):
        if len(running) < at_once and n > 0:
            n -= 1
            trial = study.ask()
            running[trial.number] = (trial, float(rng.random()), 0)
        if not running:
            break
        number = int(rng.choice(sorted(running)))
        trial, level, step = running[number]
        step += int(rng.integers(1, 5))
        score = math.nan if rng.random() < 0.02 else round(level + 0.1 * float(rng.standard_normal()), 1)
        trial.report(score, step)
        pruned = trial.should_prune()
        decisions.append((number, step, pruned))
        running[number] = (trial, level, step)
        if pruned or step >= 27:
            study.tell(trial, state=TrialState.PRUNED)
            del running[number]
    return decisions


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_decisions_are_optunas(direction: str, seed: int) -> None:
    found = []
    for pruner in (IndexedHyperband(**SETTINGS), HyperbandPruner(**SETTINGS)):  # type: ignore[arg-type]
        study = optuna.create_study(study_name="same", direction=direction, sampler=optuna.samplers.RandomSampler(seed=0), pruner=pruner)
        found.append((play(study, 60, seed), [dict(trial.system_attrs) for trial in study.trials]))
    assert repr(found[0]) == repr(found[1])  # NaN is no equal of NaN
    assert 10 < sum(pruned for _, _, pruned in found[0][0]) < 60


def test_a_new_process_goes_on_as_if_there_had_been_none() -> None:
    def studies() -> Any:
        return optuna.create_study(study_name="same", sampler=optuna.samplers.RandomSampler(seed=0), pruner=IndexedHyperband(**SETTINGS))

    undisturbed, resumed = studies(), studies()
    play(undisturbed, 30, 4)
    play(resumed, 30, 4)
    resumed.pruner = IndexedHyperband(**SETTINGS)
    assert play(undisturbed, 30, 5) == play(resumed, 30, 5)


def test_the_trials_are_gone_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), pruner=IndexedHyperband(**SETTINGS))
    lists: list[int] = []
    original = optuna.Study.get_trials

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        lists.append(1)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(optuna.Study, "get_trials", counted)
    assert len(play(study, 40, 0)) > 60
    assert len(lists) == 1
