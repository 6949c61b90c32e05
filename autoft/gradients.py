"""The gradient of one step's loss: of the whole batch at once or, where that does not fit the memory, in parts that come to the same.

A loss that is a mean over examples is split into parts, each forward and backward by itself, and their gradients add up. Where a loss
term looks at several examples together, the features of all parts are brought together first; see `recomputed`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from autoft.batch_norm import batch_norm_layers
from autoft.batch_split import WHOLE, Split, recomputed
from autoft.losses import METHOD_TERMS, MethodOutputs, Need, StepOutputs, accumulate, backward, couples_examples, needs_of, weighted_loss
from autoft.search_space import Hyperparameters
from autoft.teacher import captured_slices, method_outputs
from autoft.workspace import Workspace

T = TypeVar("T")

_FROZEN: frozenset[Need] = frozenset({"teacher", "slices"})  # what takes a forward pass of the frozen model


@dataclass(frozen=True)
class Batch:
    """What a step draws, before any model sees it; so it is the same however the step is then computed.

    examples: (batch,) int64 on the CPU, of TRAIN.
    images: (batch, 3, size, size), augmented, on the device; in one of several processes those of its share alone.
    labels: (batch,) int64 on the device.
    tokens, text_index: the batch's distinct texts, and the one of each example; None where no term needs them.
    stream: on the CPU, for whatever else the step draws.
    """

    examples: Tensor
    images: Tensor
    labels: Tensor
    tokens: Tensor | None
    text_index: Tensor | None
    stream: torch.Generator

    def split(self, parts: int) -> Iterator["Batch"]:
        """Parts of nearly equal size, in order, without texts; each draws from the stream what the whole batch would."""
        state = self.stream.get_state()
        for rows in torch.arange(len(self.examples)).tensor_split(parts):
            span = slice(int(rows[0]), int(rows[-1]) + 1)
            stream = torch.Generator().set_state(state)
            yield Batch(self.examples[span], self.images[span], self.labels[span], None, None, stream)


class StepLoss:
    """The weighted loss of a fine-tune as a function of a step's batch, and its gradient. Nothing here waits for the device.

    Args:
        parameters: the trainable ones.
        anchor: their zero-shot values in the same order; clones, never aliases.
    """

    def __init__(
        self, workspace: Workspace, hyperparameters: Hyperparameters, parameters: Sequence[Tensor], anchor: Sequence[Tensor]
    ) -> None:
        self._workspace, self._hp, self._parameters, self._anchor = workspace, hyperparameters, parameters, anchor
        self._weights = {term: torch.full((), weight, device=workspace.device) for term, weight in hyperparameters.loss_weights.items()}

    def add_gradients(self, batch: Batch, parts: int, with_norms: bool = False) -> tuple[Tensor, Mapping[str, Tensor], Split]:
        """Add the loss's gradient to the parameters' `grad`.

        Args:
            parts: 1 computes the batch as a whole; at most `most_parts`.
            with_norms: whether to compute the weight norms' values too, for the record.

        Returns: the loss and each term's unweighted value, and how they were computed.
        """
        if parts == 1:
            return *self._at_once(batch, parts, with_norms), WHOLE
        before = model_draws(self._workspace)
        compute = self._at_once if couples_examples(self._weights) else self._summed
        loss, terms = compute(batch, parts, with_norms)
        random = not all(map(torch.equal, before, model_draws(self._workspace)))
        return loss, terms, Split(parts, exact=not random and not trained_batch_norm(self._workspace))

    def _at_once(self, batch: Batch, parts: int, with_norms: bool) -> tuple[Tensor, Mapping[str, Tensor]]:
        """One loss over the whole batch, whose features come in parts."""
        outputs = self.outputs(batch, parts, compiled=parts == 1)
        loss, terms = weighted_loss(self._weights, outputs, with_norms=with_norms)
        with kept_statistics(self._workspace, parts):
            backward(loss, self._weights, outputs)
        return loss, terms

    def _summed(self, batch: Batch, parts: int, with_norms: bool) -> tuple[Tensor, Mapping[str, Tensor]]:
        """A loss that is a mean over examples, part by part."""
        outputs = ((len(part.examples) / len(batch.examples), self.outputs(part)) for part in batch.split(parts))
        return accumulate(self._weights, outputs, self._parameters, self._anchor, with_norms)

    def outputs(self, batch: Batch, parts: int = 1, compiled: bool = False) -> StepOutputs:
        """One forward pass that serves every loss term, each tower's in `parts`.

        Args:
            compiled: whether to use the compiled towers, if there are any: for a whole batch.
        """
        hp, model = self._hp, self._workspace.model
        text_features = more = None
        # A weight that autocast casts once for all parts would have their gradients added up in half precision.
        with self._workspace.autocast(cache=parts == 1):
            image_features, slices = self._image_tower(batch.images, parts, compiled)
            logits = model.head(image_features)
            if batch.tokens is not None:
                text_features = self._text_tower(batch.tokens, parts, len(batch.examples) if compiled else None)
            if METHOD_TERMS.keys() & hp.loss_weights.keys():
                more = self._method_outputs(batch, image_features, slices, parts)
        return StepOutputs(
            logits=logits,
            labels=batch.labels,
            image_features=image_features,
            text_features=text_features,
            text_index=batch.text_index,
            logit_scale=model.logit_scale.exp() if text_features is not None else None,
            parameters=self._parameters,
            anchor=self._anchor,
            label_smoothing=hp.label_smoothing,
            more=more,
        )

    def _image_tower(self, images: Tensor, parts: int, compiled: bool = False) -> tuple[Tensor, Sequence[Tensor] | None]:
        """Features, and intermediate ones if a term looks at them."""
        wanted = "slices" in needs_of(self._hp.loss_weights)

        def tower(part: Tensor) -> tuple[Tensor, ...]:
            if compiled and not wanted:  # whose hooks would be compiled too
                return (self._workspace.own_towers.image_features(part),)
            with captured_slices(self._workspace.model, wanted) as slices:
                features = self._workspace.model.image_features(part)
            return features, *(slices or ())

        features, *slices = recomputed(tower, images, parts)
        return features, slices or None

    def _text_tower(self, tokens: Tensor, parts: int, examples: int | None = None) -> Tensor:
        """Features of a step's distinct texts; `examples`: of the batch, if the compiled tower is to be used."""
        workspace = self._workspace

        def tower(part: Tensor) -> tuple[Tensor, ...]:
            if examples is not None:
                return (workspace.own_towers.text_features(part, min(examples, len(workspace.texts.tokens))),)
            return (workspace.model.text_features(part),)

        (features,) = recomputed(tower, tokens, parts)
        return features

    def _method_outputs(
        self, batch: Batch, features: Tensor, slices: Sequence[Tensor] | None, parts: int, needs: frozenset[Need] | None = None
    ) -> MethodOutputs:
        """`method_outputs` of a batch, the frozen model's forward pass in parts; `needs`: of all terms unless given."""

        def found(of: Batch, needs: frozenset[Need], own: Tensor, own_slices: Sequence[Tensor] | None) -> MethodOutputs:
            return method_outputs(self._workspace, self._hp, needs, of.images, of.examples, own, own_slices, of.stream)

        needs = needs_of(self._hp.loss_weights) if needs is None else needs
        if parts == 1 or not needs & _FROZEN:
            return found(batch, needs, features, slices)
        pieces = zip(*(tensor.tensor_split(parts) for tensor in (features, *(slices or ()))), strict=True)
        frozen = [found(part, needs & _FROZEN, own, rest or None) for part, (own, *rest) in zip(batch.split(parts), pieces, strict=True)]
        return replace(
            found(batch, needs - _FROZEN, features, None),
            teacher_features=torch.cat([_there(part.teacher_features) for part in frozen]),
            slices=slices,
            teacher_slices=slices and [torch.cat(of_all) for of_all in zip(*(_there(part.teacher_slices) for part in frozen), strict=True)],
        )


def _there(part: T | None) -> T:
    assert part is not None, "it was asked for"
    return part


def most_parts(workspace: Workspace, batch: int) -> int:
    """How many parts a step's batch can be split into; BatchNorm that trains needs two examples for a variance."""
    return max(1, batch // 2) if trained_batch_norm(workspace) else batch


def trained_batch_norm(workspace: Workspace) -> list[torch.nn.modules.batchnorm._BatchNorm]:
    """The layers whose statistics follow the batches."""
    return [] if workspace.config.model.batch_norm == "frozen" else batch_norm_layers(workspace.model)


def running_statistics(workspace: Workspace) -> list[tuple[Tensor, Tensor]]:
    """The statistics that the model's BatchNorm layers update while it trains, each with a copy of its present value."""
    buffers = [buffer for layer in trained_batch_norm(workspace) for buffer in layer.buffers()]
    return [(buffer, buffer.clone()) for buffer in buffers]


@torch.no_grad()
def restore_statistics(statistics: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Undo what happened to `running_statistics` since."""
    for buffer, value in statistics:
        buffer.copy_(value)


@contextmanager
def kept_statistics(workspace: Workspace, parts: int) -> Iterator[None]:
    """A backward pass that computes features once more, as one over several parts does, counts no example twice in BatchNorm's statistics."""
    statistics = running_statistics(workspace) if parts > 1 else []
    yield
    restore_statistics(statistics)


def model_draws(workspace: Workspace) -> list[Tensor]:
    """The state of the generators that a model draws from by itself; it is on the CPU, a GPU's too."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(workspace.device)] if workspace.device.type == "cuda" else states
