"""Weight norms: plain forms against the reference, the fused form against the plain ones."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import autoft.losses.weight_norms as module
from autoft.losses.weight_norms import NORM_ORDERS, l1_init, l1_zero, l2_init, l2_zero, weight_norms
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


shapes = st.lists(st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=1, max_size=5)


@settings(deadline=None, max_examples=30)
@given(shapes=shapes, seed=st.integers(0, 10_000))
def test_plain_and_fused_values_are_those_of_the_definition(shapes: list[tuple[int, ...]], seed: int) -> None:
    parameters, anchor = weights_of(*shapes, seed=seed)
    arrays, origin = [theta.detach().numpy() for theta in parameters], [start.numpy() for start in anchor]
    weights = random_weights(tuple(NORM_ORDERS), seed)
    total, parts = weight_norms(parameters, anchor, weights)
    expected = {name: reference.norm(arrays, origin if "init" in name else None, order) for name, order in NORM_ORDERS.items()}
    for name, value in expected.items():
        assert float(plain(name, parameters, anchor).detach()) == pytest.approx(value, rel=1e-10)
        assert float(parts[name]) == pytest.approx(value, rel=1e-10)
    assert float(total.detach()) == pytest.approx(sum(float(weights[name]) * value for name, value in expected.items()), rel=1e-10)


@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
@pytest.mark.parametrize("block", [1, 7, 2**16])
def test_fused_gradient_is_that_of_autograd_over_the_plain_forms(names: tuple[str, ...], block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CPU_BLOCK", block)
    parameters, anchor = weights_of((3, 4), (1,), (), (2, 3, 4), (9,))
    weights = random_weights(names)
    total, parts = weight_norms(parameters, anchor, weights)
    expected = sum((weights[name] * plain(name, parameters, anchor) for name in names), start=torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(total, expected)
    assert list(parts) == list(names)
    assert not any(value.requires_grad for value in parts.values())
    upstream = torch.tensor(-1.7, dtype=torch.float64)
    ours = torch.autograd.grad(total, parameters, upstream, retain_graph=True)
    torch.testing.assert_close(ours, torch.autograd.grad(expected, parameters, upstream))
    torch.testing.assert_close(torch.autograd.grad(total, parameters, upstream), ours)  # the graph can be used twice


def test_gradcheck() -> None:
    parameters, anchor = weights_of((3, 2), (4,))
    weights = random_weights(tuple(NORM_ORDERS))
    for theta, start in zip(parameters, anchor, strict=True):  # keep clear of the kinks of |x|
        assert min(theta.abs().min(), (theta - start).abs().min()) > 1e-4
    assert torch.autograd.gradcheck(lambda *thetas: weight_norms(thetas, anchor, weights)[0], parameters)


def test_large_tensors_are_split_without_changing_the_result() -> None:
    parameters, anchor = weights_of((300, 1000), (17,), (70_000,), seed=3, dtype=torch.float32)
    weights = random_weights(tuple(NORM_ORDERS), dtype=torch.float32)
    total, parts = weight_norms(parameters, anchor, weights)
    total.backward()  # type: ignore[no-untyped-call]
    double = [theta.detach().double().requires_grad_() for theta in parameters]
    exact = {name: plain(name, double, [start.double() for start in anchor]) for name in NORM_ORDERS}
    torch.stack([weights[name] * value for name, value in exact.items()]).sum().backward()  # type: ignore[no-untyped-call]
    for name, value in exact.items():
        assert float(parts[name]) == pytest.approx(float(value.detach()), rel=1e-6)
    for theta, reference_theta in zip(parameters, double, strict=True):
        assert theta.grad is not None
        assert reference_theta.grad is not None
        torch.testing.assert_close(theta.grad.double(), reference_theta.grad, rtol=1e-5, atol=1e-12)


def test_any_memory_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CPU_BLOCK", 10)
    (image, matrix), (image_start, matrix_start) = weights_of((4, 3, 2, 2), (6, 5))
    weights = random_weights(tuple(NORM_ORDERS))
    expected, _ = weight_norms([image, matrix], [image_start, matrix_start], weights)
    wanted = torch.autograd.grad(expected, [image, matrix])
    layouts = [
        image.detach().contiguous(memory_format=torch.channels_last).requires_grad_(),
        matrix.detach().T.contiguous().T.requires_grad_(),
    ]
    total, _ = weight_norms(layouts, [image_start, matrix_start], weights)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(torch.autograd.grad(total, layouts), wanted)


def test_distances_are_zero_at_the_anchor_and_not_after_a_step() -> None:
    parameters, _ = weights_of((5, 5), (3,))
    anchor = [theta.detach().clone() for theta in parameters]
    weights = random_weights(("l1_init", "l2_init"))
    total, parts = weight_norms(parameters, anchor, weights)
    total.backward()  # type: ignore[no-untyped-call]
    assert float(parts["l1_init"]) == float(parts["l2_init"]) == 0.0
    assert all(theta.grad is not None and not theta.grad.any() for theta in parameters)
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    optimizer.zero_grad()
    parameters[0].sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    _, parts = weight_norms(parameters, anchor, weights)
    assert float(parts["l1_init"]) == pytest.approx(0.1 * 25 / 28)
    assert float(parts["l2_init"]) == pytest.approx(0.01 * 25 / 28)


def test_an_anchor_that_shares_storage_is_refused() -> None:
    """Defect of the released code: the distance was measured from the weights to themselves."""
    parameters, anchor = weights_of((5, 5), (3,))
    alias = [anchor[0], parameters[1].detach()]
    with pytest.raises(ValueError, match="shares storage"):
        weight_norms(parameters, alias, random_weights(("l2_init",)))
    with pytest.raises(ValueError, match="match"):
        weight_norms(parameters, anchor[::-1], random_weights(("l2_init",)))
    weight_norms(parameters, [], random_weights(("l2_zero", "l1_zero")))  # who looks at no anchor needs none


def test_a_weight_changed_between_forward_and_backward_is_noticed() -> None:
    parameters, anchor = weights_of((5,))
    total, _ = weight_norms(parameters, anchor, random_weights(("l2_zero",)))
    with torch.no_grad():
        parameters[0].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()  # type: ignore[no-untyped-call]


def test_float32_weights_on_float64_parameters_and_under_autocast() -> None:
    parameters, anchor = weights_of((6, 4))
    weights = {name: torch.tensor(2.0) for name in NORM_ORDERS}
    total, _ = weight_norms(parameters, anchor, weights)
    single = [theta.detach().float().requires_grad_() for theta in parameters]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast, _ = weight_norms(single, [start.float() for start in anchor], weights)
    under_autocast.backward()  # type: ignore[no-untyped-call]
    assert under_autocast.dtype == torch.float32
    assert float(under_autocast.detach()) == pytest.approx(float(total.detach()), rel=1e-6)
