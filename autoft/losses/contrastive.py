"""The contrastive term: CLIP's own loss between images and the prompts of their classes."""

import torch
from torch import Tensor

from autoft.losses.classification import at_least_float32


def contrastive(image_features: Tensor, text_features: Tensor, text_index: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE over the batch, the FLYP objective (Goyal et al. 2023, arXiv 2212.00638).

    With I the image features, T = text_features[text_index] and s the scale: half of CE(s I T^t, arange) + CE(s T I^t, arange).
    Examples that share a text are negatives of each other, as in the released code of FLYP and of AutoFT, so with duplicates
    the loss has a floor above 0: where all texts are equal the image-to-text half is ln(batch) whatever the features are.

    Args:
        image_features: (batch, dim), L2-normalised.
        text_features: (texts, dim), L2-normalised, the batch's texts without duplicates. A row no example points to is ignored.
        text_index: (batch,) int64, the row of `text_features` that belongs to each example.
        logit_scale: scalar, exp() already taken.

    Returns:
        A scalar in float32 or wider; the products are not left to autocast.

    The (batch, batch) matrix is never formed: a text that n examples share is one column with ln n added under the logarithm.
    """
    with torch.autocast(image_features.device.type, enabled=False):
        images, texts = at_least_float32(image_features), at_least_float32(text_features)
        similarity = at_least_float32(logit_scale) * images @ texts.T  # (batch, texts)
        own = similarity.gather(1, text_index[:, None]).squeeze(1)
        copies = similarity.new_zeros(len(texts)).index_add(0, text_index, torch.ones_like(own))
        image_to_text = torch.logsumexp(similarity + copies.log(), dim=1) - own
        text_to_image = torch.logsumexp(similarity, dim=0)[text_index] - own
        return (image_to_text.mean() + text_to_image.mean()) / 2
