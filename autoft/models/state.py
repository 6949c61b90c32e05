"""The zero-shot state: what every fine-tune starts from, is pulled towards, and is interpolated with."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autoft.errors import ModelError
from autoft.models.shards import own_state

State = Mapping[str, Tensor]


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A clone of the model's parameters and buffers as they are now, by state-dict name; of sharded ones this process's part."""
    return {name: tensor.clone() for name, tensor in own_state(model).items()}


@dataclass(frozen=True)
class ZeroShotState:
    """A clone of a model's parameters and buffers, by state-dict name, on the model's device; of sharded ones this process's part.

    Always a clone: a snapshot that aliases the training weights makes every distance to it zero (defect 2 of the released code).
    """

    tensors: State

    @classmethod
    def of(cls, model: nn.Module) -> "ZeroShotState":
        """Snapshot a model's state as it is now."""
        return cls(snapshot(model))

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
    """Overwrite the model's parameters and buffers in place, of sharded ones this process's part. Raises KeyError if the names differ."""
    own = own_state(model)
    if own.keys() != state.keys():
        raise KeyError(f"states differ in {sorted(own.keys() ^ state.keys())[:5]}")
    by_dtype: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for name, tensor in own.items():
        targets, sources = by_dtype.setdefault(tensor.dtype, ([], []))
        targets.append(tensor)
        sources.append(state[name])
    for targets, sources in by_dtype.values():
        torch._foreach_copy_(targets, sources)


def check_same_entries(first: State, second: State) -> None:
    """Make sure that two states hold the same entries, whatever their values and their order.

    Raises:
        KeyError: they have different names.
        ModelError: an entry has two shapes, or is floating in one state and not in the other.
    """
    if first.keys() != second.keys():
        raise KeyError(f"states differ in {sorted(first.keys() ^ second.keys())[:5]}")
    for name, tensor in first.items():
        other = second[name]
        if tensor.shape != other.shape:
            raise ModelError(f"states differ in {name}: its shape is {tuple(tensor.shape)} in one and {tuple(other.shape)} in the other")
        if tensor.is_floating_point() != other.is_floating_point():
            raise ModelError(f"states differ in {name}: it is {tensor.dtype} in one and {other.dtype} in the other")


def widened(tensor: Tensor) -> Tensor:
    """A floating tensor in fp32 or wider: half precision is for storing weights, not for adding them up."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@torch.no_grad()
def interpolate(zero_shot: State, fine_tuned: State, alpha: float) -> dict[str, Tensor]:
    """WiSE-FT: (1 - alpha) * zero_shot + alpha * fine_tuned for every floating entry (Wortsman et al. 2022, arXiv 2109.01903).

    Entries are matched by name and mixed in fp32 or wider; an entry keeps the dtype it has in `zero_shot`. Integer buffers are not
    interpolated: they come from the nearer end. alpha 0 and 1 return the ends exactly, to the bit. BatchNorm statistics are
    averaged like the rest: see `autoft.batch_norm` for what to do about them.

    Raises:
        KeyError: the two states have different names.
        ModelError: an entry has two shapes, or is floating in one state only; or alpha is not in [0, 1].
    """
    check_same_entries(zero_shot, fine_tuned)
    if not 0 <= alpha <= 1:
        raise ModelError(f"alpha must lie in [0, 1], got {alpha}")
    if alpha in (0.0, 1.0):
        return {name: tensor.clone() for name, tensor in (fine_tuned if alpha else zero_shot).items()}
    mixed = {}
    for name, start in zero_shot.items():
        end = fine_tuned[name]
        mixed[name] = mix(start, end, alpha) if start.is_floating_point() else (end if alpha >= 0.5 else start).clone()
    return mixed


def mix(start: Tensor, end: Tensor, share: Tensor | float) -> Tensor:
    """start + share (end - start) in fp32 or wider, in the dtype of `start`; a tensor `share` has their shape."""
    wide = widened(start)
    return torch.lerp(wide, end.to(wide.dtype), share).to(start.dtype)


def state_digest(state: State) -> str:
    """16 hex digits over names, shapes and exact values; equal on every device."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
