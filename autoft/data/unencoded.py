"""Listings of published sets whose files hold pixels rather than encoded images, and whose labels are numbers."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from autoft.data.sets import Listing
from autoft.errors import DataError


def unencoded_listing(
    field: str, ids: Sequence[str], labels: Sequence[str | int], pixels: Callable[[int], NDArray[np.uint8]], signature: str
) -> Listing:
    """A listing over `pixels(i)`, (height, width, 3) uint8. Its raw bytes are those pixels in that order, whatever order the files have:
    the same image in two sets has the same hash."""

    def read(index: int) -> bytes:
        return pixels(index).tobytes()

    def decode(index: int) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(pixels(index)))

    return Listing(field, ids, labels, None, None, read, decode, signature)


def named(labels: Sequence[int], names: Sequence[str], where: str, *, first: int = 0) -> list[str]:
    """Class names of numeric labels that count from `first`. Raises DataError naming the first label that is none."""
    last = first + len(names) - 1
    for position, label in enumerate(labels):
        if not first <= label <= last:
            raise DataError(f"{where}: example {position} has label {label}; the labels of its classes are {first} to {last}")
    return [names[label - first] for label in labels]
