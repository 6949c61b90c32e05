"""Where a trial's time goes: events before and after each phase in the stream of the device, read when the trial is over.

So nothing in the loop waits. A phase's time is the device's from its first to its last operation, gaps included in which it has nothing to
do because the program was slow to ask.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

import autoft.finetune
import autoft.gradients
from autoft.gradients import StepLoss
from autoft.update import Update
from autoft.workspace import Workspace
from benches.gpu.flops import settle

# What is measured, and where the loop calls it. Their order is that of a trial.
PHASES: dict[str, tuple[Any, str]] = {
    "restore": (autoft.finetune, "start_from"),
    "batch": (autoft.finetune, "draw_batch"),
    "forward": (StepLoss, "outputs"),
    "loss": (autoft.gradients, "weighted_loss"),
    "backward": (autoft.gradients, "backward"),
    "optimizer": (Update, "step"),
    "evaluation": (Workspace, "logits"),
}


class Phases:
    """Times of phases. `texts`: the distinct texts of each batch that had some."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spans: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
        self.texts: list[int] = []

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Within the block the phases of whatever trial runs are measured."""
        with ExitStack() as patches:
            for phase, (owner, name) in PHASES.items():
                patches.enter_context(patch.object(owner, name, self._timed(phase, getattr(owner, name))))
            yield
        settle(self._device)

    def seconds(self) -> dict[str, float]:
        """Of each phase in all. Call it after the block."""
        return {phase: sum(self._between(*span) for span in self._spans[phase]) for phase in PHASES}

    def seconds_of_steps(self) -> float:
        """From the first batch to the end of the last optimizer step."""
        return self._between(self._spans["batch"][0][0], self._spans["optimizer"][-1][1])

    def _timed(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            first = self._mark()
            found = function(*args, **kwargs)
            self._spans[phase].append((first, self._mark()))
            if phase == "batch" and found.tokens is not None:
                self.texts.append(len(found.tokens))
            return found

        return timed

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, first: Any, last: Any) -> float:
        return float(first.elapsed_time(last)) / 1000 if self._device.type == "cuda" else last - first
