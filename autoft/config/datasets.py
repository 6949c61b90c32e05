"""The `data` section of a study file: one section a layout, and the splits."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from autoft.config.base import Section
from autoft.config.vocabulary import VOCABULARIES, class_names, is_template, templates

TEST_SET_NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


class CorruptionsConfig(Section):
    """The 15 corruptions of ImageNet-C (Hendrycks and Dietterich 2019), applied to a clean set."""

    severity: int = Field(default=5, ge=1, le=5, description="How strong the corruptions are, 1 to 5.")
    all: bool = Field(
        default=False,
        description="false: each image gets one of the 15 corruptions, chosen by its content; true: every image appears under all 15.",
    )


class DatasetBase(Section):
    """What every layout shares: which examples of the set are used, and whether they are corrupted."""

    slice: tuple[int, int] | None = Field(
        default=None, description="Use examples [first, last) in the set's own order (folder: sorted paths)."
    )
    half: Literal["first", "second"] | None = Field(
        default=None, description="Use one half of each class, split once with a fixed seed; first and second never overlap."
    )
    max_examples: int | None = Field(default=None, ge=1, description="Use at most this many examples, drawn once with a fixed seed.")
    balanced: bool = Field(
        default=False,
        description="Draw max_examples // classes examples of each class, with replacement where a class has fewer (Cho et al. 2024).",
    )
    draw_seed: int = Field(default=0, ge=0, description="Another number makes max_examples draw other examples: few-shot repeats.")
    corruptions: CorruptionsConfig | None = Field(
        default=None, description="Corrupt the images, as {severity: 5}: image corruptions of ImageNet-C, fixed by each image's content."
    )

    @model_validator(mode="after")
    def _check_slice(self) -> Self:
        if self.slice is not None and not 0 <= self.slice[0] < self.slice[1]:
            raise ValueError(f"slice must be [first, last) with 0 <= first < last, got {list(self.slice)}")
        if self.balanced and self.max_examples is None:
            raise ValueError("balanced needs max_examples: it says how many examples to draw")
        return self


class OfficialDataset(DatasetBase):
    """A published data set in the layout it is distributed in."""

    path: Path = Field(description="The data set's own folder. Relative to the study file.")
    check_size: bool = Field(
        default=True, description="Refuse a set whose number of examples is not the published one: an incomplete copy, say."
    )


class FolderDataset(DatasetBase):
    """One folder a class, images inside."""

    layout: Literal["folder"]
    path: Path = Field(description="Folder with one folder a class. Relative to the study file.")


class CsvDataset(DatasetBase):
    """A table with one row an image."""

    layout: Literal["csv"]
    path: Path = Field(description="The table; tab-separated if it ends in .tsv, else comma-separated. Relative to the study file.")
    root: Path | None = Field(default=None, description="Folder the file paths are relative to, and below which they must lie once links are followed. Default: the table's folder.")
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


class ImageNetDataset(OfficialDataset):
    """ImageNet and the test sets made for it: V2 (matched frequency), R, A, Sketch, ObjectNet.

    R, A and ObjectNet have some of the classes only: the model chooses among those. ObjectNet's classes pool several of ImageNet's.
    """

    layout: Literal["imagenet", "imagenet_v2", "imagenet_r", "imagenet_a", "imagenet_sketch", "objectnet"]
    split: Literal["train", "val"] = Field(default="val", description="train or val; only imagenet has both.")

    @model_validator(mode="after")
    def _check_split(self) -> Self:
        if self.split == "train" and self.layout != "imagenet":
            raise ValueError(f"layout {self.layout} has no train split: it is a test set")
        return self


class ImageNetCDataset(OfficialDataset):
    """ImageNet-C: CORRUPTION/SEVERITY/CLASS/image, of which one severity is used."""

    layout: Literal["imagenet_c"]
    severity: int = Field(default=5, ge=1, le=5, description="Which severity, 1 to 5.")
    types: tuple[str, ...] | None = Field(default=None, description="Which corruptions, by folder name. Default: the 15 test corruptions.")


class WildsDataset(OfficialDataset):
    """iWildCam and FMoW as WILDS distributes them (Koh et al. 2021): metadata table and images."""

    layout: Literal["iwildcam", "fmow"]
    split: Literal["train", "val", "test", "id_val", "id_test"] = Field(
        description="train, id_val and id_test are in distribution; val and test are out of distribution."
    )


class CifarDataset(OfficialDataset):
    """CIFAR-10 (binary version), CIFAR-10.1 (v6) and CIFAR-10.2, from their published arrays."""

    layout: Literal["cifar10", "cifar10_1", "cifar10_2"]
    split: Literal["train", "test"] = Field(default="test", description="train or test; CIFAR-10.1 has a test split only.")

    @model_validator(mode="after")
    def _check_split(self) -> Self:
        if self.split == "train" and self.layout == "cifar10_1":
            raise ValueError("layout cifar10_1 has no train split: it is a test set")
        return self


class CifarCDataset(OfficialDataset):
    """CIFAR-10-C: CORRUPTION.npy with five severities of 10,000 images each, and labels.npy."""

    layout: Literal["cifar10_c"]
    severity: int = Field(default=5, ge=1, le=5, description="Which severity, 1 to 5.")
    types: tuple[str, ...] | None = Field(default=None, description="Which corruptions, by file name. Default: all 19.")


class PatchCamelyonDataset(OfficialDataset):
    """PatchCamelyon from its HDF5 files (needs h5py: pip install autoft[hdf5])."""

    layout: Literal["patchcamelyon"]
    split: Literal["train", "valid", "test"] = Field(description="The official split.")


class TransferDataset(OfficialDataset):
    """Caltech-101, Stanford Cars and Flowers-102 in their official folders.

    Caltech-101 has no official split: 60 % train, 20 % val, 20 % test of each class, drawn once with a fixed seed. Of Stanford Cars'
    training images 20 % are val. Flowers-102 has its own three.
    """

    layout: Literal["caltech101", "stanford_cars", "flowers102"]
    split: Literal["train", "val", "test"] = Field(description="train, val or test.")


DatasetConfig = Annotated[
    FolderDataset
    | CsvDataset
    | WebDataset
    | ArraysDataset
    | ImageNetDataset
    | ImageNetCDataset
    | WildsDataset
    | CifarDataset
    | CifarCDataset
    | PatchCamelyonDataset
    | TransferDataset,
    Field(discriminator="layout"),
]
DATASET_MODELS: tuple[type[DatasetBase], ...] = (
    FolderDataset,
    CsvDataset,
    WebDataset,
    ArraysDataset,
    ImageNetDataset,
    ImageNetCDataset,
    WildsDataset,
    CifarDataset,
    CifarCDataset,
    PatchCamelyonDataset,
    TransferDataset,
)


class DataConfig(Section):
    """The splits of the study and the words for its classes."""

    classnames: tuple[str, ...] | Path | None = Field(
        default=None,
        description="Class names in label order: a list, a text file with a line each, or one of the built-in lists "
        f"({', '.join(name for name, about in VOCABULARIES.items() if about.has_names)}). Default: the folder names (or the label values) of train, sorted, underscores read as spaces.",
    )
    templates: tuple[str, ...] = Field(
        default=("a photo of a {}.",),
        min_length=1,
        description="Prompt templates; {} stands for the class name, {an} for the class name in words with its article. A list, or the name of a built-in one "
        f"({', '.join(VOCABULARIES)}). The zero-shot head is their mean embedding.",
    )
    descriptions: Path | None = Field(
        default=None,
        description="JSON file with descriptions of the classes, {class: sentence or list of sentences}, for methods that use them; "
        "`autoft describe` writes one. Matched by class key or name. Relative to the study file.",
    )
    train: DatasetConfig = Field(description="TRAIN: what the model is fine-tuned on (in distribution).")
    val_id: DatasetConfig = Field(description="VAL_ID: chooses the best epoch of the final fine-tune.")
    val_ood: DatasetConfig = Field(description="VAL_OOD: the small out-of-distribution set that scores trials. Never trained on.")
    test_id: dict[str, DatasetConfig] = Field(default_factory=dict, description="TEST_ID: named test sets in distribution.")
    test_ood: dict[str, DatasetConfig] = Field(default_factory=dict, description="TEST_OOD: named test sets out of distribution.")
    allow_duplicates: tuple[tuple[str, str], ...] = Field(
        default=(),
        description="Pairs of sets, as [val_ood, NAME], that may share images. Any other image of val_ood in train or a test set is refused.",
    )
    on_bad_image: Literal["error", "skip"] = Field(
        default="error",
        description="What an image does that cannot be decoded (damaged, empty, no image, too large). error: it stops the study, which "
        "names it. skip: it is left out, counted and listed in the report; a set that would lose more than 1 % of its images "
        "(but one in any set), or a whole class, is refused. Files that a table names and that are not there are errors in any case.",
    )
    near_duplicates: int | None = Field(
        default=2,
        ge=0,
        le=16,
        description="Images whose perceptual hashes (64 bits) differ in at most this many bits are reported as near-duplicates. "
        "null: do not look for them.",
    )

    @field_validator("classnames", mode="before")
    @classmethod
    def _expand_classnames(cls, value: Any) -> Any:
        if not isinstance(value, str) or value not in VOCABULARIES:
            return value
        if not VOCABULARIES[value].has_names:
            raise ValueError("has built-in templates but no class names: leave classnames out, and they are read from the data set")
        return class_names(value)

    @field_validator("templates", mode="before")
    @classmethod
    def _expand_templates(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value not in VOCABULARIES:
                raise ValueError(f"must be a list of templates or one of {', '.join(VOCABULARIES)}")
            return templates(value)
        return value

    @field_validator("templates")
    @classmethod
    def _check_templates(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if not is_template(template):
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
        known = ("train", "val_id", "val_ood", *self.test_id, *self.test_ood)
        for pair in self.allow_duplicates:
            for name in pair:
                if name not in known:
                    raise ValueError(f"allow_duplicates: {name!r} is no set of this study; its sets are {', '.join(known)}")
        return self

    def datasets(self) -> Iterator[tuple[str, DatasetBase]]:
        """Every data set of the study as (dotted field name, section)."""
        yield "data.train", self.train
        yield "data.val_id", self.val_id
        yield "data.val_ood", self.val_ood
        for kind in ("test_id", "test_ood"):
            for name, dataset in getattr(self, kind).items():
                yield f"data.{kind}.{name}", dataset
