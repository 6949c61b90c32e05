"""The nine loss terms AutoFT weighs (Cho et al. 2024, arXiv 2401.10220) and those of other methods, by name, and their weighted sum.

Names in the authors' code: cross_entropy is ce, confidence_minimization dcm, contrastive flyp, l1_zero l1zero, and so on.
Nothing here waits for the device.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from autoft.errors import ConfigError
from autoft.losses.classification import confidence_minimization, cross_entropy, entropy, hinge
from autoft.losses.contrastive import contrastive as info_nce
from autoft.losses.methods import METHOD_TERMS
from autoft.losses.outputs import LossTerm, MethodOutputs, Need, StepOutputs
from autoft.losses.weight_norms import NORM_ORDERS, add_norm_gradients, l1_init, l1_zero, l2_init, l2_zero, norm_values

__all__ = [
    "LOSS_TERMS",
    "METHOD_TERMS",
    "TERMS",
    "LossTerm",
    "MethodOutputs",
    "Need",
    "StepOutputs",
    "accumulate",
    "backward",
    "check_terms",
    "couples_examples",
    "needs_of",
    "needs_text",
    "weighted_loss",
]


def _contrastive(outputs: StepOutputs) -> Tensor:
    features, index, scale = outputs.text_features, outputs.text_index, outputs.logit_scale
    if features is None or index is None or scale is None:
        raise ValueError("the contrastive term needs text_features, text_index and logit_scale; see needs_text")
    return info_nce(outputs.image_features, features, index, scale)


LOSS_TERMS: Mapping[str, LossTerm] = {
    "cross_entropy": LossTerm(
        "cross_entropy",
        lambda outputs: cross_entropy(outputs.logits, outputs.labels, outputs.label_smoothing),
        description="negative log likelihood of the label; the reference term, its weight fixed at 1",
        source="AutoFT, arXiv 2401.10220",
    ),
    "hinge": LossTerm(
        "hinge",
        lambda outputs: hinge(outputs.logits, outputs.labels),
        description="margin violations of all wrong classes, summed; margin 1",
        source="Weston and Watkins 1999; AutoFT's released code",
    ),
    "entropy": LossTerm(
        "entropy",
        lambda outputs: entropy(outputs.logits),
        description="entropy of the predictions, minimised",
        source="Grandvalet and Bengio 2004",
    ),
    "confidence_minimization": LossTerm(
        "confidence_minimization",
        lambda outputs: confidence_minimization(outputs.logits, outputs.labels),
        description="entropy of the wrong predictions, minimised; the sign of AutoFT's released code",
        source="Choi et al. 2023, arXiv 2306.04974 (which has the opposite sign); AutoFT's released code",
    ),
    "contrastive": LossTerm(
        "contrastive",
        _contrastive,
        needs_text=True,
        couples_examples=True,
        description="symmetric InfoNCE between images and their classes' prompts; trains the text tower too",
        source="FLYP, Goyal et al. 2023, arXiv 2212.00638",
    ),
    "l1_zero": LossTerm(
        "l1_zero",
        lambda outputs: l1_zero(outputs.parameters),
        description="mean absolute weight",
        source="AutoFT, arXiv 2401.10220",
    ),
    "l2_zero": LossTerm(
        "l2_zero",
        lambda outputs: l2_zero(outputs.parameters),
        description="mean squared weight",
        source="AutoFT, arXiv 2401.10220",
    ),
    "l1_init": LossTerm(
        "l1_init",
        lambda outputs: l1_init(outputs.parameters, outputs.anchor),
        description="mean absolute distance to the zero-shot weights",
        source="AutoFT, arXiv 2401.10220; after Li et al. 2018, arXiv 1802.01483",
    ),
    "l2_init": LossTerm(
        "l2_init",
        lambda outputs: l2_init(outputs.parameters, outputs.anchor),
        description="mean squared distance to the zero-shot weights",
        source="L2-SP, Li et al. 2018, arXiv 1802.01483",
    ),
}


TERMS: Mapping[str, LossTerm] = {**LOSS_TERMS, **METHOD_TERMS}


def check_terms(names: Iterable[str]) -> None:
    """Raise ConfigError at the first name that is not a loss term, with the nearest one that is."""
    for name in names:
        if name not in TERMS:
            close = difflib.get_close_matches(name, TERMS, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"the terms are {', '.join(TERMS)}"
            raise ConfigError(f"loss_weights.{name}: there is no loss term {name!r}; {hint}")


def needs_text(names: Iterable[str]) -> bool:
    """Whether any of the terms looks at the text tower. Raises ConfigError for an unknown name."""
    names = tuple(names)
    check_terms(names)
    return any(TERMS[name].needs_text for name in names)


def needs_of(names: Iterable[str]) -> frozenset[Need]:
    """Which parts of `MethodOutputs` the terms look at. Raises ConfigError for an unknown name."""
    names = tuple(names)
    check_terms(names)
    return frozenset(need for name in names for need in TERMS[name].needs)


def couples_examples(names: Iterable[str]) -> bool:
    """Whether any of the terms looks at examples together, so that its mean over parts of a batch is not its value on the batch."""
    names = tuple(names)
    check_terms(names)
    return any(TERMS[name].couples_examples for name in names)


def weighted_loss(weights: Mapping[str, Tensor], outputs: StepOutputs, with_norms: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """sum_k w_k L_k over the terms that have a weight; no other term is computed.

    The order of `weights` does not matter, to the last bit: terms are added in the order of `TERMS`.

    Args:
        weights: scalar tensor by term name, on the outputs' device; takes no gradient.
        outputs: of one forward pass.
        with_norms: whether to compute the weight norms too. Training needs their gradients only, so that a step is spared a pass
            over all weights; without them the sum is that of the other terms.

    Returns:
        The total, a scalar, and each term's unweighted value, detached, in the order of `TERMS`. Weight norms count in the total's
        value, never in its graph: `backward` adds their gradient.

    Raises:
        ConfigError: a weight has no term, or there are no weights.
    """
    check_terms(weights)
    if not weights:
        raise ConfigError("loss_weights is empty: a loss needs at least one term")
    active = [name for name in TERMS if name in weights]
    total = torch.zeros((), device=outputs.logits.device)
    parts: dict[str, Tensor] = {}
    for name in active:
        if name not in NORM_ORDERS:
            value = TERMS[name].compute(outputs)
            total = total + weights[name].detach() * value
            parts[name] = value.detach()
    norms = _norms(weights)
    if norms and with_norms:
        value, found = _weighted_norms(norms, outputs.parameters, outputs.anchor)
        total, parts = total + value, parts | found
    return total, {name: parts[name] for name in active if name in parts}


def backward(total: Tensor, weights: Mapping[str, Tensor], outputs: StepOutputs) -> None:
    """Leave the gradient of sum_k w_k L_k, weight norms included, in the parameters' `grad`.

    Args:
        total: of `weighted_loss`, computed with or without the norms' values.
        weights, outputs: what it was computed from.
    """
    if total.requires_grad:  # else there are weight norms only
        total.backward()  # type: ignore[no-untyped-call]
    norms = _norms(weights)
    if norms:
        add_norm_gradients(outputs.parameters, outputs.anchor, norms)


def accumulate(
    weights: Mapping[str, Tensor],
    parts: Iterable[tuple[float, StepOutputs]],
    parameters: Sequence[Tensor],
    anchor: Sequence[Tensor],
    with_norms: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`weighted_loss` and `backward` of a batch that comes in parts; of terms that are means over examples, see `couples_examples`.

    Args:
        weights, with_norms: as for `weighted_loss`.
        parts: a part's share of the batch's examples, and its outputs; at least one. An iterator that computes a part when asked for it
            has only one in memory, for none is kept.
        parameters, anchor: of the outputs; the weight norms' gradient is added once.

    Returns: what `weighted_loss` returns of the whole batch; all without a graph.
    """
    total: Tensor | float = 0.0
    values: dict[str, Tensor] = {}
    for share, outputs in parts:
        part, found = weighted_loss(weights, outputs, with_norms=False)
        if part.requires_grad:
            (share * part).backward()  # type: ignore[no-untyped-call]
        total = total + share * part.detach()
        values = {name: share * value + values.get(name, 0.0) for name, value in found.items()}
        del outputs, part
    norms = _norms(weights)
    if norms:
        add_norm_gradients(parameters, anchor, norms)
    if norms and with_norms:
        value, found = _weighted_norms(norms, parameters, anchor)
        total, values = total + value, values | found
    assert isinstance(total, Tensor), "a batch has at least one part"
    return total, {name: values[name] for name in TERMS if name in values}


def _weighted_norms(norms: Mapping[str, Tensor], parameters: Sequence[Tensor], anchor: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of the norms, and each one's value."""
    values = norm_values(parameters, anchor, tuple(norms))
    return torch.stack([norms[name].detach() * values[name] for name in norms]).sum(), values


def _norms(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weights[name] for name in TERMS if name in weights and name in NORM_ORDERS}
