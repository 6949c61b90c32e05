"""Named configurations over the one training loop: the plain baselines AutoFT is compared with, and what its authors published."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from autoft.config import METHOD_NAMES, MethodName, SearchSpaceConfig
from autoft.published import published_configuration
from autoft.search_space import Hyperparameters

L2SP_STRENGTH = 0.01


@dataclass(frozen=True)
class Setting:
    """What a named configuration may depend on.

    entries: number of weights a fine-tune of the image tower and the head trains, for norms whose source sums rather than averages.
    """

    space: SearchSpaceConfig
    entries: int
    seed: int


@dataclass(frozen=True)
class Method:
    """A named configuration and its source."""

    name: MethodName
    source: str
    build: Callable[[Setting], Hyperparameters]


def method_hyperparameters(name: MethodName, setting: Setting) -> Hyperparameters:
    """The configuration of that name in a study's setting."""
    return METHODS[name].build(setting)


def slug(name: str) -> str:
    """A method's name as a file name."""
    return name.replace("/", "-")


def _at_base(setting: Setting, loss_weights: Mapping[str, float]) -> Hyperparameters:
    space = setting.space
    return Hyperparameters(lr=space.base_lr, weight_decay=space.base_weight_decay, loss_weights=loss_weights, seed=setting.seed)


def _published(name: str) -> Callable[[Setting], Hyperparameters]:
    return lambda _: Hyperparameters(**published_configuration(name))


METHODS: Mapping[MethodName, Method] = {
    "finetune": Method(
        "finetune",
        "cross-entropy alone: the FT baseline of WiSE-FT (Wortsman et al. 2022) and FLYP",
        lambda setting: _at_base(setting, {"cross_entropy": 1.0}),
    ),
    "flyp": Method(
        "flyp",
        "the contrastive loss alone, on both towers, scored by a head rebuilt from the tuned text tower: FLYP (Goyal et al. 2023)",
        lambda setting: _at_base(setting, {"contrastive": 1.0}),
    ),
    "l2sp": Method(
        "l2sp",
        "cross-entropy and 0.01 times the summed squared distance to the zero-shot weights: L2-SP (Li et al. 2018), with the strength "
        "of LP-FT's released code (Kumar et al. 2022)",
        lambda setting: _at_base(setting, {"cross_entropy": 1.0, "l2_init": L2SP_STRENGTH * setting.entries}),
    ),
    **{
        name: Method(name, f"the configuration AutoFT's authors found on {name.partition('/')[2]} and released", _published(name.partition("/")[2]))
        for name in METHOD_NAMES
        if name.startswith("published/")
    },
}
