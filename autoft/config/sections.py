"""The sections of a study file besides `data`, and the whole `StudyConfig`.

Every field carries a sentence, its unit and its default, because `autoft init` and docs/study-file.md are printed from here.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from autoft.config.base import Section
from autoft.config.datasets import DataConfig
from autoft.config.drm import DrmConfig, drm_fields, without_drm_knobs
from autoft.config.knobs import EXTENDED_KNOBS, METHOD_TERM_NAMES, Knob, ScheduleName, check_fixed, check_knobs, check_together

LossTermName = Literal[
    "cross_entropy", "hinge", "entropy", "confidence_minimization", "contrastive", "l1_zero", "l2_zero", "l1_init", "l2_init"
]
SEARCHED_TERMS: tuple[LossTermName, ...] = get_args(LossTermName)
ReferenceTerm = Literal["cross_entropy", "contrastive"]
MethodName = Literal[
    "finetune",
    "flyp",
    "l2sp",
    "linear_probe",
    "lp_ft",
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
    "published/iwildcam",
    "published/fmow",
    "published/imagenet",
]
METHOD_NAMES: tuple[MethodName, ...] = get_args(MethodName)
ALL_TERM_NAMES: tuple[str, ...] = (*SEARCHED_TERMS, *METHOD_TERM_NAMES)
Metric = Literal["accuracy", "macro_f1", "worst_group_accuracy", "cross_entropy"]
Objective = Literal["val_ood", "val_id"]
Direction = Literal["maximize", "minimize"]
METRIC_DIRECTIONS: Mapping[str, Direction] = {
    "accuracy": "maximize",
    "macro_f1": "maximize",
    "worst_group_accuracy": "maximize",
    "cross_entropy": "minimize",
}
STUDY_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
Preset = Literal["paper", "official", "contrastive_reference", "layerwise", "extended"]
# What a preset says about fields that the study file leaves out. Sources: see `SearchSpaceConfig.preset`.
PRESETS: Mapping[Preset, Mapping[str, Any]] = {
    "paper": {},
    "official": {"seed": (0, 10)},
    "contrastive_reference": {"reference": "contrastive"},
    "layerwise": {"layerwise": True},
    "extended": {"knobs": EXTENDED_KNOBS},
}


class ModelConfig(Section):
    """Which foundation model is fine-tuned, and how its layers behave."""

    name: str = Field(
        description="Anything open_clip takes: an architecture such as ViT-B-16-quickgelu, hf-hub:ORG/REPO, or local-dir:PATH "
        "(relative to the study file)."
    )
    pretrained: str | None = Field(
        default=None,
        description="A pretrained tag of that architecture (openai, laion2b_s34b_b88k, ...) or the path of a weights file "
        "(safetensors, or a torch file that loads without unpickling). Not used with hf-hub: and local-dir:.",
    )
    batch_norm: Literal["train", "frozen"] = Field(
        default="train",
        description="train: BatchNorm layers use and update batch statistics while fine-tuning; frozen: they keep the zero-shot ones. "
        "No effect on models without BatchNorm.",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="Arithmetic of forward passes. Weights are always fp32. auto: bf16 autocast on a GPU, fp32 on a CPU.",
    )


class SearchSpaceConfig(Section):
    """The prior over fine-tuning objectives. Defaults: AutoFT's released search space (Cho et al. 2024)."""

    preset: Preset = Field(
        default="paper",
        description="paper: eight loss weights log-uniform in [1e-4, 10] with cross_entropy fixed at 1, learning rate within a factor "
        "100 of base_lr, weight decay in [0, 1], seed in 0..100 (AutoFT, arXiv 2401.10220, as in the code that made its published "
        "configurations; reconstructed, since the paper's own table was not available). official: the same with seed in 0..10, the "
        "last released commit. contrastive_reference: contrastive is fixed at 1 and cross_entropy searched (relative_to_flyp in the "
        "authors' history). layerwise: a learning rate and a weight decay for each block. extended: paper, and the terms, constraints "
        "and settings of other robust fine-tuning methods as knobs (reconstructed). Fields given beside it override it.",
    )
    base_lr: float = Field(gt=0, description="Centre of the learning-rate prior, and the rate of the plain baselines.")
    base_weight_decay: float = Field(default=0.1, ge=0, description="Weight decay of the plain baselines.")
    reference: ReferenceTerm = Field(default="cross_entropy", description="The loss term whose weight is fixed at 1.")
    terms: tuple[LossTermName, ...] = Field(
        default=SEARCHED_TERMS, description="Loss terms in use. All but the reference get a searched weight. Default: all nine."
    )
    loss_weight: tuple[float, float] = Field(default=(1e-4, 10.0), description="Range of every loss weight, log-uniform.")
    loss_weights: dict[LossTermName, tuple[float, float]] = Field(
        default_factory=dict, description="Ranges of single loss weights that differ, as {hinge: [0.001, 1]}, log-uniform."
    )
    lr_factor: tuple[float, float] = Field(default=(1e-2, 1e2), description="Range of lr / base_lr, log-uniform.")
    weight_decay: tuple[float, float] = Field(default=(0.0, 1.0), description="Range of the weight decay, uniform.")
    seed: tuple[int, int] = Field(default=(0, 100), description="Range of the trial's seed, integers, both ends included.")
    layerwise: bool = Field(default=False, description="Search a learning rate and a weight decay for each block of the model instead of one.")
    layers: tuple[str, ...] = Field(
        default=(), description="The blocks that layerwise searches. Leave it out: it is filled in from the model, and recorded."
    )

    knobs: dict[str, Knob] = Field(
        default_factory=dict,
        description="Whatever else is searched: a field of the hyperparameters (constraint, strength/ftp, density, schedule, momentum, alpha, ...) or "
        "loss_weight/TERM of another method's term, as {low: 0, high: 1}, {low: 0.001, high: 1, log: true} or {choices: [a, b]}, "
        "with when: {KNOB: VALUE} where it depends on a knob before it.",
    )
    fixed: dict[str, Any] = Field(
        default_factory=dict, description="Hyperparameters that every trial has, as {constraint: ftp}; a knob of the same name goes before."
    )

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("preset", "paper"), str):
            return {**PRESETS.get(values.get("preset", "paper"), {}), **values}
        return values

    @field_validator("terms")
    @classmethod
    def _order_terms(cls, terms: tuple[LossTermName, ...]) -> tuple[LossTermName, ...]:
        return tuple(term for term in SEARCHED_TERMS if term in terms)

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        ranges = {name: getattr(self, name) for name in ("loss_weight", "lr_factor", "weight_decay", "seed")}
        ranges |= {f"loss_weights.{term}": bounds for term, bounds in self.loss_weights.items()}
        for name, (low, high) in ranges.items():
            from_zero = name in ("weight_decay", "seed")
            if low > high or low < 0 or (low == 0 and not from_zero):
                raise ValueError(f"{name} must be [low, high] with {'0 <=' if from_zero else '0 <'} low <= high, got [{low}, {high}]")
        for term in self.loss_weights:
            if term not in self.searched_terms:
                why = "its weight is fixed at 1" if term == self.reference else "it is not among terms"
                raise ValueError(f"loss_weights.{term} has a range, but {why}")
        check_knobs(self.knobs, ALL_TERM_NAMES)
        check_fixed(self.fixed, ALL_TERM_NAMES)
        check_together(self.fixed, self.knobs)
        own = {"lr", "weight_decay", *(f"loss_weight/{term}" for term in self.searched_terms)}
        twice = sorted(own & self.knobs.keys())
        if twice:
            raise ValueError(f"knobs.{twice[0]} is searched already; set lr_factor, weight_decay or loss_weights.TERM instead")
        return self

    @property
    def searched_terms(self) -> tuple[LossTermName, ...]:
        """Terms whose weight is searched: all in use but the reference."""
        return tuple(term for term in self.terms if term != self.reference)


class ConfirmConfig(Section):
    """A second look at the best trials. The best of many noisy scores is optimistic; fresh seeds are not."""

    top: int = Field(default=3, ge=1, description="How many of the best configurations are run again with fresh seeds. 1: only the best, to know its noise.")
    repeats: int = Field(default=2, ge=0, description="Fresh runs of each. 0: do not confirm; the best trial wins.")
    steps: int | None = Field(
        default=None, ge=1, description="Optimizer steps of a confirmation run. Default: trial.steps. More: a look at a longer horizon."
    )


class SearchConfig(Section):
    """How the search space is searched."""

    n_trials: int = Field(ge=1, description="Finished trials (complete or pruned) the study ends with, enqueued ones included.")
    sampler: Literal["tpe", "random", "gp", "qmc"] = Field(
        default="tpe",
        description="tpe: Optuna's TPE; random: independent draws from the prior; gp: Gaussian process; qmc: scrambled Sobol points.",
    )
    pruner: Literal["none", "median", "hyperband", "wilcoxon"] = Field(
        default="none",
        description="Stops trials early whose intermediate scores are poor. wilcoxon compares repeats as folds, and needs trial.repeats > 1.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of the sampler. Trial n's suggestion depends on (seed, n) and earlier results.")
    objectives: tuple[Objective, ...] = Field(
        default=("val_ood",),
        min_length=1,
        description="Sets that trials are scored on. [val_ood, val_id] searches both and reports the Pareto front; the first decides the winner.",
    )
    enqueue: tuple[MethodName, ...] = Field(
        default=("finetune", "flyp", "l2sp"),
        description="Configurations tried first and never pruned, so that a study is not worse than they are on its own VAL_OOD: plain "
        "baselines at base_lr, and the configurations AutoFT's authors published.",
    )
    warm_start_from: tuple[str, ...] = Field(
        default=(), description="Earlier studies in the same database whose best configurations are tried after the enqueued ones."
    )
    warm_start_trials: int = Field(default=5, ge=1, description="How many configurations of each earlier study are tried.")
    confirm: ConfirmConfig = ConfirmConfig()

    @field_validator("objectives", "enqueue", "warm_start_from")
    @classmethod
    def _check_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"{twice[0]} is listed more than once")
        return names

    @model_validator(mode="after")
    def _check_objectives(self) -> Self:
        if len(self.objectives) > 1 and self.pruner != "none":
            raise ValueError(f"pruner {self.pruner} needs one objective; with objectives {list(self.objectives)} set pruner: none")
        return self


class TrialConfig(Section):
    """One trial: a short fine-tune from the zero-shot weights at a constant learning rate."""

    steps: int = Field(ge=1, description="Optimizer steps of a trial.")
    batch_size: int = Field(default=256, ge=2, description="Examples a step.")
    reports: int = Field(
        default=4, ge=1, description="Scores on VAL_OOD a trial reports when a pruner is on, evenly spaced; the last is its result."
    )
    repeats: int = Field(
        default=1, ge=1, description="Fine-tunes a trial consists of, each with its own seed; the score is their mean. For few-shot studies."
    )
    clip_grad_norm: float | None = Field(default=None, gt=0, description="Clip the gradient to this norm. Default: do not clip.")


class FinalConfig(Section):
    """The full fine-tune with the best trial's hyperparameters."""

    epochs: int = Field(default=10, ge=1, description="Passes over TRAIN.")
    batch_size: int = Field(default=256, ge=2, description="Examples a step.")
    schedule: ScheduleName = Field(
        default="cosine",
        description="What multiplies the learning rate after warm-up, per step. slow_start_fast_decay has a slow start of its own (reconstructed).",
    )
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1, description="Share of all steps spent on linear warm-up.")
    lr: Literal["searched", "base"] = Field(
        default="searched",
        description="searched: the best trial's rate; base: search_space.base_lr, which is what the authors' released code did.",
    )
    clip_grad_norm: float | None = Field(default=None, gt=0, description="Clip the gradient to this norm. Default: do not clip.")


class WiseFTConfig(Section):
    """Interpolation between zero-shot (alpha 0) and fine-tuned (alpha 1) weights (Wortsman et al. 2022)."""

    alphas: tuple[float, ...] = Field(
        default=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0), min_length=1, description="Mixing coefficients to try, in [0, 1]."
    )
    select_on: Literal["val_ood", "val_id"] = Field(default="val_ood", description="The validation set that picks alpha.")
    weighting: Literal["uniform", "fisher"] = Field(
        default="uniform",
        description="uniform: every weight is mixed by alpha; fisher: each in proportion to its diagonal Fisher information on TRAIN at the "
        "two ends, as WiSE-FT's released code can. Costs 128 forward and backward passes of 32 images.",
    )
    reestimate_batch_norm: bool = Field(
        default=True,
        description="For 0 < alpha < 1, compute BatchNorm statistics again from about 2,000 images of TRAIN; false: mix them like weights. No "
        "effect on models without BatchNorm, nor with model.batch_norm = frozen.",
    )

    @field_validator("alphas")
    @classmethod
    def _check_alphas(cls, alphas: tuple[float, ...]) -> tuple[float, ...]:
        for alpha in alphas:
            if not 0 <= alpha <= 1:
                raise ValueError(f"alphas must lie in [0, 1], got {alpha}")
        return tuple(sorted(set(alphas)))


class EvaluateConfig(Section):
    """How models are scored."""

    batch_size: int = Field(default=256, ge=1, description="Images a forward pass.")
    baselines: tuple[MethodName, ...] = Field(
        default=(),
        description="Methods trained in full and scored beside AutoFT. finetune: cross_entropy alone; flyp: contrastive alone (Goyal et al. "
        "2023); l2sp: cross_entropy and 0.01 times the squared distance to the zero-shot weights (Li et al. 2018); all at base_lr.",
    )


class StudyConfig(Section):
    """A whole study: what to learn, never where to run it."""

    study: str = Field(pattern=STUDY_NAME_PATTERN, description="Name of the study: letters, digits, '.', '_' and '-'.")
    model: ModelConfig
    data: DataConfig
    metric: Metric = Field(
        default="accuracy",
        description="What trials are scored by on VAL_OOD: accuracy, macro_f1, worst_group_accuracy, or cross_entropy (minimised).",
    )
    search_space: SearchSpaceConfig
    search: SearchConfig
    trial: TrialConfig
    final: FinalConfig = FinalConfig()
    wise_ft: WiseFTConfig | None = Field(default=None, description="Left out: the run ends with the fine-tuned model.")
    evaluate: EvaluateConfig = EvaluateConfig()
    drm: DrmConfig = DrmConfig()

    @model_validator(mode="before")
    @classmethod
    def _drop_preset_knobs(cls, values: Any) -> Any:
        return without_drm_knobs(values, EXTENDED_KNOBS)

    @model_validator(mode="after")
    def _check_descriptions(self) -> Self:
        methods = {"search.enqueue": self.search.enqueue, "evaluate.baselines": self.evaluate.baselines}
        asking = drm_fields(self.search_space.knobs, self.search_space.fixed, methods)
        if asking and self.data.descriptions is None:
            raise ValueError(
                f"{asking[0]} asks for the drm term, which needs data.descriptions, a file with descriptions of the classes; `autoft describe` writes one"
            )
        return self

    @model_validator(mode="after")
    def _check_folds(self) -> Self:
        if self.search.pruner == "wilcoxon" and self.trial.repeats < 2:
            raise ValueError(f"search.pruner = wilcoxon compares repeats as folds; trial.repeats = {self.trial.repeats} must be at least 2")
        return self

    @property
    def direction(self) -> Direction:
        """Whether a larger or a smaller score is better."""
        return METRIC_DIRECTIONS[self.metric]
