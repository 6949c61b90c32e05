"""Delta checkpoints: what of a model differs from its zero-shot weights, in one safetensors file; SAFT's are about 0.2 % of the model.

    indices/NAME, values/NAME   row-major positions (int32, or int64 where they do not fit) and new values of the entries that differ
    whole/NAME                  a tensor of which so much differs that positions would not pay: BatchNorm statistics, a trained head
    metadata                    format, zero_shot_digest, digest: what the delta belongs to, and what the two together make

Digests are those of `autoft.models.state.state_digest`. Entries differ if their bits do: 0.0 and -0.0 are two values, a NaN is itself.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from autoft.errors import ModelError
from autoft.models.state import State, state_digest

FORMAT = "autoft-delta-1"
_INDICES, _VALUES, _WHOLE = "indices/", "values/", "whole/"
_INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes an entry
_NO_INFO: Mapping[str, str] = {}


def save_delta(path: Path, zero_shot: State, state: State, info: Mapping[str, str] = _NO_INFO) -> int:
    """Write what of `state` differs from `zero_shot`; the file appears whole or not at all. Returns the number of entries that differ.

    Args:
        path: the file; its folder must exist.
        zero_shot, state: by state-dict name, on any device and of any memory layout.
        info: further metadata, read back by `delta_info`.

    Raises:
        ModelError: the two differ in their names, or in a tensor's shape or type.
        OSError: the file cannot be written; what was there before stays.
    """
    _check_alike(zero_shot, state)
    tensors: dict[str, Tensor] = {}
    changed = 0
    for name, base in zero_shot.items():
        part, differing = _difference(name, base, state[name])
        tensors |= part
        changed += differing
    metadata = {**info, "format": FORMAT, "zero_shot_digest": state_digest(zero_shot), "digest": state_digest(state)}
    _write(path, tensors, metadata)
    return changed


def load_delta(path: Path, zero_shot: State) -> dict[str, Tensor]:
    """The state that `save_delta` was given, exact to the bit, on the devices and in the memory layouts of `zero_shot`.

    Raises:
        ModelError: the delta belongs to another zero-shot state, or the file is missing, damaged or no delta.
    """
    tensors, metadata = _read(path)
    base_digest = state_digest(zero_shot)
    if metadata["zero_shot_digest"] != base_digest:
        raise ModelError(f"{path} belongs to the zero-shot weights {metadata['zero_shot_digest']}, not to those given, {base_digest}")
    state = {name: base.detach().clone() for name, base in zero_shot.items()}
    try:
        _apply(tensors, state)
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        raise ModelError(f"{path} is damaged: {error}") from None
    if (digest := state_digest(state)) != metadata["digest"]:
        raise ModelError(f"{path} is damaged: it gives the weights {digest} instead of {metadata['digest']}")
    return state


def delta_info(path: Path) -> dict[str, str]:
    """A delta's metadata: format, zero_shot_digest, digest and the writer's own. Raises ModelError as `load_delta`."""
    return _read(path)[1]


def _check_alike(zero_shot: State, state: State) -> None:
    if zero_shot.keys() != state.keys():
        raise ModelError(f"the state and its zero-shot state do not have the same names: {sorted(zero_shot.keys() ^ state.keys())[:5]}")
    for name, base in zero_shot.items():
        tensor = state[name]
        if (base.shape, base.dtype) != (tensor.shape, tensor.dtype):
            raise ModelError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, but {base.dtype} {tuple(base.shape)} in the zero-shot state")


def _bits(tensor: Tensor) -> Tensor:
    """The tensor's entries as integers of the same size, a view; to compare and to copy exactly."""
    return tensor.detach().view(_INTEGER[tensor.element_size()])


def _difference(name: str, base: Tensor, tensor: Tensor) -> tuple[dict[str, Tensor], int]:
    """The file's entries for one tensor, on the CPU, and how many of the tensor's entries differ."""
    differs = _bits(tensor) != _bits(base.to(tensor.device))
    indices = differs.reshape(-1).nonzero().squeeze(1)  # reshape: row-major, whatever the layout
    narrow = tensor.numel() <= torch.iinfo(torch.int32).max
    bytes_each = (4 if narrow else 8) + tensor.element_size()
    if not len(indices):
        return {}, 0
    if len(indices) * bytes_each >= tensor.numel() * tensor.element_size():
        return {_WHOLE + name: tensor.detach().cpu().contiguous()}, len(indices)
    values = tensor.detach()[torch.unravel_index(indices, tensor.shape)]
    return {_INDICES + name: indices.to(torch.int32 if narrow else torch.int64).cpu(), _VALUES + name: values.cpu()}, len(indices)


def _apply(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Write a delta's entries into a copy of the zero-shot state. Raises KeyError or ValueError where they do not fit it."""
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        target = state[name]
        values = tensors[_VALUES + name] if kind == "indices" else tensor
        if values.dtype != target.dtype:
            raise ValueError(f"values of {name} are {values.dtype}, but {target.dtype} in the zero-shot state")
        if kind == "whole":
            if tensor.shape != target.shape:
                raise ValueError(f"{key} is of shape {tuple(tensor.shape)}, but {tuple(target.shape)} in the zero-shot state")
            target.copy_(tensor)
        elif kind == "indices":
            if int(tensor.min()) < 0 or int(tensor.max()) >= target.numel():  # on the CPU; on a GPU it would end the process
                raise ValueError(f"{key} has positions outside of {target.numel()} entries")
            places = torch.unravel_index(tensor.long().to(target.device), target.shape)
            _bits(target)[places] = _bits(values).to(target.device)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise ModelError(f"there is no delta checkpoint {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except Exception as error:
        raise ModelError(f"{path} is no delta checkpoint, or damaged: {error}") from None
    if metadata.get("format") != FORMAT or not {"zero_shot_digest", "digest"} <= metadata.keys():
        raise ModelError(f"{path} is no delta checkpoint: its format is {metadata.get('format')!r} instead of {FORMAT!r}")
    return tensors, metadata


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """As autoft.files writes text: beside its place, flushed, renamed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file(dict(tensors), partial, metadata=dict(metadata))
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
