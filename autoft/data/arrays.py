"""Numpy arrays: an .npz with images and labels, or an .npy of each. Nothing is unpickled."""

import functools
import math
import os
import threading
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from autoft.config import ArraysDataset
from autoft.data.files import files_signature, stat_file
from autoft.data.pixels import MAX_PIXELS
from autoft.data.sets import Listing
from autoft.errors import DataError
from autoft.inputs import shown

# Of this machine's memory, what an array unpacked from an .npz may take. It stays in memory until all sets are decoded.
_MEMORY_SHARE = 0.6
_MAX_HEADER = 1 << 16  # bytes, of an array in a file
_Header = tuple[tuple[int, ...], np.dtype[Any]]
_lock = threading.Lock()


@dataclass(frozen=True)
class _Place:
    """Where an array is: a key of an .npz, or an .npy (key None). Size and date make a changed file another place."""

    path: Path
    key: str | None
    size: int
    mtime_ns: int

    def __str__(self) -> str:
        return self.path.name if self.key is None else f"{self.path.name}[{self.key}]"


def list_arrays(dataset: ArraysDataset, field: str) -> Listing:
    """Examples by index. Pixels are not read before the first example is.

    Raises:
        DataError: a file or key is missing, an array needs unpickling, or shapes and types are not those of images
            (n, height, width), (n, height, width, 1) or (n, height, width, 3) uint8 and labels (n,) integer.
    """
    images = _place(dataset.path, dataset.images, f"{field}.images")
    labels = _place(_beside(dataset, "labels", field), dataset.labels, f"{field}.labels")
    groups = None
    if dataset.groups is not None:
        groups = _place(_beside(dataset, "groups", field), dataset.groups, f"{field}.groups")
    n = _check_images(images, f"{field}.images")
    raw_labels = _column(labels, n, "iu", "integers", f"{field}.labels")
    raw_groups = None if groups is None else [str(g) for g in _column(groups, n, "iuU", "integers or texts", f"{field}.groups").tolist()]
    ids = [f"{images}[{index}]" for index in range(n)]

    def pixels(index: int) -> NDArray[np.uint8]:
        with _lock:
            example: NDArray[np.uint8] = _checked_load(images, f"{field}.images")[index]
        return example

    def read(index: int) -> bytes:
        return pixels(index).tobytes()

    def decode(index: int) -> Image.Image:
        array = pixels(index)
        return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2:] == (1,) else array)).convert("RGB")

    places = {place.path: place.path.stat() for place in (images, labels, groups) if place is not None}
    signature = files_signature((str(path), stat) for path, stat in places.items())
    return Listing(field, ids, raw_labels.tolist(), raw_groups, None, read, decode, signature)


def _beside(dataset: ArraysDataset, name: str, field: str) -> Path:
    """The file of the labels or groups: their own .npy, else the .npz of the images."""
    value = getattr(dataset, name)
    if value.endswith(".npy"):
        return Path(value)
    if dataset.path.suffix.lower() == ".npy":
        raise DataError(f"{field}.{name} = {value!r}: with an .npy of images this must be the path of another .npy")
    return dataset.path


def _place(path: Path, key: str, field: str) -> _Place:
    stat = stat_file(path, field, "file")
    suffix = path.suffix.lower()
    if suffix not in (".npz", ".npy"):
        raise DataError(f"{field}: {path} must end in .npz or .npy")
    return _Place(path, key if suffix == ".npz" else None, stat.st_size, stat.st_mtime_ns)


def _check_images(place: _Place, field: str) -> int:
    """The number of images, from the array's header alone."""
    try:
        shape, dtype = _header(place)
    except Exception as error:
        _refuse(place, field, error)
    if dtype != np.uint8:
        raise DataError(f"{field} = {place}: images must be uint8, got {dtype}")
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
        raise DataError(f"{field} = {place}: images must be (n, height, width) or (n, height, width, 3), got shape {shape}")
    if 0 in shape:
        raise DataError(f"{field} = {place}: there are no images in shape {shape}")
    if shape[1] * shape[2] > MAX_PIXELS:
        raise DataError(f"{field} = {place}: images of shape {shape} have more than the limit of {MAX_PIXELS:,} pixels")
    return shape[0]


def _column(place: _Place, n: int, kinds: str, wanted: str, field: str) -> NDArray[Any]:
    array = _checked_load(place, field)
    if array.dtype.kind not in kinds:
        raise DataError(f"{field} = {place}: must be {wanted}, got {array.dtype}")
    if array.shape != (n,):
        raise DataError(f"{field} = {place}: must have shape ({n},), one value an image, got {array.shape}")
    return array


def _checked_load(place: _Place, field: str) -> NDArray[Any]:
    try:
        return _load(place)
    except Exception as error:
        _refuse(place, field, error)


@functools.lru_cache(maxsize=4)
def _load(place: _Place) -> NDArray[Any]:
    if place.key is None:
        array: NDArray[Any] = np.load(place.path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("an .npz under the name of an .npy")
        return array
    _check_unpacked(place)
    with np.load(place.path, allow_pickle=False) as file:
        array = file[place.key]
        return array


def _check_unpacked(place: _Place) -> None:
    """Raise ValueError where an archive promises an array of another size than is in it, or one that memory cannot hold.

    A zip archive can unpack to a thousand times its size, and an array's header can promise anything.
    """
    shape, dtype = _header(place)
    promised = math.prod(shape) * dtype.itemsize
    with zipfile.ZipFile(place.path) as archive:
        unpacked = archive.getinfo(f"{place.key}.npy").file_size
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if not promised <= unpacked <= promised + _MAX_HEADER:
        raise ValueError(f"an array of shape {shape} has {promised:,} bytes, but {unpacked:,} are there")
    if promised > _MEMORY_SHARE * memory:
        raise ValueError(f"the array unpacks to {promised:,} bytes, more than this machine's memory can hold; an .npy is read where it lies")


def forget_arrays() -> None:
    """Free the arrays kept in memory by earlier listings."""
    _load.cache_clear()


def _header(place: _Place) -> _Header:
    """Shape and type of an array without reading its values."""
    if place.key is None:
        array = _load(place)
        return array.shape, array.dtype
    with zipfile.ZipFile(place.path) as archive, archive.open(f"{place.key}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        return shape, dtype


def _refuse(place: _Place, field: str, error: Exception) -> NoReturn:
    if isinstance(error, KeyError) and place.key is not None:
        with zipfile.ZipFile(place.path) as archive:
            names = ", ".join(name.removesuffix(".npy") for name in archive.namelist())
        raise DataError(f"{field} = {place.key!r}: {place.path} has no such array; it has {shown(names)}") from None
    if "pickle" in str(error) or "Python objects" in str(error):
        raise DataError(f"{field} = {place}: the array holds Python objects, which are never unpickled; store numbers") from None
    # numpy and zipfile raise OSError, ValueError, EOFError, MemoryError, tokenize.TokenError, NotImplementedError and more on damaged files.
    raise DataError(f"{field} = {place}: the file is damaged or not a numpy file: {shown(str(error) or type(error).__name__)}") from None
