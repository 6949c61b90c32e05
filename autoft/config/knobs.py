"""What a search space may vary besides AutoFT's own: knobs, each a range or a choice, some only under a condition.

A knob is called after the field of `autoft.search_space.Hyperparameters` it sets, with a suffix where two knobs set the same one
(`strength/ftp`, `strength/spd`); `loss_weight/TERM` sets a loss weight, and `use/TERM` sets nothing and is there for conditions.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

from pydantic import Field, model_validator

from autoft.config.base import Section

MethodTermName = Literal["drm", "feature_mixup", "focal_contrastive", "ldifs", "car_ft", "lipsum", "margin"]
METHOD_TERM_NAMES: tuple[MethodTermName, ...] = get_args(MethodTermName)
Constraint = Literal["none", "ftp", "tpgm", "spd", "saft"]
OptimizerName = Literal["adamw", "sgd"]
ScheduleName = Literal["constant", "linear", "cosine", "slow_start_fast_decay"]
Start = Literal["zero_shot", "linear_probe"]
Trained = Literal["all", "backbone", "nothing"]
Averaging = Literal["none", "beta"]
MaskReduction = Literal["abs_of_sum", "sum_of_abs"]
KnobValue = bool | int | float | str

TINY = 1e-12  # stands for "above 0"

# Fields of Hyperparameters that a knob may set, with the values they can have: bounds for numbers, else the choices.
KNOB_FIELDS: Mapping[str, tuple[float, float] | tuple[str, ...]] = {
    "lr": (TINY, math.inf),
    "weight_decay": (0.0, math.inf),
    "constraint": get_args(Constraint),
    "strength": (0.0, 1.0),
    "mu": (0.0, math.inf),
    "mu_reference_lr": (TINY, math.inf),
    "density": (TINY, 1.0),
    "mask_batches": (1, math.inf),
    "mask_reduction": get_args(MaskReduction),
    "optimizer": get_args(OptimizerName),
    "momentum": (0.0, 0.9999),
    "beta2": (0.0, 0.99999),
    "schedule": get_args(ScheduleName),
    "layer_decay": (TINY, 1.0),
    "label_smoothing": (0.0, 0.9999),
    "margin": (0.0, 10.0),
    "averaging": get_args(Averaging),
    "alpha": (0.0, 1.0),
    "start": get_args(Start),
    "trained": get_args(Trained),
    "drm_beta": (0.0, 1.0),
}
_INTEGERS = ("mask_batches",)


class Knob(Section):
    """One searched value: a range [low, high], or choices."""

    low: float | None = Field(default=None, description="Smallest value.")
    high: float | None = Field(default=None, description="Largest value.")
    log: bool = Field(default=False, description="Whether it is drawn log-uniformly rather than uniformly.")
    choices: tuple[KnobValue, ...] = Field(default=(), description="The values to choose from, instead of a range.")
    when: dict[str, KnobValue] = Field(default_factory=dict, description="Searched only where these other knobs, listed before it, have these values.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.choices:
            if self.low is not None or self.high is not None or self.log:
                raise ValueError("a knob has choices or a range [low, high], not both")
        elif self.low is None or self.high is None or not self.low <= self.high or (self.log and self.low <= 0):
            raise ValueError(f"a knob needs low <= high{', low > 0' if self.log else ''}, or choices; got low = {self.low}, high = {self.high}")
        return self


def check_knobs(knobs: Mapping[str, Knob], terms: tuple[str, ...]) -> None:
    """Raise ValueError at the first knob whose name, values or conditions are not possible.

    Args:
        terms: the names of all loss terms.
    """
    seen: dict[str, Knob] = {}
    for name, knob in knobs.items():
        kind, _, rest = name.partition("/")
        if kind in ("use", "loss_weight"):
            if rest not in terms:
                raise ValueError(f"knobs.{name}: there is no loss term {rest!r}; the terms are {', '.join(terms)}")
            if kind == "use" and not (knob.choices and set(knob.choices) <= {False, True}):
                raise ValueError(f"knobs.{name} needs choices out of false and true")
            if kind == "loss_weight" and any(isinstance(value, str | bool) or (value or 0) < 0 for value in knob.choices or (knob.low,)):
                raise ValueError(f"knobs.{name}: a loss weight is a number of at least 0")
        elif kind not in KNOB_FIELDS:
            raise ValueError(f"knobs.{name}: no such knob; they are {', '.join(KNOB_FIELDS)}, loss_weight/TERM and use/TERM")
        else:
            _check_values(name, knob, KNOB_FIELDS[kind])
        for other, value in knob.when.items():
            if other not in seen or (seen[other].choices and value not in seen[other].choices):
                raise ValueError(f"knobs.{name}.when: {other} = {value!r} is never so; a condition names a knob listed before and one of its choices")
        seen[name] = knob


def check_fixed(fixed: Mapping[str, Any], terms: tuple[str, ...]) -> None:
    """Raise ValueError at the first fixed hyperparameter that is none, or has a value it cannot have."""
    for name, value in fixed.items():
        if name == "loss_weights":
            _check_weights(value, terms)
        elif name not in KNOB_FIELDS:
            raise ValueError(f"fixed.{name}: no such hyperparameter; they are {', '.join(KNOB_FIELDS)} and loss_weights")
        elif value is not None or name not in ("schedule", "mu_reference_lr"):
            try:
                _check_values(name, Knob(choices=(value,)), KNOB_FIELDS[name])
            except ValueError as error:
                raise ValueError(str(error).replace("knobs.", "fixed.").replace("needs choices out of", "must be one of")) from None


def check_together(fixed: Mapping[str, Any], knobs: Mapping[str, Knob]) -> None:
    """Raise ValueError where a search could draw two values that cannot go together."""

    def possible(name: str) -> tuple[Any, ...]:
        return knobs[name].choices if name in knobs else (fixed.get(name),)

    if "saft" in possible("constraint") and "sgd" in possible("optimizer"):
        conditional = any(knobs[name].when for name in ("constraint", "optimizer") if name in knobs)
        if not conditional:
            raise ValueError("optimizer sgd and constraint saft cannot go together: SAFT's optimizer is AdamW; leave one out, or give a condition")


def _check_weights(weights: Any, terms: tuple[str, ...]) -> None:
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(f"fixed.loss_weights: {weights!r} is no mapping of loss terms to weights")
    for term, weight in weights.items():
        if term not in terms:
            raise ValueError(f"fixed.loss_weights.{term}: there is no loss term {term!r}; the terms are {', '.join(terms)}")
        if isinstance(weight, bool) or not isinstance(weight, float | int) or not math.isfinite(weight) or weight < 0:
            raise ValueError(f"fixed.loss_weights.{term}: {weight!r} is not a number of at least 0")


def _check_values(name: str, knob: Knob, valid: tuple[Any, ...]) -> None:
    if isinstance(valid[0], str):
        wrong = [value for value in knob.choices if value not in valid]
        if wrong or not knob.choices:
            raise ValueError(f"knobs.{name} needs choices out of {', '.join(valid)}" + (f"; got {wrong[0]!r}" if wrong else ""))
        return
    low, high = valid
    if name.partition("/")[0] in _INTEGERS and not all(isinstance(choice, int) for choice in knob.choices or (None,)):
        raise ValueError(f"knobs.{name} needs choices, whole numbers of at least {low:g}")
    for value in knob.choices or (knob.low, knob.high):
        if isinstance(value, str | bool) or value is None or not low <= value <= high:
            bounds = f"above 0 and at most {high:g}" if low == TINY else f"in [{low:g}, {high:g}]"
            raise ValueError(f"knobs.{name}: {value!r} is not {bounds}")


def _weight(term: MethodTermName) -> dict[str, dict[str, Any]]:
    return {
        f"use/{term}": {"choices": (False, True)},
        f"loss_weight/{term}": {"low": 1e-3, "high": 10.0, "log": True, "when": {f"use/{term}": True}},
    }


# Reconstructed: no source has searched these together. Ranges hold the published values of each method well inside.
EXTENDED_KNOBS: Mapping[str, Mapping[str, Any]] = {
    "label_smoothing": {"low": 0.0, "high": 0.2},
    "schedule": {"choices": ("cosine", "linear")},  # not constant: it would be the full fine-tune's too, where it is a handicap
    "layer_decay": {"low": 0.5, "high": 1.0},
    "momentum": {"choices": (0.0, 0.5, 0.8, 0.9, 0.95)},
    "alpha": {"choices": (0.4, 0.6, 0.8, 1.0)},
    "constraint": {"choices": ("none", "ftp", "spd", "saft")},
    "strength/ftp": {"low": 0.0, "high": 1.0, "when": {"constraint": "ftp"}},
    "strength/spd": {"low": 0.0, "high": 1.0, "when": {"constraint": "spd"}},
    "density": {"low": 1e-3, "high": 1.0, "log": True, "when": {"constraint": "saft"}},
    **{name: knob for term in METHOD_TERM_NAMES if term != "margin" for name, knob in _weight(term).items()},
}
