"""Batch transforms against torchvision's."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import transforms as tv

from autoft.data.transforms import TrainTransform, eval_transform, sampling_grid
from tests.data.make import picture

MEAN, STD = (0.48, 0.45, 0.40), (0.26, 0.25, 0.27)


def batch(n: int = 6, side: int = 40) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(picture(i, side, side)) for i in range(n)]))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_evaluation_is_to_tensor_and_normalize_bit_by_bit() -> None:
    images = batch()
    reference = tv.Compose([tv.ToTensor(), tv.Normalize(MEAN, STD)])
    expected = torch.stack([reference(image.numpy()) for image in images])
    before = images.clone()
    assert torch.equal(eval_transform(images, MEAN, STD), expected)
    assert torch.equal(images, before)


def test_full_crops_at_the_same_size_are_the_evaluation_pixels() -> None:
    images = batch()
    whole = TrainTransform(40, MEAN, STD, scale=(1.0, 1.0), ratio=(1.0, 1.0))(images, generator())
    torch.testing.assert_close(whole, eval_transform(images, MEAN, STD), rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [32, 64])
def test_full_crops_are_a_plain_resize(size: int) -> None:
    images = batch()
    whole = TrainTransform(size, MEAN, STD, scale=(1.0, 1.0), ratio=(1.0, 1.0))(images, generator())
    resized = torch.nn.functional.interpolate(eval_transform(images, MEAN, STD), size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(whole, resized, rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [24, 48])
def test_a_crop_is_a_resize_of_its_rectangle(size: int) -> None:
    """Away from the crop's edges, where a crop that was cut out first has no neighbours to look at."""
    images = batch(1)
    top, left, height, width = 5, 9, 30, 24
    grid = sampling_grid(torch.tensor([[top, left, height, width]], dtype=torch.float64), 40, size, torch.device("cpu"))
    pixels = images.permute(0, 3, 1, 2).float()
    sampled = torch.nn.functional.grid_sample(pixels, grid, align_corners=False, padding_mode="border")
    cut = pixels[:, :, top : top + height, left : left + width]
    resized = torch.nn.functional.interpolate(cut, size=size, mode="bilinear", align_corners=False)
    edge = math.ceil(size / 24)
    inner = (..., slice(edge, -edge), slice(edge, -edge))
    torch.testing.assert_close(sampled[inner], resized[inner], rtol=0, atol=2e-3)


def quantiles(values: Tensor) -> Tensor:
    return torch.quantile(values, torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64))


@pytest.mark.parametrize(("scale", "ratio"), [((0.9, 1.0), (3 / 4, 4 / 3)), ((0.08, 1.0), (3 / 4, 4 / 3)), ((0.9, 1.0), (0.1, 0.2)), ((0.9, 1.0), (3.0, 5.0)), ((0.5, 1.0), (0.3, 0.6))])
def test_crops_have_torchvisions_distribution(scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    n, side = 20_000, 80
    ours = TrainTransform(64, MEAN, STD, scale, ratio).crops(n, side, generator())
    torch.manual_seed(1)
    blank = torch.empty(3, side, side)
    theirs = torch.tensor([tv.RandomResizedCrop.get_params(blank, list(scale), list(ratio)) for _ in range(4_000)], dtype=torch.float64)
    assert ((ours[:, :2] >= 0) & (ours[:, :2] + ours[:, 2:] <= side)).all()
    assert torch.equal(ours, ours.round())
    for column in range(4):
        # 4,000 draws: a quantile is off by two pixels at most where the density is that of these scales
        torch.testing.assert_close(quantiles(ours[:, column]), quantiles(theirs[:, column]), rtol=0, atol=2.0)
    area, their_area = (c[:, 2] * c[:, 3] / side**2 for c in (ours, theirs))
    assert abs(area.mean() - their_area.mean()) < 4 * their_area.std() / math.sqrt(len(theirs))
    kept, their_kept = ((c[:, 2:] < side).all(dim=1).double().mean() for c in (ours, theirs))
    assert abs(kept - their_kept) < 0.04


def test_the_same_state_gives_the_same_batch_and_another_state_another() -> None:
    transform, images = TrainTransform(32, MEAN, STD), batch()
    first = transform(images, generator(1))
    assert torch.equal(first, transform(images, generator(1)))
    assert not torch.equal(first, transform(images, generator(2)))
    rng = generator(1)
    assert torch.equal(first, transform(images, rng))
    assert not torch.equal(first, transform(images, rng))


def test_samples_of_a_batch_get_crops_of_their_own() -> None:
    image = batch(1).expand(8, -1, -1, -1)
    crops = TrainTransform(32, MEAN, STD)(image, generator())
    assert len({crop.numpy().tobytes() for crop in crops}) > 4


def test_the_number_of_threads_changes_nothing() -> None:
    transform, images = TrainTransform(64, MEAN, STD), batch(64, 80)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(transform(images, generator()))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_outputs_are_channels_last_float32_and_inputs_untouched() -> None:
    images = batch()
    before = images.clone()
    for result in (TrainTransform(32, MEAN, STD)(images, generator()), eval_transform(images, MEAN, STD)):
        assert result.dtype == torch.float32
        assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)
