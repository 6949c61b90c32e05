"""ImageNet (ILSVRC 2012) and the test sets made for it whose folders are its classes: V2, R, A, Sketch and C.

The label of an example is its class's index, 0 to 999 in the order of the WordNet ids: the order of every published list of names.
"""

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

from autoft.config import FolderDataset, ImageNetCDataset, ImageNetDataset
from autoft.data.files import encoded_listing, read_bytes
from autoft.data.folder import list_folder
from autoft.data.official import IMAGENET_C_TYPES, check_official_size
from autoft.data.sets import Listing
from autoft.errors import DataError

# Where the images may be below `path`; the first that is there counts. val_dirs comes before val: it is made from the flat
# validation images, which are often left beside it.
_FOLDERS: Mapping[tuple[str, str], Sequence[str]] = {
    ("imagenet", "train"): ("train", "ILSVRC2012/train"),
    ("imagenet", "val"): ("val_dirs", "val", "ILSVRC2012/val_dirs", "ILSVRC2012/val"),
    ("imagenet_sketch", "val"): ("sketch", "."),
}


@functools.cache
def imagenet_wnids() -> Mapping[str, int]:
    """The index of each WordNet id among the 1000 classes of ILSVRC 2012 (Russakovsky et al. 2015)."""
    text = resources.files("autoft.data").joinpath("imagenet_wnids.txt").read_text(encoding="ascii")
    return {wnid: index for index, wnid in enumerate(text.split())}


def list_imagenet(dataset: ImageNetDataset, field: str) -> Listing:
    """Examples in the order of their sorted paths.

    R and A have 200 of the classes each. Those are their pools, one class each, so that the model chooses among them only.

    Raises:
        DataError: a folder is missing or is no class of ImageNet, or the number of images is not the published one.
    """
    listing = list_folder(FolderDataset(layout="folder", path=_images_folder(dataset, field)), field)
    check_official_size(dataset, field, len(listing))
    folders = _folders(listing)
    known = {str(index): index for index in range(1000)} if dataset.layout == "imagenet_v2" else imagenet_wnids()
    _check_classes(folders, known, dataset.path, field)
    if dataset.layout in ("imagenet_r", "imagenet_a"):
        return replace(listing, pools={folder: (str(known[folder]),) for folder in sorted(set(folders))})
    return replace(listing, labels=[known[folder] for folder in folders])


def list_imagenet_c(dataset: ImageNetCDataset, field: str) -> Listing:
    """The images of every corruption at one severity, one corruption after the other; an example's group is its corruption.

    Raises:
        DataError: a corruption is missing, a folder is no class of ImageNet, or the number of images is not the published one.
    """
    types = tuple(dict.fromkeys(dataset.types or IMAGENET_C_TYPES))
    missing = [name for name in types if not (dataset.path / name / str(dataset.severity)).is_dir()]
    if missing:
        raise DataError(f"{field}.path = {dataset.path}: no folder {missing[0]}/{dataset.severity}; missing corruptions: {', '.join(missing)}")
    folders = [f"{name}/{dataset.severity}" for name in types]
    parts = [list_folder(FolderDataset(layout="folder", path=dataset.path / folder), field) for folder in folders]
    ids = [f"{folder}/{example}" for folder, part in zip(folders, parts, strict=True) for example in part.ids]
    check_official_size(dataset, field, len(ids))
    classes = [folder for part in parts for folder in _folders(part)]
    _check_classes(classes, imagenet_wnids(), dataset.path, field)

    def read(index: int) -> bytes:
        return read_bytes(dataset.path / ids[index], field, ids[index])

    signature = hashlib.sha256("\n".join([*folders, *(part.signature for part in parts)]).encode()).hexdigest()
    labels = [imagenet_wnids()[wnid] for wnid in classes]
    groups = [name for name, part in zip(types, parts, strict=True) for _ in part.ids]
    return encoded_listing(field, ids, read, signature, labels=labels, groups=groups)


def _images_folder(dataset: ImageNetDataset, field: str) -> Path:
    choices = _FOLDERS.get((dataset.layout, dataset.split), (".",))
    found = next((dataset.path / choice for choice in choices if (dataset.path / choice).is_dir()), None)
    if found is None and len(choices) > 1 and dataset.path.is_dir():
        raise DataError(f"{field}.path = {dataset.path}: there is no folder {' or '.join(choices)} in it")
    return found or dataset.path


def _folders(listing: Listing) -> list[str]:
    assert listing.labels is not None
    return [str(label) for label in listing.labels]


def _check_classes(folders: Iterable[str], known: Mapping[str, int], path: Path, field: str) -> None:
    unknown = sorted(set(folders) - set(known))
    if unknown:
        first, *_, last = known
        raise DataError(f"{field}.path = {path}: folder {unknown[0]} is none of ImageNet's 1000 classes ({first} to {last})")
