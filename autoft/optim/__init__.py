"""Optimizers, layer groups and learning-rate schedules."""

from autoft.optim.base import build_optimizer
from autoft.optim.groups import TEXT, layer_names, parameter_groups
from autoft.optim.schedules import lr_multiplier, scale_learning_rates

__all__ = ["TEXT", "build_optimizer", "layer_names", "lr_multiplier", "parameter_groups", "scale_learning_rates"]
