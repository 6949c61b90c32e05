"""Images decoded once and kept as a memory-mapped array, shared by every process that uses the same files in the same way."""

import hashlib
import json
import logging
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from autoft.data.pixels import UnusableImage, side_of, square
from autoft.data.sets import Listing, PixelSpec
from autoft.errors import DataError
from autoft.files import read_json, replace_folder, write_json
from autoft.inputs import shown

FORMAT_VERSION = 1
_SHOWN = 5
Progress = Callable[[int, int], None]
# (decoded image, SHA-256 of its raw bytes, position among the examples) -> the image to keep. Called from several threads.
Edit = Callable[[Image.Image, bytes, int], Image.Image]

_CHUNK_BYTES = 32 << 20
_MAX_THREADS = 16
# What is read back of a cache's pixels to see whether they are those that were written; all of them up to this size.
_CHECKED_BYTES = 256 << 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BadImage:
    """An example that cannot be decoded: its index in the listing, its name there, why, and the SHA-256 of its raw bytes if they can be read."""

    index: int
    id: str
    reason: str
    digest: str = ""


@dataclass(frozen=True)
class _Request:
    """Which pixels are wanted, and how many images may be left out."""

    listing: Listing
    examples: NDArray[np.int64]
    pixels: PixelSpec
    may_skip: int

    def shape(self, n: int) -> tuple[int, ...]:
        """Of the pixels of n examples."""
        side = side_of(self.pixels)
        return n, side, side, 3


@dataclass(frozen=True)
class Decoded:
    """The pixels of some examples, (n, side, side, 3) uint8, and the SHA-256 of their raw bytes, (n, 32) uint8.

    skipped: examples that could not be decoded and are left out, by their index in the listing, sorted.
    """

    images: NDArray[np.uint8]
    digests: NDArray[np.uint8]
    skipped: tuple[BadImage, ...] = ()

    def kept(self, examples: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the examples asked for are there, (examples,)."""
        return _kept(examples, self.skipped)


def load_decoded(
    listing: Listing,
    examples: NDArray[np.int64],
    pixels: PixelSpec,
    cache_dir: Path,
    description: Any,
    progress: Progress | None = None,
    edit: Edit | None = None,
    may_skip: int = 0,
) -> Decoded:
    """The pixels of a set's examples, decoded into `cache_dir` unless they are there.

    An entry is found by the files' signature, so files that changed are decoded again; a damaged entry is replaced. Processes that
    need the same entry wait for the one that builds it.

    Args:
        examples: indices into the listing, (n,).
        description: what else decides the pixels and their meaning (section of the study file, classes, what `edit` does), as JSON values.
        progress: called with (images done, images in all) while decoding, and not at all where nothing is decoded.
        edit: applied to each decoded image before it is resized.
        may_skip: how many images may be left out because they cannot be decoded; one that is asked for several times counts once.

    Raises:
        DataError: more images cannot be decoded, or the cache cannot be written.
    """
    folder = cache_dir / _key(listing, examples, pixels, description)
    request = _Request(listing, examples, pixels, may_skip)
    found = _read(folder, request)
    if found is not None:
        check_skipped(listing.field, found.skipped, may_skip)
        return found
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(cache_dir / f"{folder.name}.lock"):
            found = _read(folder, request)
            if found is None:
                logger.info("decoding %d images of %s", len(examples), listing.field, extra={"action": "decode", "field": listing.field})
                with replace_folder(folder) as partial:
                    _build(partial, request, progress, edit)
                found = _read(folder, request)
    except OSError as error:
        raise DataError(f"{listing.field}: cannot write the image cache in {cache_dir}: {error.strerror or error}") from None
    if found is None:
        raise DataError(f"{listing.field}: the image cache {folder} cannot be read back as it was written; check the disk")
    check_skipped(listing.field, found.skipped, may_skip)
    return found


def check_skipped(field: str, skipped: Sequence[BadImage], may_skip: int) -> None:
    """Raise DataError if more images cannot be decoded than may be skipped."""
    if not skipped or len(skipped) <= may_skip:
        return
    if not may_skip:
        raise DataError(f"{field}: {skipped[0].reason}")
    named = "; ".join(f"{bad.id}: {bad.reason}" for bad in skipped[:_SHOWN])
    raise DataError(f"{field}: more than {may_skip:,} images cannot be used, which is more than data.on_bad_image = skip allows. The first: {named}")


def _key(listing: Listing, examples: NDArray[np.int64], pixels: PixelSpec, description: Any) -> str:
    parts = {
        "format": FORMAT_VERSION,
        "pillow": PIL.__version__,
        "signature": listing.signature,
        "examples": hashlib.sha256(examples.tobytes()).hexdigest(),
        "pixels": asdict(pixels),
        "description": description,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _build(folder: Path, request: _Request, progress: Progress | None, edit: Edit | None) -> None:
    listing, n = request.listing, len(request.examples)
    digests, bad = np.zeros((n, 32), dtype=np.uint8), dict[int, BadImage]()
    nothing = bytes(math.prod(request.shape(1)))

    def decode(position: int) -> bytes:
        index = int(request.examples[position])
        digest = b""
        try:
            digest = hashlib.sha256(listing.read(index)).digest()
            digests[position] = np.frombuffer(digest, dtype=np.uint8)
            image = listing.decode(index)
        except UnusableImage as error:
            if not request.may_skip:
                raise
            bad[index] = BadImage(index, shown(listing.ids[index]), _reason(error, listing.field), digest.hex())
            return nothing
        return square(image if edit is None else edit(image, digest, position), request.pixels).tobytes()

    with (folder / "images.npy").open("wb") as file:
        _write_header(file, request.shape(n))
        for done, chunk in _in_chunks(decode, n, _rows_per_chunk(request.shape(n))):
            file.write(chunk)
            check_skipped(listing.field, _in_order(bad), request.may_skip)
            if progress is not None:
                progress(done, n)
    skipped = _in_order(bad)
    if skipped:
        digests = _leave_out(folder / "images.npy", digests, _kept(request.examples, skipped))
    np.save(folder / "digests.npy", digests)
    images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
    meta = {"format": FORMAT_VERSION, "field": listing.field, "shape": list(images.shape)}
    meta |= {"images_crc32": _checksum(images), "digests_crc32": _checksum(digests)}
    if skipped:
        meta["skipped"] = [asdict(image) for image in skipped]
        logger.warning("%d images of %s cannot be used and are skipped", len(skipped), listing.field, extra={"action": "skip_images"})
    write_json(folder / "meta.json", {**meta, "meta_crc32": _meta_checksum(meta)})


def _reason(error: DataError, field: str) -> str:
    return shown(str(error).removeprefix(f"{field}: "), 500)


def _in_order(bad: dict[int, BadImage]) -> tuple[BadImage, ...]:
    return tuple(bad[index] for index in sorted(bad))


def _kept(examples: NDArray[np.int64], skipped: Sequence[BadImage]) -> NDArray[np.bool_]:
    return ~np.isin(examples, [bad.index for bad in skipped])


def _leave_out(path: Path, digests: NDArray[np.uint8], kept: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Rewrite an array of images with those that are kept; their digests."""
    whole = np.load(path, mmap_mode="r", allow_pickle=False)
    positions = np.flatnonzero(kept)
    if not len(positions):
        raise DataError("no image can be used")
    partial, rows = path.with_suffix(".kept"), _rows_per_chunk(whole.shape)
    with partial.open("wb") as file:
        _write_header(file, (len(positions), *whole.shape[1:]))
        for start in range(0, len(positions), rows):
            file.write(whole[positions[start : start + rows]].tobytes())
    partial.replace(path)
    return digests[kept]


def _rows_per_chunk(shape: tuple[int, ...]) -> int:
    return max(1, _CHUNK_BYTES // math.prod(shape[1:]))


def _in_chunks(decode: Callable[[int], bytes], n: int, rows: int) -> Iterator[tuple[int, bytes]]:
    """Decoded images in order, many at a time: Pillow decodes outside Python's lock."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = min(_MAX_THREADS, cores)
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        for start in range(0, n, rows):
            stop = min(start + rows, n)
            yield stop, b"".join(pool.map(decode, range(start, stop)))


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _read(folder: Path, request: _Request) -> Decoded | None:
    """A whole cache entry, or None if it is absent or damaged."""
    meta = read_json(folder / "meta.json")
    if not isinstance(meta, dict) or meta.pop("meta_crc32", None) != _meta_checksum(meta):
        return None
    try:
        skipped = tuple(BadImage(**item) for item in meta.get("skipped", ()))
        shape = request.shape(int(_kept(request.examples, skipped).sum()))
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        digests = np.load(folder / "digests.npy", allow_pickle=False)
        whole = images.shape == shape and images.dtype == np.uint8 and digests.shape == (shape[0], 32) and digests.dtype == np.uint8
    except Exception:  # whatever numpy raises on a damaged file
        return None
    if not whole or _checksum(images) != meta.get("images_crc32") or _checksum(digests) != meta.get("digests_crc32"):
        logger.warning("the image cache %s is damaged and is built again", folder, extra={"action": "cache_damaged"})
        return None
    return Decoded(images, digests, skipped)


def _checksum(array: NDArray[np.uint8]) -> int:
    """CRC-32 of rows evenly spaced over the array, as many as `_CHECKED_BYTES` allow."""
    step = max(1, math.ceil(array.nbytes / _CHECKED_BYTES))
    stride = step * _rows_per_chunk(array.shape)
    crc = 0
    for start in range(0, len(array), stride):
        crc = zlib.crc32(np.ascontiguousarray(array[start : start + stride : step]).data, crc)
    return crc


def _meta_checksum(meta: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())
