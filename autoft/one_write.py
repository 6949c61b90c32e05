"""Several writes to a trial as one, where the storage can do that."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, runtime_checkable


@runtime_checkable
class WritesTogether(Protocol):
    """A storage that keeps back what is written within a block, and writes it in one transaction at its end."""

    def together(self) -> AbstractContextManager[None]:
        """The block."""
        ...


def one_write(storage: object) -> AbstractContextManager[None]:
    """A block whose writes to trials are made as one at its end, none of them if it raises; with another storage, one after the other."""
    return storage.together() if isinstance(storage, WritesTogether) else nullcontext()
