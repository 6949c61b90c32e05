"""Perceptual hashes of decoded images, computed once and kept beside the image cache."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import imagehash
import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from autoft.data.sets import ImageSet
from autoft.data.streamed import StreamedImages

FORMAT_VERSION = 1
HASH_NAME = f"phash, imagehash {imagehash.__version__}"
# imagehash's phash reduces an image to this many grey pixels a side before its cosine transform.
_THUMBNAIL = 32
_CHUNK = 256
_MAX_THREADS = 16
# Below this side most of the time goes into steps that hold Python's lock, and a second thread makes it slower (measured: 64 pixels
# 1.8 times slower with two threads, 224 even, 280 faster).
_SIDE_FOR_THREADS = 224
# Images whose pixels name a cache entry, evenly spaced over the set.
_SAMPLED = 32

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prints:
    """What perceptual comparison knows of a set's images.

    hashes: (n,) uint64, 64-bit pHash (imagehash: the signs of the 8 x 8 lowest frequencies of a 32 x 32 grey thumbnail about their median).
    contrast: (n,) uint8, brightest minus darkest pixel of that thumbnail. Near 0 the hash is that of nothing at all.
    """

    hashes: NDArray[np.uint64]
    contrast: NDArray[np.uint8]


def perceptual_prints(images: ImageSet, cache_dir: Path, progress: Callable[[int, int], None] | None = None) -> Prints:
    """The prints of a set, from `cache_dir` or computed and kept there.

    Args:
        progress: called with (images done, images in all) while hashing, and not at all where the cache has them.
    """
    path = cache_dir / f"phash-{_key(images)}.npy"
    table = _read(path, len(images))
    if table is None:
        table = _compute(images.images, progress)
        _write(path, table)
    return Prints(hashes=table[0], contrast=table[1].astype(np.uint8))


def print_of(pixels: NDArray[np.uint8]) -> tuple[int, int]:
    """pHash and contrast of one image, (side, side, 3)."""
    grey = Image.fromarray(pixels).convert("L").resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    darkest, brightest = grey.getextrema()
    bits = imagehash.phash(grey).hash
    return int.from_bytes(np.packbits(bits).tobytes(), "big"), int(brightest) - int(darkest)  # type: ignore[arg-type]


def _compute(images: NDArray[np.uint8] | StreamedImages, progress: Callable[[int, int], None] | None) -> NDArray[np.uint64]:
    """(2, n): hashes, contrasts."""
    table = np.empty((2, len(images)), dtype=np.uint64)

    def fill(start: int) -> int:
        stop = min(start + _CHUNK, len(images))
        table[:, start:stop] = np.array([print_of(image) for image in images[start:stop]], dtype=np.uint64).T
        return stop

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = min(_MAX_THREADS, cores) if images.shape[1] >= _SIDE_FOR_THREADS else 1
    with ThreadPoolExecutor(threads, thread_name_prefix="phash") as pool:
        for done in pool.map(fill, range(0, len(images), _CHUNK)):
            if progress is not None:
                progress(done, len(images))
    return table


def _key(images: ImageSet) -> str:
    """Content does not say how an image was resized or corrupted, so some pixels are part of the name."""
    sample = np.unique(np.linspace(0, len(images) - 1, _SAMPLED).astype(np.int64)) if len(images) else np.empty(0, dtype=np.int64)
    parts = {
        "format": FORMAT_VERSION,
        "imagehash": imagehash.__version__,
        "pillow": PIL.__version__,
        "content": images.content_hash,
        "shape": list(images.images.shape),
        "pixels": hashlib.sha256(np.ascontiguousarray(images.images[sample]).data).hexdigest(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _read(path: Path, n: int) -> NDArray[np.uint64] | None:
    """A whole cache entry, or None if it is absent or damaged."""
    try:
        table = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    whole = isinstance(table, np.ndarray) and table.shape == (2, n) and table.dtype == np.uint64 and (n == 0 or table[1].max() <= 255)
    return table if whole else None


def _write(path: Path, table: NDArray[np.uint64]) -> None:
    """Whole or not at all. The hashes are at hand, so a cache that cannot be written costs time next time, and nothing else."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".partial", delete=False) as file:
            partial = Path(file.name)
            try:
                np.save(file, table, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("cannot keep perceptual hashes in %s: %s", path.parent, error.strerror or error, extra={"action": "phash_cache"})
