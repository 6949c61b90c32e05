"""The search space: one function samples a trial's hyperparameters and, given a finished trial, replays them.

Priors: see `autoft.config.SearchSpaceConfig`, where each is cited.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any, Protocol, Self

from autoft.config import (
    Averaging,
    Constraint,
    Knob,
    LossTermName,
    MaskReduction,
    OptimizerName,
    ScheduleName,
    SearchSpaceConfig,
    Start,
    Trained,
)
from autoft.one_write import one_write

FIXED_ATTRIBUTE = "autoft:fixed"  # of a trial that was enqueued: its name and hyperparameters, which may lie outside the space


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """What a fine-tune is driven by. Everything below `layer_weight_decay` belongs to other methods than AutoFT, and is off by default.

    lr, weight_decay: of all parameters, where the layers have none of their own.
    loss_weights: weight by term of `autoft.losses.TERMS`.
    layer_lr, layer_weight_decay: rate and decay of each group of `autoft.optim.parameter_groups`, all of them or none; then `lr` and
        `weight_decay` are not used.
    layer_decay: each layer's rate is this factor times the next one's, counted from the head.
    optimizer: adamw or sgd. momentum: AdamW's first beta or SGD's Nesterov momentum; beta2: AdamW's second.
    constraint: how weights are kept near the zero-shot ones: ftp, tpgm, spd (see `autoft.optim`); or saft: only the share `density` of
        the weights trains, those with the largest gradient at the start.
    strength: k of FTP, lambda of SPD.
    mu: the rate at which FTP and TPGM learn their radii. mu_reference_lr: FTP's is mu times lr / mu_reference_lr, so that a small learning
        rate is not held to the start for long; None: mu whatever the learning rate, as in the released code.
    mask_batches, mask_reduction: over how many batches SAFT sums gradients at the start, and how: the absolute value of the sum, or
        the sum of absolute values.
    schedule: of the learning rate; None: a trial's constant one, the full fine-tune's `final.schedule`.
    label_smoothing: of the cross-entropy term. margin: of the margin term (CLIPood).
    averaging: beta: what is scored and kept is the Beta(1/2, 1/2) moving average of the weights (CLIPood).
    alpha: what is scored and kept lies at this alpha between zero-shot and fine-tuned weights (WiSE-FT); 1: the fine-tuned ones.
    start: linear_probe: the head is fitted by logistic regression before the fine-tune begins (LP-FT).
    trained: all; backbone: not the head; nothing: the model stays as it starts.
    drm_beta: with a drm term, the share of the default prompts' head in the predicted probabilities.
    """

    lr: float
    weight_decay: float
    loss_weights: Mapping[str, float]
    seed: int
    layer_lr: Mapping[str, float] = field(default_factory=dict)
    layer_weight_decay: Mapping[str, float] = field(default_factory=dict)
    layer_decay: float = 1.0
    optimizer: OptimizerName = "adamw"
    momentum: float = 0.9
    beta2: float = 0.999
    constraint: Constraint = "none"
    strength: float = 1.0
    mu: float = 1e-2
    mu_reference_lr: float | None = 1e-4
    density: float = 0.001
    mask_batches: int = 8
    mask_reduction: MaskReduction = "abs_of_sum"
    schedule: ScheduleName | None = None
    label_smoothing: float = 0.0
    margin: float = 0.3
    averaging: Averaging = "none"
    alpha: float = 1.0
    start: Start = "zero_shot"
    trained: Trained = "all"
    drm_beta: float = 0.5

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, for JSON; without optional ones that have their default."""
        values = asdict(self)
        return {name: value for name, value in values.items() if name not in _DEFAULTS or value != _DEFAULTS[name]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(**values)

    def digest(self) -> str:
        """16 hex digits that differ whenever any value differs; floats count to their last bit."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]


_DEFAULTS: Mapping[str, Any] = {
    item.name: {} if item.default is MISSING else item.default
    for item in fields(Hyperparameters)
    if item.default is not MISSING or item.default_factory is not MISSING
}


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

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""
        ...


def sample_hyperparameters(trial: Suggesting, space: SearchSpaceConfig) -> Hyperparameters:
    """Draw the hyperparameters of a running trial, or replay those of a finished one.

    A frozen trial's suggest methods return what the trial was run with, so nobody has to read `best_params`. An enqueued trial has
    its own hyperparameters noted on it; its parameters are the nearest point of the space, from which the sampler learns.
    """
    with one_write(getattr(trial, "storage", None)):  # a frozen trial has none, and writes nothing
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
    hp = Hyperparameters(
        lr=lr, weight_decay=weight_decay, loss_weights=weights, seed=seed, layer_lr=layer_lr, layer_weight_decay=layer_weight_decay
    )
    return _turned(replace(hp, **space.fixed), _draw_knobs(trial, space.knobs))


def _draw_knobs(trial: Suggesting, knobs: Mapping[str, Knob]) -> dict[str, Any]:
    """The value of every knob whose condition holds, in their order."""
    drawn: dict[str, Any] = {}
    for name, knob in knobs.items():
        if all(drawn.get(other) == value for other, value in knob.when.items()):
            drawn[name] = trial.suggest_categorical(name, knob.choices) if knob.choices else trial.suggest_float(name, *_range(knob), log=knob.log)
    return drawn


def _turned(hp: Hyperparameters, drawn: Mapping[str, Any]) -> Hyperparameters:
    """The hyperparameters with some knobs set."""
    kinds = {name: name.partition("/") for name in drawn}
    weights = {term: drawn[name] for name, (kind, _, term) in kinds.items() if kind == "loss_weight"}
    values = {kind: drawn[name] for name, (kind, _, _) in kinds.items() if kind not in ("loss_weight", "use")}
    return replace(hp, loss_weights={**hp.loss_weights, **weights}, **values)


def _range(knob: Knob) -> tuple[float, float]:
    assert knob.low is not None and knob.high is not None
    return knob.low, knob.high


def nearest_parameters(hyperparameters: Hyperparameters, space: SearchSpaceConfig) -> dict[str, Any]:
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
        **_nearest_knobs(hp, space.knobs),
    }


def _nearest_knobs(hp: Hyperparameters, knobs: Mapping[str, Knob]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, knob in knobs.items():
        if any(found.get(other) != value for other, value in knob.when.items()):
            continue
        kind, _, rest = name.partition("/")
        value: Any = rest in hp.loss_weights if kind == "use" else hp.loss_weights.get(rest, 0.0) if kind == "loss_weight" else getattr(hp, kind)
        found[name] = _nearest_choice(value, knob.choices) if knob.choices else _clip(value, _range(knob))
    return found


def _nearest_choice(value: Any, choices: Sequence[Any]) -> Any:
    """The value itself if it is a choice, else the nearest number, else the first choice."""
    numbers = [choice for choice in choices if isinstance(choice, float | int) and not isinstance(choice, bool)]
    if value in choices or not numbers or not isinstance(value, float | int):
        return value if value in choices else choices[0]
    return min(numbers, key=lambda choice: abs(choice - value))


def _lr_range(space: SearchSpaceConfig) -> tuple[float, float]:
    low, high = space.lr_factor
    return low * space.base_lr, high * space.base_lr


def _weight_range(space: SearchSpaceConfig, term: LossTermName) -> tuple[float, float]:
    return space.loss_weights.get(term, space.loss_weight)


def _clip(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])
