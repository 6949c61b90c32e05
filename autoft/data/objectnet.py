"""ObjectNet (Barbu et al. 2019): the classes it shares with ImageNet, by the mapping files that come with it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from autoft.config import FolderDataset, ImageNetDataset
from autoft.data.files import MAX_TEXT_BYTES, encoded_listing, read_bytes
from autoft.data.folder import list_folder
from autoft.data.official import check_official_size
from autoft.data.pixels import UnusableImage
from autoft.data.sets import Listing
from autoft.errors import DataError
from autoft.inputs import read_text_input

# Pixels of the red frame every image has, so that one can tell it in training data; WiSE-FT and FLYP crop as many.
BORDER = 2
_FOLDERS = "folder_to_objectnet_label.json"
_SHARED = "objectnet_to_imagenet_1k.json"
_IDS = "pytorch_to_imagenet_2012_id.json"
_NAMES = ("imagenet_to_label_2012_v2", "imagenet_to_label_2012_v2.txt")


@dataclass(frozen=True)
class _Mappings:
    """The four files of the set's `mappings` folder.

    folders: folder -> ObjectNet's name of the class. shared: ObjectNet's name -> ImageNet's names of the classes in it.
    positions: ImageNet's name -> indices of the classes of that name, in the order of the WordNet ids.
    """

    folders: Mapping[str, str]
    shared: Mapping[str, Sequence[str]]
    positions: Mapping[str, Sequence[int]]


def list_objectnet(dataset: ImageNetDataset, field: str) -> Listing:
    """Images of the classes shared with ImageNet, without their red border, in the order of their sorted paths.

    The pools are all shared classes, whether the copy has images of them or not.

    Raises:
        DataError: a folder or mapping file is missing, the mappings contradict each other, or the number of images is not the
            published one.
    """
    pools = _pools(_read_mappings(dataset.path / "mappings", field), field)
    images = dataset.path / "images"
    everything = list_folder(FolderDataset(layout="folder", path=images), field)
    assert everything.labels is not None
    kept = [(str(label), example) for label, example in zip(everything.labels, everything.ids, strict=True) if label in pools]
    check_official_size(dataset, field, len(kept))
    if not kept:
        raise DataError(f"{field}.path = {dataset.path}: none of the {len(pools)} classes shared with ImageNet has a folder in images")
    ids = [example for _, example in kept]

    def read(index: int) -> bytes:
        return read_bytes(images / ids[index], field, ids[index])

    whole = encoded_listing(field, ids, read, everything.signature, labels=[label for label, _ in kept])
    return replace(whole, decode=_cropping(whole), pools=pools)


def _cropping(listing: Listing) -> Callable[[int], Image.Image]:
    def decode(index: int) -> Image.Image:
        image = listing.decode(index)
        width, height = image.size
        if min(width, height) <= 2 * BORDER:
            raise UnusableImage(f"{listing.field}: image {listing.ids[index]} has {width} x {height} pixels: nothing is left within its red border")
        return image.crop((BORDER, BORDER, width - BORDER, height - BORDER))

    return decode


def _pools(mappings: _Mappings, field: str) -> dict[str, tuple[str, ...]]:
    """The ImageNet indices of each folder whose class ImageNet has too."""
    folder_of = {name: folder for folder, name in mappings.folders.items()}
    pools = {}
    for name, imagenet_names in mappings.shared.items():
        if name not in folder_of:
            raise DataError(f"{field}: {_FOLDERS} has no folder for {name!r}, which {_SHARED} lists")
        for imagenet_name in imagenet_names:
            if len(mappings.positions.get(imagenet_name, ())) != 1:
                raise DataError(f"{field}: {_SHARED} gives {name!r} the ImageNet class {imagenet_name!r}, which must be one line of {_NAMES[0]}")
        pools[folder_of[name]] = tuple(str(mappings.positions[imagenet_name][0]) for imagenet_name in imagenet_names)
    return pools


def _read_mappings(folder: Path, field: str) -> _Mappings:
    folders, shared, ids = (_read_json(folder / name, field) for name in (_FOLDERS, _SHARED, _IDS))
    path = next((folder / name for name in _NAMES if (folder / name).is_file()), folder / _NAMES[0])
    lines = [line.strip() for line in _read_text(path, field).splitlines() if line.strip()]
    # The line of a class counts from 0 or 1, as the smallest of the ids says.
    first = min(ids.values(), default=0)
    index_of_line = {line - first: int(index) for index, line in ids.items()}
    if set(index_of_line) != set(range(len(lines))):
        raise DataError(f"{field}: {folder / _IDS} has {len(ids)} ids, which must be the numbers of the {len(lines)} lines of {path.name}")
    positions: dict[str, list[int]] = {}
    for line, name in enumerate(lines):
        positions.setdefault(name, []).append(index_of_line[line])
    return _Mappings(folders, {name: names.split("; ") for name, names in shared.items()}, positions)


def _read_json(path: Path, field: str) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(path, field))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{field}: {path} is not JSON: {error}") from None
    wanted = int if path.name == _IDS else str
    if not isinstance(content, dict) or not all(type(value) is wanted for value in content.values()):
        raise DataError(f"{field}: {path} must be a JSON object whose values are {'integers' if wanted is int else 'texts'}")
    return content


def _read_text(path: Path, field: str) -> str:
    try:
        return read_text_input(path, MAX_TEXT_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{field}: cannot read mapping file {path}: {getattr(error, 'strerror', None) or error}") from None
