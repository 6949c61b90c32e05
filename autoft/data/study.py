"""The data sets of a study, checked against each other and loaded."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from autoft.config import DataConfig, DatasetBase
from autoft.data.arrays import forget_arrays
from autoft.data.cache import load_decoded
from autoft.data.classes import class_rows, class_table, unknown_class
from autoft.data.layouts import open_listing
from autoft.data.selection import drawn, sliced
from autoft.data.sets import ClassTable, ImageSet, Listing, PixelSpec, Split, StudyData
from autoft.errors import DataError

# TRAIN is kept this much larger than the model's input, so that random crops have pixels to choose from.
TRAIN_MARGIN = 1.25


@dataclass(frozen=True)
class _Selected:
    """A set's listing, the examples the study uses, and their classes.

    examples: (n,) indices into the listing. rows: (n,) classes. present: classes in the set after the slice, before the draw.
    """

    dataset: DatasetBase
    listing: Listing
    examples: NDArray[np.int64]
    rows: NDArray[np.int64]
    present: frozenset[int]


def load_image_set(
    dataset: DatasetBase,
    field: str,
    classes: ClassTable,
    pixels: PixelSpec,
    cache_dir: Path,
    progress: Callable[[int, int], None] | None = None,
    *,
    templates: Sequence[str] = (),
) -> ImageSet:
    """Load one data set: its own order, then `slice`, then `max_examples` and `balanced`.

    Args:
        field: dotted name for messages, such as data.train.
        cache_dir: where decoded images are kept.
        progress: called with (images done, images in all) while decoding.
        templates: prompt templates, by which captions are read in a set without labels.

    Raises:
        DataError: naming field and value; also if a class is none of `classes`.
    """
    selected = _select(dataset, open_listing(dataset, field), classes, templates)
    return _load(selected, classes, pixels, cache_dir, progress)


def load_study_data(
    data: DataConfig,
    size: int,
    interpolation: str,
    resize_mode: str,
    cache_dir: Path,
    *,
    splits: Collection[str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> StudyData:
    """Check a study's data sets against each other, then decode them or find them in the cache.

    Args:
        size, interpolation, resize_mode: how the model wants its images; see `PixelSpec`.
        splits: names of the sets to load: train, val_id, val_ood and names of test sets. None: all.
        progress: called with (field, images done, images in all) while decoding.

    Raises:
        DataError: naming field and value. Nothing is decoded before every wanted set is listed and its labels are checked.
    """
    classes, selected = _select_all(data, splits)
    loaded: dict[str, ImageSet] = {}
    for field, item in selected.items():
        pixels = PixelSpec(size, interpolation, resize_mode, TRAIN_MARGIN if field == "data.train" else 1.0)
        report = None if progress is None else _for_field(progress, field)
        loaded[field] = _load(item, classes, pixels, cache_dir, report)
    forget_arrays()
    tests = {name: (split, loaded[field]) for name, split, field in _tests(data) if field in loaded}
    # Who asks for some splits only knows which; making everyone else handle None would say less.
    train, val_id, val_ood = (cast(ImageSet, loaded.get(f"data.{name}")) for name in ("train", "val_id", "val_ood"))
    return StudyData(classes, train, val_id, val_ood, tests)


def check_study_data(data: DataConfig) -> list[dict[str, Any]]:
    """What each data set of a study holds, checked as far as possible without decoding an image.

    Returns:
        For each set in the study's order: field, split, n (examples used), available (examples on disk), per_class (examples
        used by class name), groups (examples used by group, or None) and captions (whether it has texts).

    Raises:
        DataError: as `load_study_data`, except for images that cannot be decoded.
    """
    classes, selected = _select_all(data, None)
    splits = {"data.train": Split.TRAIN, "data.val_id": Split.VAL_ID, "data.val_ood": Split.VAL_OOD}
    splits |= {field: split for _, split, field in _tests(data)}
    return [{"field": field, "split": str(splits[field]), **_describe(item, classes)} for field, item in selected.items()]


def _describe(selected: _Selected, classes: ClassTable) -> dict[str, Any]:
    listing, examples = selected.listing, selected.examples
    groups = None
    if listing.groups is not None:
        names, indices = _groups(listing.groups, examples)
        groups = dict(zip(names, np.bincount(indices, minlength=len(names)).tolist(), strict=True))
    counts = np.bincount(selected.rows, minlength=len(classes))
    per_class: dict[str, int] = {}
    for name, count in zip(classes.names, counts.tolist(), strict=True):
        per_class[name] = per_class.get(name, 0) + count
    captions = listing.captions is not None
    return {"n": len(examples), "available": len(listing), "per_class": per_class, "groups": groups, "captions": captions}


def _tests(data: DataConfig) -> Iterator[tuple[str, Split, str]]:
    """Every test set as (name, split, dotted field)."""
    for split in (Split.TEST_ID, Split.TEST_OOD):
        for name in getattr(data, split.value):
            yield name, split, f"data.{split.value}.{name}"


def _select_all(data: DataConfig, splits: Collection[str] | None) -> tuple[ClassTable, dict[str, _Selected]]:
    """Class table and wanted sets, by field. TRAIN is listed in any case, because it says which classes there are."""
    listing = open_listing(data.train, "data.train")
    classes = class_table(data, listing)
    train = _select(data.train, listing, classes, data.templates)
    selected: dict[str, _Selected] = {}
    for field, dataset in data.datasets():
        if splits is not None and field.split(".", 2)[-1] not in splits:
            continue
        item = train if field == "data.train" else _select(dataset, open_listing(dataset, field), classes, data.templates)
        _check_classes(item, train, classes)
        selected[field] = item
    return classes, selected


def _check_classes(selected: _Selected, train: _Selected, classes: ClassTable) -> None:
    """A class TRAIN has on disk may still be outside its slice."""
    missing = selected.present - train.present
    if missing:
        row = min(missing)
        first = next(selected.listing.ids[i] for i, r in zip(selected.examples, selected.rows, strict=True) if r in missing)
        known = [classes.names[row] for row in sorted(train.present)]
        raise DataError(unknown_class(selected.listing.field, classes.names[row], first, known))


def _select(dataset: DatasetBase, listing: Listing, classes: ClassTable, templates: Sequence[str]) -> _Selected:
    examples = sliced(listing, dataset)
    rows = class_rows(listing, examples, classes, templates)
    kept = drawn(dataset, rows, listing.field)
    return _Selected(dataset, listing, examples[kept], rows[kept], frozenset(np.unique(rows).tolist()))


def _load(
    selected: _Selected, classes: ClassTable, pixels: PixelSpec, cache_dir: Path, progress: Callable[[int, int], None] | None
) -> ImageSet:
    listing, examples, rows = selected.listing, selected.examples, selected.rows
    description = {"dataset": selected.dataset.model_dump(mode="json"), "classes": classes.keys}
    decoded = load_decoded(listing, examples, pixels, cache_dir, description, progress)
    captions = None if listing.captions is None else tuple(listing.captions[i] for i in examples)
    group_names, groups = ((), None) if listing.groups is None else _groups(listing.groups, examples)
    texts = [
        [classes.keys[row] for row in rows],
        *([captions] if captions is not None else []),
        *([[group_names[g] for g in groups]] if groups is not None else []),
    ]
    return ImageSet(
        field=listing.field,
        images=decoded.images,
        labels=rows,
        class_count=len(classes),
        groups=groups,
        group_names=group_names,
        captions=captions,
        content_hash=_content_hash(decoded.digests, texts),
        example_hashes=tuple(bytes(digest[:8]).hex() for digest in decoded.digests),
    )


def _content_hash(digests: NDArray[np.uint8], texts: Sequence[Sequence[str]]) -> str:
    content = hashlib.sha256()
    for digest, *values in zip(digests, *texts, strict=True):
        content.update(bytes(digest) + b"".join(value.encode(errors="surrogateescape") + b"\0" for value in values))
    return content.hexdigest()


def _groups(groups: Sequence[str], examples: NDArray[np.int64]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Names of the groups that occur, sorted (numbers numerically), and each example's index into them."""
    used = [groups[i] for i in examples]
    distinct = set(used)
    names = tuple(sorted(distinct, key=int) if all(name.isdecimal() for name in distinct) else sorted(distinct))
    index = {name: position for position, name in enumerate(names)}
    return names, np.array([index[name] for name in used], dtype=np.int64)


def _for_field(progress: Callable[[str, int, int], None], field: str) -> Callable[[int, int], None]:
    return lambda done, of: progress(field, done, of)
