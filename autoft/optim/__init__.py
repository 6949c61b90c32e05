"""Optimizers and learning-rate schedules."""

from autoft.optim.adamw import build_optimizer
from autoft.optim.schedules import lr_multiplier, scale_learning_rates

__all__ = ["build_optimizer", "lr_multiplier", "scale_learning_rates"]
