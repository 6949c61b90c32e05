"""The two loss terms of Core-tuning (Zhang et al. 2021, arXiv 2102.06605), over one set of mixtures.

Reconstructed for CLIP: the paper fine-tunes a network with a linear classifier and a projector of two layers for the contrastive term.
Here the head is the classifier, and the image embedding, which CLIP's pre-training has already contrasted, stands for the projector's
output. Unlike in the released code the original features are not detached, so the backbone learns from them too.
"""

import torch
from torch import Tensor
from torch.nn import functional

from autoft.losses.classification import at_least_float32
from autoft.losses.mixtures import Mixtures, normalised_rows

TEMPERATURE = 0.07  # the published one


def feature_mixup(logits: Tensor, labels: Tensor, mixtures: Mixtures) -> Tensor:
    """Soft-label cross-entropy of the head on mixed features, mean over the mixtures that there are.

    The head is linear, so a mixture's logits are the mixture of its examples' logits, and its loss that of either label, mixed. The
    released code's mean is over the original features too: (cross_entropy + 2 feature_mixup) / 3, where every mixture is there.

    logits (batch, classes), labels (batch,) int64; returns a scalar.
    """
    log_probabilities = functional.log_softmax(mixtures.of(at_least_float32(logits)), dim=1)
    first, second = (log_probabilities.gather(1, labels[side][:, None]).squeeze(1) for side in (mixtures.first, mixtures.second))
    losses = -torch.lerp(first, second, mixtures.share.to(first.dtype))
    return (losses * mixtures.valid).sum() / mixtures.valid.sum()


def focal_contrastive(image_features: Tensor, labels: Tensor, mixtures: Mixtures) -> Tensor:
    """Supervised contrastive loss over features and mixtures, with focal weights: mean_i mean_{j in P(i)} -(1 - p_ij) log p_ij.

    p_i is the softmax of similarity / 0.07 over all rows but i. P(i) are the other rows with exactly i's label, a mixture's being two
    classes and their shares (many negative mixtures have the share 0.8); rows without any are left out. The weight 1 - p_ij carries
    gradients, as in the released code.

    The inner mean is over P(i). The released code divides by the number of all rows instead, which makes its term smaller by
    |P(i)| / (3 batch), about 1 / (3 classes) with balanced classes; its weight of 0.1 with 10 classes is about 0.003 here.

    image_features (batch, dim), L2-normalised; labels (batch,) int64; returns a scalar.
    """
    with torch.autocast(image_features.device.type, enabled=False):
        rows = normalised_rows(image_features, mixtures)
        present = torch.cat([torch.ones_like(labels, dtype=torch.bool), mixtures.valid])
        others = present[None, :] & ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        log_p = functional.log_softmax((rows @ rows.T / TEMPERATURE).masked_fill(~others, -torch.inf), dim=1)
        positives = _same_label(labels, mixtures) & others & present[:, None]
        log_p = log_p.masked_fill(~positives, 0.0)  # so that nothing infinite is multiplied by nothing
        count = positives.sum(dim=1)
        losses = ((log_p.exp() - 1) * log_p).sum(dim=1) / count.clamp(min=1)
        return losses.sum() / (count > 0).sum().clamp(min=1)


def _same_label(labels: Tensor, mixtures: Mixtures) -> Tensor:
    """(3 batch, 3 batch) bool: which rows have the same soft label. Compared as they are: hashed, many classes would collide."""
    one, two, share = labels[mixtures.first], labels[mixtures.second], mixtures.share
    low = torch.cat([labels, torch.minimum(one, two)])
    high = torch.cat([labels, torch.maximum(one, two)])
    of_high = torch.cat([torch.ones_like(share[: len(labels)]), torch.where(one == two, 1.0, torch.where(one < two, share, 1 - share))])
    return (low[:, None] == low) & (high[:, None] == high) & (of_high[:, None] == of_high)
