"""The search space: one function samples a trial's hyperparameters and, given a finished trial, replays them.

Priors: AutoFT (Cho, Goyal, Raghunathan et al., arXiv 2401.10220) as released in github.com/cchoi1/auto-ft: every loss weight
log-uniform in [1e-4, 10] with cross-entropy fixed at 1, learning rate log-uniform within a factor 100 of its base, weight decay
uniform in [0, 1], integer seed in 0..100 (0..10 in the last released commit; the published seeds 32 and 34 need 0..100).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

from autoft.config import SearchSpaceConfig

REFERENCE_TERM = "cross_entropy"


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """What a fine-tune is driven by.

    `loss_weights` maps a term of `autoft.losses.LOSS_TERMS` to its weight; cross_entropy is the reference with weight 1.
    """

    lr: float
    weight_decay: float
    loss_weights: Mapping[str, float]
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, for JSON."""
        return asdict(self) | {"loss_weights": dict(self.loss_weights)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(**values)

    def digest(self) -> str:
        """16 hex digits that differ whenever any value differs; floats count to their last bit."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]


class Suggesting(Protocol):
    """The part of an Optuna trial, running or frozen, that a search space needs."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A float in [low, high]."""
        ...

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """An integer in [low, high]."""
        ...


def sample_hyperparameters(trial: Suggesting, space: SearchSpaceConfig) -> Hyperparameters:
    """Draw the hyperparameters of a running trial, or replay those of a finished one.

    A frozen trial's suggest methods return what the trial was run with, so nobody has to read `best_params`.
    """
    low, high = space.lr_factor
    lr = trial.suggest_float("lr", low * space.base_lr, high * space.base_lr, log=True)
    weight_decay = trial.suggest_float("weight_decay", *space.weight_decay)
    weights: dict[str, float] = {REFERENCE_TERM: 1.0}
    weights |= {term: trial.suggest_float(f"loss_weight/{term}", *space.loss_weight, log=True) for term in sorted(space.terms)}
    seed = trial.suggest_int("seed", *space.seed)
    return Hyperparameters(lr=lr, weight_decay=weight_decay, loss_weights=weights, seed=seed)
