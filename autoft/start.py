"""Where a fine-tune starts: the zero-shot weights, what of them trains, the head, and the examples it trains on."""

import functools

import torch
from torch import Tensor

from autoft.core_features import TERM, check_terms_available, core_beta
from autoft.losses import needs_text
from autoft.probe import fit_probe
from autoft.search_space import Hyperparameters
from autoft.workspace import Workspace

HELD_OUT = 0.1  # share of TRAIN that TPGM learns its projection on and does not train on; reconstructed


def start_from(workspace: Workspace, hyperparameters: Hyperparameters) -> None:
    """Put the workspace's model where a fine-tune starts, without gradients, with what trains marked so.

    Raises:
        ConfigError: the hyperparameters need something the study does not have.
    """
    hp, model = hyperparameters, workspace.model
    check_terms_available(workspace.config, hp)
    model.train_text_tower(needs_text(hp.loss_weights))
    model.train_heads(wanted=hp.trained != "backbone", core=TERM in hp.loss_weights and hp.trained != "backbone")
    workspace.zero_shot.restore(model)
    model.zero_grad(set_to_none=True)  # a fine-tune that was broken off may have left gradients
    model.core_beta = core_beta(hp)
    if hp.start == "linear_probe":
        probe = fit_probe(workspace)
        with torch.no_grad():
            model.head.weight.copy_(probe.weight)
            model.head.bias.copy_(probe.bias)


def training_mode(workspace: Workspace) -> None:
    """Put the model in training mode, BatchNorm as the study wants it."""
    workspace.model.train()
    if workspace.config.model.batch_norm == "frozen":
        workspace.model.freeze_batch_norm_statistics()


def training_pool(workspace: Workspace, hyperparameters: Hyperparameters) -> Tensor:
    """The examples of TRAIN that a fine-tune trains on, (n,) int64 on the CPU: all but those TPGM holds out."""
    return _pools(len(workspace.train), hyperparameters.seed, hyperparameters.constraint == "tpgm")[0]


def held_out_pool(workspace: Workspace, hyperparameters: Hyperparameters) -> Tensor:
    """The examples of TRAIN that TPGM learns its projection on, (n,) int64 on the CPU."""
    return _pools(len(workspace.train), hyperparameters.seed, True)[1]


@functools.lru_cache(maxsize=4)
def _pools(examples: int, seed: int, split: bool) -> tuple[Tensor, Tensor]:
    if not split:
        return torch.arange(examples), torch.empty(0, dtype=torch.int64)
    order = torch.randperm(examples, generator=torch.Generator().manual_seed((seed * 1_000_003) % (2**63) ^ 0x7E57))
    held_out = max(1, round(HELD_OUT * examples))
    return order[held_out:].sort().values, order[:held_out].sort().values
