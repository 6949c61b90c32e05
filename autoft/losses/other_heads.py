"""Loss terms of other heads than the one that is fine-tuned: the frozen zero-shot one, and that of core-feature descriptions."""

import torch
from torch import Tensor
from torch.nn import functional

from autoft.losses.classification import at_least_float32


def margin_cross_entropy(image_features: Tensor, labels: Tensor, head: Tensor, margin: float) -> Tensor:
    """Cross-entropy of the zero-shot head on f - margin t_y, t_y the label's text embedding (CLIPood, Shu et al. 2023, arXiv 2302.00864).

    Classes whose texts are unlike the label's get a head start of margin * scale * (1 - <t_y, t_k>), so they must be pushed further away.

    image_features (batch, dim), L2-normalised; labels (batch,) int64; head (classes, dim): L2-normalised text embeddings times one
    scale. Returns a scalar.
    """
    with torch.autocast(image_features.device.type, enabled=False):
        head = at_least_float32(head)
        texts = functional.normalize(head[labels], dim=1)
        return functional.cross_entropy((at_least_float32(image_features) - margin * texts) @ head.T, labels)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """mean_i -sum_k targets_ik log softmax(logits_i)_k; both (batch, classes), targets are probabilities. Returns a scalar."""
    logits = at_least_float32(logits)
    return functional.cross_entropy(logits, targets.to(logits.dtype))
