"""`autoft.collective` over torch.distributed: gloo on CPUs, NCCL between GPUs."""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from autoft.collective import share

# Tensors are sent in pieces of so many bytes: DistributedDataParallel's default (Li et al. 2020, arXiv 2006.15704).
BUCKET_BYTES = 25 * 2**20


class TorchCollective:
    """The processes of the default process group, which must be there.

    Numbers go through a group of their own over gloo, so that agreeing on something does not wait for what a GPU is doing.
    """

    def __init__(self) -> None:
        self._rank, self._size = dist.get_rank(), dist.get_world_size()
        self._host: dist.ProcessGroup | None = None  # None: the default group
        if dist.get_backend() != "gloo":
            self._host = dist.new_group(backend="gloo")  # type: ignore[assignment]

    @property
    def rank(self) -> int:
        """Of this process, from 0."""
        return self._rank

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self._size

    def largest(self, numbers: Sequence[int]) -> list[int]:
        """The largest of all processes' numbers at each place."""
        found = torch.tensor([int(number) for number in numbers], dtype=torch.int64)
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self._host)
        return [int(number) for number in found]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes."""
        sent = []
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in bucket])
            sent.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
        for bucket, flat, work in sent:
            work.wait()
            _fill(bucket, flat)

    def gathered(self, own: Tensor, rows: int) -> Tensor:
        """All processes' shares of `rows` rows, in order; only this one's have a gradient."""
        shares = [share(rows, rank, self._size) for rank in range(self._size)]
        padded = own.new_zeros(shares[0].stop, *own.shape[1:])  # the first share is the largest
        padded[: len(own)] = own.detach()
        found = [torch.empty_like(padded) for _ in shares]
        dist.all_gather(found, padded)
        pieces = [piece[: part.stop - part.start] for piece, part in zip(found, shares, strict=True)]
        pieces[self._rank] = own
        return torch.cat(pieces)

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by the first process's."""
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in bucket])
            dist.broadcast(flat, src=0)
            _fill(bucket, flat)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in groups of one dtype and about `BUCKET_BYTES`, in the same order in every process."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        bucket: list[Tensor] = []
        size = 0
        for tensor in (tensor for tensor in tensors if tensor.dtype == dtype):
            if bucket and size + tensor.nbytes > BUCKET_BYTES:
                yield bucket
                bucket, size = [], 0
            bucket.append(tensor)
            size += tensor.nbytes
        yield bucket


@torch.no_grad()
def _fill(bucket: Sequence[Tensor], flat: Tensor) -> None:
    for tensor, values in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
        tensor.copy_(values.view(tensor.shape))
