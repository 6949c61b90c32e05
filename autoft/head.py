"""The classifier head of a model whose text tower is tuned and whose head is not: rebuilt before it is scored."""

import torch

from autoft.models import zero_shot_head
from autoft.search_space import Hyperparameters
from autoft.workspace import Workspace

HEAD_TERMS = frozenset({"cross_entropy", "hinge", "entropy", "confidence_minimization"})  # those that read the logits


@torch.no_grad()
def refresh_head(workspace: Workspace, hyperparameters: Hyperparameters) -> None:
    """Rebuild the zero-shot head from the current text tower if no loss term trains the head, as FLYP does (Goyal et al. 2023).

    Otherwise the trained head stays. Leaves the model in evaluation mode.
    """
    if HEAD_TERMS & hyperparameters.loss_weights.keys():
        return
    model = workspace.model.eval()
    head = zero_shot_head(model.clip, workspace.loaded.tokenizer, workspace.data.classes.names, workspace.config.data.templates)
    model.head.weight.copy_(head.weight)
    model.head.bias.copy_(head.bias)
