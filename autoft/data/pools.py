"""Test sets with classes of their own, each of which pools some of the study's classes: ImageNet-R, -A and ObjectNet."""

import numpy as np
from numpy.typing import NDArray

from autoft.data.classes import class_row_lookup
from autoft.data.sets import ClassTable, Listing
from autoft.errors import DataError


def refuse_pools(listing: Listing) -> None:
    """Raises DataError if a set other than a test set has classes of its own: they cannot be trained on or searched with."""
    if listing.pools is not None and not listing.field.startswith("data.test_"):
        raise DataError(f"{listing.field}: this layout has classes of its own, so it can be a test set only (data.test_id or data.test_ood)")


def pool_rows(listing: Listing, examples: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions in the sorted pool labels of some examples, (examples,) int64.

    Raises:
        DataError: naming field, label and example, if a label has no pool.
    """
    assert listing.pools is not None
    assert listing.labels is not None
    index = {label: position for position, label in enumerate(sorted(listing.pools))}
    rows = np.empty(len(examples), dtype=np.int64)
    for position, example in enumerate(examples):
        label = str(listing.labels[example])
        if label not in index:
            raise DataError(f"{listing.field} has class {label!r} ({listing.ids[example]}), which is none of the layout's {len(index)} classes")
        rows[position] = index[label]
    return rows


def pool_projection(listing: Listing, classes: ClassTable) -> tuple[tuple[int, ...], ...]:
    """The sorted rows of the study's class table that each pool stands for, in the order of the sorted pool labels.

    Raises:
        DataError: naming field and pool, if the study has none of a pool's classes.
    """
    assert listing.pools is not None
    row_of = class_row_lookup(classes)
    projection = []
    for label in sorted(listing.pools):
        rows = {row for name in listing.pools[label] if (row := row_of(name)) is not None}
        if not rows:
            wanted = ", ".join(listing.pools[label])
            raise DataError(f"{listing.field} has class {label!r}, which stands for {wanted}: data.train has none of these classes")
        projection.append(tuple(sorted(rows)))
    return tuple(projection)
