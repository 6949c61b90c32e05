"""Named configurations over the one training loop: the field's methods AutoFT is compared with, and what its authors published.

A method is a way to build `Hyperparameters`, and the knobs of its own that a comparison tunes. Strengths are the published ones unless the
source says reconstructed; the learning rate is the study's `base_lr`, which a comparison tunes for every method alike.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from autoft.config import METHOD_NAMES, Knob, MethodName, SearchSpaceConfig
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


def _no_knobs(setting: Setting) -> dict[str, Knob]:
    return {}


@dataclass(frozen=True)
class Method:
    """A named configuration and its source.

    knobs: what a comparison tunes besides the learning rate.
    tunes_lr: whether there is a learning rate to tune.
    """

    name: MethodName
    source: str
    build: Callable[[Setting], Hyperparameters]
    knobs: Callable[[Setting], dict[str, Knob]] = _no_knobs
    tunes_lr: bool = True

    @property
    def reconstructed(self) -> bool:
        """Whether a part of it stands in for something its authors did not publish."""
        return "reconstructed" in self.source


def method_hyperparameters(name: MethodName, setting: Setting) -> Hyperparameters:
    """The configuration of that name in a study's setting."""
    return METHODS[name].build(setting)


def slug(name: str) -> str:
    """A method's name as a file name."""
    return name.replace("/", "-")


def _at_base(loss_weights: Mapping[str, float], **others: Any) -> Callable[[Setting], Hyperparameters]:
    """The study's base rate and decay, and whatever is said otherwise."""

    def build(setting: Setting) -> Hyperparameters:
        space = setting.space
        values = {"lr": space.base_lr, "weight_decay": space.base_weight_decay, "seed": setting.seed, **others}
        return Hyperparameters(loss_weights=loss_weights, **values)

    return build


def _published(name: str) -> Callable[[Setting], Hyperparameters]:
    return lambda _: Hyperparameters(**published_configuration(name))


def _l2sp(setting: Setting) -> Hyperparameters:
    return _at_base({"cross_entropy": 1.0, "l2_init": L2SP_STRENGTH * setting.entries})(setting)


def _knobs(**knobs: Knob) -> Callable[[Setting], dict[str, Knob]]:
    return lambda _: {name.replace("__", "/"): knob for name, knob in knobs.items()}


def _log(low: float, high: float) -> Knob:
    return Knob(low=low, high=high, log=True)


_PLAIN: Mapping[str, float] = {"cross_entropy": 1.0}
_METHODS = (
    Method("finetune", "cross-entropy alone: the FT baseline of WiSE-FT (Wortsman et al. 2022) and FLYP", _at_base(_PLAIN)),
    Method(
        "flyp",
        "the contrastive loss alone, on both towers, scored by a head rebuilt from the tuned text tower: FLYP (Goyal et al. 2023)",
        _at_base({"contrastive": 1.0}),
    ),
    Method(
        "l2sp",
        "cross-entropy and 0.01 times the summed squared distance to the zero-shot weights: L2-SP (Li et al. 2018), with the strength "
        "of LP-FT's released code (Kumar et al. 2022)",
        _l2sp,
        lambda setting: {"loss_weight/l2_init": _log(1e-3 * setting.entries, setting.entries)},
    ),
    Method(
        "linear_probe",
        "logistic regression on the frozen features (Radford et al. 2021; Kumar et al. 2022); its strength is chosen on held-out TRAIN (reconstructed)",
        _at_base(_PLAIN, start="linear_probe", trained="nothing"),
        tunes_lr=False,
    ),
    Method(
        "lp_ft",
        "full fine-tuning from the linear probe's head: LP-FT (Kumar et al. 2022, arXiv 2202.10054); the probe's choice of strength reconstructed",
        _at_base(_PLAIN, start="linear_probe"),
    ),
    Method(
        "drm",
        "the cross-entropy of two heads, one from default prompts and one from core-feature descriptions, mixed when predicting: DRM "
        "(Xie et al. 2024, arXiv 2411.19757); its training code is not published: reconstructed",
        _at_base({"cross_entropy": 1.0, "drm": 1.0}),
        _knobs(loss_weight__drm=_log(0.1, 3.0)),
    ),
    Method(
        "ftp",
        "every tensor projected into a ball around its zero-shot value, whose radius is learned while training: FTP (Tian et al. 2023, arXiv "
        "2310.19182), strongest setting k = 1, no weight decay, over AdamW; its radii's rate scaled with the learning rate: reconstructed",
        _at_base(_PLAIN, constraint="ftp", weight_decay=0.0),
        _knobs(strength=Knob(low=0.0, high=1.0)),
    ),
    Method(
        "tpgm",
        "the projection's radii learned on a tenth of TRAIN that is not trained on: TPGM (Tian et al. 2023, arXiv 2303.10720); the share held "
        "out is reconstructed",
        _at_base(_PLAIN, constraint="tpgm", weight_decay=0.0),
    ),
    Method(
        "spd",
        "decay towards the zero-shot weights, only where the last step worked against it: SPD (Tian et al. 2024, arXiv 2411.01713); its strength "
        "reconstructed",
        _at_base(_PLAIN, constraint="spd", weight_decay=0.0),
        _knobs(strength=Knob(low=0.0, high=1.0)),
    ),
    Method(
        "saft",
        "only the 0.1 % of the weights with the largest gradient train: SAFT (Nguyen et al. 2024, arXiv 2407.03036); batches of the mask "
        "reconstructed",
        _at_base(_PLAIN, constraint="saft"),
        _knobs(density=_log(1e-3, 1e-1)),
    ),
    Method(
        "core_tuning",
        "mixtures of hard pairs of features and a focal supervised contrastive loss: Core-tuning (Zhang et al. 2021, arXiv 2102.06605); "
        "CLIP's projection stands for its projector: reconstructed",
        # The released loss is (cross_entropy + 2 feature_mixup) / 3 and 0.1 times a contrastive loss averaged over all 3 x batch rows, which on
        # its data set of ten classes is a thirtieth of ours, an average over positives: times 3 that is 1, 2 and 0.01.
        _at_base({"cross_entropy": 1.0, "feature_mixup": 2.0, "focal_contrastive": 0.01}),
        _knobs(loss_weight__focal_contrastive=_log(1e-3, 1.0)),
    ),
    Method(
        "ldifs",
        "10 times the squared distance of intermediate features to the zero-shot model's: LDIFS (Mukhoti et al. 2024, arXiv 2308.13320); "
        "which features, of towers other than a ViT: reconstructed",
        _at_base({"cross_entropy": 1.0, "ldifs": 10.0}),
        _knobs(loss_weight__ldifs=_log(1.0, 100.0)),
    ),
    Method(
        "car_ft",
        "the divergence of context predictions from the zero-shot model's: CAR-FT (Mao et al. 2024, arXiv 2211.16175), strength 1; its "
        "contexts reconstructed",
        _at_base({"cross_entropy": 1.0, "car_ft": 1.0}),
        _knobs(loss_weight__car_ft=_log(0.1, 10.0)),
    ),
    Method(
        "lipsum_ft",
        "the change of similarities to random texts: Lipsum-FT (Nam et al. 2024, arXiv 2404.00860), strength 1, no weight decay; the pool of "
        "texts reconstructed",
        _at_base({"cross_entropy": 1.0, "lipsum": 1.0}, weight_decay=0.0),
        _knobs(loss_weight__lipsum=_log(0.1, 10.0)),
    ),
    Method(
        "clipood",
        "a margin by text similarity over the fixed zero-shot head, and a Beta(1/2, 1/2) average of the weights: CLIPood (Shu et al. 2023, "
        "arXiv 2302.00864), margin 0.3",
        _at_base({"margin": 1.0}, trained="backbone", averaging="beta"),
        _knobs(margin=Knob(low=0.0, high=1.0)),
    ),
    *(
        Method(name, f"the configuration AutoFT's authors found on {name.partition('/')[2]} and released", _published(name.partition("/")[2]))
        for name in METHOD_NAMES
        if name.startswith("published/")
    ),
)
METHODS: Mapping[MethodName, Method] = {method.name: method for method in _METHODS}
