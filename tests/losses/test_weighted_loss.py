"""The sum of terms by name: what is computed, in which order, and what is refused."""

import dataclasses
from typing import get_args

import pytest
import torch
from torch import Tensor

from autoft.config import LossTermName
from autoft.errors import ConfigError
from autoft.losses import LOSS_TERMS, LossTerm, StepOutputs, backward, check_terms, needs_text, weighted_loss
from autoft.losses.weight_norms import NORM_ORDERS
from tests.losses.reference import random_step, reference_value

ALL = tuple(LOSS_TERMS)


def trainable(outputs: StepOutputs) -> StepOutputs:
    """The same step, with a gradient wherever training has one."""

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().clone().requires_grad_()

    assert outputs.text_features is not None
    assert outputs.logit_scale is not None
    return dataclasses.replace(
        outputs,
        logits=leaf(outputs.logits),
        image_features=leaf(outputs.image_features),
        text_features=leaf(outputs.text_features),
        logit_scale=leaf(outputs.logit_scale),
        parameters=[leaf(theta) for theta in outputs.parameters],
    )


def leaves(outputs: StepOutputs) -> list[Tensor]:
    assert outputs.text_features is not None
    assert outputs.logit_scale is not None
    return [outputs.logits, outputs.image_features, outputs.text_features, outputs.logit_scale, *outputs.parameters]


def gradients(weights: dict[str, Tensor], outputs: StepOutputs, with_norms: bool = False) -> list[Tensor | None]:
    """What `backward` leaves in each of the `leaves`."""
    for leaf in leaves(outputs):
        leaf.grad = None
    backward(weighted_loss(weights, outputs, with_norms)[0], weights, outputs)
    return [leaf.grad for leaf in leaves(outputs)]


def some_weights(names: tuple[str, ...] = ALL) -> dict[str, Tensor]:
    return {name: torch.tensor(0.3 + 0.7 * ALL.index(name), dtype=torch.float64) for name in names}


def test_the_terms_are_those_of_the_study_file() -> None:
    assert set(LOSS_TERMS) == {"cross_entropy", *get_args(LossTermName)}
    assert all(name == term.name and term.description and term.source for name, term in LOSS_TERMS.items())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("seed", range(5))
def test_every_term_by_name_is_what_its_definition_says(name: str, seed: int) -> None:
    outputs = random_step(seed)
    expected = reference_value(name, outputs)
    assert float(LOSS_TERMS[name].compute(outputs)) == pytest.approx(expected, rel=1e-9)
    total, parts = weighted_loss({name: torch.tensor(2.5, dtype=torch.float64)}, outputs, with_norms=True)
    assert float(parts[name]) == pytest.approx(expected, rel=1e-9)
    assert float(total) == pytest.approx(2.5 * expected, rel=1e-9)


def test_total_and_gradient_are_the_weighted_sum_of_the_terms() -> None:
    outputs, weights = trainable(random_step(1)), some_weights()
    total, parts = weighted_loss(weights, outputs, with_norms=True)
    separately = torch.stack([weights[name] * LOSS_TERMS[name].compute(outputs) for name in ALL]).sum()
    torch.testing.assert_close(total, separately)
    torch.testing.assert_close(tuple(gradients(weights, outputs)), torch.autograd.grad(separately, leaves(outputs)))
    assert tuple(parts) == ALL
    assert not any(part.requires_grad for part in parts.values())


def test_the_order_of_the_weights_does_not_matter_to_the_last_bit() -> None:
    outputs = trainable(random_step(2, batch=33, dtype=torch.float32))
    results = []
    for order in (ALL, ALL[::-1], tuple(sorted(ALL))):
        weights = {name: some_weights()[name].float() for name in order}
        total, parts = weighted_loss(weights, outputs, with_norms=True)
        results.append((total, tuple(parts), gradients(weights, outputs)))
    for total, names, found in results[1:]:
        assert torch.equal(total, results[0][0])
        assert names == results[0][1]
        assert equal(found, results[0][2])


@pytest.mark.parametrize("names", [ALL, ("cross_entropy", "l1_zero"), ("l2_init", "l1_zero"), ("hinge",)], ids="+".join)
def test_the_norms_values_change_no_gradient_and_nothing_of_the_other_terms(names: tuple[str, ...]) -> None:
    outputs = trainable(random_step(6, dtype=torch.float32))
    weights = {name: weight.float() for name, weight in some_weights(names).items()}
    with_norms, all_parts = weighted_loss(weights, outputs, with_norms=True)
    total, parts = weighted_loss(weights, outputs, with_norms=False)
    assert parts == {name: value for name, value in all_parts.items() if name not in NORM_ORDERS}
    norms = sum(float(weights[name] * value) for name, value in all_parts.items() if name in NORM_ORDERS)
    assert float(with_norms.detach()) == pytest.approx(float(total.detach()) + norms, rel=1e-6)
    assert equal(gradients(weights, outputs, with_norms=True), gradients(weights, outputs, with_norms=False))


def equal(ours: list[Tensor | None], others: list[Tensor | None]) -> bool:
    """To the bit, an absent gradient like an absent one."""
    return all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b)) for a, b in zip(ours, others, strict=True)
    )


def test_only_terms_with_a_weight_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[str] = []

    def counting(term: LossTerm) -> LossTerm:
        def compute(outputs: StepOutputs) -> Tensor:
            computed.append(term.name)
            return term.compute(outputs)

        return dataclasses.replace(term, compute=compute)

    monkeypatch.setattr("autoft.losses.TERMS", {name: counting(term) for name, term in LOSS_TERMS.items()})
    without_text = dataclasses.replace(random_step(3), text_features=None, text_index=None, logit_scale=None)
    _, parts = weighted_loss(some_weights(("hinge", "cross_entropy", "l2_init")), without_text, with_norms=True)
    assert computed == ["cross_entropy", "hinge"]
    assert set(parts) == {"cross_entropy", "hinge", "l2_init"}


def test_the_order_of_examples_does_not_matter() -> None:
    outputs, order = random_step(4), torch.randperm(7)
    assert outputs.text_index is not None
    shuffled = dataclasses.replace(
        outputs,
        logits=outputs.logits[order],
        labels=outputs.labels[order],
        image_features=outputs.image_features[order],
        text_index=outputs.text_index[order],
    )
    torch.testing.assert_close(weighted_loss(some_weights(), shuffled, True), weighted_loss(some_weights(), outputs, True))


def test_bf16_autocast_changes_nothing_but_the_inputs() -> None:
    outputs = random_step(5, batch=32, dtype=torch.float32)
    weights = {name: weight.float() for name, weight in some_weights().items()}
    expected, expected_parts = weighted_loss(weights, outputs, with_norms=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, parts = weighted_loss(weights, outputs, with_norms=True)
    torch.testing.assert_close((total, parts), (expected, expected_parts))
    half = dataclasses.replace(outputs, logits=outputs.logits.bfloat16(), image_features=outputs.image_features.bfloat16())
    total, _ = weighted_loss(weights, half, with_norms=True)
    assert total.dtype == torch.float32
    assert float(total) == pytest.approx(float(expected), rel=0.02)


def test_an_unknown_term_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"hingee.*did you mean hinge\?"):
        weighted_loss({"hingee": torch.tensor(1.0)}, random_step(0), True)
    with pytest.raises(ConfigError, match=r"did you mean l2_init\?"):
        needs_text(["cross_entropy", "l2init"])
    with pytest.raises(ConfigError, match="the terms are cross_entropy, hinge"):
        check_terms(["zzz"])
    with pytest.raises(ConfigError, match="at least one term"):
        weighted_loss({}, random_step(0), True)


def test_contrastive_without_texts_is_refused() -> None:
    assert needs_text(["hinge", "contrastive"])
    assert not needs_text(name for name in ALL if name != "contrastive")
    without_text = dataclasses.replace(random_step(0), text_features=None)
    with pytest.raises(ValueError, match="text_features"):
        weighted_loss({"contrastive": torch.tensor(1.0)}, without_text, True)
