"""A batch that does not fit the device's memory is computed in parts, as few as will do: one, two, four, eight, ...

Two ways, and `autoft.gradients` chooses: gradients added up part by part, and for losses that look at a whole batch `recomputed` features.
See docs/adr/0013-batch-split.md.
"""

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

logger = logging.getLogger(__name__)

T = TypeVar("T")

# How torch words it where it raises a plain RuntimeError: libraries that allocate by themselves, the CPU, Apple's GPUs.
_OUT_OF_MEMORY = (
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
    "HIP error: out of memory",
    "DefaultCPUAllocator: can't allocate memory",
    "MPS backend out of memory",
)


@dataclass(frozen=True)
class Split:
    """How batches were computed.

    parts: the most parts any of them was computed in; 1: all were whole.
    exact: whether the result differs from that of whole batches by no more than rounding. It does not hold where what is computed of an
        example depends on which others are in its part (BatchNorm in training mode) or is random (dropout).
    """

    parts: int = 1
    exact: bool = True

    def __or__(self, other: "Split") -> "Split":
        """Of the batches of both."""
        return Split(max(self.parts, other.parts), self.exact and other.exact)


WHOLE = Split()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on whatever device."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
    )


def fitting(
    compute: Callable[[int], T], split: int, most: int, device: torch.device, undo: Callable[[], None] = lambda: None
) -> tuple[T, int]:
    """`compute(parts)`, with `parts` doubled from `split` on each time memory runs out.

    Args:
        compute: can be called again after it has failed and `undo` was called. Must not keep what it allocates when it fails.
        split: the parts known to be needed, at least 1.
        most: the parts that cannot be divided any further; where `split` is more, that many.
        undo: takes back what a failed `compute` has done, and frees what it left.

    Returns: what `compute` returned, and the parts known to be needed now, not less than `split`.

    Raises:
        torch.OutOfMemoryError: the smallest parts do not fit either.
    """
    while True:
        parts = min(split, most)
        try:
            return compute(parts), split
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            failure = next(iter(str(error).splitlines()), "out of memory")
        # Out of the `except` block: the exception, which holds the frames that hold the tensors, is gone.
        undo()
        _release(device)
        if parts >= most:
            raise torch.OutOfMemoryError(f"not even the smallest of {parts} parts of a batch fits the memory: {failure}")
        split = 2 * parts
        logger.warning("a batch computed in %d does not fit the memory of %s and is computed in %d parts from now on", parts, device, split)


def _release(device: torch.device) -> None:
    """Give unused memory back to the device, in one piece where that is possible."""
    gc.collect()
    empty_cache = getattr(getattr(torch, device.type, None), "empty_cache", None)
    if empty_cache is not None:
        empty_cache()


def recomputed(tower: Callable[[Tensor], tuple[Tensor, ...]], inputs: Tensor, parts: int) -> tuple[Tensor, ...]:
    """`tower(inputs)`, computed part by part and, for its gradient, once more part by part.

    So memory holds the intermediate results of one part at a time, while a loss sees the whole batch's features: gradient checkpointing
    (Chen et al. 2016, arXiv 1604.06174) over parts of a batch, which is what GradCache does (Gao et al. 2021, arXiv 2101.06983). What the
    tower draws at random is the same both times.

    Args:
        tower: returns tensors of (rows, ...) for inputs (rows, ...), each row's from that row of the input.
    """
    if parts == 1:
        return tower(inputs)
    pieces = [checkpoint(tower, piece, use_reentrant=False) for piece in inputs.tensor_split(min(parts, len(inputs)))]
    return tuple(torch.cat(of_all) for of_all in zip(*pieces, strict=True))
