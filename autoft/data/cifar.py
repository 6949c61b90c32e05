"""CIFAR-10 (Krizhevsky 2009) and its shifts: CIFAR-10.1 (Recht et al. 2018), CIFAR-10.2 (Lu et al. 2020), CIFAR-10-C (Hendrycks and
Dietterich 2019). Labels are class names, so that all of them fit together and a folder of any of them does too."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from autoft.config import ArraysDataset, CifarCDataset, CifarDataset
from autoft.config.vocabulary import class_names
from autoft.data.arrays import list_arrays
from autoft.data.files import files_signature, stat_file
from autoft.data.official import IMAGENET_C_TYPES, check_official_size
from autoft.data.sets import Listing
from autoft.data.unencoded import named, unencoded_listing
from autoft.errors import DataError
from autoft.inputs import read_text_input

# One byte of label, then 32 x 32 bytes each of red, green and blue (cs.toronto.edu/~kriz/cifar.html, binary version).
_ROW_BYTES = 1 + 3 * 32 * 32
_BATCHES = {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)}
_SEVERITIES = 5
# The 15 of ImageNet-C, and the four that are extra there.
_CORRUPTIONS = (*IMAGENET_C_TYPES, "gaussian_blur", "saturate", "spatter", "speckle_noise")
# Why a file is refused; completes "... is a pickle, ".
_UNPICKLED = "and reading a pickle can run any program, so none is read"


def list_cifar(dataset: CifarDataset, field: str) -> Listing:
    """Examples of CIFAR-10, CIFAR-10.1 or CIFAR-10.2 in the order of their files.

    Raises:
        DataError: a file is missing or damaged, only a pickled version is there, a label is no class, or the size is not the published one.
    """
    if dataset.layout == "cifar10":
        listing = _list_batches(dataset, field)
    elif dataset.layout == "cifar10_1":
        folder = _folder_with("cifar10.1_v6_data.npy", dataset.path, "datasets", field)
        listing = _list_arrays(folder / "cifar10.1_v6_data.npy", str(folder / "cifar10.1_v6_labels.npy"), field)
    else:
        # The authors of AutoFT read the 10,000 training images as CIFAR-10.2's test set; here test is the published one of 2,000.
        name = f"cifar102_{dataset.split}"
        if not (dataset.path / f"{name}.npz").exists() and (dataset.path / f"{name}.npy").exists():
            raise DataError(f"{field}.path = {dataset.path}: {name}.npy is a pickle, {_UNPICKLED}; use {name}.npz of the same repository")
        listing = _list_arrays(dataset.path / f"{name}.npz", "labels", field)
    check_official_size(dataset, field, len(listing))
    return listing


def list_cifar_c(dataset: CifarCDataset, field: str) -> Listing:
    """Examples of CIFAR-10-C at one severity, corruption by corruption; the corruption is the group.

    Raises:
        DataError: as `list_cifar`; also if corruptions differ in size, or `types` names one that is not there.
    """
    types = _types(dataset, field)
    labels = str(dataset.path / "labels.npy")
    parts = [_list_arrays(dataset.path / f"{name}.npy", labels, field) for name in types]
    rows = len(parts[0])
    if rows % _SEVERITIES:
        raise DataError(f"{field}.path = {dataset.path}: {types[0]}.npy has {rows} images, which are not {_SEVERITIES} severities of as many")
    n = rows // _SEVERITIES
    start = (dataset.severity - 1) * n

    def read(index: int) -> bytes:
        return parts[index // n].read(start + index % n)

    def decode(index: int) -> Image.Image:
        return parts[index // n].decode(start + index % n)

    used = slice(start, start + n)
    ids = [example for part in parts for example in part.ids[used]]
    names = [name for part in parts for name in part.labels[used]]  # type: ignore[index]  # arrays always have labels
    groups = [name for name in types for _ in range(n)]
    listing = Listing(field, ids, names, groups, None, read, decode, " ".join(part.signature for part in parts))
    check_official_size(dataset, field, len(listing))
    return listing


def _list_batches(dataset: CifarDataset, field: str) -> Listing:
    """CIFAR-10's binary version, memory-mapped."""
    if not (dataset.path / "test_batch.bin").exists() and _has_pickles(dataset.path):
        raise DataError(
            f"{field}.path = {dataset.path}: this is the Python version of CIFAR-10, which is pickled, {_UNPICKLED}; "
            "download the binary version, cifar-10-binary.tar.gz, from https://www.cs.toronto.edu/~kriz/cifar.html"
        )
    folder = _folder_with("test_batch.bin", dataset.path, "cifar-10-batches-bin", field)
    _check_names(folder / "batches.meta.txt", field)
    names = _BATCHES[dataset.split]
    stats = [stat_file(folder / name, field, "batch") for name in names]
    batches = [_map_batch(folder / name, stat.st_size, field) for name, stat in zip(names, stats, strict=True)]
    starts = np.cumsum([0, *(len(batch) for batch in batches)])
    numbers = np.concatenate([np.asarray(batch[:, 0]) for batch in batches]).tolist()
    ids = [f"{name}[{row}]" for name, batch in zip(names, batches, strict=True) for row in range(len(batch))]

    def pixels(index: int) -> NDArray[np.uint8]:
        which = int(np.searchsorted(starts, index, side="right")) - 1
        flat: NDArray[np.uint8] = batches[which][index - starts[which], 1:]
        return np.asarray(flat).reshape(3, 32, 32).transpose(1, 2, 0)

    signature = files_signature((str(folder / name), stat) for name, stat in zip(names, stats, strict=True))
    return unencoded_listing(field, ids, named(numbers, class_names("cifar10"), f"{field}.path = {dataset.path}"), pixels, signature)


def _has_pickles(path: Path) -> bool:
    return (path / "test_batch").exists() or ((path / "cifar-10-batches-py").exists() and not (path / "cifar-10-batches-bin").exists())


def _map_batch(path: Path, size: int, field: str) -> NDArray[np.uint8]:
    if size == 0 or size % _ROW_BYTES:
        raise DataError(f"{field}: batch {path} is damaged: its {size} bytes are not whole rows of {_ROW_BYTES} bytes")
    return np.memmap(path, dtype=np.uint8, mode="r", shape=(size // _ROW_BYTES, _ROW_BYTES))


def _check_names(path: Path, field: str) -> None:
    """The names beside the batches say which set they are; a copy without them is taken at its word."""
    try:
        lines = read_text_input(path, 1 << 16).split()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{field}: cannot read {path}: {error}") from None
    if tuple(lines) != class_names("cifar10"):
        raise DataError(f"{field}: {path} names other classes than CIFAR-10's: {', '.join(lines[:10]) or '(none)'}")


def _list_arrays(images: Path, labels: str, field: str) -> Listing:
    """A listing of arrays with names for labels."""
    listing = list_arrays(ArraysDataset(layout="arrays", path=images, labels=labels), field)
    numbers = [int(label) for label in listing.labels or ()]
    return dataclasses.replace(listing, labels=named(numbers, class_names("cifar10"), f"{field}: labels of {images}"))


def _folder_with(name: str, path: Path, inner: str, field: str) -> Path:
    """`path`, or the folder in it that the published archive makes. Raises DataError if neither has the file."""
    for folder in (path, path / inner):
        if (folder / name).is_file():
            return folder
    raise DataError(f"{field}.path = {path}: there is no {name} here nor in {inner}")


def _types(dataset: CifarCDataset, field: str) -> Sequence[str]:
    types = _CORRUPTIONS if dataset.types is None else dataset.types
    there = sorted(path.stem for path in dataset.path.glob("*.npy") if path.stem != "labels")
    if not types:
        raise DataError(f"{field}.types is empty; the corruptions in {dataset.path} are {', '.join(there)}")
    for name in types:
        if name not in there:
            raise DataError(f"{field}.path = {dataset.path}: there is no {name}.npy; the corruptions here are {', '.join(there) or '(none)'}")
        if types.count(name) > 1:
            raise DataError(f"{field}.types = {list(types)}: {name} is listed more than once")
    return types
