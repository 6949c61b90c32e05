"""The zero-shot state: what every fine-tune starts from, is pulled towards, and is interpolated with."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class ZeroShotState:
    """A clone of a model's parameters and buffers, by state-dict name, on the model's device.

    Always a clone: a snapshot that aliases the training weights makes every distance to it zero (defect 2 of the released code).
    """

    tensors: State

    @classmethod
    def of(cls, model: nn.Module) -> "ZeroShotState":
        """Snapshot a model's state as it is now."""
        return cls({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})

    def restore(self, model: nn.Module) -> None:
        """Write the snapshot back into the model, in place."""
        copy_state(model, self.tensors)

    def parameters_of(self, model: nn.Module) -> list[Tensor]:
        """The snapshot of the model's trainable parameters, in the order of `trainable_parameters`."""
        return [self.tensors[name] for name, parameter in model.named_parameters() if parameter.requires_grad]


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that take gradients, in definition order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@torch.no_grad()
def copy_state(model: nn.Module, state: State) -> None:
    """Overwrite the model's parameters and buffers in place. Raises KeyError if the names differ."""
    own = model.state_dict()
    if own.keys() != state.keys():
        raise KeyError(f"states differ in {sorted(own.keys() ^ state.keys())[:5]}")
    by_dtype: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for name, tensor in own.items():
        targets, sources = by_dtype.setdefault(tensor.dtype, ([], []))
        targets.append(tensor)
        sources.append(state[name])
    for targets, sources in by_dtype.values():
        torch._foreach_copy_(targets, sources)


@torch.no_grad()
def interpolate(zero_shot: State, fine_tuned: State, alpha: float) -> dict[str, Tensor]:
    """WiSE-FT: (1 - alpha) * zero_shot + alpha * fine_tuned for every floating entry (Wortsman et al. 2022).

    Entries are matched by name. Integer buffers are not interpolated: they come from the nearer end. alpha 0 and 1 return the
    ends exactly, to the bit.

    Raises:
        KeyError: the two states have different names.
    """
    if zero_shot.keys() != fine_tuned.keys():
        raise KeyError(f"states differ in {sorted(zero_shot.keys() ^ fine_tuned.keys())[:5]}")
    if alpha in (0.0, 1.0):
        return {name: tensor.clone() for name, tensor in (fine_tuned if alpha else zero_shot).items()}
    mixed = {}
    for name, start in zero_shot.items():
        end = fine_tuned[name]
        mixed[name] = torch.lerp(start, end, alpha) if start.is_floating_point() else (end if alpha >= 0.5 else start).clone()
    return mixed


def state_digest(state: State) -> str:
    """16 hex digits over names, shapes and exact values; equal on every device."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
