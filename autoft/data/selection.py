"""Which examples of a set are used: slice, then half, then a draw; the same on every machine."""

import numpy as np
from numpy.typing import NDArray

from autoft.config import DatasetBase
from autoft.data.sets import Listing
from autoft.errors import DataError

# Seeds every draw, and besides `draw_seed` nothing else does: a set with the same examples in the same order is drawn the same everywhere.
DRAW_SEED = 2024
# A stream of its own, so that no draw depends on how a set was halved.
HALF_SEED = 2025


def sliced(listing: Listing, dataset: DatasetBase) -> NDArray[np.int64]:
    """Indices of the examples in `slice`, int64. Raises DataError if the slice ends beyond the set."""
    first, last = dataset.slice or (0, len(listing))
    if last > len(listing):
        raise DataError(f"{listing.field}.slice = [{first}, {last}]: the set has {len(listing)} examples only")
    return np.arange(first, last, dtype=np.int64)


def halved(dataset: DatasetBase, rows: NDArray[np.int64], field: str) -> NDArray[np.int64]:
    """Positions in `rows` of one half of each class, sorted; all of them where `half` is not set.

    Each class is shuffled once with a fixed seed and cut in the middle; of an odd number, first gets one more. The two halves of the
    same examples never overlap and together are all of them.

    Args:
        rows: class of each example after the slice, (n,).

    Raises:
        DataError: the half is empty, because no class has two examples.
    """
    if dataset.half is None:
        return np.arange(len(rows), dtype=np.int64)
    order = np.argsort(np.random.PCG64(HALF_SEED).random_raw(len(rows)), kind="stable")
    halves = []
    for row in np.unique(rows):
        members = order[rows[order] == row]
        middle = (len(members) + 1) // 2
        halves.append(members[:middle] if dataset.half == "first" else members[middle:])
    kept = np.sort(np.concatenate(halves)).astype(np.int64)
    if len(kept) == 0:
        raise DataError(f"{field}.half = {dataset.half}: no class has more than one example, so this half is empty")
    return kept


def drawn(dataset: DatasetBase, rows: NDArray[np.int64], field: str) -> NDArray[np.int64]:
    """Positions in `rows` that `max_examples` and `balanced` keep, sorted; with repeats where a class is short.

    The draw ranks the raw output of numpy's PCG64, whose stream is fixed across versions and machines (NEP 19), unlike that of
    `Generator`'s methods.

    Args:
        rows: class of each example after the slice and the half, (n,).

    Raises:
        DataError: `max_examples` is smaller than the number of classes and `balanced` is set.
    """
    count = dataset.max_examples
    bits = np.random.PCG64([DRAW_SEED, dataset.draw_seed] if dataset.draw_seed else DRAW_SEED)
    if count is None or (not dataset.balanced and count >= len(rows)):
        return np.arange(len(rows), dtype=np.int64)
    if not dataset.balanced:
        return np.sort(_without_replacement(bits, len(rows), count))
    present = np.unique(rows)
    share = count // len(present)
    if share == 0:
        raise DataError(f"{field}.max_examples = {count}: balanced needs at least one example for each of the {len(present)} classes")
    return np.sort(np.concatenate([_draw_class(bits, np.flatnonzero(rows == row), share) for row in present]))


def _draw_class(bits: np.random.PCG64, members: NDArray[np.int64], share: int) -> NDArray[np.int64]:
    if len(members) < share:
        return members[(bits.random_raw(share) % np.uint64(len(members))).astype(np.int64)]
    return members[_without_replacement(bits, len(members), share)]


def _without_replacement(bits: np.random.PCG64, n: int, count: int) -> NDArray[np.int64]:
    return np.argsort(bits.random_raw(n), kind="stable")[:count]
