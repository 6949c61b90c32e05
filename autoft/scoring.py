"""The model as it is scored and kept, which for some methods is not the model as it trains."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from autoft.batch_norm import reestimate_batch_norm
from autoft.finetune import Step
from autoft.models import copy_state, interpolate, zero_shot_head
from autoft.models.shards import own_state
from autoft.models.state import snapshot
from autoft.search_space import Hyperparameters
from autoft.workspace import Workspace

HEAD_TERMS = frozenset({"cross_entropy", "hinge", "entropy", "confidence_minimization", "feature_mixup"})  # those that train the head


@contextmanager
def as_scored(workspace: Workspace, hyperparameters: Hyperparameters, step: Step) -> Iterator[None]:
    """Within the block the workspace's model is what the hyperparameters ask to score after a step; after it, what trains on.

    Moving average (CLIPood), then a head rebuilt from the tuned text tower (FLYP), then interpolation with the zero-shot weights (WiSE-FT);
    BatchNorm statistics of averaged weights are estimated again. Leaves the model in evaluation mode.
    """
    hp, model = hyperparameters, workspace.model.eval()
    averaged = step.average is not None or hp.alpha != 1.0
    changed = model if averaged else model.head
    trained = snapshot(changed) if averaged or _rebuilds_head(hp) else None
    try:
        if trained is not None and step.average is not None:
            copy_state(model, {**trained, **step.average})
        refresh_head(workspace, hp)
        if hp.alpha != 1.0:
            copy_state(model, interpolate(workspace.zero_shot.tensors, own_state(model), hp.alpha))
        if step.average is not None or 0.0 < hp.alpha < 1.0:
            reestimate_batch_norm(workspace)
        yield
    finally:
        if trained is not None:
            copy_state(changed, trained)


def _rebuilds_head(hyperparameters: Hyperparameters) -> bool:
    return not HEAD_TERMS & hyperparameters.loss_weights.keys() and hyperparameters.trained == "all"


@torch.no_grad()
def refresh_head(workspace: Workspace, hyperparameters: Hyperparameters) -> None:
    """Rebuild the zero-shot head from the current text tower if that trains and no loss term trains the head, as FLYP does.

    Goyal et al. 2023, arXiv 2212.00638. Otherwise the head stays. Leaves the model in evaluation mode.
    """
    if not _rebuilds_head(hyperparameters):
        return
    model = workspace.model.eval()
    head = zero_shot_head(model.clip, workspace.loaded.tokenizer, workspace.data.classes.names, workspace.config.data.templates)
    model.head.weight.copy_(head.weight)
    model.head.bias.copy_(head.bias)
