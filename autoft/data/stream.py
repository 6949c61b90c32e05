"""Batches of a streamed set: processes decode what the next steps will draw, ahead of its use, into pinned memory where there is a GPU.

Which images a step draws is a function of (seed, step), so whoever trains can say ahead what it will ask for; what it then gets is what the
cache would have given it, to the bit, however many processes decode.
"""

import contextlib
import functools
import math
import multiprocessing
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from autoft.data.streamed import StreamedImages, usable_cores
from autoft.errors import DataError

MAX_PROCESSES = 16
# Images a process decodes at a time, at most: a batch is shared out among the processes, and what they hold ready stays small.
MAX_PIECE = 64
# Pieces each process decodes ahead; torch's default.
_AHEAD = 2


class StreamLost(RuntimeError):
    """A process that decodes images is gone: killed, or out of memory. Another time it may work."""


@dataclass(frozen=True)
class _Fault:
    """Why a piece could not be decoded: told, not raised, so that the message comes as it is."""

    message: str


class _Pieces(Dataset[Tensor]):
    """Runs in the processes. Decodes several images at once, and says what is wrong instead of raising it."""

    def __init__(self, images: StreamedImages) -> None:
        self._images = images

    def __getitems__(self, indices: Sequence[int]) -> Tensor | _Fault:
        try:
            return torch.from_numpy(self._images.some(indices))
        except DataError as error:
            return _Fault(str(error))


def _as_it_is(piece: Any) -> Any:
    return piece


def _leave_signals(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; what these do then is for the one that started them to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Stream:
    """Hands out uint8 batches of a streamed set on a device."""

    def __init__(self, images: StreamedImages, device: torch.device) -> None:
        self._images, self._device = images, device
        self._ahead: _Ahead | None = None

    def take(self, examples: Tensor) -> Tensor:
        """Pixels (batch, side, side, 3) uint8 on the device of `examples`, (batch,) int64 on the CPU: at hand if they were foreseen.

        Raises:
            DataError: the file of one of them is gone, damaged or changed.
            StreamLost: a process is gone.
        """
        found = None if self._ahead is None else self._ahead.take(examples)
        return self._decoded_here(examples) if found is None else found

    def _decoded_here(self, examples: Tensor) -> Tensor:
        """By threads of this process."""
        pixels = torch.from_numpy(self._images[examples.numpy()])
        return pixels.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else pixels

    @contextlib.contextmanager
    def foresee(self, schedule: Iterable[Tensor], batch_size: int) -> Iterator[None]:
        """Within the block, batches of the schedule are decoded ahead, in the order in which they will be asked for.

        Batches that are not in the schedule may be asked for in between, and the last one again.
        """
        if not self._images.may_fork:
            yield
            return
        with _Ahead(self._images, schedule, batch_size, self._device) as ahead:
            before, self._ahead = self._ahead, ahead
            try:
                yield
            finally:
                self._ahead = before

    def batches(self, size: int, only: slice = slice(None)) -> Iterator[Tensor]:
        """All pixels in order, `size` at a time; or some of these batches. Raises as `take`."""
        schedule = (torch.arange(start, min(start + size, len(self._images))) for start in range(0, len(self._images), size)[only])
        if not self._images.may_fork:
            yield from map(self._decoded_here, schedule)
            return
        with _Ahead(self._images, schedule, size, self._device) as ahead:
            while (batch := ahead.next()) is not None:
                yield batch


def _processes() -> int:
    """As many as this worker has threads: its share of the machine."""
    return min(MAX_PROCESSES, usable_cores(), max(1, torch.get_num_threads()))


class _Ahead:
    """Processes that decode a schedule of batches, started when it is entered and ended when it is left."""

    def __init__(self, images: StreamedImages, schedule: Iterable[Tensor], batch_size: int, device: torch.device) -> None:
        self._images, self._device, self._schedule = images, device, iter(schedule)
        processes = _processes()
        self._piece = max(1, min(MAX_PIECE, math.ceil(batch_size / processes)))
        self._handed_out: deque[Tensor] = deque()  # batches whose pieces are being decoded, in order
        self._last: tuple[Tensor, Tensor] | None = None
        self._pieces: Iterator[Any] | None = None
        self._make = functools.partial(
            DataLoader,
            _Pieces(images),
            batch_sampler=self._cut(),
            num_workers=processes,
            prefetch_factor=_AHEAD,
            collate_fn=_as_it_is,
            pin_memory=device.type == "cuda",
            worker_init_fn=_leave_signals,
            generator=torch.Generator(),  # torch's global one belongs to the model that trains
            # Forked processes share what the listing holds, and start at once. They touch no GPU and run no OpenMP.
            multiprocessing_context=multiprocessing.get_context("fork"),
        )

    def __enter__(self) -> "_Ahead":
        self._images.warm()
        self._pieces = iter(self._make())
        return self

    def __exit__(self, *error: object) -> None:
        self._pieces = self._last = None  # torch ends the processes when nothing refers to the iterator any more
        self._handed_out.clear()

    def _cut(self) -> Iterator[list[int]]:
        """The schedule in pieces; torch takes the next one whenever a process is done with another."""
        for examples in self._schedule:
            self._handed_out.append(examples)
            indices = examples.tolist()
            yield from (indices[start : start + self._piece] for start in range(0, len(indices), self._piece))

    def take(self, examples: Tensor) -> Tensor | None:
        """The batch, if it is the next of the schedule or was the last."""
        if self._last is not None and torch.equal(self._last[0], examples):
            return self._last[1]
        return self.next() if self._handed_out and torch.equal(self._handed_out[0], examples) else None

    def next(self) -> Tensor | None:
        """The schedule's next batch; None at its end."""
        if not self._handed_out:
            return None
        examples = self._handed_out[0]
        pixels = torch.empty((len(examples), *self._images.shape[1:]), dtype=torch.uint8, device=self._device)
        for start in range(0, len(examples), self._piece):
            pixels[start : start + self._piece].copy_(self._next_piece(), non_blocking=True)
        self._handed_out.popleft()
        self._last = examples, pixels
        return pixels

    def _next_piece(self) -> Tensor:
        assert self._pieces is not None
        try:
            piece = next(self._pieces)
        except RuntimeError as error:  # torch has no class of its own for it
            raise StreamLost(
                f"a process that decodes images of {self._images.field} is gone ({error}); if it was killed for memory, "
                "take smaller batches, fewer threads per worker, or more shared memory (/dev/shm)"
            ) from None
        if isinstance(piece, _Fault):
            raise DataError(piece.message)
        found: Tensor = piece
        return found
