"""The rows of many tensors at once: sums over each row, and rows scaled, in a few large operations instead of a few for each tensor.

A row is what one output of a layer is made of: `tensor[i]`. A vector or a scalar (bias, norm layer) is one row as a whole, and so is any
tensor if `whole`. All entries lie in one flat buffer, where tensors with rows of equal length are neighbours: a *block*, which is a matrix
(rows, length). A MobileNetV2 of 159 tensors has 17 blocks, a ViT fewer.
"""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def row_shape(tensor: Tensor, whole: bool) -> tuple[int, int]:
    """(rows, entries of each row) of a tensor with at least one entry."""
    rows = 1 if whole or tensor.dim() < 2 else tensor.shape[0]
    return rows, tensor.numel() // rows


class Rows:
    """Where each tensor and each row lies in a flat buffer. Holds no values.

    Sizes in the docstrings: `tensors`, `rows` (of all of them together), `entries` (of all of them together).
    """

    def __init__(self, tensors: Sequence[Tensor], whole: bool = False) -> None:
        """`tensors`: not empty, of one device and dtype, sorted by the length of their rows (in another order they make more blocks)."""
        shapes = [row_shape(tensor, whole) for tensor in tensors]
        self._places = [(tensor.shape, _strides(tensor)) for tensor in tensors]
        self._sizes = [tensor.numel() for tensor in tensors]
        self._rows = [rows for rows, _ in shapes]
        blocks = [(length, [rows for rows, _ in group]) for length, group in itertools.groupby(shapes, key=lambda shape: shape[1])]
        self._block_lengths = [length for length, _ in blocks]
        self._block_rows = [sum(rows) for _, rows in blocks]
        self._block_sizes = [length * sum(rows) for length, rows in blocks]
        self._like = tensors[0]
        self.count = sum(self._rows)
        # Radii, norms and their like are few: never less exact than float32.
        self.dtype = torch.promote_types(self._like.dtype, torch.float32)
        self._owner = torch.repeat_interleave(torch.tensor(self._rows)).to(self._like.device)

    def empty(self) -> Tensor:
        """A new flat buffer (entries,) of the tensors' dtype, not filled."""
        return torch.empty(sum(self._sizes), dtype=self._like.dtype, device=self._like.device)

    def numbers(self, count: int, value: float) -> Tensor:
        """(count,), all `value`, in the dtype of sums."""
        return torch.full((count,), value, dtype=self.dtype, device=self._like.device)

    def views(self, flat: Tensor) -> list[Tensor]:
        """Each tensor's part of a flat buffer, in its own shape and memory layout."""
        parts = torch.split(flat, self._sizes)
        return [part.as_strided(shape, stride) for part, (shape, stride) in zip(parts, self._places, strict=True)]

    def sums(self, flat: Tensor, of: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """(rows,): the sum of each row of a flat buffer, or of what `of` makes of its entries."""
        blocks = self._blocks(flat)
        return torch.cat([(of(block) if of else block).sum(dim=1, dtype=self.dtype) for block in blocks])

    def scaled(self, flat: Tensor, factors: Tensor) -> Tensor:
        """A new flat buffer: `flat` with each row times its entry of `factors` (rows,)."""
        out = torch.empty_like(flat)
        columns = torch.split(factors.to(flat.dtype)[:, None], self._block_rows)
        for source, factor, target in zip(self._blocks(flat), columns, self._blocks(out), strict=True):
            torch.mul(source, factor, out=target)
        return out

    def spread(self, values: Tensor) -> Tensor:
        """(tensors,) to (rows,): each row gets its tensor's value."""
        return values.index_select(0, self._owner)

    def totals(self, per_row: Tensor) -> Tensor:
        """(rows,) to (tensors,): the sum over each tensor's rows."""
        # There is no foreach sum, but a norm of order 1: it sums what is not negative, and is as exact, done on either sign.
        positive = torch._foreach_norm(self._of_tensors(per_row.clamp(min=0)), 1)
        negative = torch._foreach_norm(self._of_tensors(per_row.clamp(max=0)), 1)
        return torch.stack(positive) - torch.stack(negative)

    def largest(self, per_row: Tensor) -> Tensor:
        """(rows,) to (tensors,): the largest of each tensor's rows."""
        return torch.stack(torch._foreach_max(self._of_tensors(per_row)))

    def smallest(self, per_row: Tensor) -> Tensor:
        """(rows,) to (tensors,): the smallest of each tensor's rows."""
        return -self.largest(-per_row)

    def _blocks(self, flat: Tensor) -> list[Tensor]:
        return [part.view(-1, length) for part, length in zip(torch.split(flat, self._block_sizes), self._block_lengths, strict=True)]

    def _of_tensors(self, per_row: Tensor) -> list[Tensor]:
        return list(torch.split(per_row, self._rows))


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """The tensor's own strides if its rows lie one after the other without gaps, else those of a contiguous one.

    Equal strides are what lets one kernel go over many tensors; other ones are only slower.
    """
    dense = tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last))
    return tensor.stride() if dense else torch.empty(tensor.shape, device="meta").stride()
