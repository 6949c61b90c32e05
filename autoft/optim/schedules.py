"""Learning-rate schedules as multipliers: the searched rate is scaled, never assigned (defect 1 of the released code)."""

import math
from typing import Literal

import torch

Schedule = Literal["cosine", "constant"]


def lr_multiplier(step: int, total_steps: int, warmup_steps: int, schedule: Schedule) -> float:
    """What the base rate of step `step` (from 0) is multiplied by.

    Linear warm-up (step + 1) / warmup_steps, then 1 or the half cosine 0.5 (1 + cos(pi t)), t from 0 to 1: the schedule of the
    WiSE-FT and FLYP code bases.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def scale_learning_rates(optimizer: torch.optim.Optimizer, multiplier: float) -> None:
    """Set every group's rate to its own base rate times `multiplier`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * multiplier
