"""Terms on the logits: values against the plain reference, gradients, limits."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from autoft.losses.classification import confidence_minimization, cross_entropy, entropy, hinge
from tests.losses import reference

Term = Callable[[Tensor, Tensor], Tensor]
TERMS: dict[str, Term] = {
    "cross_entropy": cross_entropy,
    "hinge": hinge,
    "entropy": lambda logits, labels: entropy(logits),
    "confidence_minimization": confidence_minimization,
}
every_term = pytest.mark.parametrize("name", TERMS)


def batch(seed: int, size: int, classes: int, spread: float = 3.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(size, classes, generator=rng, dtype=torch.float64)
    return logits.to(dtype), torch.randint(classes, (size,), generator=rng)


@every_term
@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000), size=st.integers(1, 9), classes=st.integers(2, 11), spread=st.sampled_from([0.0, 0.1, 1.0, 30.0, 1000.0])
)
def test_value_is_that_of_the_definition(name: str, seed: int, size: int, classes: int, spread: float) -> None:
    logits, labels = batch(seed, size, classes, spread)
    expected = getattr(reference, name)(logits.numpy(), *([] if name == "entropy" else [labels.numpy()]))
    assert float(TERMS[name](logits, labels)) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    # float32 rounds inputs of this size by up to spread * 2^-24 each
    assert float(TERMS[name](logits.float(), labels)) == pytest.approx(expected, rel=1e-5, abs=1e-5 * (1 + spread) * classes)


@every_term
@pytest.mark.parametrize("seed", range(3))
def test_gradient_is_that_of_the_value(name: str, seed: int) -> None:
    logits, labels = batch(seed, 5, 4)
    assert torch.autograd.gradcheck(lambda z: TERMS[name](z, labels), (logits.requires_grad_(),))


@every_term
def test_the_order_of_examples_and_of_classes_does_not_matter(name: str) -> None:
    logits, labels = batch(1, 12, 6)
    examples, classes = torch.randperm(12), torch.randperm(6)
    expected = TERMS[name](logits, labels)
    torch.testing.assert_close(TERMS[name](logits[examples], labels[examples]), expected)
    torch.testing.assert_close(TERMS[name](logits[:, classes], classes.argsort()[labels]), expected)


@every_term
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_extreme_logits_stay_finite(name: str, dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = (1e4 * (2.0 * torch.randint(2, (16, 5), generator=rng) - 1)).to(dtype).requires_grad_()
    value = TERMS[name](logits, torch.randint(5, (16,), generator=rng))
    value.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(value)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@every_term
def test_half_precision_logits_are_computed_in_float32(name: str) -> None:
    logits, labels = batch(2, 64, 10, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = TERMS[name](logits, labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, TERMS[name](logits.double(), labels).float(), rtol=1e-5, atol=1e-6)


def test_uniform_logits_have_entropy_log_classes() -> None:
    for classes in (2, 10, 1000):
        assert float(entropy(torch.full((3, classes), 4.2))) == pytest.approx(math.log(classes), rel=1e-6)


def test_entropy_and_cross_entropy_ignore_a_shift_of_all_logits() -> None:
    logits, labels = batch(3, 8, 5)
    for name in ("entropy", "cross_entropy", "hinge", "confidence_minimization"):
        torch.testing.assert_close(TERMS[name](logits + 17.0, labels), TERMS[name](logits, labels))


def test_cross_entropy_with_the_models_own_beliefs_is_entropy() -> None:
    logits, _ = batch(4, 6, 5)
    by_label = torch.stack([torch.stack([cross_entropy(row[None], torch.tensor([label])) for label in range(5)]) for row in logits])
    torch.testing.assert_close((logits.softmax(dim=1) * by_label).sum(dim=1).mean(), entropy(logits))


def test_hinge_is_zero_from_margin_one_on_and_grows_by_one_a_class_below() -> None:
    labels = torch.tensor([2, 0])
    logits = torch.tensor([[1.0, 1.0, 2.0, 1.0], [5.0, -3.0, 4.0, 0.0]])
    assert float(hinge(logits, labels)) == 0.0
    lowered = logits.clone()
    lowered[0, 2] -= 0.5  # three wrong classes each violate by a half, in one of two examples
    assert float(hinge(lowered, labels)) == pytest.approx(3 * 0.5 / 2)


def test_confidence_minimization_is_zero_when_all_are_right_and_entropy_when_all_are_wrong() -> None:
    logits, _ = batch(5, 20, 4)
    best = logits.argmax(dim=1)
    assert float(confidence_minimization(logits, best)) == 0.0
    torch.testing.assert_close(confidence_minimization(logits, (best + 1) % 4), entropy(logits))


def test_confidence_minimization_divides_by_the_batch_not_by_the_mistakes() -> None:
    logits, _ = batch(6, 20, 4)
    labels = logits.argmax(dim=1)
    labels[:5] = (labels[:5] + 1) % 4
    torch.testing.assert_close(confidence_minimization(logits, labels), entropy(logits[:5]) * 5 / 20)


def test_a_step_down_confidence_minimization_makes_wrong_predictions_more_confident() -> None:
    logits, _ = batch(7, 10, 4, spread=0.5)
    wrong = (logits.argmax(dim=1) + 1) % 4
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(confidence_minimization(logits, wrong), logits)
    assert entropy(logits - 0.5 * gradient) < entropy(logits)
