"""Reading source files: bytes, signatures, paths that stay below their folder, and listings of encoded images."""

import errno
import functools
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from PIL import Image

from autoft.data.pixels import MAX_BYTES, UnusableImage, decode_image
from autoft.data.sets import Listing
from autoft.errors import DataError
from autoft.inputs import read_input

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp")
# No regular file, too large, or a link to nothing. Other errors are those of a disk, a network or permissions.
_FOR_GOOD = (errno.EINVAL, errno.EISDIR, errno.EFBIG, errno.ENOENT, errno.ELOOP, errno.ENXIO)
# Tables, lists of names and descriptions are read whole: iWildCam's metadata has 50 MB.
MAX_TEXT_BYTES = 1 << 30


def files_signature(files: Iterable[tuple[str, os.stat_result]]) -> str:
    """A hash that changes when a file is changed, added, removed or renamed, as far as sizes and dates can tell."""
    digest = hashlib.sha256()
    for path, found in files:
        digest.update(os.fsencode(path) + f"\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def stat_file(path: Path, field: str, what: str) -> os.stat_result:
    """Stat a regular file. Raises DataError: `what` says what the file is for."""
    try:
        found = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise DataError(f"{field}: {what} {path}: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{field}: {what} {path} is not a file")
    return found


def is_folder(path: Path) -> bool:
    """Whether there is a folder of that name; False also for a name that no file can have."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def read_bytes(path: Path, field: str, example: str) -> bytes:
    """An image file's content. Raises UnusableImage naming field and example; DataError where another time it might be read."""
    try:
        return read_input(path, MAX_BYTES)
    except OSError as error:
        kind = UnusableImage if error.errno in _FOR_GOOD else DataError
        raise kind(f"{field}: cannot read image {example}: {error.strerror or error}") from None


class Below:
    """Paths that a table gives, relative to a folder or absolute, which must lie below the folder once links are followed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._real = os.path.realpath(folder)
        self._parent = functools.cache(os.path.realpath)

    def path(self, written: str) -> Path | None:
        """The file of that name, or None where it lies outside the folder. It need not exist. Raises OSError, ValueError."""
        path = self._folder / written
        real = self._parent(path.parent)
        if path.is_symlink() or ".." in path.parts or path.name in ("", "."):  # over a folder that is missing, `..` hides what follows
            real = os.path.realpath(path).rpartition("/")[0] or "/"
        return path if real == self._real or real.startswith(self._real.rstrip("/") + "/") else None


def encoded_listing(
    field: str,
    ids: Sequence[str],
    read: Callable[[int], bytes],
    signature: str,
    *,
    labels: Sequence[str | int] | None,
    groups: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
) -> Listing:
    """A listing whose examples are encoded image files."""

    def decode(index: int) -> Image.Image:
        return decode_image(read(index), field, ids[index])

    return Listing(field, ids, labels, groups, captions, read, decode, signature)
