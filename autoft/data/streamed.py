"""The images of a set too large for the cache: decoded from the set's files whenever they are asked for, to the very pixels the cache would hold."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from autoft.data.pixels import side_of, square
from autoft.data.sets import Listing, PixelSpec
from autoft.errors import DataError

# (decoded image, SHA-256 of its raw bytes, position among the examples) -> the image to keep. Called from several threads.
Edit = Callable[[Image.Image, bytes, int], Image.Image]
_MAX_THREADS = 16


class StreamedImages:
    """Stands where an array (n, side, side, 3) uint8 does: `images[some]` decodes some, in threads.

    Args:
        examples: index in the listing of each image, (n,).
        positions: what `edit` is told of each, (n,).
        digests: SHA-256 of the raw bytes of each, (n, 32) uint8, by which a file that changed meanwhile is found out.
    """

    def __init__(
        self,
        listing: Listing,
        examples: NDArray[np.int64],
        positions: NDArray[np.int64],
        digests: NDArray[np.uint8],
        pixels: PixelSpec,
        edit: Edit | None,
    ) -> None:
        self._listing, self._examples, self._positions, self._digests = listing, examples, positions, digests
        self._pixels, self._edit = pixels, edit
        side = side_of(pixels)
        self.shape: tuple[int, int, int, int] = (len(examples), side, side, 3)
        self.field = listing.field

    @property
    def may_fork(self) -> bool:
        """Whether forked processes can decode. Not where images are edited: OpenCV, once used, waits forever for its threads in a forked process."""
        return self._edit is None

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """What the decoded pixels would take."""
        n, side = self.shape[:2]
        return n * side * side * 3

    def one(self, index: int) -> NDArray[np.uint8]:
        """One image, (side, side, 3). Raises DataError: its file is gone, damaged, or another than when the set was opened."""
        example, expected = int(self._examples[index]), self._digests[index].tobytes()
        if hashlib.sha256(self._listing.read(example)).digest() != expected:
            raise DataError(f"{self.field}: image {self._listing.ids[example]} has changed since the set was opened; start again to use it as it is now")
        image = self._listing.decode(example)
        return square(image if self._edit is None else self._edit(image, expected, int(self._positions[index])), self._pixels)

    def some(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Several images one after the other, (k, side, side, 3). Raises as `one`."""
        found = np.empty((len(indices), *self.shape[1:]), dtype=np.uint8)
        for position, index in enumerate(indices):
            found[position] = self.one(index)
        return found

    def __getitem__(self, wanted: slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        indices = range(*wanted.indices(len(self))) if isinstance(wanted, slice) else wanted.tolist()
        found = np.empty((len(indices), *self.shape[1:]), dtype=np.uint8)

        def fill(position: int) -> None:
            found[position] = self.one(indices[position])

        with ThreadPoolExecutor(min(_MAX_THREADS, usable_cores()), thread_name_prefix="stream") as pool:
            for _ in pool.map(fill, range(len(indices))):
                pass
        return found

    def warm(self) -> None:
        """Read one image, so that what a layout keeps in memory is there before processes are forked, and is shared by them."""
        if len(self):
            self._listing.read(int(self._examples[0]))


def usable_cores() -> int:
    """CPU cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
