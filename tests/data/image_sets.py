"""Image sets made in memory."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autoft.data import ImageSet


def image_set(field: str, images: Sequence[NDArray[np.uint8]], sources: Sequence[bytes] | None = None) -> ImageSet:
    """A set of one class.

    images: each (side, side, 3) uint8. sources: the bytes each was decoded from, by which copies are told; default: the pixels.
    """
    digests = [hashlib.sha256(raw).hexdigest() for raw in sources or [image.tobytes() for image in images]]
    return ImageSet(
        field=field,
        images=np.stack(images),
        labels=np.zeros(len(images), dtype=np.int64),
        class_count=1,
        groups=None,
        group_names=(),
        captions=None,
        content_hash=hashlib.sha256("".join(digests).encode()).hexdigest(),
        example_hashes=tuple(digest[:16] for digest in digests),
    )
