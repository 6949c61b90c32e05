"""Weight norms: plain forms against the reference, the closed forms for all terms at once against the plain ones."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import autoft.losses.weight_norms as module
from autoft.losses.weight_norms import NORM_ORDERS, add_norm_gradients, l1_init, l1_zero, l2_init, l2_zero, norm_values
from tests.losses import reference

SUBSETS = [names for size in range(1, 5) for names in itertools.combinations(NORM_ORDERS, size)]


def weights_of(*shapes: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], list[Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    start = [torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype) for shape in shapes]
    moved = [value + 0.1 * torch.randn(value.shape, generator=rng, dtype=torch.float64).to(dtype) for value in start]
    return [value.requires_grad_() for value in moved], start


def plain(name: str, parameters: list[Tensor], anchor: list[Tensor]) -> Tensor:
    if name == "l1_zero":
        return l1_zero(parameters)
    if name == "l2_zero":
        return l2_zero(parameters)
    return {"l1_init": l1_init, "l2_init": l2_init}[name](parameters, anchor)


def random_weights(names: tuple[str, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {name: torch.rand((), generator=rng, dtype=dtype) * 10 for name in names}


def gradients(parameters: list[Tensor], anchor: list[Tensor], weights: dict[str, Tensor]) -> list[Tensor]:
    """What `add_norm_gradients` leaves in parameters without a gradient."""
    for theta in parameters:
        theta.grad = None
    add_norm_gradients(parameters, anchor, weights)
    return [theta.grad for theta in parameters if theta.grad is not None]


def autograd_gradients(parameters: list[Tensor], anchor: list[Tensor], weights: dict[str, Tensor]) -> tuple[Tensor, ...]:
    total = torch.stack([weight.double() * plain(name, parameters, anchor) for name, weight in weights.items()]).sum()
    return torch.autograd.grad(total, parameters)


shapes = st.lists(st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=1, max_size=5)


@settings(deadline=None, max_examples=30)
@given(shapes=shapes, seed=st.integers(0, 10_000))
def test_plain_and_fused_values_are_those_of_the_definition(shapes: list[tuple[int, ...]], seed: int) -> None:
    parameters, anchor = weights_of(*shapes, seed=seed)
    arrays, origin = [theta.detach().numpy() for theta in parameters], [start.numpy() for start in anchor]
    parts = norm_values(parameters, anchor, tuple(NORM_ORDERS))
    assert list(parts) == list(NORM_ORDERS) and not any(value.requires_grad for value in parts.values())
    for name, order in NORM_ORDERS.items():
        value = reference.norm(arrays, origin if "init" in name else None, order)
        assert float(plain(name, parameters, anchor).detach()) == pytest.approx(value, rel=1e-10)
        assert float(parts[name]) == pytest.approx(value, rel=1e-10)


@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
@pytest.mark.parametrize("block", [1, 7, 2**16])
def test_the_added_gradient_is_that_of_autograd_over_the_plain_forms(
    names: tuple[str, ...], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CPU_BLOCK", block)
    parameters, anchor = weights_of((3, 4), (1,), (), (2, 3, 4), (9,))
    weights = random_weights(names)
    torch.testing.assert_close(tuple(gradients(parameters, anchor, weights)), autograd_gradients(parameters, anchor, weights))
    before = [torch.randn(theta.shape, dtype=theta.dtype) for theta in parameters]
    added = gradients(parameters, anchor, weights)
    for theta, gradient in zip(parameters, before, strict=True):
        theta.grad = gradient.clone()
    add_norm_gradients(parameters, anchor, weights)
    assert all(
        torch.equal(theta.grad, gradient + more)  # type: ignore[arg-type]
        for theta, gradient, more in zip(parameters, before, added, strict=True)
    ), "a gradient that is there already is added to, exactly"


@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
def test_the_sum_of_gradients_is_to_the_bit_what_autograd_accumulates(names: tuple[str, ...]) -> None:
    """Single precision, exact: the other terms' graph plus a graph for the norms, against the other terms' graph and an addition."""
    data = torch.randn(5, 4)
    parameters, anchor = weights_of((4, 3), (3,), dtype=torch.float32)
    weights = random_weights(names, dtype=torch.float32)

    def other_terms() -> Tensor:
        return (data @ parameters[0] + parameters[1]).square().mean()

    entries = sum(theta.numel() for theta in parameters)
    surrogate = torch.zeros(())
    for theta, start in zip(parameters, anchor, strict=True):  # linear in theta: its gradient is the closed form
        slopes = []
        for name in names:
            x = (theta - start if "init" in name else theta).detach()
            slopes.append(x.sign() * (weights[name] / entries) if NORM_ORDERS[name] == 1 else x * (2 * (weights[name] / entries)))
        surrogate = surrogate + (theta * sum(slopes[1:], start=slopes[0])).sum()
    expected = torch.autograd.grad(other_terms() + surrogate, parameters)
    other_terms().backward()  # type: ignore[no-untyped-call]
    add_norm_gradients(parameters, anchor, weights)
    assert all(torch.equal(theta.grad, wanted) for theta, wanted in zip(parameters, expected, strict=True))  # type: ignore[arg-type]


def test_large_tensors_are_split_without_changing_the_result() -> None:
    parameters, anchor = weights_of((300, 1000), (17,), (70_000,), seed=3, dtype=torch.float32)
    weights = random_weights(tuple(NORM_ORDERS), dtype=torch.float32)
    parts = norm_values(parameters, anchor, tuple(NORM_ORDERS))
    double, start = [theta.detach().double().requires_grad_() for theta in parameters], [start.double() for start in anchor]
    for name, value in parts.items():
        assert float(value) == pytest.approx(float(plain(name, double, start).detach()), rel=1e-6)
    for ours, exact in zip(gradients(parameters, anchor, weights), autograd_gradients(double, start, weights), strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-12)


def test_any_memory_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CPU_BLOCK", 10)
    (image, matrix), (image_start, matrix_start) = weights_of((4, 3, 2, 2), (6, 5))
    weights = random_weights(tuple(NORM_ORDERS))
    start = [image_start, matrix_start]
    layouts = [
        image.detach().contiguous(memory_format=torch.channels_last).requires_grad_(),
        matrix.detach().T.contiguous().T.requires_grad_(),
    ]
    torch.testing.assert_close(norm_values(layouts, start, tuple(weights)), norm_values([image, matrix], start, tuple(weights)))
    torch.testing.assert_close(gradients(layouts, start, weights), gradients([image, matrix], start, weights))
    for theta in layouts:  # a gradient laid out otherwise than its weight
        theta.grad = torch.zeros(theta.shape, dtype=theta.dtype)
    add_norm_gradients(layouts, start, weights)
    torch.testing.assert_close([theta.grad for theta in layouts], gradients([image, matrix], start, weights))


def test_distances_are_zero_at_the_anchor_and_not_after_a_step() -> None:
    parameters, _ = weights_of((5, 5), (3,))
    anchor = [theta.detach().clone() for theta in parameters]
    names = ("l1_init", "l2_init")
    parts = norm_values(parameters, anchor, names)
    assert float(parts["l1_init"]) == float(parts["l2_init"]) == 0.0
    assert not any(gradient.any() for gradient in gradients(parameters, anchor, random_weights(names)))
    with torch.no_grad():
        parameters[0].sub_(0.1)
    parts = norm_values(parameters, anchor, names)
    assert float(parts["l1_init"]) == pytest.approx(0.1 * 25 / 28)
    assert float(parts["l2_init"]) == pytest.approx(0.01 * 25 / 28)


def test_an_anchor_that_shares_storage_is_refused() -> None:
    """Defect of the released code: the distance was measured from the weights to themselves."""
    parameters, anchor = weights_of((5, 5), (3,))
    alias = [anchor[0], parameters[1].detach()]
    for call in (
        lambda start: add_norm_gradients(parameters, start, random_weights(("l2_init",))),
        lambda start: norm_values(parameters, start, ["l2_init"]),
    ):
        with pytest.raises(ValueError, match="shares storage"):
            call(alias)
        with pytest.raises(ValueError, match="match"):
            call(anchor[::-1])
    assert not any(theta.grad is not None for theta in parameters), "refused before anything is changed"
    add_norm_gradients(parameters, [], random_weights(("l2_zero", "l1_zero")))  # who looks at no anchor needs none
    norm_values(parameters, [], ["l2_zero"])


def test_float32_weights_on_float64_parameters_and_under_autocast() -> None:
    parameters, anchor = weights_of((6, 4))
    weights = {name: torch.tensor(2.0) for name in NORM_ORDERS}
    expected = gradients(parameters, anchor, weights)
    single = [theta.detach().float().requires_grad_() for theta in parameters]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradients(single, [start.float() for start in anchor], weights)
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-5, atol=1e-7)
