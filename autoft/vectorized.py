"""Several fine-tunes in lock step as one program: one forward and one backward pass for the weights of all of them.

The weights of K fine-tunes lie in one matrix, a row each. The towers and the loss are those of a fine-tune by itself, mapped over the rows by
`torch.func.vmap` (Frostig, Johnson and Leary 2018 on tracing such programs; ensembling in PyTorch's functorch), so that the device gets K times
the work for each call. What is cheap beside that, and would differ between fine-tunes, is done row by row by the code that a fine-tune by
itself runs: its batch, the gradient of its weight norms, clipping and the optimizer's step.

One fine-tune's numbers never meet another's: one that is not finite disturbs none.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from autoft.batch_norm import batch_norm_layers
from autoft.finetune import MAX_LOG_LOGIT_SCALE, Recipe, draw_batch
from autoft.gradients import Batch
from autoft.losses import METHOD_TERMS, StepOutputs, weighted_loss
from autoft.losses.weight_norms import NORM_ORDERS, add_norm_gradients
from autoft.models import ClipClassifier
from autoft.optim import lr_multiplier, scale_learning_rates
from autoft.search_space import Hyperparameters
from autoft.start import start_from, training_mode
from autoft.update import unconstrained_optimizer
from autoft.workspace import Workspace

_SCALE = "clip.logit_scale"


def why_alone(hyperparameters: Hyperparameters) -> str | None:
    """Why fine-tunes with such hyperparameters cannot share a program with others; None: they can."""
    hp = hyperparameters
    others = sorted(METHOD_TERMS.keys() & hp.loss_weights.keys())
    if others:
        return f"loss term {others[0]} is not among the nine"
    if hp.constraint != "none":
        return f"constraint {hp.constraint}"
    if hp.averaging != "none":
        return "the weights are averaged"
    if hp.trained == "nothing":
        return "nothing trains"
    return None


def program(recipe: Recipe) -> tuple[Any, ...]:
    """What fine-tunes must have in common to share a program; the rest is each one's own: weights of the terms, rates, decays, optimizer, seed."""
    hp = recipe.hyperparameters
    return (recipe.steps, recipe.batch_size, recipe.clip_grad_norm, frozenset(hp.loss_weights), hp.label_smoothing, hp.start, hp.trained)


@dataclass(frozen=True)
class _Span:
    """Where a parameter lies in a row."""

    start: int
    end: int
    shape: torch.Size


class _Row:
    """One fine-tune: its hyperparameters, and its optimizer over its row of the weights."""

    def __init__(self, recipe: Recipe, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.recipe, self.optimizer = recipe, optimizer
        hp = recipe.hyperparameters
        self.norms = {term: torch.tensor(weight, device=device) for term, weight in hp.loss_weights.items() if term in NORM_ORDERS}
        self.whole: nn.Parameter  # the row, with its gradient
        self.pieces: list[tuple[int, int, nn.Parameter]] = []  # what the optimizer steps: from, to, and the parameter there


class Stack:
    """K fine-tunes at the same step of recipes that share a `program`. Nothing here waits for the device.

    Args:
        workspace: its model is put where the fine-tunes start, and later lends its code, never its weights.

    Raises:
        ConfigError: as `finetune`.
        ValueError: the recipes share no program.
    """

    def __init__(self, workspace: Workspace, recipes: Sequence[Recipe]) -> None:
        if len({program(recipe) for recipe in recipes}) != 1 or (reason := why_alone(recipes[0].hyperparameters)) is not None:
            raise ValueError(f"{len(recipes)} recipes share no program" + (f": {reason}" if len(recipes) == 1 else ""))
        model, hp = workspace.model, recipes[0].hyperparameters
        start_from(workspace, hp)
        self._workspace, self._towers = workspace, _Towers(model)
        self._number = 0
        self._spans = _spans(model)
        named = dict(model.named_parameters())
        self._weights = torch.cat([named[name].detach().reshape(-1) for name in self._spans]).repeat(len(recipes), 1)
        self._gradients = torch.zeros_like(self._weights)
        self._anchor = torch.cat([workspace.zero_shot.tensors[name].reshape(-1) for name in self._spans])
        self._buffers = {name: torch.stack([buffer] * len(recipes)) for name, buffer in _statistics(workspace).items()}
        terms = {term: [recipe.hyperparameters.loss_weights[term] for recipe in recipes] for term in hp.loss_weights}
        self._term_weights = {term: torch.tensor(weights, device=workspace.device) for term, weights in terms.items()}
        self._rows = [_Row(recipe, unconstrained_optimizer(model, recipe.hyperparameters), workspace.device) for recipe in recipes]
        self._bind()

    def __len__(self) -> int:
        """Fine-tunes in it."""
        return len(self._rows)

    def step(self) -> Tensor:
        """Every fine-tune's next step; the losses (K,) at the weights it started from, without the weight norms."""
        recipes = [row.recipe for row in self._rows]
        batches = [draw_batch(self._workspace, recipe, self._number) for recipe in recipes]
        training_mode(self._workspace)
        losses = self._forward(_stacked(batches))
        self._backward(losses)
        for row in self._rows:
            self._update(row)
        if _SCALE in self._spans:
            self._weights[:, self._spans[_SCALE].start].clamp_(0, MAX_LOG_LOGIT_SCALE)
        self._number += 1
        return losses.detach()

    def optimizer(self, index: int) -> torch.optim.Optimizer:
        """One fine-tune's, over its row of the weights."""
        return self._rows[index].optimizer

    @torch.no_grad()
    def load_into(self, model: ClipClassifier, index: int) -> None:
        """Write one fine-tune's weights and BatchNorm statistics into the workspace's model."""
        named = dict(model.named_parameters())
        own = [self._weights[index, span.start : span.end].view(span.shape) for span in self._spans.values()]
        torch._foreach_copy_([named[name] for name in self._spans], own)
        for name, buffer in model.named_buffers():
            if name in self._buffers:
                buffer.copy_(self._buffers[name][index])

    def keep(self, indices: Sequence[int]) -> None:
        """Go on with these fine-tunes only; they are counted anew in this order."""
        rows = torch.tensor(indices, device=self._weights.device)
        self._weights, self._gradients = self._weights[rows], self._gradients[rows]
        self._buffers = {name: buffer[rows] for name, buffer in self._buffers.items()}
        self._term_weights = {term: weights[rows] for term, weights in self._term_weights.items()}
        self._rows = [self._rows[index] for index in indices]
        self._bind()

    def _forward(self, batches: Mapping[str, Tensor]) -> Tensor:
        smoothing = self._rows[0].recipe.hyperparameters.label_smoothing

        def loss(parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], weights: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
            state = {f"model.{name}": tensor for name, tensor in (*parameters.items(), *buffers.items())}
            found = functional_call(self._towers, state, (batch["images"], batch.get("tokens")))
            logits, image_features, text_features, scale = found
            outputs = StepOutputs(
                logits=logits,
                labels=batch["labels"],
                image_features=image_features,
                text_features=text_features,
                text_index=batch.get("text_index"),
                logit_scale=scale,
                parameters=(),
                anchor=(),
                label_smoothing=smoothing,
            )
            return weighted_loss(weights, outputs, with_norms=False)[0]

        # Attention in its plain form: torch has no batching rule for the CPU's fused one and would go through the rows one by one.
        attention = sdpa_kernel(SDPBackend.MATH) if self._weights.device.type == "cpu" else nullcontext()
        with attention, self._workspace.autocast(cache=False):
            losses: Tensor = vmap(loss)(self._leaves, self._buffers, self._term_weights, batches)
        return losses

    @torch.no_grad()
    def _backward(self, losses: Tensor) -> None:
        """Write every fine-tune's gradient, weight norms left out, into its row."""
        gradients: Sequence[Tensor | None] = [None] * len(self._leaves)
        if losses.requires_grad:  # else there are weight norms only
            gradients = torch.autograd.grad(losses, list(self._leaves.values()), torch.ones_like(losses), allow_unused=True)
        reached = {name: gradient for name, gradient in zip(self._leaves, gradients, strict=True) if gradient is not None}
        if reached:
            torch._foreach_copy_([_view(self._gradients, self._spans[name]) for name in reached], list(reached.values()))
        for name in self._leaves.keys() - reached.keys():
            _view(self._gradients, self._spans[name]).zero_()
        if self._number == 0:
            self._give_optimizers(self._leaves.keys() if self._rows[0].norms else reached.keys())

    def _update(self, row: _Row) -> None:
        """Turn a fine-tune's gradients into new weights, as `autoft.update.Update` does."""
        recipe = row.recipe
        if row.norms:
            add_norm_gradients([row.whole], [self._anchor], row.norms)
        if recipe.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_([row.whole], recipe.clip_grad_norm, foreach=True)
        scale_learning_rates(row.optimizer, lr_multiplier(self._number, recipe.steps, recipe.warmup_steps, recipe.schedule))
        row.optimizer.step()

    def _bind(self) -> None:
        """Make everything that is a view of the weights and gradients one of the present ones."""
        self._leaves = {name: _view(self._weights, span).requires_grad_() for name, span in self._spans.items()}
        for index, row in enumerate(self._rows):
            row.whole = nn.Parameter(self._weights[index])
            row.whole.grad = self._gradients[index]
            for start, end, piece in row.pieces:
                piece.data = self._weights[index, start:end]
                piece.grad = self._gradients[index, start:end]

    def _give_optimizers(self, reached: Collection[str]) -> None:
        """Have the optimizers step what the loss reaches, and leave the rest alone, as they do with parameters that get no gradient."""
        names = {parameter: name for name, parameter in self._towers.model.named_parameters()}
        for index, row in enumerate(self._rows):
            for group in row.optimizer.param_groups:
                spans = [self._spans[name] for parameter in group["params"] if (name := names[parameter]) in reached]
                group["params"] = []
                for start, end in _runs(spans):
                    piece = nn.Parameter(self._weights[index, start:end])
                    piece.grad = self._gradients[index, start:end]
                    group["params"].append(piece)
                    row.pieces.append((start, end, piece))


class _Towers(nn.Module):
    """What a step needs of the model, in one call that `functional_call` can give other weights."""

    def __init__(self, model: ClipClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, tokens: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Logits, image features, and with `tokens` text features and the logit scale, exp() taken."""
        features = self.model.image_features(images)
        logits = self.model.head(features)
        if tokens is None:
            return logits, features, None, None
        scale: Tensor = self.model.clip.logit_scale.exp()  # type: ignore[operator]
        return logits, features, self.model.text_features(tokens), scale


def _spans(model: ClipClassifier) -> dict[str, _Span]:
    """Where each trainable parameter lies in a row, by name, in definition order."""
    spans: dict[str, _Span] = {}
    start = 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spans[name] = _Span(start, start + parameter.numel(), parameter.shape)
            start += parameter.numel()
    return spans


def _view(matrix: Tensor, span: _Span) -> Tensor:
    """One parameter of all rows, (K, *shape), in the matrix's memory and outside of its graph."""
    return matrix.detach()[:, span.start : span.end].view(len(matrix), *span.shape)


def _runs(spans: Iterable[_Span]) -> list[tuple[int, int]]:
    """The spans, neighbours joined."""
    ordered = sorted((span.start, span.end) for span in spans)
    breaks = [0, *(i + 1 for i, (one, other) in enumerate(pairwise(ordered)) if one[1] != other[0]), len(ordered)]
    return [(ordered[first][0], ordered[last - 1][1]) for first, last in pairwise(breaks) if ordered]


def _statistics(workspace: Workspace) -> dict[str, Tensor]:
    """The buffers that a training step changes: BatchNorm's, where it trains."""
    if workspace.config.model.batch_norm == "frozen":
        return {}
    changing = {buffer.data_ptr() for layer in batch_norm_layers(workspace.model) for buffer in layer.buffers()}
    return {name: buffer.clone() for name, buffer in workspace.model.named_buffers() if buffer.data_ptr() in changing}


def _stacked(batches: Sequence[Batch]) -> dict[str, Tensor]:
    """The batches' tensors with a row for each. Where one has fewer texts than others its first fills up; no example points to the copies."""
    found = {"images": torch.stack([batch.images for batch in batches]), "labels": torch.stack([batch.labels for batch in batches])}
    tokens = [batch.tokens for batch in batches if batch.tokens is not None]
    if needs := [batch.text_index for batch in batches if batch.text_index is not None]:
        most = max(map(len, tokens))
        found["tokens"] = torch.stack([torch.cat([own, own[:1].expand(most - len(own), -1)]) for own in tokens])
        found["text_index"] = torch.stack(needs)
    return found
