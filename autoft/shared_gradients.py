"""A step's gradient where several processes share its batch: the whole batch's, in all of them.

Every process runs the towers on its own examples. A term that is a mean over examples is computed on them and counted by their share. For
a term that couples examples the features of all are gathered, and every process computes it of the whole batch; gradients flow into its
own features only (and into the temperature in the first process only), so that the sum over the processes is the gradient, with no
exchange in the backward pass. Then gradients are added up, and the weight norms' are added once, everywhere. See docs/adr/0017. Sharded
weights (docs/adr/0021) exchange within both passes: weights before, and gradients, added up, after a block of a tower.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from autoft.batch_split import Split
from autoft.collective import share, share_of
from autoft.errors import ConfigError
from autoft.gradients import Batch, StepLoss, kept_statistics, model_draws, trained_batch_norm
from autoft.losses import METHOD_TERMS, TERMS, StepOutputs, accumulate, couples_examples, needs_of, weighted_loss
from autoft.losses.weight_norms import NORM_ORDERS
from autoft.own_weights import OwnWeights
from autoft.search_space import Hyperparameters
from autoft.teacher import method_outputs
from autoft.workspace import Workspace


@dataclass(frozen=True)
class _Features:
    """What the towers make of a process's share, in the dtype of the exchange: float32 or wider."""

    images: Tensor
    logits: Tensor
    texts: Tensor | None
    slices: Sequence[Tensor] | None


class SharedStepLoss(StepLoss):
    """`StepLoss` in one of several processes, all of which call it for the same batch."""

    def __init__(self, workspace: Workspace, hyperparameters: Hyperparameters, own: OwnWeights) -> None:
        super().__init__(workspace, hyperparameters, own.parameters, own.anchor)
        self._own, weights = own, self._weights
        self._norms = {term: weights[term] for term in NORM_ORDERS if term in weights}
        self._coupled = {term: weights[term] for term in TERMS if term in weights and couples_examples([term])}
        self._means = {term: weights[term] for term in TERMS if term in weights and term not in {*self._norms, *self._coupled}}

    def add_gradients(self, batch: Batch, parts: int, with_norms: bool = False) -> tuple[Tensor, Mapping[str, Tensor], Split]:
        """Add the loss's gradient over the whole batch to the parameters' `grad`; see `StepLoss.add_gradients`.

        Args:
            parts: to compute this process's share in.

        Raises:
            torch.OutOfMemoryError: memory ran out here or in another process.
        """
        workspace, collective, weights = self._workspace, self._workspace.collective, self._own
        rows = share_of(collective, len(batch.examples))
        own = replace(batch, examples=batch.examples[rows], labels=batch.labels[rows], tokens=None, text_index=None)
        torch.manual_seed(torch.initial_seed() + collective.rank)  # dropout: no two shares get the same mask
        before = model_draws(workspace)
        if self._coupled:
            total, values = self._with_gathered(batch, own, parts)
        else:
            total, values = workspace.together(lambda: self._own_means(batch, own, parts))
        random = not all(map(torch.equal, before, model_draws(workspace)))
        weights.take_gradients()
        self._add_up([total, *values.values()])
        if self._norms:
            weights.add_norm_gradients(self._norms)
        if self._norms and with_norms:
            found = weights.norm_values(tuple(self._norms))
            total, values = total + torch.stack([self._norms[name] * found[name] for name in found]).sum(), values | found
        split = Split(parts, exact=not random and not trained_batch_norm(workspace))
        return total, {name: values[name] for name in TERMS if name in values}, split

    def _own_means(self, batch: Batch, own: Batch, parts: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Terms that are means over examples, of this process's share: forward and backward pass; their shares of the values."""
        if not self._means or not len(own.examples):
            return self._nothing()
        outputs = ((len(part.examples) / len(batch.examples), self.outputs(part)) for part in own.split(min(parts, len(own.examples))))
        return accumulate(self._means, outputs, self._parameters, self._anchor, with_norms=False)

    def _with_gathered(self, batch: Batch, own: Batch, parts: int) -> tuple[Tensor, dict[str, Tensor]]:
        """All terms, some of which look at the whole batch: likewise."""
        workspace, collective = self._workspace, self._workspace.collective
        features = workspace.together(lambda: self._features(batch, own, parts))
        images, logits = (collective.gathered(found, len(batch.examples)) for found in (features.images, features.logits))
        texts = None if features.texts is None or batch.tokens is None else collective.gathered(features.texts, len(batch.tokens))
        scale = workspace.model.logit_scale.exp()
        first = collective.rank == 0
        mixing = needs_of(self._coupled) & {"mixtures"}
        with workspace.autocast(cache=parts == 1):
            more = method_outputs(workspace, self._hp, mixing, batch.images, batch.examples, images, None, batch.stream) if mixing else None
        outputs = StepOutputs(
            logits=logits,
            labels=batch.labels,
            image_features=images,
            text_features=texts,
            text_index=batch.text_index,
            logit_scale=scale if first else scale.detach(),
            parameters=self._parameters,
            anchor=self._anchor,
            more=more,
        )

        def backward() -> tuple[Tensor, dict[str, Tensor]]:
            coupled, values = weighted_loss(self._coupled, outputs, with_norms=False)
            loss, total, means = coupled, *self._nothing()
            if self._means and len(own.examples):
                mean, means = weighted_loss(self._means, self._of_share(own, features, parts), with_norms=False)
                part = len(own.examples) / len(batch.examples)
                loss, total, means = loss + part * mean, part * mean.detach(), {name: part * value for name, value in means.items()}
            if loss.requires_grad:
                with kept_statistics(workspace, parts):
                    loss.backward()  # type: ignore[no-untyped-call]
            # All processes have computed the coupled terms: they count once.
            return total + first * coupled.detach(), means | {name: first * value for name, value in values.items()}

        return workspace.together(backward)

    def _features(self, batch: Batch, own: Batch, parts: int) -> _Features:
        """The towers on this process's examples and on its share of the batch's distinct texts."""
        workspace, model = self._workspace, self._workspace.model
        head = model.head.weight
        images, logits = head.new_zeros(0, head.shape[1]), head.new_zeros(0, head.shape[0])
        slices: Sequence[Tensor] | None = None
        texts = None
        with workspace.autocast(cache=parts == 1):
            if len(own.examples):
                images, slices = self._image_tower(own.images, min(parts, len(own.examples)))
                logits = model.head(images)
            if batch.tokens is not None:
                tokens = batch.tokens[share_of(workspace.collective, len(batch.tokens))]
                if len(tokens):
                    texts = self._text_tower(tokens, min(parts, len(tokens)))
                elif workspace.sharded:  # the others need this process's part of the weights
                    texts = self._text_tower(batch.tokens[:1], 1)[:0]
                else:
                    texts = head.new_zeros(0, head.shape[1])
        wide = torch.promote_types(head.dtype, torch.float32)
        return _Features(images.to(wide), logits.to(wide), None if texts is None else texts.to(wide), slices)

    def _of_share(self, own: Batch, features: _Features, parts: int) -> StepOutputs:
        """What the terms that are means over examples look at, of this process's share."""
        more = None
        if METHOD_TERMS.keys() & self._means.keys():
            with self._workspace.autocast(cache=parts == 1):
                more = self._method_outputs(own, features.images, features.slices, min(parts, len(own.examples)), needs_of(self._means))
        return StepOutputs(
            logits=features.logits,
            labels=own.labels,
            image_features=features.images,
            text_features=None,
            text_index=None,
            logit_scale=None,
            parameters=self._parameters,
            anchor=self._anchor,
            label_smoothing=self._hp.label_smoothing,
            more=more,
        )

    def _nothing(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The value of no examples."""
        zero = self._workspace.model.head.weight.new_zeros(())
        return zero, {name: zero.clone() for name in self._means}

    def _add_up(self, values: Sequence[Tensor]) -> None:
        """Sum gradients and values over the processes. A parameter without a gradient anywhere keeps none, so the optimizer skips it.

        The backward pass has summed those of sharded parameters.
        """
        collective, everywhere = self._workspace.collective, self._own.everywhere
        there = collective.largest([parameter.grad is not None for parameter in everywhere])
        gradients = []
        for parameter, anywhere in zip(everywhere, there, strict=True):
            if anywhere:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        collective.add_up([*gradients, *values, *self._statistics()])

    def _statistics(self) -> list[Tensor]:
        """BatchNorm's running statistics, weighted so that their sum over the processes is their mean: each has seen its share only."""
        layers = trained_batch_norm(self._workspace)
        found = [buffer for layer in layers for buffer in (layer.running_mean, layer.running_var) if buffer is not None]
        for buffer in found:
            buffer.div_(self._workspace.collective.size)
        return found


def check_shares(workspace: Workspace, batch_size: int) -> None:
    """Raise ConfigError if a batch of that size cannot be shared among the processes.

    BatchNorm that trains needs two examples in each, sharded weights one: all processes must take part in a tower's passes.
    """
    size = workspace.collective.size
    smallest = len(range(batch_size)[share(batch_size, size - 1, size)])
    if workspace.sharded and smallest < 1:
        raise ConfigError(
            f"a batch of {batch_size} cannot be shared among {size} processes with --final-sharded, each of which needs an example; take fewer "
            "processes or a larger final.batch_size"
        )
    if size > 1 and smallest < 2 and trained_batch_norm(workspace):
        raise ConfigError(
            f"a batch of {batch_size} cannot be shared among {size} processes: BatchNorm that trains needs two examples in each; take fewer "
            "processes, a larger final.batch_size, or model.batch_norm = frozen"
        )
