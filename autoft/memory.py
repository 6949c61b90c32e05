"""Memory of a process: that the allocator keeps what is freed, and the peak of a piece of work, on a GPU or in this process."""

import ctypes
import functools
import gc
import logging
from pathlib import Path
from typing import Literal

import torch

logger = logging.getLogger(__name__)

MemoryKind = Literal["cuda", "process"]
_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


# mallopt(3): parameters of glibc's malloc. The first two are ints; the largest means never.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _NEVER = -1, -3, 2**31 - 1


@functools.cache
def keep_freed_memory() -> bool:
    """Have this process keep the memory that a training step frees for the next step; whether that was possible.

    glibc returns large freed blocks to the system at once, and what is free at the top of its heap, so that a step on the CPU gets its memory
    page by page from the kernel, which fills each with zeros: 64,000 page faults and a fifth of a second a step of the MobileNetV2 CLIP. The
    price is that a process stays as large as it once was; what wants the memory back calls `malloc_trim`.

    It holds in the main thread, and in all threads of a process that was started with MALLOC_ARENA_MAX=1 in its environment, as Ray's workers are:
    other pools than the main thread's consist of pieces of 64 MB, of which glibc keeps none that is free.

    Once is enough, so later calls do nothing; nor does any with another C library than glibc.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version") or not hasattr(libc, "mallopt"):
        return False
    return bool(libc.mallopt(_M_TRIM_THRESHOLD, _NEVER) and libc.mallopt(_M_MMAP_THRESHOLD, _NEVER))


class PeakMemory:
    """Measures from its making on. On Linux a process's own peak can be reset; elsewhere there is no figure for a CPU.

    kind: "cuda": bytes the allocator has handed out; "process": resident bytes of the whole process, libraries and data included.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.kind: MemoryKind = "cuda" if device.type == "cuda" else "process"
        self._works = True
        if self.kind == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        _give_back()
        try:
            _CLEAR.write_text("5", encoding="ascii")  # proc(5): resets the peak resident set size
        except OSError as error:
            logger.info("peak memory cannot be measured here: %s", error)
            self._works = False

    def bytes(self) -> int | None:
        """The most there was so far, or None where it cannot be measured."""
        if not self._works:
            return None
        if self.kind == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        peak = next((line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM")), None)
        return None if peak is None else int(peak.split()[1]) * 1024


def _give_back() -> None:
    """Return what earlier work has left behind to the system; glibc keeps it otherwise, and it would count as this work's."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
