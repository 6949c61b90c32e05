"""Reading source files: bytes, signatures, and the listing of sets whose examples are encoded images."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from PIL import Image

from autoft.data.pixels import decode_image
from autoft.data.sets import Listing
from autoft.errors import DataError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp")


def files_signature(files: Iterable[tuple[str, os.stat_result]]) -> str:
    """A hash that changes when a file is changed, added, removed or renamed, as far as sizes and dates can tell."""
    digest = hashlib.sha256()
    for path, stat in files:
        digest.update(os.fsencode(path) + f"\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def stat_file(path: Path, field: str, what: str) -> os.stat_result:
    """Stat a regular file. Raises DataError: `what` says what the file is for."""
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"{field}: {what} {path}: {error.strerror or error}") from None
    if not path.is_file():
        raise DataError(f"{field}: {what} {path} is not a file")
    return stat


def read_bytes(path: Path, field: str, example: str) -> bytes:
    """A file's content. Raises DataError naming field and example."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{field}: cannot read image {example}: {error.strerror or error}") from None


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
