"""The study file: YAML in, a frozen `StudyConfig` out.

Every field carries a sentence, its unit and its default, because `autoft init` and docs/study-file.md are printed from here.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from autoft.errors import ConfigError

LossTermName = Literal[
    "hinge", "entropy", "confidence_minimization", "contrastive", "l1_zero", "l2_zero", "l1_init", "l2_init"
]
SEARCHED_TERMS: tuple[LossTermName, ...] = get_args(LossTermName)
Metric = Literal["accuracy", "macro_f1", "worst_group_accuracy", "cross_entropy"]
Direction = Literal["maximize", "minimize"]
METRIC_DIRECTIONS: Mapping[str, Direction] = {
    "accuracy": "maximize",
    "macro_f1": "maximize",
    "worst_group_accuracy": "maximize",
    "cross_entropy": "minimize",
}
TEST_SET_NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
STUDY_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class Section(BaseModel):
    """A frozen section that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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


class DatasetBase(Section):
    """What every layout shares: which examples of the set are used."""

    slice: tuple[int, int] | None = Field(
        default=None, description="Use examples [first, last) in the set's own order (folder: sorted paths)."
    )
    max_examples: int | None = Field(default=None, ge=1, description="Use at most this many examples, drawn once with a fixed seed.")
    balanced: bool = Field(
        default=False,
        description="Draw max_examples // classes examples of each class, with replacement where a class has fewer (Cho et al. 2024).",
    )

    @model_validator(mode="after")
    def _check_slice(self) -> Self:
        if self.slice is not None and not 0 <= self.slice[0] < self.slice[1]:
            raise ValueError(f"slice must be [first, last) with 0 <= first < last, got {list(self.slice)}")
        if self.balanced and self.max_examples is None:
            raise ValueError("balanced needs max_examples: it says how many examples to draw")
        return self


class FolderDataset(DatasetBase):
    """One folder a class, images inside."""

    layout: Literal["folder"]
    path: Path = Field(description="Folder with one folder a class. Relative to the study file.")


class CsvDataset(DatasetBase):
    """A table with one row an image."""

    layout: Literal["csv"]
    path: Path = Field(description="The table; tab-separated if it ends in .tsv, else comma-separated. Relative to the study file.")
    root: Path | None = Field(default=None, description="Folder the file paths are relative to. Default: the table's folder.")
    filepath: str = Field(default="filepath", description="Name of the column with the image path.")
    label: str | None = Field(
        default="label", description="Name of the column with the class. If the column is absent, the class is read off the caption."
    )
    caption: str | None = Field(
        default=None, description="Name of the column with a caption, used by the contrastive term instead of a class prompt."
    )
    group: str | None = Field(default=None, description="Name of the column with the group, for worst-group accuracy.")


class WebDataset(DatasetBase):
    """Tar shards in webdataset form: KEY.jpg (png, webp) with KEY.cls (or KEY.json with a label), and KEY.txt for a caption."""

    layout: Literal["webdataset"]
    path: str = Field(description="Shards, with brace expansion: train-{000..003}.tar. Relative to the study file.")


class ArraysDataset(DatasetBase):
    """Numpy arrays: an .npz with both, or an .npy of images and one of labels. Never unpickled."""

    layout: Literal["arrays"]
    path: Path = Field(description="An .npz, or the .npy of the images: uint8 (n, height, width) or (n, height, width, 3).")
    images: str = Field(default="images", description="Key of the images in the .npz.")
    labels: str = Field(default="labels", description="Key of the labels in the .npz, or the .npy of the labels. Integers (n,).")
    groups: str | None = Field(default=None, description="Key of the groups in the .npz, or their .npy, for worst-group accuracy.")


DatasetConfig = Annotated[FolderDataset | CsvDataset | WebDataset | ArraysDataset, Field(discriminator="layout")]


class DataConfig(Section):
    """The splits of the study and the words for its classes."""

    classnames: tuple[str, ...] | Path | None = Field(
        default=None,
        description="Class names in label order: a list, or a text file with a line each. Default: the folder names (or the label "
        "values) of train, sorted, underscores read as spaces.",
    )
    templates: tuple[str, ...] = Field(
        default=("a photo of a {}.",),
        min_length=1,
        description="Prompt templates; {} stands for the class name. The zero-shot head is their mean embedding.",
    )
    train: DatasetConfig = Field(description="TRAIN: what the model is fine-tuned on (in distribution).")
    val_id: DatasetConfig = Field(description="VAL_ID: chooses the best epoch of the final fine-tune.")
    val_ood: DatasetConfig = Field(description="VAL_OOD: the small out-of-distribution set that scores trials. Never trained on.")
    test_id: dict[str, DatasetConfig] = Field(default_factory=dict, description="TEST_ID: named test sets in distribution.")
    test_ood: dict[str, DatasetConfig] = Field(default_factory=dict, description="TEST_OOD: named test sets out of distribution.")

    @field_validator("templates")
    @classmethod
    def _check_templates(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if template.count("{}") != 1 or template.replace("{}", "").count("{"):
                raise ValueError(f"a template needs {{}} exactly once, for the class name; got {template!r}")
        return templates

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for kind in ("test_id", "test_ood"):
            for name in getattr(self, kind):
                if name in ("train", "val_id", "val_ood") or not re.fullmatch(TEST_SET_NAME_PATTERN, name):
                    raise ValueError(f"{kind}.{name}: a test set's name has letters, digits, '.', '_' and '-', and is no split's name")
        both = sorted(set(self.test_id) & set(self.test_ood))
        if both:
            raise ValueError(f"test set names must differ between test_id and test_ood; both have {', '.join(both)}")
        return self

    def datasets(self) -> Iterator[tuple[str, DatasetBase]]:
        """Every data set of the study as (dotted field name, section)."""
        yield "data.train", self.train
        yield "data.val_id", self.val_id
        yield "data.val_ood", self.val_ood
        for kind in ("test_id", "test_ood"):
            for name, dataset in getattr(self, kind).items():
                yield f"data.{kind}.{name}", dataset


class SearchSpaceConfig(Section):
    """The prior over fine-tuning objectives. Defaults: AutoFT's released search space (Cho et al. 2024)."""

    preset: Literal["paper"] = Field(default="paper", description="paper: eight loss weights, learning rate, weight decay and seed.")
    base_lr: float = Field(gt=0, description="Centre of the learning-rate prior, and the rate of the plain baselines.")
    base_weight_decay: float = Field(default=0.1, ge=0, description="Weight decay of the plain baselines.")
    terms: tuple[LossTermName, ...] = Field(
        default=SEARCHED_TERMS, description="Searched loss terms besides cross_entropy, whose weight is 1. Default: all eight."
    )
    loss_weight: tuple[float, float] = Field(default=(1e-4, 10.0), description="Range of every loss weight, log-uniform.")
    lr_factor: tuple[float, float] = Field(default=(1e-2, 1e2), description="Range of lr / base_lr, log-uniform.")
    weight_decay: tuple[float, float] = Field(default=(0.0, 1.0), description="Range of the weight decay, uniform.")
    seed: tuple[int, int] = Field(default=(0, 100), description="Range of the trial's seed, integers, both ends included.")

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        for name in ("loss_weight", "lr_factor", "weight_decay", "seed"):
            low, high = getattr(self, name)
            floor = 0.0 if name in ("weight_decay", "seed") else None
            if low > high or (floor is None and low <= 0) or (floor is not None and low < floor):
                raise ValueError(f"{name} must be [low, high] with {'0 <=' if floor is not None else '0 <'} low <= high, got [{low}, {high}]")
        return self


class SearchConfig(Section):
    """How the search space is searched."""

    n_trials: int = Field(ge=1, description="Finished trials (complete or pruned) the study ends with.")
    sampler: Literal["tpe", "random"] = Field(default="tpe", description="tpe: Optuna's TPE; random: independent draws from the prior.")
    pruner: Literal["none", "median", "hyperband"] = Field(
        default="none", description="Stops trials early whose intermediate VAL_OOD scores are poor."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the sampler. Trial n's suggestion depends on (seed, n) and earlier results.")


class TrialConfig(Section):
    """One trial: a short fine-tune from the zero-shot weights at a constant learning rate."""

    steps: int = Field(ge=1, description="Optimizer steps of a trial.")
    batch_size: int = Field(default=256, ge=2, description="Examples a step.")
    reports: int = Field(
        default=4, ge=1, description="Scores on VAL_OOD a trial reports when a pruner is on, evenly spaced; the last is its result."
    )
    clip_grad_norm: float | None = Field(default=None, gt=0, description="Clip the gradient to this norm. Default: do not clip.")


class FinalConfig(Section):
    """The full fine-tune with the best trial's hyperparameters."""

    epochs: int = Field(default=10, ge=1, description="Passes over TRAIN.")
    batch_size: int = Field(default=256, ge=2, description="Examples a step.")
    schedule: Literal["cosine", "constant"] = Field(default="cosine", description="What multiplies the learning rate after warm-up, per step.")
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
    baselines: tuple[Literal["finetune"], ...] = Field(
        default=(), description="Methods trained and scored beside AutoFT. finetune: cross-entropy alone at base_lr."
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

    @property
    def direction(self) -> Direction:
        """Whether a larger or a smaller score is better."""
        return METRIC_DIRECTIONS[self.metric]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a study file.

    Args:
        path: YAML file. Relative paths inside it are taken relative to its folder.
        overrides: `section.field=value` strings; the value is read as YAML. Relative paths in them are taken relative to the
            study file too.

    Raises:
        ConfigError: naming the dotted field, the value and what would be valid.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"no study file at {file}; `autoft init` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the study file {file}: {error}") from None
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{file} must be a mapping with the sections {', '.join(StudyConfig.model_fields)}")
    for override in overrides:
        _apply_override(document, override)
    document = {name: value for name, value in document.items() if value is not None}  # a section whose lines are all comments
    return parse_config(document, base=file.resolve().parent, source=str(file))


def parse_config(document: Mapping[str, Any], base: Path, source: str = "study") -> StudyConfig:
    """Validate a parsed study file; relative paths are taken relative to `base`. Raises ConfigError."""
    try:
        config = StudyConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{source}: " + "\n".join(_explain(error, document))) from None
    return _resolve_paths(config, base)


def dump_config(config: StudyConfig) -> str:
    """The study as YAML that `load_config` reads back to an equal config (paths are absolute)."""
    return yaml.safe_dump(config.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)


def section_hash(value: Any) -> str:
    """SHA-256 of a value's canonical JSON, shortened to 16 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _apply_override(document: dict[str, Any], override: str) -> None:
    key, equals, raw = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set takes SECTION.FIELD=VALUE, got {override!r}")
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError:
        raise ConfigError(f"--set {key}: {raw!r} is not valid YAML") from None
    *parents, leaf = key.split(".")
    node: Any = document
    for depth, parent in enumerate(parents):
        if node.get(parent) is None:
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            raise ConfigError(f"--set {key}: {'.'.join(parents[: depth + 1])} is not a section")
    node[leaf] = value


def _explain(error: ValidationError, document: Mapping[str, Any]) -> Iterator[str]:
    """One line a mistake: dotted field, value, what is wrong, the nearest valid name."""
    for item in error.errors():
        location = _field_location(item["loc"])
        field = ".".join(str(part) for part in location) or "the study file"
        if item["type"] == "extra_forbidden":
            yield f"unknown key {field}{_nearest(location, document)}"
        elif item["type"] == "missing":
            yield f"{field} is missing"
        else:
            message = item["msg"].removeprefix("Value error, ")
            yield f"{field} = {_shown(item['input'])}: {message}"


def _field_location(location: tuple[int | str, ...]) -> list[int | str]:
    """Where the mistake is in the study file: pydantic's path without the tags it adds for unions."""
    path = list(location)
    if path[:2] == ["data", "classnames"]:
        return path[:2]
    if path[:1] == ["data"]:
        tag = 3 if path[1:2] in (["test_id"], ["test_ood"]) else 2
        if len(path) > tag and path[tag] in _DATASET_MODELS:
            del path[tag]
    return path


def _nearest(location: Sequence[int | str], document: Mapping[str, Any]) -> str:
    names = _valid_names(location[:-1], document)
    close = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; valid keys are {', '.join(names)}" if names else ""


def _valid_names(parents: Sequence[int | str], document: Mapping[str, Any]) -> list[str]:
    """The keys valid at a place of the study file, found by walking the models beside the document."""
    model: Any = StudyConfig
    node: Any = document
    for part in parents:
        node = node.get(part) if isinstance(node, Mapping) else None
        if isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            model = model.model_fields[str(part)].annotation
        if part in ("test_id", "test_ood"):
            model = "datasets"
        elif model == "datasets" or part in ("train", "val_id", "val_ood"):
            layout = node.get("layout") if isinstance(node, Mapping) else None
            model = _DATASET_MODELS.get(str(layout))
        elif not (isinstance(model, type) and issubclass(model, BaseModel)):
            model = next((arg for arg in get_args(model) if isinstance(arg, type) and issubclass(arg, BaseModel)), None)
    if isinstance(model, type) and issubclass(model, BaseModel):
        return list(model.model_fields)
    return []


_DATASET_MODELS: Mapping[str, type[DatasetBase]] = {
    "folder": FolderDataset,
    "csv": CsvDataset,
    "webdataset": WebDataset,
    "arrays": ArraysDataset,
}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _resolve_paths(config: StudyConfig, base: Path) -> StudyConfig:
    """A copy with every path absolute."""
    data = config.data
    update: dict[str, Any] = {
        split: _resolve_dataset(getattr(data, split), base) for split in ("train", "val_id", "val_ood")
    }
    for kind in ("test_id", "test_ood"):
        update[kind] = {name: _resolve_dataset(dataset, base) for name, dataset in getattr(data, kind).items()}
    if isinstance(data.classnames, Path):
        update["classnames"] = _absolute(data.classnames, base)
    model = config.model
    prefix, colon, path = model.name.partition(":")
    if colon and prefix == "local-dir":
        model = model.model_copy(update={"name": f"local-dir:{_absolute(Path(path), base)}"})
    if model.pretrained is not None and _absolute(Path(model.pretrained), base).is_file():
        model = model.model_copy(update={"pretrained": str(_absolute(Path(model.pretrained), base))})
    return config.model_copy(update={"data": data.model_copy(update=update), "model": model})


def _resolve_dataset(dataset: DatasetBase, base: Path) -> DatasetBase:
    update: dict[str, Any] = {}
    for name in ("path", "root"):
        value = getattr(dataset, name, None)
        if value is not None:
            update[name] = type(value)(str(_absolute(Path(value), base))) if isinstance(value, str) else _absolute(value, base)
    for name in ("labels", "groups"):  # arrays: an .npy beside the images
        value = getattr(dataset, name, None)
        if isinstance(value, str) and value.endswith(".npy"):
            update[name] = str(_absolute(Path(value), base))
    return dataset.model_copy(update=update)


def _absolute(path: Path, base: Path) -> Path:
    path = path.expanduser()
    return path if path.is_absolute() else (base / path).resolve()
