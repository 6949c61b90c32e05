"""Images decoded once and kept as a memory-mapped array, shared by every process that uses the same files in the same way."""

import errno
import functools
import hashlib
import json
import logging
import math
import os
import weakref
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import numpy as np
import PIL
from numpy.typing import NDArray

from autoft.data.pixels import UnusableImage, side_of, square
from autoft.data.room import DIGESTS, arranging, make_room, use
from autoft.data.sets import Listing, PixelSpec
from autoft.data.streamed import Edit, StreamedImages, usable_cores
from autoft.errors import DataError
from autoft.files import read_json, replace_folder, write_json
from autoft.inputs import shown

FORMAT_VERSION = 1
_SHOWN = 5
Progress = Callable[[int, int], None]

_CHUNK_BYTES = 32 << 20
_BESIDE_BYTES = 4096
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
class Request:
    """Which pixels are wanted.

    examples: indices into the listing, (n,).
    description: what else decides the pixels and their meaning (section of the study file, classes, what `edit` does), as JSON values.
    edit: applied to each decoded image before it is resized.
    may_skip: how many images may be left out because they cannot be decoded; one that is asked for several times counts once.
    """

    listing: Listing
    examples: NDArray[np.int64]
    pixels: PixelSpec
    description: Any
    edit: Edit | None = None
    may_skip: int = 0

    def shape(self, n: int) -> tuple[int, ...]:
        """Of the pixels of n examples."""
        side = side_of(self.pixels)
        return n, side, side, 3

    @property
    def nbytes(self) -> int:
        """Of all pixels, if none is left out."""
        return math.prod(self.shape(len(self.examples)))

    @property
    def disk_bytes(self) -> int:
        """What an entry with them takes on disk, at most: digests and the record of the entry with the pixels."""
        return self.nbytes + 32 * len(self.examples) + _BESIDE_BYTES

    @functools.cached_property
    def name(self) -> str:
        """The cache entry's: of the files' signature and everything that decides the pixels."""
        return _hash({**self._source, "pixels": asdict(self.pixels), "description": self.description})

    @functools.cached_property
    def digests_name(self) -> str:
        """The name of what is kept in the cache where the pixels are not."""
        return _hash(self._source) + DIGESTS

    @property
    def _source(self) -> dict[str, Any]:
        examples = hashlib.sha256(self.examples.tobytes()).hexdigest()
        return {"format": FORMAT_VERSION, "pillow": PIL.__version__, "signature": self.listing.signature, "examples": examples}


def _hash(parts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Decoded:
    """The pixels of some examples, (n, side, side, 3) uint8, and the SHA-256 of their raw bytes, (n, 32) uint8.

    images: memory-mapped, or decoded each time they are asked for.
    skipped: examples that could not be decoded and are left out, by their index in the listing, sorted.
    """

    images: NDArray[np.uint8] | StreamedImages
    digests: NDArray[np.uint8]
    skipped: tuple[BadImage, ...] = ()

    def kept(self, examples: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the examples asked for are there, (examples,)."""
        return _kept(examples, self.skipped)


def load_decoded(
    request: Request, cache_dir: Path, progress: Progress | None = None, *, may_keep: bool = True, others: Collection[str] = (), reserved: int = 0
) -> Decoded:
    """The pixels of a set's examples, decoded into `cache_dir` unless they are there; streamed from the set's files where they do not fit.

    An entry is found by the files' signature, so files that changed are decoded again; a damaged entry is replaced. Processes that
    need the same entry wait for the one that builds it. A set to be streamed is decoded once, too, to know its content and its bad images,
    which the cache keeps; its pixels are not kept.

    Args:
        progress: called with (images done, images in all) while decoding, and not at all where nothing is decoded.
        may_keep: whether the cache is to hold the pixels if it has room.
        others: names of entries that must not go to make room.
        reserved: bytes to be left for other entries.

    Raises:
        DataError: more images cannot be decoded than may be skipped, or the cache cannot be written.
    """
    found = None
    try:
        if may_keep:
            found = _in_use(cache_dir, request.name, lambda: _kept_pixels(request, cache_dir, progress, others, reserved))
        if found is None:
            found = _in_use(cache_dir, request.digests_name, lambda: _streamed(request, cache_dir, progress))
    except OSError as error:
        raise DataError(f"{request.listing.field}: cannot write the image cache in {cache_dir}: {error.strerror or error}") from None
    assert found is not None
    check_skipped(request.listing.field, found.skipped, request.may_skip)
    return found


def is_kept(request: Request, cache_dir: Path) -> bool:
    """Whether the cache has an entry with the request's pixels, as far as can be told without reading them."""
    meta = _read_meta(cache_dir / request.name)
    try:
        size = (cache_dir / request.name / "images.npy").stat().st_size
    except OSError:
        return False
    return meta is not None and size >= math.prod(meta["shape"])


def is_known(request: Request, cache_dir: Path) -> bool:
    """Whether the cache has what there is to know of a set before it can be streamed."""
    return _read_meta(cache_dir / request.digests_name) is not None


def _in_use(cache_dir: Path, name: str, load: Callable[[], Decoded | None]) -> Decoded | None:
    """What `load` returns, with the entry marked as used for as long as the images live."""
    mark = use(cache_dir, name)
    found = None
    try:
        found = load()
    finally:
        if found is None and mark is not None:
            os.close(mark)
    if found is not None and mark is not None:
        weakref.finalize(found.images, os.close, mark)
    return found


def _entry(folder: Path, request: Request, read: Callable[[Path, Request], Decoded | None], build: Callable[[Path], None]) -> Decoded:
    """An entry of the cache, built if it is not there. Processes that need the same one wait for whoever builds it."""
    found = read(folder, request)
    if found is not None:
        return found
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.parent / f"{folder.name}.lock"):
        found = read(folder, request)
        if found is not None:
            return found
        with replace_folder(folder) as partial:
            build(partial)
    found = read(folder, request)
    if found is None:
        raise DataError(f"{request.listing.field}: the image cache {folder} cannot be read back as it was written; check the disk")
    return found


def _kept_pixels(request: Request, cache_dir: Path, progress: Progress | None, others: Collection[str], reserved: int) -> Decoded | None:
    """The pixels out of the cache, which decodes them first if need be; None: it has no room for them."""

    def build(partial: Path) -> None:
        _reserve(cache_dir, partial / "images.npy", request, others, reserved)
        _log(request, "decoding")
        _build(partial, request, progress)

    try:
        return _entry(cache_dir / request.name, request, _read, build)
    except _NoRoom:
        return None


class _NoRoom(Exception):
    """The cache cannot hold an entry."""


def _reserve(cache_dir: Path, path: Path, request: Request, others: Collection[str], reserved: int) -> None:
    """A file of the size that will be needed, so that others see the room as taken. Raises _NoRoom."""
    with arranging(cache_dir):
        if not make_room(cache_dir, request.name, request.disk_bytes, others, reserved):
            raise _NoRoom
        try:
            with path.open("wb") as file:
                if request.nbytes:
                    os.posix_fallocate(file.fileno(), 0, request.nbytes)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise _NoRoom from None


def _streamed(request: Request, cache_dir: Path, progress: Progress | None) -> Decoded:
    """The digests of images that are read from their files each time, out of the cache or after looking through all of them."""

    def build(partial: Path) -> None:
        _log(request, "looking through")
        digests, skipped = _decode_all(request, progress, None)
        _finish(partial, request, digests[_kept(request.examples, skipped)], skipped, {})

    return _entry(cache_dir / request.digests_name, request, _read_digests, build)


def _log(request: Request, doing: str) -> None:
    logger.info("%s %d images of %s", doing, len(request.examples), request.listing.field, extra={"action": "decode", "field": request.listing.field})


def check_skipped(field: str, skipped: Sequence[BadImage], may_skip: int) -> None:
    """Raise DataError if more images cannot be decoded than may be skipped."""
    if not skipped or len(skipped) <= may_skip:
        return
    if not may_skip:
        raise DataError(f"{field}: {skipped[0].reason}")
    named = "; ".join(f"{bad.id}: {bad.reason}" for bad in skipped[:_SHOWN])
    raise DataError(f"{field}: more than {may_skip:,} images cannot be used, which is more than data.on_bad_image = skip allows. The first: {named}")


def _build(folder: Path, request: Request, progress: Progress | None) -> None:
    with (folder / "images.npy").open("r+b") as file:
        _write_header(file, request.shape(len(request.examples)))
        digests, skipped = _decode_all(request, progress, file.write)
        file.truncate()
    if skipped:
        digests = _leave_out(folder / "images.npy", digests, _kept(request.examples, skipped))
    images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
    _finish(folder, request, digests, skipped, {"images_crc32": _checksum(images)})


def _decode_all(request: Request, progress: Progress | None, write: Callable[[bytes], Any] | None) -> tuple[NDArray[np.uint8], tuple[BadImage, ...]]:
    """Digests of all examples, (n, 32), and those that cannot be decoded; their pixels in order, zeros for the latter, are written if asked for.

    Raises:
        DataError: more are bad than may be skipped.
    """
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
        if write is None:
            return b""
        return square(image if request.edit is None else request.edit(image, digest, position), request.pixels).tobytes()

    for done, chunk in _in_chunks(decode, n, _rows_per_chunk(request.shape(n))):
        if write is not None:
            write(chunk)
        check_skipped(listing.field, _in_order(bad), request.may_skip)
        if progress is not None:
            progress(done, n)
    return digests, _in_order(bad)


def _finish(folder: Path, request: Request, digests: NDArray[np.uint8], skipped: Sequence[BadImage], facts: dict[str, Any]) -> None:
    """Write what goes with the pixels."""
    if skipped and not len(digests):
        raise DataError(f"{request.listing.field}: no image can be used")
    np.save(folder / "digests.npy", digests)
    meta = {"format": FORMAT_VERSION, "field": request.listing.field, "shape": list(request.shape(len(digests)))}
    meta |= {**facts, "digests_crc32": _checksum(digests)}
    if skipped:
        meta["skipped"] = [asdict(image) for image in skipped]
        logger.warning("%d images of %s cannot be used and are skipped", len(skipped), request.listing.field, extra={"action": "skip_images"})
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
    with ThreadPoolExecutor(min(_MAX_THREADS, usable_cores()), thread_name_prefix="decode") as pool:
        for start in range(0, n, rows):
            stop = min(start + rows, n)
            yield stop, b"".join(pool.map(decode, range(start, stop)))


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _read_meta(folder: Path) -> dict[str, Any] | None:
    meta = read_json(folder / "meta.json")
    if not isinstance(meta, dict) or meta.pop("meta_crc32", None) != _meta_checksum(meta):
        return None
    return meta


def _read(folder: Path, request: Request) -> Decoded | None:
    """A whole cache entry, or None if it is absent or damaged."""
    meta = _read_meta(folder)
    if meta is None:
        return None
    try:
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        digests, skipped = _load_digests(folder, meta, request)
        whole = images.shape == request.shape(len(digests)) and images.dtype == np.uint8
    except Exception:  # whatever numpy raises on a damaged file
        return None
    if not whole or _checksum(images) != meta.get("images_crc32") or _checksum(digests) != meta.get("digests_crc32"):
        logger.warning("the image cache %s is damaged and is built again", folder, extra={"action": "cache_damaged"})
        return None
    return Decoded(images, digests, skipped)


def _load_digests(folder: Path, meta: dict[str, Any], request: Request) -> tuple[NDArray[np.uint8], tuple[BadImage, ...]]:
    """Digests of the examples that are not skipped, and those that are. Raises many things on damaged files."""
    skipped = tuple(BadImage(**item) for item in meta.get("skipped", ()))
    digests = np.load(folder / "digests.npy", allow_pickle=False)
    if digests.shape != (int(_kept(request.examples, skipped).sum()), 32) or digests.dtype != np.uint8:
        raise ValueError("digests of another set")
    return digests, skipped


def _read_digests(folder: Path, request: Request) -> Decoded | None:
    """A streamed set, or None if what the cache keeps of it is absent or damaged."""
    meta = _read_meta(folder)
    if meta is None:
        return None
    try:
        digests, skipped = _load_digests(folder, meta, request)
    except Exception:  # as above
        return None
    if _checksum(digests) != meta.get("digests_crc32"):
        return None
    positions = np.flatnonzero(_kept(request.examples, skipped))
    images = StreamedImages(request.listing, request.examples[positions], positions, digests, request.pixels, request.edit)
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
