"""What is compared, and by which rule: the methods, their tuning spaces, and the study as a comparison runs it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autoft.config import ConfirmConfig, Knob, SearchSpaceConfig, StudyConfig, WiseFTConfig
from autoft.errors import ConfigError
from autoft.methods import METHODS, Setting, method_hyperparameters

ZERO_SHOT, FINETUNE, WISE_FT, SOUP = "zero_shot", "finetune", "wise_ft", "soup"
SEARCHES: Mapping[str, str] = {"autoft": "the study's own search space", "autoft_extended": "the extended search space"}
COMPARED = (
    ZERO_SHOT,
    "linear_probe",
    FINETUNE,
    "lp_ft",
    "l2sp",
    "flyp",
    WISE_FT,
    "drm",
    "ftp",
    "tpgm",
    "spd",
    "saft",
    "core_tuning",
    "ldifs",
    "car_ft",
    "lipsum_ft",
    "clipood",
    SOUP,
    *SEARCHES,
)
# The learning rates every method is tuned over, relative to base_lr. Wide enough for what searches found on the example studies.
LR_FACTOR = (0.1, 30.0)
SOUP_MEMBERS = 4
RULE = (
    "A tuning evaluation is a short fine-tune scored on VAL_OOD. The first runs a method's published setting at base_lr (AutoFT's: plain "
    "fine-tuning); the others are the sampler's proposals over the learning rate and the method's own knobs, or over AutoFT's search space, "
    "whose learning rates reach further and which has the weight decay and the seed besides. The best is trained in full once a "
    "seed, its epoch chosen on VAL_ID; if that diverges there is no second choice. WiSE-FT and the soup build on plain fine-tuning's tuned settings "
    "and look at VAL_OOD again for each seed, on fully trained models: WiSE-FT at as many alphas as there are evaluations, the soup at its "
    "members and their averages."
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is compared. evaluations: tuning evaluations a method gets. keep: whether the checkpoints of all runs stay."""

    methods: tuple[str, ...]
    seeds: int
    evaluations: int
    keep: bool = False


def check_methods(names: Sequence[str], config: StudyConfig) -> tuple[str, ...]:
    """The methods by name, in the order of `COMPARED`.

    Raises:
        ConfigError: a name is none of them, or twice there, or the method needs something the study does not have.
    """
    for name in names:
        if name not in COMPARED:
            raise ConfigError(f"--methods: there is no method {name!r}; they are {', '.join(COMPARED)}")
        if list(names).count(name) > 1:
            raise ConfigError(f"--methods: {name} is listed twice")
    if "drm" in names and config.data.descriptions is None:
        raise ConfigError("--methods drm needs data.descriptions; write them with autoft describe, or leave drm out")
    return tuple(name for name in COMPARED if name in names)


def default_methods(config: StudyConfig) -> tuple[str, ...]:
    """All methods the study has what it takes for."""
    return tuple(name for name in COMPARED if name != "drm" or config.data.descriptions is not None)


def comparison_config(config: StudyConfig, evaluations: int) -> StudyConfig:
    """The study as its comparison runs it: no pruning, one objective, and as many alphas for WiSE-FT as others have evaluations.

    Raises:
        ConfigError: the study asks for something a comparison cannot do.
    """
    if config.final.lr == "base":
        raise ConfigError("final.lr = 'base': a comparison trains every method at the learning rate it was tuned to; leave it out")
    alphas = tuple(round((index + 1) / evaluations, 4) for index in range(evaluations))
    search = config.search.model_copy(
        update={
            "pruner": "none",
            "objectives": ("val_ood",),
            "enqueue": (),
            "warm_start_from": (),
            "n_trials": evaluations,
            "confirm": ConfirmConfig(top=1, repeats=0),
        }
    )
    wise_ft = (config.wise_ft or WiseFTConfig()).model_copy(update={"alphas": alphas, "select_on": "val_ood"})
    return config.model_copy(update={"search": search, "wise_ft": wise_ft})


def tuning_space(method: str, setting: Setting, described: bool) -> SearchSpaceConfig:
    """What a method is tuned over: the learning rate and its own knobs, or for AutoFT its search space.

    Args:
        described: whether the study has `data.descriptions`, without which no drm term can be searched.
    """
    space = setting.space
    if method == "autoft":
        return space
    if method == "autoft_extended":
        extended = SearchSpaceConfig(preset="extended", base_lr=space.base_lr, base_weight_decay=space.base_weight_decay)
        kept = {name: knob for name, knob in extended.knobs.items() if described or not name.endswith("/drm")}
        return extended.model_copy(update={"knobs": kept})
    hp, spec = method_hyperparameters(method, setting), METHODS[method]  # type: ignore[arg-type,index]
    fixed = {name: value for name, value in hp.to_dict().items() if name not in ("lr", "weight_decay", "seed")}
    factor = LR_FACTOR if spec.tunes_lr else (1.0, 1.0)
    return SearchSpaceConfig(
        base_lr=space.base_lr,
        base_weight_decay=hp.weight_decay,
        reference=space.reference,
        terms=(space.reference,),
        lr_factor=factor,
        weight_decay=(hp.weight_decay, hp.weight_decay),
        seed=(setting.seed, setting.seed),
        fixed=fixed,
        knobs=spec.knobs(setting),
    )


def tuned_with(method: str) -> str | None:
    """The method whose tuning this one uses; None for the zero-shot model."""
    return {ZERO_SHOT: None, WISE_FT: FINETUNE, SOUP: FINETUNE}.get(method, method)


def ranges(space: SearchSpaceConfig, method: str) -> dict[str, str]:
    """What is tuned, as text."""
    if method in SEARCHES:
        knobs = f", and {len(space.knobs)} knobs" if space.knobs else ""
        return {"search space": f"preset {space.preset}: the learning rate, the weight decay, {len(space.searched_terms)} loss weights and the seed{knobs}"}
    low, high = (factor * space.base_lr for factor in space.lr_factor)
    return {**({"lr": f"{low:g} to {high:g}, log"} if low < high else {}), **{name: _range_text(knob) for name, knob in space.knobs.items()}}


def _range_text(knob: Knob) -> str:
    return ", ".join(map(str, knob.choices)) if knob.choices else f"{knob.low:g} to {knob.high:g}{', log' if knob.log else ''}"
