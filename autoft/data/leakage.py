"""Whether images of one set of a study are also in another: exactly, by content, or nearly, by perceptual hash (docs/leakage.md).

VAL_OOD chooses the hyperparameters, so an image it shares with a test set makes that test's score no test. The published few-shot
recipe, which validates on ImageNetV2 and reports ImageNetV2, is such a case.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoft.config import DataConfig
from autoft.data.hamming import Hashes, contained
from autoft.data.near import Appearance, appearance, compare
from autoft.data.perceptual import HASH_NAME, perceptual_prints
from autoft.data.sets import ImageSet, StudyData
from autoft.errors import DataError

# Examples listed for a pair of sets, of each kind.
MAX_EXAMPLES = 10
_FIRST_POSITIONS = 5
# A warning says how many images could not be compared if they are at least this part of a set.
_MANY_IGNORED = 0.1


@dataclass(frozen=True)
class Duplicate:
    """One image in two sets: position in each, content hash (16 hex digits) in each, and how many bits their perceptual hashes differ in.

    Exact duplicates have one content hash and distance 0.
    """

    first: int
    second: int
    first_hash: str
    second_hash: str
    distance: int


@dataclass(frozen=True)
class PairReport:
    """What two sets share. Counts are of images, not of pairs, so an image found five times counts once.

    first, second: names: train, val_ood, val_id or a test set's. first_field, second_field: as in the study file.
    first_size, second_size: images in each.
    first_exact, second_exact: images of each that are in the other, by content.
    first_near, second_near: further images of each that look like one of the other; None where near-duplicates are not looked for.
    first_ignored, second_ignored: images of each without a telling perceptual hash (flat, or shared by too many), which are not compared.
    allowed: the study file's `allow_duplicates` has this pair.
    exact, near: the first few, near ones by distance.
    """

    first: str
    second: str
    first_field: str
    second_field: str
    first_size: int
    second_size: int
    first_exact: int
    second_exact: int
    first_near: int | None
    second_near: int | None
    first_ignored: int | None
    second_ignored: int | None
    allowed: bool
    exact: tuple[Duplicate, ...]
    near: tuple[Duplicate, ...]


@dataclass(frozen=True)
class LeakageReport:
    """All compared pairs.

    near_duplicates: distance in bits up to which images count as near-duplicates; None: not looked for. perceptual_hash: its name and version.
    """

    pairs: tuple[PairReport, ...]
    near_duplicates: int | None
    perceptual_hash: str = HASH_NAME

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, for summary.json."""
        plain = asdict(self)
        pairs = [{**pair, "exact": list(pair["exact"]), "near": list(pair["near"])} for pair in plain["pairs"]]
        return {**plain, "pairs": pairs}


def check_leakage(
    data: StudyData, config: DataConfig, cache_dir: Path, progress: Callable[[str, int, int], None] | None = None
) -> LeakageReport:
    """Compare VAL_OOD, TRAIN and VAL_ID with each other and with every test set. Sets that were not loaded are left out.

    Args:
        cache_dir: where perceptual hashes are kept: the folder of the image cache.
        progress: called with (field, images done, images in all) while perceptual hashes are computed.

    Raises:
        DataError: VAL_OOD has an image, by content, that TRAIN or a test set has too, and the pair is not in `allow_duplicates`. It is
            raised before perceptual hashes are computed. All else is only reported.
    """
    sets = _sets(data)
    content = {name: _content(images) for name, images in sets.items()}
    pairs = [_exact_report(first, second, sets, content, config) for first, second in _pairs(data)]
    _refuse([pair for pair in pairs if pair.first == "val_ood" and pair.second != "val_id" and not pair.allowed and pair.first_exact])
    if config.near_duplicates is not None:
        looks = {
            name: appearance(perceptual_prints(images, cache_dir, _for_field(progress, images.field)), content[name])
            for name, images in sets.items()
        }
        pairs = [_with_near(pair, looks[pair.first], looks[pair.second], config.near_duplicates) for pair in pairs]
    return LeakageReport(tuple(pairs), config.near_duplicates)


def describe_leakage(report: LeakageReport) -> list[str]:
    """Warnings for a person, one line each; none if there is nothing to say. What VAL_ID shares with VAL_OOD is in the report only."""
    lines = [line for pair in report.pairs if (line := _exact_line(pair))]
    alike = [line for pair in report.pairs if (line := _near_line(pair, report.near_duplicates))]
    if alike:
        alike.append(
            "whether images that look alike are copies is for a person to judge (line drawings and digits look alike by nature): "
            "examples are in summary.json under leakage"
        )
    return [*lines, *alike, *_ignored_lines(report)]


def _exact_line(pair: PairReport) -> str | None:
    if not pair.first_exact or {pair.first, pair.second} == {"val_ood", "val_id"}:
        return None
    line = f"{pair.second_exact} of {pair.second_size} images of {pair.second_field} are also in {pair.first_field}"
    return f"{line}, as data.allow_duplicates permits" if pair.allowed else line


def _near_line(pair: PairReport, distance: int | None) -> str | None:
    if not (pair.first_near or pair.second_near) or pair.allowed or "val_id" in (pair.first, pair.second):
        return None
    return (
        f"{pair.second_near} of {pair.second_size} images of {pair.second_field} look like images of {pair.first_field}: "
        f"their perceptual hashes differ in at most {distance} of 64 bits"
    )


def _ignored_lines(report: LeakageReport) -> Iterator[str]:
    worst: dict[str, tuple[int, int]] = {}
    for pair in report.pairs:
        for field, size, ignored in (
            (pair.first_field, pair.first_size, pair.first_ignored),
            (pair.second_field, pair.second_size, pair.second_ignored),
        ):
            worst[field] = max(worst.get(field, (0, size)), (ignored or 0, size))
    for field, (ignored, size) in worst.items():
        if ignored and ignored >= _MANY_IGNORED * size:
            yield f"{ignored} of {size} images of {field} are too flat or too much alike to look for near-duplicates of them"


def _sets(data: StudyData) -> dict[str, ImageSet]:
    named: Mapping[str, ImageSet | None] = {"val_ood": data.val_ood, "train": data.train, "val_id": data.val_id}
    return {name: images for name, images in named.items() if images is not None} | {name: images for name, (_, images) in data.tests.items()}


def _pairs(data: StudyData) -> Iterator[tuple[str, str]]:
    """The pairs to compare: what selects or trains first, what it could give away second."""
    loaded = _sets(data)
    order = [("val_ood", ("train", "val_id")), ("train", ("val_id",)), ("val_id", ())]
    for first, others in order:
        for second in (*others, *data.tests):
            if first in loaded and second in loaded:
                yield first, second


def _content(images: ImageSet) -> Hashes:
    """Content hashes as numbers, (n,)."""
    return np.frombuffer(bytes.fromhex("".join(images.example_hashes)), dtype=">u8").astype(np.uint64)


def _exact_report(
    first: str, second: str, sets: Mapping[str, ImageSet], content: Mapping[str, Hashes], config: DataConfig
) -> PairReport:
    in_second, in_first = contained(content[first], content[second]), contained(content[second], content[first])
    return PairReport(
        first=first,
        second=second,
        first_field=sets[first].field,
        second_field=sets[second].field,
        first_size=len(sets[first]),
        second_size=len(sets[second]),
        first_exact=int(in_second.sum()),
        second_exact=int(in_first.sum()),
        first_near=None,
        second_near=None,
        first_ignored=None,
        second_ignored=None,
        allowed=any({first, second} == set(pair) for pair in config.allow_duplicates),
        exact=tuple(_exact_examples(content[first], content[second], np.flatnonzero(in_second)[:MAX_EXAMPLES])),
        near=(),
    )


def _exact_examples(first: Hashes, second: Hashes, positions: NDArray[np.int64]) -> Iterator[Duplicate]:
    """Each of some positions of `first` with the first position of `second` that has the same content."""
    for i in positions.tolist():
        content = f"{int(first[i]):016x}"
        yield Duplicate(i, int(np.argmax(second == first[i])), content, content, 0)


def _refuse(pairs: list[PairReport]) -> None:
    if not pairs:
        return
    problems = [
        f"{pair.first_exact} of {pair.first_size} images of {pair.first_field} are also in {pair.second_field} "
        f"({_places(pair)}); to allow it: data.allow_duplicates: [[{pair.first}, {pair.second}]]"
        for pair in pairs
    ]
    raise DataError("VAL_OOD, which chooses the hyperparameters, must not share images with TRAIN or a test set:\n  " + "\n  ".join(problems))


def _places(pair: PairReport) -> str:
    shown = pair.exact[:_FIRST_POSITIONS]
    firsts, seconds = (", ".join(str(getattr(one, side)) for one in shown) for side in ("first", "second"))
    more = ", ..." if pair.first_exact > len(shown) else ""
    return f"positions {firsts}{more} and there {seconds}{more}"


def _with_near(pair: PairReport, first: Appearance, second: Appearance, distance: int) -> PairReport:
    found = compare(first, second, distance, MAX_EXAMPLES)
    near = (Duplicate(i, j, f"{int(first.content[i]):016x}", f"{int(second.content[j]):016x}", bits) for i, j, bits in found.closest)
    return replace(
        pair,
        first_near=found.first,
        second_near=found.second,
        first_ignored=found.first_ignored,
        second_ignored=found.second_ignored,
        near=tuple(near),
    )


def _for_field(progress: Callable[[str, int, int], None] | None, field: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, of: progress(field, done, of)
