"""What a loss term sees of a training step, and what a loss term is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from autoft.losses.mixtures import Mixtures

Need = Literal["teacher", "slices", "contexts", "random_texts", "mixtures", "core"]


@dataclass(frozen=True)
class MethodOutputs:
    """What the terms of other methods look at, of one step. All on the model's device; only `slices` and `core_logits` take gradients.

    initial_head: (classes, dim), the zero-shot head's weight: text embeddings times the temperature's inverse.
    scale: scalar, exp of the zero-shot logit scale.
    margin: of the margin term.
    teacher_features: (batch, dim), L2-normalised features of the frozen image tower for the same pixels. Need "teacher".
    slices, teacher_slices: intermediate features of the tuned and the frozen tower, of equal shapes, input to output. Need "slices".
    contexts: (contexts, dim), L2-normalised embeddings of prompts without their class. Need "contexts".
    random_texts: (texts, dim), L2-normalised embeddings of random texts, drawn for this step. Need "random_texts".
    mixtures: which examples' features are mixed in this step, and how. Need "mixtures".
    core_logits: (batch, classes) of the head made of core-feature descriptions. Need "core".
    core_targets: (batch, classes), probabilities by the frozen model's affinity to the descriptions. Need "core".
    """

    initial_head: Tensor
    scale: Tensor
    margin: float
    teacher_features: Tensor | None = None
    slices: Sequence[Tensor] | None = None
    teacher_slices: Sequence[Tensor] | None = None
    contexts: Tensor | None = None
    random_texts: Tensor | None = None
    mixtures: Mixtures | None = None
    core_logits: Tensor | None = None
    core_targets: Tensor | None = None


@dataclass(frozen=True)
class StepOutputs:
    """Everything a term may look at. One forward pass serves all terms.

    logits: (batch, classes).
    labels: (batch,) int64.
    image_features: (batch, dim), L2-normalised.
    text_features: (unique texts, dim), L2-normalised, the batch's distinct texts; None when no term needs the text tower.
    text_index: (batch,) int64, the row of `text_features` that belongs to each example.
    logit_scale: scalar, exp() already taken.
    parameters: the trainable parameters.
    anchor: their zero-shot values in the same order; clones, never aliases.
    label_smoothing: of the cross-entropy term, in [0, 1).
    more: what the terms of `METHOD_TERMS` look at; None when none is active.
    """

    logits: Tensor
    labels: Tensor
    image_features: Tensor
    text_features: Tensor | None
    text_index: Tensor | None
    logit_scale: Tensor | None
    parameters: Sequence[Tensor]
    anchor: Sequence[Tensor]
    label_smoothing: float = 0.0
    more: "MethodOutputs | None" = None


@dataclass(frozen=True)
class LossTerm:
    """One term: a scalar of a step's outputs, and where it comes from.

    couples_examples: whether its value depends on which examples are in a batch together. Else it is a mean over examples (or a norm of
        the weights), and a batch's value the mean of its parts' values, each counted by its examples.
    needs: which parts of `MethodOutputs` must be there.
    """

    name: str
    compute: Callable[[StepOutputs], Tensor]
    needs_text: bool = False
    couples_examples: bool = False
    needs: frozenset[Need] = frozenset()
    description: str = ""
    source: str = ""
