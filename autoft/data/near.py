"""Which images of two sets look alike without being the same file."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoft.data.hamming import Hashes, Pairs, contained, near_pairs
from autoft.data.perceptual import Prints

# A thumbnail whose grey levels span less than this has no shape to hash: all such images would look like each other.
FLAT_CONTRAST = 8
# A perceptual hash that more than this many different images of one set share says that they are alike, not that they are copies.
COMMON_HASH = 10

Mask = NDArray[np.bool_]
Match = tuple[int, int, int]


@dataclass(frozen=True)
class Appearance:
    """A set's images as comparison sees them.

    content: (n,) content hashes. hashes: (n,) perceptual hashes. flat: (n,) images without contrast.
    common: sorted perceptual hashes that too many different images of the set share.
    """

    content: Hashes
    hashes: Hashes
    flat: Mask
    common: Hashes


@dataclass(frozen=True)
class NearDuplicates:
    """What near-duplicates two sets have, exact duplicates left out.

    first, second: images of each that look like one of the other and are not in it by content.
    first_ignored, second_ignored: images of each that cannot be compared, being flat or having a common hash.
    closest: (position in first, position in second, distance), closest first.
    """

    first: int
    second: int
    first_ignored: int
    second_ignored: int
    closest: tuple[Match, ...]


@dataclass(frozen=True)
class _Values:
    """The distinct hashes of a set's comparable images, (k,), and for each one image that has it: one that is new, if any is."""

    hashes: Hashes
    images: NDArray[np.int64]
    new: Mask


def appearance(prints: Prints, content: Hashes) -> Appearance:
    """Copies of one image, such as one under several corruptions, count once towards a common hash."""
    flat = prints.contrast < FLAT_CONTRAST
    _, once = np.unique(content, return_index=True)
    values, counts = np.unique(prints.hashes[once], return_counts=True)
    return Appearance(content, prints.hashes, flat, values[counts > COMMON_HASH])


def compare(first: Appearance, second: Appearance, distance: int, examples: int) -> NearDuplicates:
    """Find the images of two sets whose perceptual hashes differ in at most `distance` bits.

    A hash that is common in either set is left out for both, else one flat scene would be reported thousands of times.
    """
    common = np.union1d(first.common, second.common)
    telling = [~side.flat & ~contained(side.hashes, common) for side in (first, second)]
    new = [~contained(first.content, second.content), ~contained(second.content, first.content)]
    a, b = (_values(side.hashes, mask, fresh) for side, mask, fresh in zip((first, second), telling, new, strict=True))
    near_a, near_b = np.zeros(len(a.hashes), dtype=bool), np.zeros(len(b.hashes), dtype=bool)
    closest: list[Match] = []
    for i, j, distances in near_pairs(a.hashes, b.hashes, distance):
        near_a[i] = near_b[j] = True
        closest = _closest(closest, a, b, (i, j, distances), examples)
    return NearDuplicates(
        first=int((telling[0] & new[0] & contained(first.hashes, a.hashes[near_a])).sum()),
        second=int((telling[1] & new[1] & contained(second.hashes, b.hashes[near_b])).sum()),
        first_ignored=int((~telling[0]).sum()),
        second_ignored=int((~telling[1]).sum()),
        closest=tuple(closest),
    )


def _values(hashes: Hashes, telling: Mask, new: Mask) -> _Values:
    order = np.concatenate([np.flatnonzero(telling & new), np.flatnonzero(telling & ~new)])
    values, index = np.unique(hashes[order], return_index=True)
    return _Values(values, order[index], new[order[index]])


def _closest(known: Iterable[Match], a: _Values, b: _Values, pairs: Pairs, examples: int) -> list[Match]:
    """The closest of the known matches and of some more pairs of values. Two images that are both in both sets are no near-duplicates."""
    i, j, distances = pairs
    kept = a.new[i] | b.new[j]
    images_a, images_b, distances = a.images[i[kept]], b.images[j[kept]], distances[kept]
    some = np.lexsort((images_b, images_a, distances))[:examples]
    more = zip(images_a[some].tolist(), images_b[some].tolist(), distances[some].tolist(), strict=True)
    return sorted([*known, *more], key=lambda match: (match[2], match[0], match[1]))[:examples]
