"""What data loading passes around: splits, listings, classes, decoded image sets."""

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from autoft.data.streamed import StreamedImages


class Split(enum.StrEnum):
    """The role of a data set in a study."""

    TRAIN = "train"
    VAL_ID = "val_id"
    VAL_OOD = "val_ood"
    TEST_ID = "test_id"
    TEST_OOD = "test_ood"


@dataclass(frozen=True)
class Listing:
    """What a layout found on disk, in the set's own order, before any image is decoded.

    field: dotted name for messages, such as data.train.
    ids: name of each example for messages: relative path, shard and key, or index.
    labels: raw label of each example: folder name, table value or integer. None: the class is read off the caption.
    groups: raw group of each example, if the set has groups; "" for an example that counts in no group.
    captions: text of each example, if the set has texts.
    read: encoded bytes (or the bytes of the array) of example i; raises DataError.
    decode: RGB image of example i; raises DataError naming field and id if it is corrupt, truncated or empty.
    signature: hash of (path, size, mtime_ns) of the files; differs when a file was changed, added or removed.
    pools: for a test set with classes of its own, each of its labels with the study's class labels it stands for; None: the set has
        the study's classes.
    """

    field: str
    ids: Sequence[str]
    labels: Sequence[str | int] | None
    groups: Sequence[str] | None
    captions: Sequence[str] | None
    read: Callable[[int], bytes]
    decode: Callable[[int], Image.Image]
    signature: str
    pools: Mapping[str, tuple[str, ...]] | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class ClassTable:
    """The classes of a study, in the order of the head's rows.

    keys: TRAIN's folder names or label values, as text.
    names: the words used in prompts.
    ordered: names were given in label order, so an integer label is a position in them.
    """

    keys: tuple[str, ...]
    names: tuple[str, ...]
    ordered: bool = False

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class PixelSpec:
    """How an image becomes a square of pixels.

    size: side of the model's input.
    interpolation: bicubic or bilinear.
    resize_mode: shortest (resize the short side, centre crop), longest (resize the long side, pad with black) or squash,
        as open_clip's preprocess configuration names them.
    margin: the square's side over `size`. 1: exactly the pixels open_clip evaluates on; more: room for random crops.
    """

    size: int
    interpolation: str
    resize_mode: str = "shortest"
    margin: float = 1.0


@dataclass(frozen=True)
class ImageSet:
    """The decoded examples of one data set.

    images: (n, side, side, 3) uint8, memory-mapped and read-only; or, of a set the cache has no room for, decoded whenever some are asked for.
    labels: (n,) int64, rows of the study's class table, or of `projection` where there is one.
    class_count: number of classes the labels run over.
    groups: (n,) int64 into `group_names`, sorted by name, -1 for an example in no group; None without groups.
    content_hash: SHA-256 over each example's raw bytes and class key, in order (with its caption and group where it has them), and over
        the raw bytes of skipped images. Paths and file dates do not enter.
    example_hashes: SHA-256 of each example's raw bytes, shortened to 16 hex digits. A corrupted image has that of the image it was.
    projection: for a set with classes of its own, the rows of the study's class table that each of them pools; a prediction is the
        class whose largest logit is largest. None: the study's classes.
    skipped: (name, reason) of each image that could not be used and is left out of everything above.
    """

    field: str
    images: "NDArray[np.uint8] | StreamedImages"
    labels: NDArray[np.int64]
    class_count: int
    groups: NDArray[np.int64] | None
    group_names: tuple[str, ...]
    captions: tuple[str, ...] | None
    content_hash: str
    example_hashes: tuple[str, ...]
    projection: tuple[tuple[int, ...], ...] | None = None
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def class_counts(self) -> NDArray[np.int64]:
        """Examples of each class, (classes,)."""
        return np.bincount(self.labels, minlength=self.class_count).astype(np.int64)


@dataclass(frozen=True)
class StudyData:
    """The image sets of a study. Of those `load_study_data` was not asked for, splits are None and tests are absent.

    drawn: by dotted field, the indices into its own order of the examples a set uses, where `slice`, `half` or `max_examples` chose some.
    """

    classes: ClassTable
    train: ImageSet
    val_id: ImageSet
    val_ood: ImageSet
    tests: Mapping[str, tuple[Split, ImageSet]]
    drawn: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def skipped(self, shown: int = 1000) -> dict[str, dict[str, object]]:
        """Of each loaded set that lost images because they cannot be used: how many, and the first with the reason, as JSON values."""
        loaded = {"train": self.train, "val_id": self.val_id, "val_ood": self.val_ood} | {name: images for name, (_, images) in self.tests.items()}
        return {
            name: {"n": len(images.skipped), "images": [{"image": image, "reason": reason} for image, reason in images.skipped[:shown]]}
            for name, images in loaded.items()
            if images is not None and images.skipped
        }
