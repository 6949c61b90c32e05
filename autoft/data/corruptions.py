"""The 15 test corruptions of ImageNet-C (Hendrycks and Dietterich 2019), each a function of the image and its content alone.

The pixels come from imagecorruptions-imaug, the maintained fork of the Bethge lab's imagecorruptions (Michaelis et al. 2019), which has
the authors' functions and severities for images of any size. The original package does not run with today's numpy and scikit-image;
albumentations and kornia have no such set at ImageNet-C's severities. Where the pixels differ from the published sets:

- The published sets were made with other random numbers, and ImageNet-C after a resize and crop to 224 pixels. Here the decoded image
  is corrupted before the model's resize, so blurs of a fixed radius are milder on larger photographs.
- CIFAR-10-C has constants of its own for 32 x 32 images, milder than ImageNet-C's; the severities here are ImageNet-C's at any size.
- motion_blur and snow blur by shifting the image instead of ImageMagick's filter, zoom_blur and snow crop from the top left instead of
  the centre, and frost draws from all six textures where the authors' code draws from five.

The package draws most of its random numbers from numpy's global state. `corrupted` runs its functions with a numpy whose `random` is
private to the call, so that threads do not race and the caller's state stays as it was. Threads, not processes, share the work: a pool of
processes would run the user's script again, and pixels are made once, for the cache. On the average a
32 x 32 image takes 1 to 2 ms and one of 500 x 375 some 50 ms (one core); the first glass_blur of a process compiles for some seconds.
"""

import hashlib
import importlib
import importlib.metadata
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
from PIL import Image

from autoft.errors import DataError

CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
PACKAGE = "imagecorruptions-imaug"
# The corruptions are defined from this side upwards; a smaller image is enlarged first and stays so, as the model's resize follows.
MIN_SIDE = 32

# These two do not use numpy's global state: they take a seed.
_TAKES_SEED = ("glass_blur", "impulse_noise")
# What can change the pixels: libraries the package computes with. Pillow is in the key of every cached set.
_COMPUTES_WITH = (PACKAGE, "numpy", "scipy", "scikit-image", "opencv-python", "opencv-python-headless", "numba")


def check_library(field: str) -> None:
    """Raises DataError if the corruption package is not installed, or if OpenCV, the part of it that needs system libraries, does not load."""
    if not _version(PACKAGE):
        raise DataError(f"{field}.corruptions: needs the package {PACKAGE}, which is not installed: pip install {PACKAGE}")
    _import("cv2", field)


def library_versions() -> dict[str, str]:
    """Version of the corruption package and of what it computes with, by name; "" for what is not installed under that name."""
    return {name: _version(name) for name in _COMPUTES_WITH}


def _import(module: str, field: str) -> ModuleType:
    """A module of the corruption package. The whole of it takes a second to load, so only who corrupts an image does."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        hint = "; without a display, install opencv-python-headless in place of opencv-python" if "lib" in str(error) else ""
        raise DataError(f"{field}.corruptions: {PACKAGE} cannot be loaded: {error}{hint}") from None


def chosen_corruption(digest: bytes) -> str:
    """The one corruption of an image, by the first 8 bytes of the SHA-256 of its raw bytes: those in `ImageSet.example_hashes`."""
    return CORRUPTIONS[int.from_bytes(digest[:8]) % len(CORRUPTIONS)]


def corrupted(image: Image.Image, digest: bytes, corruption: str, severity: int, field: str = "data") -> Image.Image:
    """An RGB image under a corruption, the same in every process and thread.

    Args:
        digest: SHA-256 of the image's raw bytes, which seeds the random corruptions together with their name and severity.
        severity: 1 to 5.
        field: dotted name of the set, for messages.

    Returns:
        RGB image of the same size; enlarged to a short side of `MIN_SIDE` if it was smaller.

    Raises:
        DataError: the package cannot be loaded.
    """
    seed = hashlib.sha256(digest + f"{corruption} {severity}".encode()).digest()
    library = _import("imagecorruptions.corruptions", field)
    functions = _with_random(library, np.random.RandomState(np.frombuffer(seed, dtype="<u4")))
    options = {"seed": int.from_bytes(seed[:4])} if corruption in _TAKES_SEED else {}
    pixels = np.asarray(functions[corruption](_enlarged(image), severity, **options))
    return Image.fromarray(pixels.astype(np.uint8))


class _Numpy:
    """numpy with another `random`."""

    def __init__(self, random: np.random.RandomState) -> None:
        self.random = random

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def _with_random(library: ModuleType, random: np.random.RandomState) -> dict[str, Any]:
    """The library's functions, copied to see `random` as np.random; compiled ones stay as they are."""
    names: dict[str, Any] = {**vars(library), "np": _Numpy(random)}
    for name, value in vars(library).items():
        if isinstance(value, FunctionType) and value.__module__ == library.__name__:
            names[name] = FunctionType(value.__code__, names, name, value.__defaults__, value.__closure__)
    return names


def _enlarged(image: Image.Image) -> Image.Image:
    short = min(image.size)
    if short >= MIN_SIDE:
        return image
    return image.resize((round(image.width * MIN_SIDE / short), round(image.height * MIN_SIDE / short)), Image.Resampling.BICUBIC)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
