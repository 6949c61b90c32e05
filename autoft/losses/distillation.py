"""Loss terms that keep the image tower near the frozen one in what it computes. All are 0 where the two compute the same.

In training mode a tower with BatchNorm or dropout does not compute what the frozen one does, which is in evaluation mode, even with the
same weights; there the terms start above 0.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from autoft.losses.classification import at_least_float32


def ldifs(slices: Sequence[Tensor], teacher_slices: Sequence[Tensor]) -> Tensor:
    """Squared distance of normalised intermediate features, mean over slices and examples (Mukhoti et al., arXiv 2308.13320).

    Each example's slice is flattened and then normalised. The released code normalises over the second axis, which of a ViT's features
    is that of the tokens.

    slices, teacher_slices: of (batch, ...), of equal shapes; returns a scalar in [0, 4].
    """
    pairs = zip(slices, teacher_slices, strict=True)
    return torch.stack([(_unit(own) - _unit(frozen)).square().sum(dim=1).mean() for own, frozen in pairs]).mean()


def car_ft(image_features: Tensor, teacher_features: Tensor, contexts: Tensor, scale: Tensor) -> Tensor:
    """mean_i KL(p0_i || p_i), p the distribution over contexts, softmax(scale <f, c>) (Mao et al. 2024, arXiv 2211.16175).

    image_features, teacher_features (batch, dim), contexts (contexts, dim), all L2-normalised; scale: scalar. Returns a scalar.
    """
    with torch.autocast(image_features.device.type, enabled=False):
        own, frozen = (
            functional.log_softmax(scale * at_least_float32(features) @ contexts.T, dim=1) for features in (image_features, teacher_features)
        )
        return functional.kl_div(own, frozen, reduction="batchmean", log_target=True)


def lipsum(image_features: Tensor, teacher_features: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """mean_i (1 / 2K) sum_k scale^2 (<f_i, t_k> - <f0_i, t_k>)^2 over K random texts (Nam et al. 2024, arXiv 2404.00860).

    image_features, teacher_features (batch, dim), texts (K, dim), all L2-normalised; scale: scalar. Returns a scalar.
    """
    with torch.autocast(image_features.device.type, enabled=False):
        moved = at_least_float32(image_features) - at_least_float32(teacher_features)
        return (scale * moved @ texts.T).square().mean() / 2


def _unit(features: Tensor) -> Tensor:
    return functional.normalize(at_least_float32(features).flatten(1), dim=1)
