"""What the processes of one fine-tune say to each other: the protocol, and the process that is alone.

Everything a fine-tune does is a function of (seed, step), so its processes need not tell each other what comes next: each draws the same
batch and takes its share. What they exchange is features, gradients, scores, and whether one of them failed. `autoft.distributed` has the
implementation over torch.distributed.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from autoft.batch_split import is_out_of_memory

T = TypeVar("T")


class Collective(Protocol):
    """Every process calls the same methods in the same order, each with values of its own.

    rank: of this process, from 0. The first one alone writes files and says what happens.
    size: how many processes there are.
    """

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def largest(self, numbers: Sequence[int]) -> list[int]:
        """The largest of all processes' numbers at each place. Waits for the other processes, never for the device."""
        ...

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, the same to the bit in all of them."""
        ...

    def gathered(self, own: Tensor, rows: int) -> Tensor:
        """All processes' shares of `rows` rows, in order: (rows, ...). Gradients flow into this process's own rows only.

        Args:
            own: (share, ...), as `share` cuts `rows`; of the same dtype and trailing shape everywhere.
        """
        ...

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by the first process's, in place."""
        ...


class _Alone:
    """One process: nothing to exchange."""

    rank = 0
    size = 1

    def largest(self, numbers: Sequence[int]) -> list[int]:
        return list(numbers)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        return

    def gathered(self, own: Tensor, rows: int) -> Tensor:
        return own

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        return


ALONE: Collective = _Alone()


def share(rows: int, rank: int, size: int) -> slice:
    """The rows of process `rank` of `size`: consecutive, as equal as can be, the first ones larger; empty where there are too few."""
    each, more = divmod(rows, size)
    first = rank * each + min(rank, more)
    return slice(first, first + each + (rank < more))


def share_of(collective: Collective, rows: int) -> slice:
    """This process's `share`."""
    return share(rows, collective.rank, collective.size)


def any_of(collective: Collective, flag: bool) -> bool:
    """Whether it holds in any process."""
    return bool(collective.largest([flag])[0])


def together(collective: Collective, compute: Callable[[], T]) -> T:
    """`compute()`, which must not wait for other processes; if memory runs out in one of them it does in all.

    So that all compute their batch again in more parts, and none waits for one that has given up. Any other error leaves at once; the
    others find out at their next exchange, which fails.

    Raises:
        torch.OutOfMemoryError: memory ran out, here or elsewhere.
    """
    if collective.size == 1:
        return compute()
    results: list[T] = []
    failure = ""
    try:
        results.append(compute())
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        failure = str(error)
    if any_of(collective, not results):
        results.clear()
        raise torch.OutOfMemoryError(failure or "out of memory in another process")
    return results[0]
