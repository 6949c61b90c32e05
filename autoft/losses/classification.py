"""Loss terms on the classifier's logits. All compute in float32 or wider, whatever autocast made of the logits."""

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """mean_i -log softmax(z_i)[y_i]; the reference term, whose weight AutoFT fixes at 1 (arXiv 2401.10220).

    logits (batch, classes), labels (batch,) int64; returns a scalar. With `label_smoothing` s the target is 1 - s on the label plus s
    spread evenly over all classes (Szegedy et al. 2016, arXiv 1512.00567).
    """
    return functional.cross_entropy(at_least_float32(logits), labels, label_smoothing=label_smoothing)


def hinge(logits: Tensor, labels: Tensor) -> Tensor:
    """mean_i sum_{c != y_i} max(0, z_ic - z_iy + 1), on raw logits with margin 1.

    logits (batch, classes), labels (batch,) int64; returns a scalar.

    The sum over classes (Weston and Watkins 1999) is what AutoFT's released code minimises, not the maximum over them (Crammer and
    Singer 2001). CLIP logits carry the factor exp(logit_scale), about 100, so margin 1 is a small one.
    """
    column = labels[:, None]
    logits = at_least_float32(logits)
    violations = (logits - logits.gather(1, column) + 1).relu()
    return violations.scatter(1, column, 0.0).sum(dim=1).mean()


def entropy(logits: Tensor) -> Tensor:
    """mean_i H(softmax(z_i)) in nats; minimised, so it makes predictions confident (Grandvalet and Bengio 2004).

    logits (batch, classes); returns a scalar in [0, ln classes].
    """
    return _entropies(logits).mean()


def confidence_minimization(logits: Tensor, labels: Tensor) -> Tensor:
    """mean_i 1[argmax z_i != y_i] H(softmax(z_i)), in nats; the sum over misclassified examples is divided by the whole batch.

    logits (batch, classes), labels (batch,) int64; returns a scalar. The indicator carries no gradient.

    The sign is a trap. Data-driven confidence minimization (Choi et al. 2023, arXiv 2306.04974) makes a model *less* confident, yet
    this term, added with a positive weight, *lowers* the entropy of wrong predictions and so makes them *more* confident. That is
    what AutoFT's released code does and it is followed here, weights being positive; the paper's own formula was not available.
    """
    wrong = logits.argmax(dim=1) != labels
    return (_entropies(logits) * wrong).mean()


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32 if it is in half precision, else as it is."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _entropies(logits: Tensor) -> Tensor:
    log_probabilities = functional.log_softmax(at_least_float32(logits), dim=1)
    return -(log_probabilities.exp() * log_probabilities).sum(dim=1)
