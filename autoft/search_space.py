"""The search space: one function samples a trial's hyperparameters and, given a finished trial, replays them.

Priors: see `autoft.config.SearchSpaceConfig`, where each is cited.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, Self

from autoft.config import LossTermName, SearchSpaceConfig

FIXED_ATTRIBUTE = "autoft:fixed"  # of a trial that was enqueued: its name and hyperparameters, which may lie outside the space


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """What a fine-tune is driven by.

    `loss_weights` maps a term of `autoft.losses.LOSS_TERMS` to its weight. `layer_lr` and `layer_weight_decay` map the groups of
    `autoft.optim.parameter_groups` to their own rate and decay, all of them or none; then `lr` and `weight_decay` are not used.
    """

    lr: float
    weight_decay: float
    loss_weights: Mapping[str, float]
    seed: int
    layer_lr: Mapping[str, float] = field(default_factory=dict)
    layer_weight_decay: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, for JSON; without the layers' where there are none."""
        values = asdict(self)
        return {name: value for name, value in values.items() if value != {} or not name.startswith("layer_")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(**values)

    def digest(self) -> str:
        """16 hex digits that differ whenever any value differs; floats count to their last bit."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]


class Suggesting(Protocol):
    """The part of an Optuna trial, running or frozen, that a search space needs."""

    @property
    def user_attrs(self) -> dict[str, Any]:
        """What was noted on the trial."""
        ...

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A float in [low, high]."""
        ...

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """An integer in [low, high]."""
        ...


def sample_hyperparameters(trial: Suggesting, space: SearchSpaceConfig) -> Hyperparameters:
    """Draw the hyperparameters of a running trial, or replay those of a finished one.

    A frozen trial's suggest methods return what the trial was run with, so nobody has to read `best_params`. An enqueued trial has
    its own hyperparameters noted on it; its parameters are the nearest point of the space, from which the sampler learns.
    """
    drawn = _draw(trial, space)
    fixed = trial.user_attrs.get(FIXED_ATTRIBUTE)
    return drawn if fixed is None else Hyperparameters.from_dict(fixed["hyperparameters"])


def _draw(trial: Suggesting, space: SearchSpaceConfig) -> Hyperparameters:
    def rate(name: str) -> float:
        return trial.suggest_float(name, *_lr_range(space), log=True)

    def decay(name: str) -> float:
        return trial.suggest_float(name, *space.weight_decay)

    layers = space.layers if space.layerwise else ()
    lr, weight_decay = (space.base_lr, space.base_weight_decay) if layers else (rate("lr"), decay("weight_decay"))
    layer_lr = {layer: rate(f"layer_lr/{layer}") for layer in layers}
    layer_weight_decay = {layer: decay(f"layer_weight_decay/{layer}") for layer in layers}
    weights: dict[str, float] = {space.reference: 1.0}
    weights |= {term: trial.suggest_float(f"loss_weight/{term}", *_weight_range(space, term), log=True) for term in sorted(space.searched_terms)}
    seed = trial.suggest_int("seed", *space.seed)
    return Hyperparameters(
        lr=lr, weight_decay=weight_decay, loss_weights=weights, seed=seed, layer_lr=layer_lr, layer_weight_decay=layer_weight_decay
    )


def nearest_parameters(hyperparameters: Hyperparameters, space: SearchSpaceConfig) -> dict[str, float]:
    """The point of the space nearest to some hyperparameters, by parameter name; a weight of 0 becomes the smallest weight."""
    hp, layers = hyperparameters, space.layers if space.layerwise else ()
    rates = {f"layer_lr/{layer}": hp.layer_lr.get(layer, hp.lr) for layer in layers} or {"lr": hp.lr}
    decays = {f"layer_weight_decay/{layer}": hp.layer_weight_decay.get(layer, hp.weight_decay) for layer in layers} or {
        "weight_decay": hp.weight_decay
    }
    unit = hp.loss_weights.get(space.reference) or 1.0  # weights are relative to the reference's
    weights = {term: hp.loss_weights.get(term, 0.0) / unit for term in space.searched_terms}
    return {
        **{name: _clip(rate, _lr_range(space)) for name, rate in rates.items()},
        **{name: _clip(decay, space.weight_decay) for name, decay in decays.items()},
        **{f"loss_weight/{term}": _clip(weight, _weight_range(space, term)) for term, weight in weights.items()},
        "seed": round(_clip(hp.seed, space.seed)),
    }


def _lr_range(space: SearchSpaceConfig) -> tuple[float, float]:
    low, high = space.lr_factor
    return low * space.base_lr, high * space.base_lr


def _weight_range(space: SearchSpaceConfig, term: LossTermName) -> tuple[float, float]:
    return space.loss_weights.get(term, space.loss_weight)


def _clip(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])
