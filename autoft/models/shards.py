"""Weights that are shared out among processes (torch's FSDP2), and the part of them that is a process's own.

A sharded weight is a `DTensor` cut along its first dimension, one run of rows for each process. Only the towers' forward and backward passes
see weights whole, one block at a time. Everything else works on own parts: plain tensors over the shard's memory, for which arithmetic
on single entries is the same as on whole ones. A state by name then holds own parts. See docs/adr/0021-sharded-fine-tune.md.
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from autoft.models.classifier import ClipClassifier
from autoft.models.slices import blocks

FORWARD_METHODS = ("encode_image", "encode_text")  # of an open_clip model; what `forward` is to other modules


def shard_towers(model: ClipClassifier) -> None:
    """Share the towers' weights out among the processes of torch's default group, in place; all of them call this on equal models.

    Each block of a tower is brought together, used and dropped by itself, and what is in no block as one more group. The heads, and
    weights of a single entry (the temperature), stay whole everywhere. A weight's gradient, as the backward pass leaves it, is the sum over
    the processes: the shared loss is a sum of their shares, not a mean.
    """
    clip, device = model.clip, next(model.clip.parameters()).device
    if device.type == "cuda":
        torch.cuda.set_device(device)  # which is where FSDP puts things
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for parameter in clip.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP takes no other layout, channels-last for one
    single = {parameter for parameter in clip.parameters() if parameter.dim() == 0}
    for module in [*(clip.get_submodule(name) for name in blocks(clip)), clip]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=single)
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo has no other; NCCL would multiply by 1
    for method in FORWARD_METHODS:
        register_fsdp_forward_method(clip, method)


def is_sharded(model: ClipClassifier) -> bool:
    """Whether the model's weights are shared out among processes."""
    return isinstance(model.clip, FSDPModule)


@torch.no_grad()
def own_part(tensor: Tensor) -> Tensor:
    """This process's rows of a sharded tensor, in the same memory; of any other the tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters and buffers by state-dict name, of sharded ones the own part; the live tensors, without gradients."""
    return {name: own_part(tensor.detach()) for name, tensor in model.state_dict().items()}


def held_everywhere(model: nn.Module) -> list[Tensor]:
    """What of the model's state every process holds whole, live: all of it where it is not sharded."""
    return [tensor for tensor in model.state_dict().values() if not isinstance(tensor, DTensor)]


@torch.no_grad()
def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """A copy of this process's rows of a whole tensor, as `like` is cut, on its device; of all rows where `like` is not sharded."""
    if isinstance(like, DTensor):
        each = _rows_each(len(whole), like.device_mesh.size())
        whole = whole[each * like.device_mesh.get_rank() :][:each]
    return torch.empty_like(own_part(like), dtype=whole.dtype).copy_(whole)


def _rows_each(rows: int, size: int) -> int:
    """How many rows a process has of so many, the last ones fewer or none: as torch.chunk and FSDP cut."""
    return -(-rows // size)


@torch.no_grad()
def whole_of(part: Tensor, like: Tensor) -> Tensor:
    """All rows of a tensor that is cut as `like` is, on its device; all processes must ask. Where `like` is not sharded, `part` itself."""
    if not isinstance(like, DTensor):
        return part
    mesh, rows = like.device_mesh, like.shape[0]
    padded = part.new_zeros(_rows_each(rows, mesh.size()), *part.shape[1:])
    padded[: len(part)] = part
    found = part.new_empty(mesh.size() * len(padded), *part.shape[1:])
    dist.all_gather_into_tensor(found, padded, group=mesh.get_group())
    return found[:rows]


def parts_of(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Copies of the own parts of a state of whole tensors, which has the names of some of the model's."""
    like = model.state_dict()
    return {name: part_of(tensor, like[name]) for name, tensor in state.items()}


def gathered(state: Mapping[str, Tensor], model: nn.Module, wanted: bool) -> dict[str, Tensor]:
    """Whole tensors on the CPU from every process's own parts, a tensor at a time; all processes must ask.

    Args:
        state: by name, some of the model's.
        wanted: whether this process is to have them; others get {}, and have held no more than one whole tensor at a time.
    """
    like, found = model.state_dict(), {}
    for name, part in state.items():
        whole = whole_of(part, like[name])
        if wanted:
            found[name] = whole.to("cpu", copy=True)
    return found
