"""Diagonal Fisher information of a workspace's model, for the Fisher-weighted merge."""

import torch
from torch import Tensor

from autoft.on_device import sent
from autoft.train_pass import train_batches
from autoft.workspace import Workspace

BATCHES, BATCH_SIZE = 64, 32  # ours: a batch is one draw of the estimate, so many small ones


def diagonal_fisher(workspace: Workspace, batches: int = BATCHES, batch_size: int = BATCH_SIZE, seed: int = 0) -> dict[str, Tensor]:
    """Mean squared gradient of an image's log likelihood at the model's present weights, fp32, by parameter name.

    Labels are drawn from the model's own predictions, not taken from the data, for two reasons. With true labels this would be the
    empirical Fisher, which vanishes where the model fits TRAIN, as a fine-tuned model does, and is no curvature elsewhere (Kunstner
    et al. 2019, arXiv 1905.12558). And gradients for drawn labels have mean zero and are independent, so a batch's summed gradient
    squared has the expectation of the sum of its images' squares: one backward pass a batch is unbiased, as in Sophia's
    Gauss-Newton-Bartlett estimator (Liu et al. 2023, arXiv 2305.14342).

    The model is in evaluation mode, also afterwards; its gradients and `requires_grad` stay as they were. Parameters the logits do
    not depend on, such as the text tower's, are left out. The same seed draws the same images and labels.

    Args:
        batches: how many, fewer if TRAIN has fewer.
        batch_size: images of each.
    """
    model = workspace.model.eval()
    named = dict(model.named_parameters())
    wanted = {name: parameter.requires_grad for name, parameter in named.items()}
    rng = torch.Generator().manual_seed(seed)
    squares: dict[str, Tensor] = {}
    seen = 0
    try:
        model.requires_grad_(True)
        for batch in train_batches(workspace, batches * batch_size, batch_size, seed):
            for name, gradient in zip(named, _gradients(workspace, batch, list(named.values()), rng), strict=True):
                if gradient is not None:
                    squares[name] = squares[name].addcmul_(gradient, gradient) if name in squares else gradient.square()
            seen += len(batch)
    finally:
        for name, parameter in named.items():
            parameter.requires_grad_(wanted[name])
    return {name: total / seen for name, total in squares.items()}


def _gradients(workspace: Workspace, batch: Tensor, parameters: list[torch.nn.Parameter], rng: torch.Generator) -> tuple[Tensor | None, ...]:
    """The gradient of the batch's summed log likelihood of labels drawn from the predictions."""
    with torch.enable_grad():
        with workspace.autocast():
            logits = workspace.model(batch).float()
        log_likelihood = logits.log_softmax(dim=1)
        labels = draw_labels(log_likelihood.detach().exp(), rng)
        total = log_likelihood.gather(1, labels[:, None]).sum()
        return torch.autograd.grad(total, parameters, allow_unused=True)


def draw_labels(probabilities: Tensor, rng: torch.Generator) -> Tensor:
    """One label for each row of (n, classes) probabilities, (n,) int64 on their device; `rng` is on the CPU."""
    below = sent(torch.rand(len(probabilities), 1, generator=rng), probabilities.device)
    return (probabilities.cumsum(dim=1) <= below).sum(dim=1).clamp_(max=probabilities.shape[1] - 1)
