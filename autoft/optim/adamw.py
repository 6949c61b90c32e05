"""AdamW as AutoFT uses it: every trainable parameter, PyTorch's default betas; one rate and decay, or one for each layer."""

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from autoft.errors import ConfigError
from autoft.optim.groups import parameter_groups

_NONE: Mapping[str, float] = {}


def build_optimizer(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    layer_lr: Mapping[str, float] = _NONE,
    layer_weight_decay: Mapping[str, float] = _NONE,
) -> torch.optim.AdamW:
    """AdamW over the model's trainable parameters; none is excluded from weight decay, as in the authors' released code.

    Each of its groups keeps its own rate in `base_lr`, which schedules multiply and never overwrite.

    Args:
        model: a `ClipClassifier`.
        lr, weight_decay: of all parameters, in one group, where the layers have none of their own.
        layer_lr, layer_weight_decay: of each group of `parameter_groups`, in whose order the optimizer's groups are; each called
            by its name in `layer`. A layer that does not train is left out.

    Raises:
        ConfigError: a name is no layer of the model, or a layer that trains has no value.
    """
    if not layer_lr and not layer_weight_decay:
        groups: list[dict[str, Any]] = [{"params": _trainable(model.parameters()), "base_lr": lr, "lr": lr, "weight_decay": weight_decay}]
        return torch.optim.AdamW(groups, fused=True)
    layers = {layer: _trainable(parameters) for layer, parameters in parameter_groups(model).items()}
    trained = [layer for layer, parameters in layers.items() if parameters]
    _check_layers("layer_lr", layer_lr, layers, trained)
    _check_layers("layer_weight_decay", layer_weight_decay, layers, trained)
    groups = [
        {
            "params": layers[layer],
            "layer": layer,
            "base_lr": layer_lr[layer],
            "lr": layer_lr[layer],
            "weight_decay": layer_weight_decay[layer],
        }
        for layer in trained
    ]
    return torch.optim.AdamW(groups, fused=True)


def _trainable(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]


def _check_layers(field: str, values: Mapping[str, float], layers: Collection[str], trained: Collection[str]) -> None:
    for layer in values:
        if layer not in layers:
            close = difflib.get_close_matches(layer, layers, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(f"{field}.{layer}: the model has no layer {layer!r}; {hint}its layers are {', '.join(layers)}")
    missing = [layer for layer in trained if layer not in values]
    if missing:
        raise ConfigError(f"{field} has no value for {', '.join(missing)}; every layer that trains needs one, or none has its own")
