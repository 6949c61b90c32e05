"""AdamW as AutoFT uses it: every trainable parameter, one rate, one decay, PyTorch's default betas."""

from collections.abc import Iterable

import torch


def build_optimizer(parameters: Iterable[torch.nn.Parameter], lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over all `parameters`; no parameter is excluded from weight decay, as in the authors' released code.

    Each group keeps its own rate in `base_lr`, which schedules multiply and never overwrite.
    """
    groups = [{"params": list(parameters), "base_lr": lr}]
    return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, fused=True)
