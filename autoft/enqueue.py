"""Configurations a study tries first: named methods, and the best of earlier studies."""

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial

from autoft.config import SearchSpaceConfig, StudyConfig
from autoft.errors import ConfigError
from autoft.search_space import FIXED_ATTRIBUTE, Hyperparameters, nearest_parameters, sample_hyperparameters


def enqueue(study: Study, space: SearchSpaceConfig, configurations: Mapping[str, Hyperparameters], limit: int) -> None:
    """Add configurations to a study as its next trials, unless they are in it, or it has `limit` trials already.

    The trial runs with exactly these hyperparameters; the sampler sees the nearest point of the space.
    """
    trials = study.get_trials(deepcopy=False)
    known = {fixed["name"] for trial in trials if (fixed := trial.user_attrs.get(FIXED_ATTRIBUTE))}
    wanted = [name for name in configurations if name not in known][: max(0, limit - len(trials))]
    for name in wanted:
        hyperparameters = configurations[name]
        fixed = {"name": name, "hyperparameters": hyperparameters.to_dict()}
        study.enqueue_trial(dict(nearest_parameters(hyperparameters, space)), user_attrs={FIXED_ATTRIBUTE: fixed})


def configuration_name(trial: FrozenTrial | optuna.Trial) -> str | None:
    """The name of an enqueued trial's configuration; None for a trial the sampler proposed."""
    fixed = trial.user_attrs.get(FIXED_ATTRIBUTE)
    return None if fixed is None else str(fixed["name"])


def ran_with(trial: FrozenTrial) -> dict[str, Any]:
    """What a trial was run with, by parameter name; of an enqueued one its true values, which may lie outside the space."""
    fixed = trial.user_attrs.get(FIXED_ATTRIBUTE)
    if fixed is None:
        return dict(trial.params)
    hp = Hyperparameters.from_dict(fixed["hyperparameters"])
    layers = {f"layer_lr/{layer}": lr for layer, lr in hp.layer_lr.items()}
    layers |= {f"layer_weight_decay/{layer}": decay for layer, decay in hp.layer_weight_decay.items()}
    weights = {f"loss_weight/{term}": weight for term, weight in hp.loss_weights.items()}
    return {"lr": hp.lr, "weight_decay": hp.weight_decay, **layers, **weights, "seed": hp.seed}


def best_of_study(source: str, study: Study, theirs: SearchSpaceConfig, config: StudyConfig) -> dict[str, Hyperparameters]:
    """The best configurations an earlier study's sampler found, in this study's terms: the learning rate relative to base_lr.

    Trying the best of similar tasks first: Feurer, Springenberg and Hutter 2015, "Initializing Bayesian hyperparameter
    optimization via meta-learning".

    Raises:
        ConfigError: the earlier study has another search space or several objectives, or no complete trial.
    """
    ours, field = config.search_space, f"search.warm_start_from: {source}"
    for name in ("reference", "searched_terms", "layerwise", "layers"):
        if getattr(theirs, name) != getattr(ours, name):
            raise ConfigError(f"{field} has search_space.{name} = {_shown(theirs, name)}, this study {_shown(ours, name)}; they must agree")
    if len(study.directions) > 1:
        raise ConfigError(f"{field} has several objectives; its best trials are not in one order")
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    found = [trial for trial in complete if configuration_name(trial) is None]
    if not found:
        raise ConfigError(f"{field} has no complete trial of its sampler")
    sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
    best = sorted(found, key=lambda trial: (sign * (trial.value or 0.0), trial.number))[: config.search.warm_start_trials]
    scale = ours.base_lr / theirs.base_lr
    return {f"{source} #{trial.number}": _rescaled(sample_hyperparameters(trial, theirs), scale) for trial in best}


def _rescaled(hp: Hyperparameters, scale: float) -> Hyperparameters:
    values = hp.to_dict()
    rates = {layer: lr * scale for layer, lr in hp.layer_lr.items()}
    return Hyperparameters.from_dict(values | {"lr": hp.lr * scale} | ({"layer_lr": rates} if rates else {}))


def _shown(space: SearchSpaceConfig, name: str) -> str:
    value = getattr(space, name)
    return ", ".join(value) if isinstance(value, tuple) else str(value)
