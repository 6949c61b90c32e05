"""Memory of a worker's device between trials: given back, and watched for a leak."""

import gc
from collections.abc import Callable

import torch

GROWING_TRIALS = 5  # so many trials in a row must each leave more behind: caches filled by the first few are no leak
SLACK_BYTES = 256 * 1024**2


class DeviceMemory:
    """Says after each trial whether what trials leave behind keeps growing.

    Args:
        allocated: bytes in use on the device now; None where there is nothing to measure, as on a CPU.
    """

    def __init__(self, allocated: Callable[[], int | None]) -> None:
        self._allocated = allocated
        self._left: list[int] = []  # after each of the last trials

    def after_trial(self) -> str | None:
        """Why the worker is to be replaced, or None."""
        now = self._allocated()
        if now is None:
            return None
        self._left = [*self._left, now][-(GROWING_TRIALS + 1) :]
        grown = all(later > earlier for earlier, later in zip(self._left, self._left[1:], strict=False))
        if len(self._left) <= GROWING_TRIALS or not grown or now - self._left[0] < SLACK_BYTES:
            return None
        return f"its device memory grew by {(now - self._left[0]) / 1024**2:.0f} MiB over {GROWING_TRIALS} trials"


def settle(device: torch.device) -> int | None:
    """Give back what a trial no longer needs; the bytes that stay in use on the device, or None on a CPU.

    Others may share the device, so nothing is kept for the next trial.
    """
    if device.type != "cuda":
        return None
    gc.collect()
    torch.cuda.empty_cache()
    return int(torch.cuda.memory_allocated(device))
