"""One folder a class, images inside, nested or not."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from autoft.config import FolderDataset
from autoft.data.files import IMAGE_EXTENSIONS, encoded_listing, files_signature, is_folder, read_bytes
from autoft.data.sets import Listing
from autoft.errors import DataError


def list_folder(dataset: FolderDataset, field: str) -> Listing:
    """Examples in the order of their sorted paths; the class is the first folder's name. Hidden files are ignored.

    Raises:
        DataError: the folder is missing, has no class folders, or a class folder has no image.
    """
    root = dataset.path
    if not is_folder(root):
        raise DataError(f"{field}.path = {root} is not a folder" if os.path.lexists(root) else f"{field}.path = {root}: there is no such folder")
    try:
        found = [entry for name in _class_folders(root, field) for entry in _class_images(root, name, field)]
    except OSError as error:
        raise DataError(f"{field}.path = {root}: cannot read {error.filename}: {error.strerror}") from None
    ids = [path for path, _ in found]

    def read(index: int) -> bytes:
        return read_bytes(root / ids[index], field, ids[index])

    return encoded_listing(field, ids, read, files_signature(found), labels=[PurePosixPath(path).parts[0] for path in ids])


def _class_folders(root: Path, field: str) -> list[str]:
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{field}.path = {root} has no class folders; the layout is one folder a class, images inside")
    return names


def _class_images(root: Path, name: str, field: str) -> list[tuple[str, os.stat_result]]:
    images = sorted(_walk(root / name, name, ()), key=lambda item: PurePosixPath(item[0]).parts)
    if not images:
        raise DataError(f"{field}.path = {root}: class folder {name} has no images ({', '.join(IMAGE_EXTENSIONS)})")
    return images


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, os.stat_result]]:
    """Images under a folder as (path relative to the set's root, stat). Links are followed, but never into a loop.

    A folder that is called as an image is and has none inside counts as an image, which then cannot be read, rather than as nothing.
    """
    stat = folder.stat()
    here = (stat.st_dev, stat.st_ino)
    if here in above:
        return
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        path = f"{prefix}/{entry.name}"
        is_image = entry.name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS
        if entry.is_dir():
            inside = list(_walk(folder / entry.name, path, (*above, here)))
            yield from inside if inside or not is_image else [(path, entry.stat())]
        elif is_image:
            yield path, _stat(entry)


def _stat(entry: "os.DirEntry[str]") -> os.stat_result:
    """A link to nothing is an image that cannot be read."""
    try:
        return entry.stat()
    except FileNotFoundError:
        return entry.stat(follow_symlinks=False)
