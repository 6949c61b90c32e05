"""What a fine-tune of sharded weights cannot do, refused by the name of the field; see docs/adr/0021-sharded-fine-tune.md.

Constraints look at a tensor's norm or its largest gradients, which are in several processes. The linear probe and some terms look at the
frozen model, a second one, which every process would hold whole; so does the Fisher information of WiSE-FT's weighted average.
"""

from collections.abc import Iterator
from typing import Any

from autoft.config import StudyConfig
from autoft.errors import ConfigError
from autoft.losses import TERMS
from autoft.search_space import Hyperparameters

FLAG = "--final-sharded"
FROZEN_TERMS = tuple(name for name, term in TERMS.items() if term.needs - {"mixtures"})
_FIELDS = {
    "constraint": ("none", "looks at whole tensors, which no process has"),
    "start": ("zero_shot", "needs the frozen model, which is not sharded"),
}


def check_shardable(hyperparameters: Hyperparameters, where: str = "") -> None:
    """Raise ConfigError at the first field that sharded weights do not allow; `where`: what the hyperparameters come from, for the message."""
    hp = hyperparameters
    for name, value in (("constraint", hp.constraint), ("start", hp.start), *((f"loss_weights.{term}", 1) for term in hp.loss_weights)):
        _check(f"{where}{name}", name.removeprefix("loss_weights."), value)


def check_study_shardable(config: StudyConfig) -> None:
    """Raise ConfigError at the first field of a study that lets its final fine-tune, or what follows, be one that sharded weights do not allow.

    Methods by name are left to `check_shardable`.
    """
    for name, field, value in _searched(config):
        _check(name, field, value)
    if config.wise_ft is not None and config.wise_ft.weighting != "uniform":
        raise ConfigError(f"wise_ft.weighting = {config.wise_ft.weighting} needs gradients of whole weights, which {FLAG} has not; valid is uniform")


def _searched(config: StudyConfig) -> Iterator[tuple[str, str, Any]]:
    """Every value that a trial may have of another method's fields: the study's name of it, the field's or the term's, and the value."""
    space = config.search_space
    for name, value in space.fixed.items():
        for term in value if name == "loss_weights" else ():
            yield f"search_space.fixed.loss_weights.{term}", term, 1
        yield f"search_space.fixed.{name}", name, value
    for name, knob in space.knobs.items():
        kind, _, rest = name.partition("/")
        for value in knob.choices or (knob.high,):
            yield f"search_space.knobs.{name}", rest if kind in ("use", "loss_weight") else kind, value


def _check(name: str, field: str, value: Any) -> None:
    if field in FROZEN_TERMS and value:
        valid = ", ".join(term for term in TERMS if term not in FROZEN_TERMS)
        raise ConfigError(f"{name}: the term {field} needs the frozen model, which {FLAG} does not shard; valid terms are {valid}")
    if field in _FIELDS and value != _FIELDS[field][0]:
        valid, why = _FIELDS[field]
        raise ConfigError(f"{name} = {value} {why}, so {FLAG} does not take it; valid is {valid}")
