"""64-bit numbers that two arrays share, exactly or up to a Hamming distance: without a miss, in bounded memory.

Two numbers that differ in at most d bits agree in at least one of d + 1 bands of bits (the pigeonhole principle; Norouzi, Punjani and
Fleet 2012 build multi-index hashing on it), so only pairs that share a band are looked at. Where bands select too little (large d, few
numbers), every pair is looked at, block by block.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
# Positions in the first array, positions in the second, distances; all of one length.
Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]

BITS = 64
# Pairs looked at in one step; a step needs some 60 bytes for each.
_BLOCK = 1 << 18
# A pair that is found through a band costs about this many times what one costs in a block of all pairs (measured on one core).
_BAND_COST = 6


def near_pairs(first: Hashes, second: Hashes, distance: int) -> Iterator[Pairs]:
    """Every pair (i, j) with at most `distance` differing bits between first[i] and second[j], once, in no particular order.

    Args:
        first, second: (n,) and (m,). Repeated values multiply the pairs: make them distinct first.
        distance: 0 to 63.
    """
    bands = _bands(distance)
    if len(first) == 0 or len(second) == 0:
        return
    candidates = sum(_candidates(first, second, mask) for mask in bands)
    if candidates * _BAND_COST < len(first) * len(second):
        for k in range(len(bands)):
            yield from _pairs_in_band(first, second, distance, bands[: k + 1])
    else:
        yield from _all_pairs(first, second, distance)


def contained(values: Hashes, among: Hashes) -> NDArray[np.bool_]:
    """Which of `values` occur in `among`, (n,). By sorting: several times as fast as np.isin on a million numbers."""
    if len(among) == 0:
        return np.zeros(len(values), dtype=bool)
    known = np.sort(among)
    found: NDArray[np.bool_] = known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values
    return found


def _bands(distance: int) -> list[np.uint64]:
    """Masks of distance + 1 runs of bits that cover all 64."""
    edges = [BITS * k // (distance + 1) for k in range(distance + 2)]
    return [np.uint64((1 << high) - (1 << low)) for low, high in pairwise(edges)]


def _candidates(first: Hashes, second: Hashes, mask: np.uint64) -> int:
    """Number of pairs that agree under the mask."""
    values, counts = np.unique(first & mask, return_counts=True)
    keys = np.sort(second & mask)
    return int(counts @ (np.searchsorted(keys, values, "right") - np.searchsorted(keys, values, "left")))


def _pairs_in_band(first: Hashes, second: Hashes, distance: int, bands: list[np.uint64]) -> Iterator[Pairs]:
    """Near pairs that agree in the last of `bands` and in none before it, so that no pair is found twice."""
    *earlier, mask = bands
    order = np.argsort(second & mask, kind="stable")
    keys = (second & mask)[order]
    start = np.searchsorted(keys, first & mask, "left")
    counts = np.searchsorted(keys, first & mask, "right") - start
    ends = np.cumsum(counts)
    low = 0
    while low < len(first):
        done = int(ends[low - 1]) if low else 0
        # At least one number of `first` a step; it has at most len(second) candidates.
        high = max(low + 1, int(np.searchsorted(ends, done + _BLOCK, "right")))
        some = counts[low:high]
        i = np.repeat(np.arange(low, high), some)
        within = np.arange(len(i)) - np.repeat(ends[low:high] - some - done, some)
        j = order[np.repeat(start[low:high], some) + within]
        differing = first[i] ^ second[j]
        distances = np.bitwise_count(differing)
        kept = distances <= distance
        for other in earlier:
            kept &= (differing & other) != 0
        if kept.any():
            yield i[kept], j[kept], distances[kept]
        low = high


def _all_pairs(first: Hashes, second: Hashes, distance: int) -> Iterator[Pairs]:
    width = min(len(second), _BLOCK)
    height = max(1, _BLOCK // width)
    for top in range(0, len(first), height):
        for left in range(0, len(second), width):
            distances = np.bitwise_count(first[top : top + height, None] ^ second[None, left : left + width])
            i, j = np.nonzero(distances <= distance)
            if len(i):
                yield i + top, j + left, distances[i, j]
