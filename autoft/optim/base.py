"""The base optimizer: AdamW as AutoFT uses it, or SGD, over every trainable parameter; one rate and decay, or one for each layer."""

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from autoft.config import OptimizerName
from autoft.errors import ConfigError
from autoft.optim.groups import HEAD, TEXT, layer_names, parameter_groups

_NONE: Mapping[str, float] = {}


def build_optimizer(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    layer_lr: Mapping[str, float] = _NONE,
    layer_weight_decay: Mapping[str, float] = _NONE,
    *,
    layer_decay: float = 1.0,
    name: OptimizerName = "adamw",
    momentum: float = 0.9,
    beta2: float = 0.999,
) -> torch.optim.Optimizer:
    """AdamW or SGD over the model's trainable parameters; none is excluded from weight decay, as in the authors' released code.

    Each of its groups keeps its own rate in `base_lr`, which schedules multiply and never overwrite.

    Args:
        model: a `ClipClassifier`.
        lr, weight_decay: of all parameters, in one group, where the layers have none of their own.
        layer_lr, layer_weight_decay: of each group of `parameter_groups`, in whose order the optimizer's groups are; each called
            by its name in `layer`. A layer that does not train is left out.
        layer_decay: where there is no `layer_lr`, a layer's rate is this times that of the next one towards the head; head and text
            tower have `lr` (as in ELECTRA, Clark et al. 2020, and BEiT, Bao et al. 2022).
        momentum: AdamW's first beta, or the Nesterov momentum of SGD. At equal effective rate lr / (1 - momentum) SGD's hardly
            matters (Li et al. 2020, arXiv 2002.11770).
        beta2: AdamW's second beta.

    Raises:
        ConfigError: a name is no layer of the model, or a layer that trains has no value.
    """
    if layer_decay != 1.0 and not layer_lr:
        layer_lr = _decayed(model, lr, layer_decay)
        layer_weight_decay = layer_weight_decay or dict.fromkeys(layer_lr, weight_decay)
    if not layer_lr and not layer_weight_decay:
        groups: list[dict[str, Any]] = [{"params": _trainable(model.parameters()), "base_lr": lr, "lr": lr, "weight_decay": weight_decay}]
    else:
        groups = _layer_groups(model, layer_lr, layer_weight_decay)
    if name == "sgd":
        return torch.optim.SGD(groups, momentum=momentum, nesterov=momentum > 0, fused=True)
    return torch.optim.AdamW(groups, betas=(momentum, beta2), fused=True)


def _layer_groups(model: nn.Module, layer_lr: Mapping[str, float], layer_weight_decay: Mapping[str, float]) -> list[dict[str, Any]]:
    layers = {layer: _trainable(parameters) for layer, parameters in parameter_groups(model).items()}
    trained = [layer for layer, parameters in layers.items() if parameters]
    _check_layers("layer_lr", layer_lr, layers, trained)
    _check_layers("layer_weight_decay", layer_weight_decay, layers, trained)
    return [
        {
            "params": layers[layer],
            "layer": layer,
            "base_lr": layer_lr[layer],
            "lr": layer_lr[layer],
            "weight_decay": layer_weight_decay[layer],
        }
        for layer in trained
    ]


def _decayed(model: nn.Module, lr: float, layer_decay: float) -> dict[str, float]:
    layers = [layer for layer in layer_names(model) if layer not in (TEXT, HEAD)]
    return {layer: lr * layer_decay ** (len(layers) - depth) for depth, layer in enumerate(layers)} | {TEXT: lr, HEAD: lr}


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
