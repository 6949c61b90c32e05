"""Caltech-101 (Fei-Fei et al. 2004), Stanford Cars (Krause et al. 2013) and Flowers-102 (Nilsback and Zisserman 2008).

MATLAB files are read by scipy.io.loadmat. That format (MAT version 5) holds numbers, texts, structures and cells, which loadmat turns into
arrays; it has no pickles, and functions or objects in a file are handed back as inert values, so that reading one runs nothing.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from autoft.config import FolderDataset, TransferDataset
from autoft.config.vocabulary import class_names, folder_names
from autoft.data.files import encoded_listing, files_signature, read_bytes, stat_file
from autoft.data.folder import list_folder
from autoft.data.official import check_official_size
from autoft.data.sets import Listing
from autoft.data.unencoded import named
from autoft.errors import DataError

# Seeds the splits below, and no draw: `autoft.data.selection` has its own.
SPLIT_SEED = 2026
# Percent of each class: what AutoFT and FLYP used (theirs for Caltech-101 was drawn without a seed).
CALTECH_SHARES = {"train": 60, "val": 20, "test": 20}
CARS_SHARES = {"train": 80, "val": 20}
# In 101_ObjectCategories, but no category: pictures found by a web search, for another task.
_BACKGROUND = "BACKGROUND_Google"


def list_transfer(dataset: TransferDataset, field: str) -> Listing:
    """Examples of one split, with class names for labels.

    Raises:
        DataError: a file or folder is missing or damaged, a folder or label is no class, or the size is not the published one.
    """
    readers = {"caltech101": _list_caltech, "stanford_cars": _list_cars, "flowers102": _list_flowers}
    return readers[dataset.layout](dataset, field)


def class_parts(labels: Sequence[str], shares: Sequence[int]) -> NDArray[np.int64]:
    """Which part each example is in, (n,): every class is shuffled once and cut at its shares (percent), rounded to whole examples.

    The order ranks the raw output of numpy's PCG64, whose stream is fixed across versions and machines (NEP 19).
    """
    order = np.argsort(np.random.PCG64(SPLIT_SEED).random_raw(len(labels)), kind="stable")
    shuffled = np.asarray(labels)[order]
    parts = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(shuffled):
        members = order[shuffled == label]
        ends = (np.cumsum(shares) * len(members) + 50) // 100
        parts[members] = np.searchsorted(ends, np.arange(len(members)), side="right")
    return parts


def _list_caltech(dataset: TransferDataset, field: str) -> Listing:
    """All 101 categories; Faces and Faces_easy (the same people, uncropped and cropped) stay two classes, as in CLIP's list."""
    root = dataset.path / "101_ObjectCategories"
    whole = list_folder(FolderDataset(layout="folder", path=root if root.is_dir() else dataset.path), field)
    used = [index for index, label in enumerate(whole.labels or ()) if label != _BACKGROUND]
    folders = [str((whole.labels or ())[index]) for index in used]
    names = folder_names("caltech101")
    unknown = sorted(set(folders) - set(names))
    if unknown:
        raise DataError(f"{field}.path = {dataset.path}: folder {unknown[0]} is no category of Caltech-101 (its own are accordion to yin_yang)")
    _check_whole(dataset, field, tuple(CALTECH_SHARES), len(used))
    kept = _in_part(folders, CALTECH_SHARES, dataset.split)
    indices = [used[position] for position in kept]

    def read(index: int) -> bytes:
        return whole.read(indices[index])

    def decode(index: int) -> Image.Image:
        return whole.decode(indices[index])

    labels = [names[folders[position]] for position in kept]
    return dataclasses.replace(whole, ids=[whole.ids[index] for index in indices], labels=labels, read=read, decode=decode)


def _list_cars(dataset: TransferDataset, field: str) -> Listing:
    """Both official splits, of whose training images a part is val."""
    test = dataset.split == "test"
    table = _find(dataset.path, "cars_test_annos_withlabels.mat" if test else "cars_train_annos.mat", field)
    meta = _find(dataset.path, "cars_meta.mat", field)
    names = [" ".join(str(name).split()) for name in _array(meta, "class_names", field)]
    rows = _array(table, "annotations", field)
    try:
        files = [str(name) for name in rows["fname"]]
        numbers = [int(number) for number in rows["class"]]
    except (ValueError, IndexError, TypeError) as error:
        raise DataError(f"{field}: annotations in {table} need fname and class: {error}") from None
    labels = named(numbers, names, f"{field}: {table}", first=1)
    if test:
        check_official_size(dataset, field, len(files))
        kept = list(range(len(files)))
    else:
        _check_whole(dataset, field, tuple(CARS_SHARES), len(files))
        kept = _in_part(labels, CARS_SHARES, dataset.split)
    folder = "cars_test" if test else "cars_train"
    return _list_files(dataset.path, [f"{folder}/{files[i]}" for i in kept], [labels[i] for i in kept], (table, meta), field)


def _list_flowers(dataset: TransferDataset, field: str) -> Listing:
    """The official split: 10 training and 10 validation images a class, all others for test."""
    table, splits = _find(dataset.path, "imagelabels.mat", field), _find(dataset.path, "setid.mat", field)
    numbers = [int(number) for number in _array(table, "labels", field)]
    labels = named(numbers, class_names("flowers102"), f"{field}: {table}", first=1)
    key = {"train": "trnid", "val": "valid", "test": "tstid"}[dataset.split]
    images = [int(number) for number in _array(splits, key, field)]
    wrong = [number for number in images if not 1 <= number <= len(labels)]
    if wrong:
        raise DataError(f"{field}: {key} in {splits} has image {wrong[0]}, but {table.name} has labels of images 1 to {len(labels)} only")
    check_official_size(dataset, field, len(images))
    files = [f"jpg/image_{number:05d}.jpg" for number in images]
    return _list_files(dataset.path, files, [labels[number - 1] for number in images], (table, splits), field)


def _check_whole(dataset: TransferDataset, field: str, parts: Sequence[str], found: int) -> None:
    """Where parts are cut from a published whole, its size is what is compared."""
    check_official_size(dataset.model_copy(update={"split": "+".join(parts)}), field, found)


def _in_part(labels: Sequence[str], shares: dict[str, int], split: str) -> list[int]:
    kept: list[int] = np.flatnonzero(class_parts(labels, tuple(shares.values())) == list(shares).index(split)).tolist()
    return kept


def _list_files(root: Path, ids: Sequence[str], labels: Sequence[str], tables: Sequence[Path], field: str) -> Listing:
    """Image files named by a table. Raises DataError if one is missing or outside its folder."""
    stats: list[tuple[str, os.stat_result]] = [(table.name, stat_file(table, field, "file")) for table in tables]
    for name in ids:
        if len(Path(name).parts) != 2 or ".." in Path(name).parts or Path(name).is_absolute():
            raise DataError(f"{field}: {tables[0]} names an image outside its folder: {name}")
        stats.append((name, stat_file(root / name, field, "image")))

    def read(index: int) -> bytes:
        return read_bytes(root / ids[index], field, ids[index])

    return encoded_listing(field, ids, read, files_signature(stats), labels=labels)


def _find(path: Path, name: str, field: str) -> Path:
    """A file of the development kit, unpacked where it was or beside the images."""
    for file in (path / "devkit" / name, path / name):
        if file.is_file():
            return file
    unlabelled = name.replace("_withlabels", "")
    hint = f"; {unlabelled} has no labels" if unlabelled != name and any((path / part / unlabelled).exists() for part in (".", "devkit")) else ""
    raise DataError(f"{field}.path = {path}: there is no {name} here nor in devkit{hint}")


def _array(path: Path, key: str, field: str) -> NDArray[Any]:
    """One variable of a MATLAB file, without axes of length 1."""
    import scipy.io  # takes a while, and only two layouts need it

    try:
        variables = scipy.io.loadmat(path, squeeze_me=True, variable_names=[key])
    except Exception as error:
        # loadmat raises OSError, ValueError, TypeError, NotImplementedError, zlib.error and more on damaged files.
        raise DataError(f"{field}: {path} is damaged or not a MATLAB 5 file: {error}") from None
    if key not in variables:
        raise DataError(f"{field}: {path} has no variable {key!r}")
    return np.atleast_1d(variables[key])
