"""TRAIN as evaluation would see it: for what is measured on TRAIN, not trained."""

from collections.abc import Iterator

import torch
from torch import Tensor

from autoft.data.transforms import eval_transform, resized
from autoft.workspace import Workspace


def train_batches(workspace: Workspace, images: int, batch_size: int, seed: int = 0) -> Iterator[Tensor]:
    """Batches of model inputs, (batch, 3, size, size), of different images of TRAIN without augmentation.

    An image is the whole square that evaluation would show, resized from the larger one TRAIN is kept in; the order is drawn from
    `seed`, since TRAIN may be sorted by class. All batches are of one size; TRAIN's incomplete last one is left out.

    Args:
        images: how many to go through at least, rounded up to whole batches; more than TRAIN has: all of TRAIN.
        batch_size: of each batch, at most TRAIN's size.
    """
    total = len(workspace.train)
    size = min(batch_size, total)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    pixels = workspace.loaded.preprocess
    for batch in range(min(-(-images // size), total // size)):
        squares = workspace.train.take(order[batch * size : (batch + 1) * size])
        yield eval_transform(resized(squares, pixels.size, pixels.interpolation), pixels.mean, pixels.std)
