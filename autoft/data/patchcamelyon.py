"""PatchCamelyon (Veeling et al. 2018) from its HDF5 files: lymph node sections, 96 x 96 pixels, with or without tumour tissue."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoft.config import PatchCamelyonDataset
from autoft.config.vocabulary import class_names
from autoft.data.files import files_signature, stat_file
from autoft.data.official import check_official_size
from autoft.data.pixels import MAX_PIXELS
from autoft.data.sets import Listing
from autoft.data.unencoded import named, unencoded_listing
from autoft.errors import DataError
from autoft.inputs import shown

# HDF5 unpacks whole chunks; one that does not fit this would be unpacked again for each image in it. Its own default is 1 MiB.
_CHUNK_CACHE_BYTES = 64 << 20
# An HDF5 file can promise any number of values without holding one.
MAX_EXAMPLES = 100_000_000


def list_patchcamelyon(dataset: PatchCamelyonDataset, field: str) -> Listing:
    """Examples by index; images are read from the file one at a time.

    Raises:
        DataError: h5py is not installed, a file is missing, still compressed or damaged, arrays have other shapes than images
            (n, height, width, 3) uint8 and labels (n, 1, 1, 1) in {0, 1}, or the size is not the published one.
    """
    paths = [_path(dataset, kind, field) for kind in "xy"]
    stats = [stat_file(path, field, "file") for path in paths]
    images, numbers = (_open(path, key, field) for path, key in zip(paths, "xy", strict=True))
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
        raise DataError(f"{field}: {paths[0]}: x must be images (n, 96, 96, 3) uint8, got {images.dtype} of shape {images.shape}")
    if images.shape[1] * images.shape[2] > MAX_PIXELS:
        raise DataError(f"{field}: {paths[0]}: images of shape {images.shape} have more than the limit of {MAX_PIXELS:,} pixels")
    n = images.shape[0]
    if numbers.dtype.kind not in "iu" or numbers.size != n:
        raise DataError(f"{field}: {paths[1]}: y must be {n} integers, one an image, got {numbers.dtype} of shape {numbers.shape}")
    check_official_size(dataset, field, n)
    labels = named(_numbers(numbers, f"{field}: {paths[1]}"), class_names("patchcamelyon"), f"{field}: {paths[1]}")

    def pixels(index: int) -> NDArray[np.uint8]:
        try:
            example: NDArray[np.uint8] = images[index]
        except Exception as error:  # h5py raises OSError, ValueError, MemoryError and more on damaged files
            raise DataError(f"{field}: image {paths[0].name}[{index}] is damaged: {error}") from None
        return example

    signature = files_signature(zip(map(str, paths), stats, strict=True))
    return unencoded_listing(field, [f"{paths[0].name}[{index}]" for index in range(n)], labels, pixels, signature)


def _numbers(array: Any, where: str) -> list[int]:
    """All of an array of whole numbers. Raises DataError."""
    if array.size > MAX_EXAMPLES:
        raise DataError(f"{where}: y has {array.size:,} labels, more than the limit of {MAX_EXAMPLES:,}")
    try:
        numbers: list[int] = array[()].reshape(-1).tolist()
    except Exception as error:  # as above
        raise DataError(f"{where} is damaged: {error}") from None
    return numbers


def _path(dataset: PatchCamelyonDataset, kind: str, field: str) -> Path:
    path = dataset.path / f"camelyonpatch_level_2_split_{dataset.split}_{kind}.h5"
    packed = path.with_name(f"{path.name}.gz")
    if not path.exists() and packed.exists():
        raise DataError(f"{field}.path = {dataset.path}: {packed.name} is compressed, so its images cannot be reached singly; gunzip it first")
    return path


def _open(path: Path, key: str, field: str) -> Any:
    """One array of an HDF5 file, not read yet. The file stays open as long as the array is referred to."""
    try:
        import h5py
    except ImportError:
        raise DataError(f"{field}.layout = patchcamelyon: reading HDF5 files needs h5py, which is not installed: pip install 'autoft[hdf5]'") from None
    try:
        # Locks are for writers, and network file systems refuse them.
        file = h5py.File(path, "r", rdcc_nbytes=_CHUNK_CACHE_BYTES, locking=False)
    except OSError as error:
        raise DataError(f"{field}: {path} is damaged or not an HDF5 file: {error}") from None
    try:
        here = isinstance(file.get(key, getlink=True), h5py.HardLink)
        array = file.get(key) if here else None
        if isinstance(array, h5py.Dataset) and array.external is None and not array.is_virtual:
            return array
        names = shown(", ".join(map(str, file)))
    except Exception as error:  # h5py raises OSError, KeyError, RuntimeError, TypeError and more on damaged files
        raise DataError(f"{field}: {path} is damaged or not an HDF5 file: {shown(str(error))}") from None
    if isinstance(array, h5py.Dataset) or key in names.split(", "):
        raise DataError(f"{field}: {path}: {key!r} lies in another file, and none but this one is read; write the values into it")
    raise DataError(f"{field}: {path} has no array {key!r}; it has {names or 'none'}")
