"""The towers of a worker's model, compiled at their first use and then used by all its trials.

Nothing a trial chooses reaches a compiled graph: weights are restored in place, and loss terms, their weights, rates and decay stay outside.
What is left, the shapes, is made the same: a batch's texts and the last batch of an evaluation are padded. So there are three graphs, of the
image tower in training and in evaluation and of the text tower, and one more of a tower for each other batch size (the full fine-tune's).
See docs/adr/0018-compile.md.
"""

import logging
import types
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from autoft.batch_split import is_out_of_memory
from autoft.errors import AutoFTError
from autoft.models import ClipClassifier

logger = logging.getLogger(__name__)

T = TypeVar("T")
Tower = Callable[[Tensor], Tensor]
Backend = str | Callable[..., Any]


class CompiledTowers:
    """A model's towers for batches that are computed whole; where nothing is compiled, the model's own.

    Args:
        backend: of `torch.compile`; None: nothing is compiled.
    """

    def __init__(self, model: ClipClassifier, backend: Backend | None) -> None:
        self.model, self.backend = model, backend
        self._compiled: dict[str, Tower] = {}

    @property
    def active(self) -> bool:
        """Whether the towers are compiled, or will be at their first use."""
        return self.backend is not None

    def image_features(self, images: Tensor) -> Tensor:
        """`ClipClassifier.image_features` of a training step's batch."""
        return self._tower("training", self.model.image_features)(images)

    def text_features(self, tokens: Tensor, most: int) -> Tensor:
        """`ClipClassifier.text_features` of a step's texts, of which there are at most `most`."""
        tower = self._tower("texts", self.model.text_features)
        return _padded(tower, tokens, most) if self.active else tower(tokens)

    def evaluation(self, most: int) -> Tower:
        """`ClipClassifier.image_features` for batches of at most `most` images without gradients, the model in evaluation mode.

        Compiled only for a model that trains: whoever scores one a few times would wait longer for the compiler than for the model.
        """
        if not self.active or "training" not in self._compiled:
            return self.model.image_features
        tower = self._tower("evaluation", self.model.image_features)
        return lambda images: _padded(tower, images, most)

    def or_eager(self, compute: Callable[[], T], undo: Callable[[], None]) -> T:
        """`compute()`; if it fails while towers are compiled, `undo()`, and once more without compiling, now and ever after.

        A compiler can be missing, too old or wrong in as many ways as there are machines, and what it raises has no common type, in a
        backward pass least of all. So whatever is raised is raised again if it was not the compiler's: by the second attempt.
        """
        try:
            return compute()
        except Exception as error:
            if not self._compiled or not self.active or isinstance(error, AutoFTError) or is_out_of_memory(error):
                raise
            reason = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')[:300]}"
        # Out of the `except` block: the exception, which holds the frames that hold the tensors, is gone.
        undo()
        self.backend = None
        self._compiled.clear()
        found = compute()
        logger.warning("the model cannot be compiled on this machine and runs uncompiled, which is slower but gives the same: %s", reason)
        return found

    def _tower(self, name: str, function: Tower) -> Tower:
        if self.backend is None:
            return function
        if name not in self._compiled:
            self._compiled[name] = torch.compile(_own_code(lambda batch: function(batch)), backend=self.backend, dynamic=False)
        return self._compiled[name]


def _padded(tower: Tower, batch: Tensor, most: int) -> Tensor:
    """The tower's rows for a batch of at most `most` rows, computed in a batch of exactly `most`; the rest of it is zeros."""
    if len(batch) == most:
        return tower(batch)
    layout = torch.channels_last if batch.dim() == 4 else torch.contiguous_format
    full = torch.empty((most, *batch.shape[1:]), dtype=batch.dtype, device=batch.device, memory_format=layout)
    full[: len(batch)] = batch
    full[len(batch) :] = 0
    return tower(full)[: len(batch)]


def _own_code(function: Tower) -> Tower:
    """The same function with a code object of its own.

    torch.compile keeps graphs by code object, few of each, and one line of source is one code object for all workspaces of a process.
    """
    return types.FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
