"""Learning-rate schedules as multipliers: the searched rate is scaled, never assigned (defect 1 of the released code)."""

import math

import torch

from autoft.config import ScheduleName

# Slow start, fast decay: the share of all steps the rate rises over, and what it falls to by the end. Reconstructed: see `lr_multiplier`.
SLOW_START = 0.3
FAST_DECAY = 1e-3


def lr_multiplier(step: int, total_steps: int, warmup_steps: int, schedule: ScheduleName) -> float:
    """What the base rate of step `step` (from 0) is multiplied by.

    Linear warm-up (step + 1) / warmup_steps, then, with t from 0 to 1 over the rest:
        constant: 1.
        linear: 1 - t.
        cosine: 0.5 (1 + cos(pi t)), the schedule of the WiSE-FT and FLYP code bases.
        slow_start_fast_decay: its own linear rise over the first `SLOW_START` of all steps instead of the warm-up, then an exponential fall
            to `FAST_DECAY`. After Jeddi, Shafiee and Wong (arXiv 2012.13628), whose text and code were not available: reconstructed.
    """
    if schedule == "slow_start_fast_decay":
        warmup_steps = max(1, round(SLOW_START * total_steps))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    match schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - progress
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        case "slow_start_fast_decay":
            return float(FAST_DECAY**progress)


def scale_learning_rates(optimizer: torch.optim.Optimizer, multiplier: float) -> None:
    """Set every group's rate to its own base rate times `multiplier`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * multiplier
