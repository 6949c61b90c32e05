"""Peak memory of a piece of work: of the GPU's allocator, or of this process."""

import ctypes
import gc
import logging
from pathlib import Path
from typing import Literal

import torch

logger = logging.getLogger(__name__)

MemoryKind = Literal["cuda", "process"]
_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


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
