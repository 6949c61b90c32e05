"""The data sets of a study, checked against each other and loaded."""

import hashlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from autoft.config import CorruptionsConfig, DataConfig, DatasetBase
from autoft.data.arrays import forget_arrays
from autoft.data.cache import BadImage, Decoded, Request, is_kept, is_known, load_decoded
from autoft.data.classes import class_rows, class_table, unknown_class
from autoft.data.corruptions import CORRUPTIONS, PACKAGE, check_library, chosen_corruption, corrupted, library_versions
from autoft.data.layouts import open_listing
from autoft.data.pools import pool_projection, pool_rows, refuse_pools
from autoft.data.room import cache_limit, choose, entries, readable
from autoft.data.selection import drawn, halved, sliced
from autoft.data.sets import ClassTable, ImageSet, Listing, PixelSpec, Split, StudyData
from autoft.data.streamed import Edit, StreamedImages
from autoft.errors import DataError

# TRAIN is kept this much larger than the model's input, so that random crops have pixels to choose from.
TRAIN_MARGIN = 1.25
# With `on_bad_image: skip`, the part of a set's images that may be left out; one image may be in any set.
MAX_SKIPPED = 0.01

logger = logging.getLogger(__name__)
_told: set[str] = set()  # which streamed sets this process has told of


@dataclass(frozen=True)
class _Selected:
    """A set's listing, the examples the study uses, and their classes.

    examples: (n,) indices into the listing, each repeated for every corruption where it appears under all of them.
    rows: (n,) positions in `keys`.
    keys: the labels of the classes: the study's, or those of the set's own pools.
    names: their words.
    present: rows of the study's class table in the set after slice and half, before the draw; none where the set has pools.
    projection: see `ImageSet`.
    """

    dataset: DatasetBase
    listing: Listing
    examples: NDArray[np.int64]
    rows: NDArray[np.int64]
    keys: tuple[str, ...]
    names: tuple[str, ...]
    present: frozenset[int]
    projection: tuple[tuple[int, ...], ...] | None = None

    @property
    def variants(self) -> int:
        """How often each example appears, one after the other."""
        return len(CORRUPTIONS) if self.dataset.corruptions is not None and self.dataset.corruptions.all else 1

    @property
    def drawn(self) -> tuple[int, ...] | None:
        """The indices slice, half and draw left, in order; None where all of the set is used."""
        dataset = self.dataset
        if dataset.slice is None and dataset.half is None and dataset.max_examples is None:
            return None
        return tuple(self.examples[:: self.variants].tolist())


def load_image_set(
    dataset: DatasetBase,
    field: str,
    classes: ClassTable,
    pixels: PixelSpec,
    cache_dir: Path,
    progress: Callable[[int, int], None] | None = None,
    *,
    templates: Sequence[str] = (),
    skip_bad: bool = False,
) -> ImageSet:
    """Load one data set: its own order, then `slice`, `half`, `max_examples` and `balanced`, then `corruptions`.

    Args:
        field: dotted name for messages, such as data.train.
        cache_dir: where decoded images are kept.
        progress: called with (images done, images in all) while decoding.
        templates: prompt templates, by which captions are read in a set without labels.
        skip_bad: leave out images that cannot be decoded, up to `MAX_SKIPPED` of the set.

    Raises:
        DataError: naming field and value; also if a class is none of `classes`.
    """
    selected = _select(dataset, open_listing(dataset, field), classes, templates)
    return _image_set(*_without(selected, load_decoded(_request(selected, pixels, skip_bad), cache_dir, progress)))


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
        cache_dir: where decoded images are kept. Sets it has no room for are streamed; see `autoft.data.room.choose`.
        splits: names of the sets to load: train, val_id, val_ood and names of test sets. None: all.
        progress: called with (field, images done, images in all) while decoding.

    Raises:
        DataError: naming field and value. Nothing is decoded before every wanted set is listed and its labels are checked.
    """
    classes, selected = _select_all(data, splits)
    requests = _requests(data, selected, PixelSpec(size, interpolation, resize_mode))
    chosen, limit = _chosen(requests, cache_dir)
    missing = {request.name: request.disk_bytes for request in requests.values() if request.name in chosen and not is_kept(request, cache_dir)}
    loaded: dict[str, ImageSet] = {}
    for field, request in requests.items():
        report = None if progress is None else _for_field(progress, field)
        missing.pop(request.name, None)
        decoded = load_decoded(request, cache_dir, report, may_keep=request.name in chosen, others=chosen, reserved=sum(missing.values()))
        if isinstance(decoded.images, StreamedImages) and request.digests_name not in _told:
            _told.add(request.digests_name)
            logger.warning("%s is streamed: %s", field, too_large(request.nbytes, limit), extra={"action": "stream", "field": field})
        selected[field], decoded = _without(selected[field], decoded)
        loaded[field] = _image_set(selected[field], decoded)
    forget_arrays()
    tests = {name: (split, loaded[field]) for name, split, field in _tests(data) if field in loaded}
    # Who asks for some splits only knows which; making everyone else handle None would say less.
    train, val_id, val_ood = (cast(ImageSet, loaded.get(f"data.{name}")) for name in ("train", "val_id", "val_ood"))
    drawn_by_field = {field: item.drawn for field, item in selected.items() if item.drawn is not None}
    return StudyData(classes, train, val_id, val_ood, tests, drawn_by_field)


@dataclass(frozen=True)
class SetPlan:
    """What loading a set would do.

    name: train, val_id, val_ood or a test set's.
    nbytes: of its decoded images.
    how: "cached": they are in the cache; "decoded": they will be, into the cache; "streamed": they will be read from the set's files each time.
    known: whether nothing has to be decoded before work starts.
    why: how `how` was chosen, for a person.
    """

    name: str
    images: int
    nbytes: int
    how: str
    known: bool
    why: str


def plan_study_data(data: DataConfig, size: int, interpolation: str, resize_mode: str, cache_dir: Path) -> list[SetPlan]:
    """What `load_study_data` would do with each set of a study, in its order. Nothing is decoded.

    Raises:
        DataError: as `check_study_data`.
    """
    _, selected = _select_all(data, None)
    requests = _requests(data, selected, PixelSpec(size, interpolation, resize_mode))
    chosen, limit = _chosen(requests, cache_dir)
    plans = []
    for field, request in requests.items():
        if request.name not in chosen:
            how, known, why = "streamed", is_known(request, cache_dir), too_large(request.nbytes, limit)
        elif is_kept(request, cache_dir):
            how, known, why = "cached", True, "in the image cache"
        else:
            how, known, why = "decoded", False, "not in the image cache yet, which has room for it"
        plans.append(SetPlan(field.split(".", 2)[-1], len(request.examples), request.nbytes, how, known, why))
    forget_arrays()
    return plans


def too_large(nbytes: int, limit: int) -> str:
    """Why a set is streamed, for a person."""
    room = "the image cache" if nbytes > limit else "what other sets leave of the image cache"
    return f"decoded it takes {readable(nbytes)}, more than {room} ({readable(limit)}; AUTOFT_CACHE_BYTES)"


def _requests(data: DataConfig, selected: Mapping[str, _Selected], pixels: PixelSpec) -> dict[str, Request]:
    """The pixels of each set, by field."""
    margins = {"data.train": TRAIN_MARGIN}
    return {
        field: _request(item, replace(pixels, margin=margins.get(field, 1.0)), data.on_bad_image == "skip") for field, item in selected.items()
    }


def _chosen(requests: Mapping[str, Request], cache_dir: Path) -> tuple[set[str], int]:
    """Names of the cache entries of the sets that are kept there, and the bytes it may have in all.

    Sets that are scored again and again come first, since each time all of their images are read; then TRAIN, of which a trial reads some;
    then the test sets.
    """
    first = ["data.val_ood", "data.val_id", "data.train"]
    order = sorted(requests, key=lambda field: first.index(field) if field in first else len(first))
    there = entries(cache_dir)
    limit = cache_limit(cache_dir, sum(entry.nbytes for entry in there))
    return choose([(requests[field].name, requests[field].disk_bytes) for field in order], there, limit), limit


def check_study_data(data: DataConfig) -> list[dict[str, Any]]:
    """What each data set of a study holds, checked as far as possible without decoding an image.

    Returns:
        For each set in the study's order: field, split, n (examples used), available (examples on disk), per_class (examples
        used by class name), groups (examples used by group, or None) and captions (whether it has texts).

    Raises:
        DataError: as `load_study_data`, except for images that cannot be decoded.
    """
    _, selected = _select_all(data, None)
    splits = {"data.train": Split.TRAIN, "data.val_id": Split.VAL_ID, "data.val_ood": Split.VAL_OOD}
    splits |= {field: split for _, split, field in _tests(data)}
    return [{"field": field, "split": str(splits[field]), **_describe(item)} for field, item in selected.items()]


def _describe(selected: _Selected) -> dict[str, Any]:
    listing, examples = selected.listing, selected.examples
    groups = None
    if listing.groups is not None:
        names, indices = _groups(listing.groups, examples)
        groups = dict(zip(names, np.bincount(indices[indices >= 0], minlength=len(names)).tolist(), strict=True))
    counts = np.bincount(selected.rows, minlength=len(selected.names))
    per_class: dict[str, int] = {}
    for name, count in zip(selected.names, counts.tolist(), strict=True):
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
    refuse_pools(listing)
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
    if listing.pools is None:
        rows = class_rows(listing, examples, classes, templates)
    else:
        refuse_pools(listing)
        rows = pool_rows(listing, examples)
    half = halved(dataset, rows, listing.field)
    examples, rows = examples[half], rows[half]
    kept = drawn(dataset, rows, listing.field)
    if listing.pools is None:
        selected = _Selected(dataset, listing, examples[kept], rows[kept], classes.keys, classes.names, frozenset(np.unique(rows).tolist()))
    else:
        labels = tuple(sorted(listing.pools))
        selected = _Selected(dataset, listing, examples[kept], rows[kept], labels, labels, frozenset(), pool_projection(listing, classes))
    if dataset.corruptions is not None:
        check_library(listing.field)
    n = selected.variants
    return replace(selected, examples=np.repeat(selected.examples, n), rows=np.repeat(selected.rows, n))


def _request(selected: _Selected, pixels: PixelSpec, skip_bad: bool) -> Request:
    corruptions = selected.dataset.corruptions
    versions = None if corruptions is None else library_versions()
    description = {"dataset": selected.dataset.model_dump(mode="json"), "classes": selected.keys, "corruptions": versions}
    edit = None if corruptions is None else _corrupt(corruptions, selected.listing.field)
    may_skip = max(1, int(MAX_SKIPPED * len(np.unique(selected.examples)))) if skip_bad else 0
    return Request(selected.listing, selected.examples, pixels, description, edit, may_skip)


def _without(selected: _Selected, decoded: Decoded) -> tuple[_Selected, Decoded]:
    """The selection without the images that were skipped. Raises DataError if a class has none left."""
    if not decoded.skipped:
        return selected, decoded
    kept = decoded.kept(selected.examples)
    gone = sorted(set(selected.rows.tolist()) - set(selected.rows[kept].tolist()))
    if gone:
        first = decoded.skipped[0]
        raise DataError(
            f"{selected.listing.field}: no image of class {selected.names[gone[0]]} can be used, and data.on_bad_image = skip does not drop "
            f"classes. Of {len(decoded.skipped)} bad images the first is {first.id}: {first.reason}"
        )
    return replace(selected, examples=selected.examples[kept], rows=selected.rows[kept]), decoded


def _image_set(selected: _Selected, decoded: Decoded) -> ImageSet:
    listing, examples, rows = selected.listing, selected.examples, selected.rows
    corruptions = selected.dataset.corruptions
    captions = None if listing.captions is None else tuple(listing.captions[i] for i in examples)
    group_names, groups = ((), None) if listing.groups is None else _groups(listing.groups, examples)
    texts = [
        [selected.keys[row] for row in rows],
        *([captions] if captions is not None else []),
        *([["" if g < 0 else group_names[g] for g in groups]] if groups is not None else []),
    ]
    if corruptions is not None:
        by = f"severity {corruptions.severity}, {PACKAGE} {library_versions()[PACKAGE]}"
        names = (_corruption(corruptions, bytes(digest), i) for i, digest in enumerate(decoded.digests))
        texts.append([f"{name}, {by}" for name in names])
    return ImageSet(
        field=listing.field,
        images=decoded.images,
        labels=rows,
        class_count=len(selected.keys),
        groups=groups,
        group_names=group_names,
        captions=captions,
        content_hash=_content_hash(decoded.digests, texts, decoded.skipped),
        example_hashes=tuple(bytes(digest[:8]).hex() for digest in decoded.digests),
        projection=selected.projection,
        skipped=tuple((bad.id, bad.reason) for bad in decoded.skipped),
    )


def _corruption(corruptions: CorruptionsConfig, digest: bytes, position: int) -> str:
    """The corruption of the example at a position of the set."""
    return CORRUPTIONS[position % len(CORRUPTIONS)] if corruptions.all else chosen_corruption(digest)


def _corrupt(corruptions: CorruptionsConfig, field: str) -> Edit:
    def edit(image: Image.Image, digest: bytes, position: int) -> Image.Image:
        return corrupted(image, digest, _corruption(corruptions, digest, position), corruptions.severity, field)

    return edit


def _content_hash(digests: NDArray[np.uint8], texts: Sequence[Sequence[str]], skipped: Sequence[BadImage] = ()) -> str:
    content = hashlib.sha256()
    for digest, *values in zip(digests, *texts, strict=True):
        content.update(bytes(digest) + b"".join(value.encode(errors="surrogateescape") + b"\0" for value in values))
    for bad in skipped:
        content.update(b"skipped\0" + bytes.fromhex(bad.digest))
    return content.hexdigest()


def _groups(groups: Sequence[str], examples: NDArray[np.int64]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Names of the groups that occur, sorted (numbers numerically), and each example's index into them; -1 for group ""."""
    used = [groups[i] for i in examples]
    distinct = set(used) - {""}
    names = tuple(sorted(distinct, key=int) if all(name.isdecimal() and len(name) < 19 for name in distinct) else sorted(distinct))
    index = {"": -1} | {name: position for position, name in enumerate(names)}
    return names, np.array([index[name] for name in used], dtype=np.int64)


def _for_field(progress: Callable[[str, int, int], None], field: str) -> Callable[[int, int], None]:
    return lambda done, of: progress(field, done, of)
