"""Decoding, and equality with open_clip's own evaluation transform."""

import io
import itertools
import struct
import zlib
from pathlib import Path

import numpy as np
import open_clip
import pytest
from PIL import Image

from autoft.data import PixelSpec, read_image
from autoft.data.pixels import decode_image, square
from autoft.errors import DataError
from tests.data.make import encoded, picture


def open_clip_pixels(image: Image.Image, spec: PixelSpec) -> np.ndarray:
    """What open_clip's transform hands to ToTensor."""
    transform = open_clip.image_transform(spec.size, is_train=False, resize_mode=spec.resize_mode, interpolation=spec.interpolation)
    for step in transform.transforms[:-2]:
        image = step(image)
    return np.asarray(image)


SPECS = [PixelSpec(size, interpolation, mode) for size, interpolation, mode in itertools.product((64, 33), ("bicubic", "bilinear"), ("shortest", "longest", "squash"))]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.size}-{s.interpolation}-{s.resize_mode}")
def test_evaluation_pixels_are_open_clips_on_photographs_of_any_shape(shared: Path, spec: PixelSpec) -> None:
    photos = sorted((shared / "data" / "pacs" / "photo" / "test").rglob("*.jpg"))[::15]
    assert len(photos) >= 18
    sizes = itertools.cycle([(96, 96), (96, 41), (37, 96), (65, 64), (64, 64), (23, 20), (13, 90), (67, 64), (64, 67)])
    for path, size in zip(photos, sizes, strict=False):
        crop = Image.open(path).convert("RGB").crop((0, 0, *size))
        assert np.array_equal(square(crop, spec), open_clip_pixels(crop, spec)), (path, size)


def test_margin_pixels_are_evaluation_pixels_of_a_larger_model() -> None:
    image = picture(3, 200, 130)
    with_margin = square(image, PixelSpec(50, "bicubic", margin=1.25))
    assert with_margin.shape == (63, 63, 3)
    assert np.array_equal(with_margin, open_clip_pixels(image, PixelSpec(63, "bicubic")))


def test_read_image_is_the_whole_way(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(encoded(picture(1, 90, 60), "JPEG"))
    spec = PixelSpec(32, "bicubic")
    assert np.array_equal(read_image(path, spec), open_clip_pixels(Image.open(path).convert("RGB"), spec))
    with pytest.raises(DataError, match=r"none\.png"):
        read_image(tmp_path / "none.png", spec)


def decode(raw: bytes) -> Image.Image:
    return decode_image(raw, "data.val_ood", "dog/7.png")


@pytest.mark.parametrize(("kind", "tolerance"), [("PNG", 0), ("BMP", 0), ("WEBP", 12), ("JPEG", 12), ("TIFF", 0)])
def test_formats(kind: str, tolerance: int) -> None:
    smooth = picture(0, 64, 48)
    difference = np.asarray(decode(encoded(smooth, kind))).astype(int) - np.asarray(smooth)
    assert abs(difference).mean() <= tolerance


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
def test_modes_become_rgb_with_the_colours_they_had(mode: str) -> None:
    ramp = Image.fromarray(np.linspace(0, 255, 12 * 10).reshape(10, 12).astype(np.uint8)).convert(mode)
    image = decode(encoded(ramp, "TIFF" if mode == "CMYK" else "PNG"))
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(ramp.convert("RGB")))


def test_cmyk_photographs_keep_their_colours() -> None:
    red = Image.new("RGB", (16, 16), (220, 30, 40))
    image = np.asarray(decode(encoded(red.convert("CMYK"), "JPEG", quality=95))).astype(int)
    assert abs(image - [220, 30, 40]).max() < 12


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    levels = (np.arange(120).reshape(10, 12) * 546).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        image = np.asarray(decode(encoded(Image.fromarray(levels), kind)))
        assert np.array_equal(image, np.repeat((levels >> 8)[..., None], 3, axis=2))


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(DataError, match=r"data\.val_ood: image dog/7\.png .*mode F"):
        decode(encoded(Image.fromarray(np.full((4, 4), 0.5, np.float32)), "TIFF"))


def test_animations_give_their_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    for kind in ("GIF", "WEBP", "PNG"):
        raw = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {}))
        assert getattr(Image.open(io.BytesIO(raw)), "n_frames", 1) == 2
        assert np.asarray(decode(raw))[4, 4].tolist() == [255, 0, 0]


def bomb(width: int, height: int) -> bytes:
    """A PNG header that promises more than any photograph has."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (chunk, data, b"IEND")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"<html>404</html>", "is not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),
        (encoded(picture(0, 90, 80))[:-400], "corrupt or truncated"),
        (encoded(picture(0, 90, 80), "JPEG")[:-400], "corrupt or truncated"),
        (encoded(picture(0, 90, 80), "WEBP")[:-100], "(corrupt or truncated|not an image)"),
        (encoded(picture(0, 90, 80), "BMP")[:-400], "corrupt or truncated"),
        (bomb(10_000, 10_000), "has 10000 x 10000 pixels, more than the limit"),
        (bomb(30_000, 30_000), "(exceeds limit|more than the limit)"),
        (bomb(2, 4_000), "one side is over"),
    ],
)
def test_bad_images_are_named(raw: bytes, problem: str) -> None:
    with pytest.raises(DataError, match=rf"data\.val_ood: .*dog/7\.png.*{problem}"):
        decode(raw)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_any_damage_is_a_data_error(kind: str) -> None:
    """Whatever bytes are flipped or cut, the answer is an image or a DataError."""
    whole = encoded(picture(5, 40, 30), kind)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        raw = bytearray(whole[: rng.integers(1, len(whole))] if rng.random() < 0.5 else whole)
        for _ in range(rng.integers(0, 6)):
            raw[rng.integers(len(raw))] = rng.integers(256)
        try:
            decode(bytes(raw))
        except DataError:
            refused += 1
    assert refused > 50
