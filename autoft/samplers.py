"""Optuna's samplers and pruners as a study file names them, and the seeds of everything random."""

import hashlib
import warnings
from collections.abc import Callable
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autoft.config import SearchConfig, StudyConfig
from autoft.history import History
from autoft.hyperband import IndexedHyperband
from autoft.tpe import FlatTPE, Rows
from autoft.trial import report_steps

# GP's cost grows with the cube of the trials it sees. Points of one quasi-random sequence are counted, and independent draws look at nothing.
_HISTORIES: dict[str, Callable[[], History | None]] = {
    "tpe": History,
    "gp": lambda: History(newest=200, best=100),
    "qmc": lambda: None,
    "random": lambda: None,
}


class SeededSampler(optuna.samplers.BaseSampler):
    """Gives every trial its own random stream, a function of (seed, trial number, parameter).

    A sampler that lives as long as its process repeats itself after a restart, or depends on how often it was restarted. Here
    a fresh inner sampler is made for each trial, and an independent draw depends on nothing but seed, number and name: with the
    random sampler the parameters of trial n are the same whatever happened before.

    Samplers that learn see a bounded part of the history; with fewer finished trials than that it is all of it.
    """

    def __init__(self, config: SearchConfig, history: History | None = None) -> None:
        self._config = config
        self._rows = Rows()
        self._history = history or _HISTORIES[config.sampler]()
        self._inner: optuna.samplers.BaseSampler = self._make(0)

    def _make(self, *key: int | str) -> optuna.samplers.BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # of the GP and QMC samplers
            return self._new(*key)

    def _new(self, *key: int | str) -> optuna.samplers.BaseSampler:
        seed = derive_seed(self._config.seed, *key)
        match self._config.sampler:
            case "random":
                return optuna.samplers.RandomSampler(seed=seed)
            case "tpe":
                return FlatTPE(seed, self._rows)
            case "gp":
                return optuna.samplers.GPSampler(seed=seed)
            case "qmc":
                # One sequence for the whole study: its points are spread evenly only together. Optuna counts them in the study.
                return optuna.samplers.QMCSampler(seed=derive_seed(self._config.seed), scramble=True, warn_independent_sampling=False)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._inner = self._make(trial.number)
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._inner.infer_relative_search_space(self._seen(study), trial)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        return self._inner.sample_relative(self._seen(study), trial, search_space)

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        return self._make(trial.number, param_name).sample_independent(self._seen(study), trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        self._inner.after_trial(study, trial, state, values)

    def _seen(self, study: Study) -> Any:
        return study if self._history is None else self._history.view(study)


def derive_seed(*key: int | str) -> int:
    """A 32-bit seed that depends on every part of the key."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest()[:4])


def make_pruner(config: StudyConfig) -> optuna.pruners.BasePruner:
    """The study's pruner, scaled to the steps at which its trials report."""
    steps = report_steps(config)
    match config.search.pruner:
        case "hyperband":
            return IndexedHyperband(min_resource=steps[0], max_resource=steps[-1], reduction_factor=3)
        case "median":
            return optuna.pruners.MedianPruner(n_startup_trials=5)
        case "wilcoxon":
            return _wilcoxon()
        case "none":
            return optuna.pruners.NopPruner()


def _wilcoxon() -> optuna.pruners.BasePruner:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return optuna.pruners.WilcoxonPruner(p_threshold=0.1)
