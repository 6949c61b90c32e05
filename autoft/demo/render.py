"""Pictures of characters: glyphs of the fonts that come with matplotlib, drawn in a style that is sampled anew for each picture.

A glyph is drawn once, large; every picture is a warp of it (affine and elastic), inked onto a background, blurred and noised.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

IMAGE_SIZE = 32  # pixels, both sides
GLYPH_SIZE = 64  # pixels, both sides of a glyph before it is warped
GLYPH_EXTENT = 48  # pixels, longer side of the character inside it

FACES = (  # every text face of matplotlib with upright digits and Latin letters
    *(f"DejaVu{family}{style}" for family in ("Sans", "SansMono") for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *(f"cm{style}10" for style in ("r", "b", "ss", "ti", "tt")),
)

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Style:
    """Ranges each picture's style is drawn from, uniformly; lengths are in pixels, grey levels in [0, 1]."""

    rotation_degrees: Range = (-8, 8)
    height: Range = (18, 26)
    aspect: Range = (0.9, 1.1)
    shear: Range = (-0.1, 0.1)
    shift: Range = (-2, 2)
    elastic: Range = (0, 0)
    thickness: Range = (0, 0)  # of the glyph at its drawn size: negative thins strokes, positive thickens them
    wear: Range = (0, 0)  # share of the picture where ink is missing, in blotches of a few pixels
    blur: Range = (0, 0.5)
    noise: Range = (0, 0.05)
    background: Range = (0.0, 0.3)
    contrast: Range = (0.5, 0.7)  # ink is that much brighter than the background
    clutter: Range = (0, 0)  # amplitude of smooth blotches and stripes on the background
    inverted: float = 0.0  # share of pictures whose grey levels are exchanged: dark ink on a light background


@lru_cache(maxsize=4096)
def glyph(face: str, character: str) -> NDArray[np.uint8]:
    """A character in the middle of a (GLYPH_SIZE, GLYPH_SIZE) picture, its longer side GLYPH_EXTENT, 255 where there is ink."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"
    font = ImageFont.truetype(str(path), 200, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = font.getbbox(character)
    ink = Image.new("L", (int(right - left), int(bottom - top)), 0)
    ImageDraw.Draw(ink).text((-left, -top), character, font=font, fill=255)
    factor = GLYPH_EXTENT / max(ink.size)
    ink = ink.resize((max(1, round(ink.width * factor)), max(1, round(ink.height * factor))), Image.Resampling.BOX)
    canvas = Image.new("L", (GLYPH_SIZE, GLYPH_SIZE), 0)
    canvas.paste(ink, ((GLYPH_SIZE - ink.width) // 2, (GLYPH_SIZE - ink.height) // 2))
    return np.asarray(canvas, dtype=np.uint8)


def draw_glyphs(faces: Sequence[str], characters: Sequence[str], style: Style, rng: np.random.Generator) -> Tensor:
    """One picture for each pair of face and character, (n, IMAGE_SIZE, IMAGE_SIZE) grey levels in [0, 1]."""
    shapes = np.stack([glyph(face, character) for face, character in zip(faces, characters, strict=True)])
    return draw_shapes(torch.from_numpy(shapes).float() / 255, style, rng)


def draw_shapes(shapes: Tensor, style: Style, rng: np.random.Generator) -> Tensor:
    """Pictures of any inked shapes, (n, GLYPH_SIZE, GLYPH_SIZE) in [0, 1] to (n, IMAGE_SIZE, IMAGE_SIZE) in [0, 1]."""
    count = len(shapes)
    shapes = _thicken(shapes[:, None], _uniform(rng, style.thickness, count))
    ink = functional.grid_sample(shapes, _warp(style, count, rng), mode="bilinear", padding_mode="zeros", align_corners=False)
    return _develop(ink, style, rng)


def draw_pictures(ink: Tensor, style: Style, rng: np.random.Generator) -> Tensor:
    """Pictures whose ink is already in place, (n, IMAGE_SIZE, IMAGE_SIZE) in [0, 1]: only tones, blur and noise are sampled."""
    return _develop(ink[:, None], style, rng)


def to_bytes(pictures: Tensor) -> NDArray[np.uint8]:
    """Grey levels in [0, 1] as uint8."""
    levels: NDArray[np.uint8] = (pictures * 255).round().to(torch.uint8).numpy()
    return levels


def _uniform(rng: np.random.Generator, bounds: Range, count: int) -> Tensor:
    return torch.from_numpy(rng.uniform(*bounds, size=count).astype(np.float32))


def _thicken(shapes: Tensor, amount: Tensor) -> Tensor:
    """Grow (amount > 0) or shrink (amount < 0) strokes by up to two pixels of the glyph."""
    thick = functional.max_pool2d(shapes, 5, stride=1, padding=2)
    thin = -functional.max_pool2d(-shapes, 3, stride=1, padding=1)
    weight = (amount.abs() / 2).clamp(max=1)[:, None, None, None]
    return torch.lerp(shapes, torch.where(amount[:, None, None, None] > 0, thick, thin), weight)


def _warp(style: Style, count: int, rng: np.random.Generator) -> Tensor:
    """Sampling grids (n, IMAGE_SIZE, IMAGE_SIZE, 2) in the glyph's [-1, 1] coordinates."""
    angle = torch.deg2rad(_uniform(rng, style.rotation_degrees, count))
    aspect = _uniform(rng, style.aspect, count)
    shear = _uniform(rng, style.shear, count)
    # Picture pixels to glyph pixels: a character of GLYPH_EXTENT becomes `height` pixels long.
    scale = GLYPH_EXTENT / _uniform(rng, style.height, count) * IMAGE_SIZE / GLYPH_SIZE
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    linear = torch.stack([torch.stack([cos / aspect, sin / aspect + shear], -1), torch.stack([-sin, cos], -1)], -2)
    shift = torch.stack([_uniform(rng, style.shift, count), _uniform(rng, style.shift, count)], -1) * 2 / IMAGE_SIZE
    matrix = torch.cat([linear, -(linear @ shift[:, :, None])], -1)
    grid = functional.affine_grid(matrix, [count, 1, IMAGE_SIZE, IMAGE_SIZE], align_corners=False)
    if style.elastic[1] > 0:
        coarse = torch.from_numpy(rng.standard_normal((count, 2, 4, 4), dtype=np.float32))
        field = functional.interpolate(coarse, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", align_corners=True)
        amplitude = _uniform(rng, style.elastic, count) * 2 / IMAGE_SIZE
        grid = grid + (field * amplitude[:, None, None, None]).permute(0, 2, 3, 1)
    return grid


def _develop(ink: Tensor, style: Style, rng: np.random.Generator) -> Tensor:
    """Ink (n, 1, height, width) in [0, 1] to finished pictures (n, height, width)."""
    count = len(ink)
    background = _uniform(rng, style.background, count)[:, None, None, None]
    contrast = _uniform(rng, style.contrast, count)[:, None, None, None]
    if style.wear[1] > 0:
        ink = ink * _unworn(style, count, rng)
    ground = background + _clutter(style, count, rng) if style.clutter[1] > 0 else background
    pictures = torch.lerp(ground.expand_as(ink), (background + contrast).expand_as(ink), ink)
    inverted = torch.from_numpy(rng.random(count) < style.inverted)[:, None, None, None]
    pictures = torch.where(inverted, 1 - pictures, pictures)
    pictures = _blur(pictures, _uniform(rng, style.blur, count))
    noise = torch.from_numpy(rng.standard_normal(pictures.shape, dtype=np.float32))
    pictures = pictures + noise * _uniform(rng, style.noise, count)[:, None, None, None]
    return pictures.clamp(0, 1).squeeze(1)


def _clutter(style: Style, count: int, rng: np.random.Generator) -> Tensor:
    """Smooth blotches plus one stripe pattern a picture, (n, 1, IMAGE_SIZE, IMAGE_SIZE), roughly in [-1, 1] times the amplitude."""
    coarse = torch.from_numpy(rng.uniform(-1, 1, (count, 1, 6, 6)).astype(np.float32))
    blotches = functional.interpolate(coarse, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", align_corners=True)
    angle, phase = _uniform(rng, (0, np.pi), count), _uniform(rng, (0, 2 * np.pi), count)
    frequency = _uniform(rng, (0.3, 1.2), count)  # radians a pixel: periods of 5 to 21 pixels
    axis = torch.arange(IMAGE_SIZE, dtype=torch.float32)
    along = torch.cos(angle)[:, None, None] * axis[None, :, None] + torch.sin(angle)[:, None, None] * axis[None, None, :]
    stripes = torch.sin(along * frequency[:, None, None] + phase[:, None, None])[:, None]
    return (blotches + stripes) / 2 * _uniform(rng, style.clutter, count)[:, None, None, None]


def _unworn(style: Style, count: int, rng: np.random.Generator) -> Tensor:
    """1 where ink holds and 0 where it is missing, (n, 1, IMAGE_SIZE, IMAGE_SIZE), with edges a pixel wide."""
    coarse = torch.from_numpy(rng.standard_normal((count, 1, 10, 10), dtype=np.float32))
    field = functional.interpolate(coarse, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", align_corners=True)
    level = torch.sort(field.flatten(1), dim=1).values
    place = (_uniform(rng, style.wear, count) * (level.shape[1] - 1)).long()
    threshold = level.gather(1, place[:, None])[:, :, None, None]
    return torch.sigmoid((field - threshold) * 8)


def _blur(pictures: Tensor, sigma: Tensor) -> Tensor:
    """A Gaussian blur with each picture's own sigma, in pixels; 0 leaves it as it is."""
    count, _, height, width = pictures.shape
    offsets = torch.arange(-3, 4, dtype=torch.float32)
    kernels = torch.exp(-0.5 * (offsets[None] / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernels = kernels / kernels.sum(1, keepdim=True)
    rows = functional.pad(pictures.reshape(1, count, height, width), (3, 3, 3, 3), mode="replicate")
    rows = functional.conv2d(rows, kernels[:, None, :, None], groups=count)
    return functional.conv2d(rows, kernels[:, None, None, :], groups=count).reshape(count, 1, height, width)
