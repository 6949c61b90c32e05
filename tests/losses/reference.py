"""The loss terms once more, in float64 and plain loops, from their definitions alone; and small steps to try them on."""

import math
from typing import Any

import numpy as np
import torch

from autoft.losses import StepOutputs

Array = np.ndarray[Any, Any]


def _softmax(row: Array) -> list[float]:
    top = max(row)
    exponentials = [math.exp(value - top) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def _entropy(row: Array) -> float:
    return -sum(p * math.log(p) for p in _softmax(row) if p > 0)


def _log_loss(row: Array, label: int) -> float:
    top = max(row)
    return float(math.log(sum(math.exp(value - top) for value in row)) + top - row[label])


def cross_entropy(logits: Array, labels: Array) -> float:
    return sum(_log_loss(row, label) for row, label in zip(logits, labels, strict=True)) / len(labels)


def hinge(logits: Array, labels: Array) -> float:
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        for other in range(len(row)):
            if other != label:
                total += max(0.0, row[other] - row[label] + 1.0)
    return total / len(labels)


def entropy(logits: Array) -> float:
    return sum(_entropy(row) for row in logits) / len(logits)


def confidence_minimization(logits: Array, labels: Array) -> float:
    wrong = [row for row, label in zip(logits, labels, strict=True) if list(row).index(max(row)) != label]
    return sum(_entropy(row) for row in wrong) / len(labels)


def contrastive(images: Array, texts: Array, scale: float) -> float:
    """`texts` has one row an example, duplicates written out."""
    matrix = np.array([[scale * sum(a * b for a, b in zip(image, text, strict=True)) for text in texts] for image in images])
    diagonal = np.arange(len(images))
    return (cross_entropy(matrix, diagonal) + cross_entropy(matrix.T, diagonal)) / 2


def norm(parameters: list[Array], start: list[Array] | None, order: int) -> float:
    total, entries = 0.0, 0
    for index, theta in enumerate(parameters):
        origin = np.zeros_like(theta) if start is None else start[index]
        for a, b in zip(theta.ravel(), origin.ravel(), strict=True):
            total += abs(float(a) - float(b)) ** order
            entries += 1
    return total / entries


def random_step(seed: int, batch: int = 7, classes: int = 5, dim: int = 6, texts: int = 4, dtype: torch.dtype = torch.float64) -> StepOutputs:
    """A step's outputs with random values; every text is used if there are enough examples."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)

    start = [normal(3, 4), normal(5), normal(2, 3, 2), normal()]
    index = torch.arange(batch)[torch.randperm(batch, generator=rng)] % texts
    return StepOutputs(
        logits=3 * normal(batch, classes),
        labels=torch.randint(classes, (batch,), generator=rng),
        image_features=torch.nn.functional.normalize(normal(batch, dim), dim=1),
        text_features=torch.nn.functional.normalize(normal(texts, dim), dim=1),
        text_index=index,
        logit_scale=torch.tensor(7.0, dtype=dtype),
        parameters=[value + 0.3 * normal(*value.shape) for value in start],
        anchor=start,
    )


def reference_value(name: str, outputs: StepOutputs) -> float:
    """What the term `name` should be."""
    logits, labels = outputs.logits.double().numpy(), outputs.labels.numpy()
    if name == "contrastive":
        assert outputs.text_features is not None
        assert outputs.text_index is not None
        assert outputs.logit_scale is not None
        texts = outputs.text_features.double().numpy()[outputs.text_index.numpy()]
        return contrastive(outputs.image_features.double().numpy(), texts, float(outputs.logit_scale))
    if name == "entropy":
        return entropy(logits)
    if name in ("cross_entropy", "hinge", "confidence_minimization"):
        return float({"cross_entropy": cross_entropy, "hinge": hinge, "confidence_minimization": confidence_minimization}[name](logits, labels))
    parameters = [theta.detach().double().numpy() for theta in outputs.parameters]
    anchor = [start.double().numpy() for start in outputs.anchor]
    return norm(parameters, anchor if name.endswith("init") else None, 1 if name.startswith("l1") else 2)
