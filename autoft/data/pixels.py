"""From encoded bytes to the square of pixels a model sees, by open_clip's evaluation transform."""

import io
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from autoft.data.sets import PixelSpec
from autoft.errors import DataError
from autoft.inputs import read_input

# Other formats Pillow knows are left out: some of them run external programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# Beyond this an image is refused before its pixels are unpacked: 0.25 GiB at three bytes a pixel. Pillow only warns here, and its limit is
# a global that any library may lift.
MAX_PIXELS = (1 << 28) // 3
# open_clip resizes the short side before it crops, so a sliver of an image would grow into gigabytes.
MAX_ASPECT = 200
# A file is read whole before it is decoded; the largest image allowed, uncompressed with 16 bits a channel and four of them, fits.
MAX_BYTES = 1 << 30
_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class UnusableImage(DataError):
    """An image is bad in itself and stays so: what `data.on_bad_image` is about. A disk that does not answer is something else."""


def decode_image(raw: bytes, field: str, example: str) -> Image.Image:
    """Decode the first frame of an image to RGB.

    Alpha is dropped and EXIF rotation ignored, as by `Image.open(file).convert("RGB")`, the loader of torchvision's ImageFolder,
    so that a checkpoint sees the same pixels in other programs; 16-bit grey is scaled to 8 bits rather than clipped.

    Raises:
        UnusableImage: naming field and example, if it is empty, truncated, not an image, larger than `MAX_PIXELS`, or a sliver.
    """
    if not raw:
        raise UnusableImage(f"{field}: image {example} is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
            _check_size(image, field, example)
            image.load()
            return _to_rgb(image)
    except UnusableImage:
        raise
    except UnidentifiedImageError:
        raise UnusableImage(f"{field}: {example} is not an image ({', '.join(FORMATS)} can be read)") from None
    except MemoryError:
        raise DataError(f"{field}: there is no memory to decode image {example}") from None
    except Exception as error:
        # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more on damaged files.
        raise UnusableImage(f"{field}: image {example} is corrupt or truncated: {error}") from None


def _check_size(image: Image.Image, field: str, example: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise UnusableImage(f"{field}: image {example} has {image.width} x {image.height} pixels, more than the limit of {MAX_PIXELS:,}")
    if min(image.size) < 1 or max(image.size) > MAX_ASPECT * min(image.size):
        raise UnusableImage(f"{field}: image {example} has {image.width} x {image.height} pixels: one side is over {MAX_ASPECT} times the other")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() >= 1 << 16:
            raise ValueError(f"pixels of mode {image.mode} are neither 8 nor 16 bits")
        image = Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))
    return image.convert("RGB")


def square(image: Image.Image, spec: PixelSpec) -> NDArray[np.uint8]:
    """Resize an RGB image to a square, (side, side, 3), with side = ceil(size * margin).

    For margin 1 this equals open_clip's evaluation transform before ToTensor, pixel by pixel.
    """
    side = side_of(spec)
    resample = _RESAMPLING[spec.interpolation]
    width, height = image.size
    if spec.resize_mode == "squash":
        size = (side, side)
    elif spec.resize_mode == "longest":
        longest = max(width, height) / side
        size = (max(1, round(width / longest)), max(1, round(height / longest)))
    else:
        shortest = min(width, height)
        size = (int(side * width / shortest), int(side * height / shortest))
    resized = image if size == image.size else image.resize(size, resample)
    return _crop_or_pad(np.asarray(resized), side)


def side_of(spec: PixelSpec) -> int:
    """Side of the cached square in pixels."""
    return math.ceil(spec.size * spec.margin)


def _crop_or_pad(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The central (side, side, 3), with black where there is none. Offsets are rounded as torchvision rounds them."""
    height, width = pixels.shape[:2]
    down, right = max(0, side - height), max(0, side - width)
    if down or right:
        pixels = np.pad(pixels, ((down // 2, down - down // 2), (right // 2, right - right // 2), (0, 0)))
        height, width = pixels.shape[:2]
    top, left = round((height - side) / 2), round((width - side) / 2)
    return pixels[top : top + side, left : left + side]


def read_image(path: Path, pixels: PixelSpec) -> NDArray[np.uint8]:
    """An image file as pixels, (side, side, 3). Raises DataError."""
    try:
        raw = read_input(path, MAX_BYTES)
    except OSError as error:
        raise DataError(f"cannot read image {path}: {error.strerror or error}") from None
    return square(decode_image(raw, "image", str(path)), pixels)
