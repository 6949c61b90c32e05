"""Training states written to disk while training goes on."""

import os
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoft.files import disk_errors


class StateWriter:
    """Writes one state at a time, in a thread; the file is always a whole one: the last that was finished."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether a state is being written."""
        return self._thread is not None and self._thread.is_alive()

    def write(self, state: dict[str, Any], live: tuple[str, ...]) -> None:
        """Begin to write a state, after the one before. Returns when it may change in memory.

        Args:
            state: tensors, plain values, and dicts, lists and tuples of them.
            live: its entries that change as training goes on; they are copied to the CPU's memory first, from a GPU without waiting for it.

        Raises:
            OSError: the state before could not be written.
        """
        self.finish()
        copied = {name: _copy(value) if name in live else value for name, value in state.items()}
        arrived = None
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        self._thread = threading.Thread(target=self._work, args=(copied, arrived), name="training-state")
        self._thread.start()

    def finish(self) -> None:
        """Wait until the last state is on disk. Raises OSError if it could not be written; what was there before stays."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _work(self, state: dict[str, Any], arrived: Any) -> None:
        try:
            if arrived is not None:
                arrived.synchronize()
            self._save(state)
        except BaseException as error:  # raised by `finish`
            self._error = error

    def _save(self, state: dict[str, Any]) -> None:
        """Write beside its place and rename, so that a crash leaves the state before."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        with disk_errors(partial), partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._path)


def _copy(value: Any) -> Any:
    """The same value in tensors of its own on the CPU; of a GPU's they are complete when its queue is where it is now."""
    if isinstance(value, Tensor):
        if value.device.type != "cuda":
            return value.detach().cpu().clone()
        return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value.detach(), non_blocking=True)
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copy(item) for item in value)
    return value
