"""Pixels to model inputs, a whole batch at a time, on the device the pixels are on."""

import functools
import math

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from autoft.on_device import sent

# Draws until a crop fits inside the image, as in torchvision's RandomResizedCrop.
_ATTEMPTS = 10


def eval_transform(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Exactly torchvision's ToTensor and Normalize.

    Args:
        images: (batch, side, side, 3) uint8.
        mean, std: of the three channels, for pixels in [0, 1].

    Returns:
        (batch, 3, side, side) float32 on the same device, in channels-last memory format.
    """
    pixels = images.permute(0, 3, 1, 2).float()
    return pixels.div_(255).sub_(_channels(mean, images.device)).div_(_channels(std, images.device))


def resized(squares: Tensor, size: int, interpolation: str) -> Tensor:
    """(batch, side, side, 3) uint8 to (batch, size, size, 3) uint8 with antialiasing, as Pillow resizes images for evaluation."""
    if squares.shape[1] == size:
        return squares
    large = squares.permute(0, 3, 1, 2).float()
    small = interpolate(large, size=(size, size), mode=interpolation, align_corners=False, antialias=True)
    return small.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


class TrainTransform:
    """A random resized crop of each image, then ToTensor and Normalize.

    Crops have the distribution of torchvision's RandomResizedCrop on square images. Default scale: that of open_clip's training
    transform, used by FLYP and AutoFT too (0.9 to 1 of the area); default ratio: torchvision's.
    """

    def __init__(
        self,
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        scale: tuple[float, float] = (0.9, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        self._size, self._mean, self._std, self._scale, self._ratio = size, mean, std, scale, ratio

    def __call__(self, images: Tensor, rng: torch.Generator, batch: int | None = None, rows: slice = slice(None)) -> Tensor:
        """Augment a batch, or the share of it that is here.

        Args:
            images: (batch, S, S, 3) uint8 on any device.
            rng: a generator on the CPU; the crops depend on its state, the batch size and S only.
            batch, rows: the size of the batch that `images` are these rows of; None: they are all of it.

        Returns:
            (batch, 3, size, size) float32 on the same device, in channels-last memory format.
        """
        side = images.shape[1]
        grid = sampling_grid(self.crops(batch or len(images), side, rng)[rows], side, self._size, images.device)
        pixels = images.permute(0, 3, 1, 2).float()
        # Bilinear: bicubic sampling takes five times as long on a CPU (64 images, 80 to 64 pixels, one thread: 5 ms against 1 ms).
        crops = grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
        crops = crops.sub_(255 * _channels(self._mean, images.device)).div_(255 * _channels(self._std, images.device))
        return crops.contiguous(memory_format=torch.channels_last)

    def crops(self, batch: int, side: int, rng: torch.Generator) -> Tensor:
        """Random crops in pixels, (batch, 4) float64 on the CPU: top, left, height, width."""
        area = torch.rand(_ATTEMPTS, batch, generator=rng, dtype=torch.float64)
        shape = torch.rand(_ATTEMPTS, batch, generator=rng, dtype=torch.float64)
        place = torch.rand(2, batch, generator=rng, dtype=torch.float64)
        area = side * side * (self._scale[0] + (self._scale[1] - self._scale[0]) * area)
        low, high = math.log(self._ratio[0]), math.log(self._ratio[1])
        ratio = torch.exp(low + (high - low) * shape)
        sizes = torch.stack([(area / ratio).sqrt().round(), (area * ratio).sqrt().round()])  # (height or width, attempt, batch)
        fits = ((sizes > 0) & (sizes <= side)).all(dim=0)
        first = fits.to(torch.uint8).argmax(dim=0)
        chosen = sizes[:, first, torch.arange(batch)]
        corner = (place * (side - chosen + 1)).floor()
        return torch.where(fits.any(dim=0), torch.cat([corner, chosen]), self._fallback(side)).T

    def _fallback(self, side: int) -> Tensor:
        """The central crop where no draw fits, (4, 1) float64: the ratio nearest to the image's own, 1."""
        nearest = min(max(1.0, self._ratio[0]), self._ratio[1])
        height, width = round(side / max(1.0, nearest)), round(side * min(1.0, nearest))
        return torch.tensor([[(side - height) // 2], [(side - width) // 2], [height], [width]], dtype=torch.float64)


def sampling_grid(crops: Tensor, side: int, size: int, device: torch.device) -> Tensor:
    """Where `grid_sample` with align_corners=False looks to resize crops (batch, 4) of a square of `side` pixels: (batch, size, size, 2).

    Written out rather than by `affine_grid`, whose matrix product takes as long as the sampling itself on a CPU.
    """
    steps = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    corner, extent = crops[:, :2, None], crops[:, 2:, None]
    # (batch, vertical or horizontal, size), image edges at -1 and 1
    centres = sent(((corner + extent * steps) * (2 / side) - 1).float(), device)
    grid = torch.empty(len(crops), size, size, 2, device=device)
    grid[..., 0] = centres[:, 1, None, :]
    grid[..., 1] = centres[:, 0, :, None]
    return grid


@functools.lru_cache(maxsize=32)
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).reshape(1, -1, 1, 1)
