"""Which features of a batch Core-tuning mixes (Zhang et al. 2021, arXiv 2102.06605), drawn once a step for both of its terms."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from autoft.losses.classification import at_least_float32
from autoft.on_device import sent

NEGATIVE_FLOOR = 0.8  # a negative mixture has at least this share of the other example; the released code's


@dataclass(frozen=True)
class Mixtures:
    """Two mixtures an example: rows [0, batch) are the semi-hard negatives, rows [batch, 2 batch) the hard positives.

    first, second: (2 batch,) int64, the two examples of each mixture.
    share: (2 batch,) in [0, 1], that of `second`.
    valid: (2 batch,) bool; where it is false there is no such mixture, and the other values mean nothing.
    """

    first: Tensor
    second: Tensor
    share: Tensor
    valid: Tensor

    def of(self, values: Tensor) -> Tensor:
        """Mixes the rows of `values`, (batch, n), to (2 batch, n)."""
        return torch.lerp(values[self.first], values[self.second], self.share[:, None].to(values.dtype))


def hard_pairs(image_features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For every example the least similar one of its own class, itself excepted, and the most similar one of another class.

    What may not be chosen counts as infinitely far, respectively near. The released code writes 0 there, so that with features that
    are never negative the least similar "positive" is hardly ever one.

    Args:
        image_features: (batch, dim), L2-normalised. labels: (batch,) int64.

    Returns:
        positive, negative (batch,) int64; and whether an example has both, (batch,) bool. Where it has not, an index means nothing.
    """
    with torch.no_grad(), torch.autocast(image_features.device.type, enabled=False):
        features = at_least_float32(image_features)
        similarity = features @ features.T
        same = labels[:, None] == labels[None, :]
        partner = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        positive = similarity.masked_fill(~partner, torch.inf).argmin(dim=1)
        negative = similarity.masked_fill(same, -torch.inf).argmax(dim=1)
        return positive, negative, partner.any(dim=1) & ~same.all(dim=1)


def draw_mixtures(image_features: Tensor, labels: Tensor, rng: torch.Generator) -> Mixtures:
    """A step's mixtures. Nothing waits for the device.

    Semi-hard negative: (1 - l) f_i + l f_j, j a random permutation of the batch, l ~ Beta(1, 1) raised to 0.8 where it is less. As in
    the released code j may be of i's class, or i. Hard positive: l f_p + (1 - l) f_n with `hard_pairs`, l ~ Beta(1, 1). Each example
    has its own l. Beta(1, 1), the published choice, is the uniform distribution.

    Args:
        image_features: (batch, dim), L2-normalised. labels: (batch,) int64.
        rng: on the CPU.
    """
    batch, device = len(labels), image_features.device
    other = sent(torch.randperm(batch, generator=rng), device)
    shares = sent(torch.rand(2, batch, generator=rng), device)
    positive, negative, both = hard_pairs(image_features, labels)
    itself = torch.arange(batch, device=device)
    return Mixtures(
        first=torch.cat([itself, positive]),
        second=torch.cat([other, negative]),
        share=torch.cat([shares[0].clamp(min=NEGATIVE_FLOOR), 1 - shares[1]]),
        valid=torch.cat([torch.ones_like(both), both]),
    )


def normalised_rows(image_features: Tensor, mixtures: Mixtures) -> Tensor:
    """(3 batch, dim): the features themselves, then their mixtures, all of length 1, in float32 or wider."""
    features = at_least_float32(image_features)
    return torch.cat([features, functional.normalize(mixtures.of(features), dim=1)])
