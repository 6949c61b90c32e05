"""Averages of weights: soups, the Fisher-weighted merge, the Beta moving average; shapes and dtypes of interpolation."""

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from autoft.errors import ModelError
from autoft.models import interpolate
from autoft.models.averaging import beta_weight, fisher_merge, greedy_soup, uniform_soup, update_average

State = dict[str, Tensor]


def state(seed: int) -> State:
    torch.manual_seed(seed)
    return {"w": torch.randn(4, 3), "bias": torch.randn(3), "half": torch.randn(5).bfloat16(), "steps": torch.tensor(seed)}


def loaders(states: list[State]) -> list[Callable[[], State]]:
    return [lambda own=own: own for own in states]  # type: ignore[misc]


# --- interpolation


@pytest.mark.parametrize("mixing", ["uniform", "fisher"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_an_entry_of_two_shapes_or_kinds_is_named(alpha: float, mixing: str) -> None:
    mix = interpolate if mixing == "uniform" else lambda *ends: fisher_merge(ends[0], ends[1], {}, {}, ends[2])
    with pytest.raises(ModelError, match=r"bias: its shape is \(3,\) in one and \(1,\) in the other"):
        mix(state(0), state(1) | {"bias": torch.zeros(1)}, alpha)  # would broadcast
    with pytest.raises(ModelError, match=r"steps: it is torch.int64 in one and torch.float32 in the other"):
        mix(state(0), state(1) | {"steps": torch.tensor(1.0)}, alpha)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_outside_the_unit_interval_is_refused(alpha: float) -> None:
    with pytest.raises(ModelError, match="alpha must lie in"):
        interpolate(state(0), state(1), alpha)


def test_half_precision_is_mixed_in_fp32() -> None:
    a, b = torch.randn(2000).half() * 100, torch.randn(2000).half()
    mixed = interpolate({"x": a}, {"x": b}, 0.3)["x"]
    assert mixed.dtype == torch.float16
    assert torch.equal(mixed, torch.lerp(a.float(), b.float(), 0.3).half()), "rounded once"
    finer = torch.randn(2000)
    mixed = interpolate({"x": a}, {"x": finer}, 0.3)["x"]
    assert torch.equal(mixed, torch.lerp(a.float(), finer, 0.3).half()), "the other end is not rounded first"


# --- Fisher-weighted merge


def fisher(seed: int) -> State:
    torch.manual_seed(seed)
    return {"w": torch.rand(4, 3) + 0.1, "bias": torch.rand(3) + 0.1}


def test_the_fisher_merge_is_its_formula_in_float64() -> None:
    a, b, f0, f1 = state(0), state(1), fisher(2), fisher(3)
    f0["w"][0] = 0.0  # below the floor at one end: the other end decides nearly alone
    merged = fisher_merge(a, b, f0, f1, 0.3)
    for name in ("w", "bias"):
        low, high = 0.7 * f0[name].double().clamp(min=1e-8), 0.3 * f1[name].double().clamp(min=1e-8)
        expected = (low * a[name].double() + high * b[name].double()) / (low + high)
        torch.testing.assert_close(merged[name].double(), expected, rtol=1e-5, atol=1e-6)
    plain = interpolate(a, b, 0.3)
    assert torch.equal(merged["half"], plain["half"]), "an entry without a Fisher is interpolated"
    assert int(merged["steps"]) == 0
    torch.testing.assert_close(merged["w"][0], b["w"][0])


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_ends_of_the_fisher_merge_are_exact(alpha: float) -> None:
    ends = state(0), state(1)
    merged = fisher_merge(*ends, fisher(2), fisher(3), alpha)
    assert all(torch.equal(tensor, ends[int(alpha)][name]) for name, tensor in merged.items())


@pytest.mark.parametrize("scale", [1.0, 1e-12])
def test_equal_fishers_are_plain_interpolation(scale: float) -> None:
    """1e-12: both are below the floor."""
    equal = {name: scale * values for name, values in fisher(2).items()}
    torch.testing.assert_close(fisher_merge(state(0), state(1), equal, equal, 0.3), interpolate(state(0), state(1), 0.3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"other": torch.ones(1)}, "a Fisher of other, which the weights do not have"),
        ({"bias": torch.ones(1)}, r"the Fisher of bias has shape \(1,\), its weights \(3,\)"),
        ({"steps": torch.ones(())}, "a Fisher of steps, which is torch.int64"),
    ],
)
def test_a_fisher_that_does_not_fit_is_named(change: State, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        fisher_merge(state(0), state(1), fisher(2) | change, fisher(3) | change, 0.5)
    with pytest.raises(KeyError, match="bias"):
        fisher_merge(state(0), state(1), fisher(2), {"w": fisher(3)["w"]}, 0.5)


# --- soups


def test_the_uniform_soup_is_the_mean() -> None:
    states = [state(seed) for seed in range(7)]
    soup = uniform_soup(loaders(states))
    for name in ("w", "bias"):
        mean = torch.stack([one[name].double() for one in states]).mean(dim=0)
        torch.testing.assert_close(soup[name].double(), mean, rtol=1e-6, atol=1e-6)
    half = torch.stack([one["half"].double() for one in states]).mean(dim=0)
    assert soup["half"].dtype == torch.bfloat16
    assert torch.equal(soup["half"], half.to(torch.bfloat16)), "rounded once, not at every member"
    assert int(soup["steps"]) == 0, "integers are the first state's"


@pytest.mark.parametrize("count", [1, 3, 7])
def test_a_soup_of_one_model_many_times_is_that_model(count: int) -> None:
    own = state(3)
    for soup in (uniform_soup(loaders([own] * count)), greedy_soup(loaders([own] * count), lambda one: float(one["w"].sum())).state):
        assert all(torch.equal(soup[name], own[name]) for name in own)
        assert all(soup[name].data_ptr() != own[name].data_ptr() for name in own), "a copy, not an alias"
    members = greedy_soup(loaders([own] * count), lambda one: float(one["w"].sum())).members
    assert members == tuple(range(count)), "who does not lower the score stays in; the earlier first"


def test_states_are_let_go_before_the_next_is_loaded() -> None:
    alive: list[Any] = []

    def load(seed: int) -> State:
        assert sum(reference() is not None for reference in alive) <= 1, "the first one's tensors may still be the mean"
        tensor = torch.full((3,), float(seed))
        alive.append(weakref.ref(tensor))
        return {"w": tensor}

    soup = uniform_soup([lambda seed=seed: load(seed) for seed in range(6)])  # type: ignore[misc]
    torch.testing.assert_close(soup["w"], torch.full((3,), 2.5))
    alive.clear()
    greedy_soup([lambda seed=seed: load(seed) for seed in range(6)], lambda one: float(one["w"][0]))  # type: ignore[misc]
    assert len(alive) == 12


def test_states_that_do_not_match_make_no_soup() -> None:
    other = state(1) | {"bias": torch.zeros(1)}
    for make in (uniform_soup, lambda states: greedy_soup(states, lambda _: 0.0)):
        with pytest.raises(ModelError, match="bias"):
            make(loaders([state(0), other]))
        with pytest.raises(KeyError, match="extra"):
            make(loaders([state(0), state(1) | {"extra": torch.zeros(1)}]))
        with pytest.raises(ModelError, match="at least one"):
            make([])


def test_the_greedy_soup_adds_who_does_not_hurt_best_first() -> None:
    """Weights on a line, scored by the distance to 1: -1 and 3 together are perfect, 0 with them is worse, 10 alone is the worst."""
    places = [10.0, 0.2, 3.0, -1.0]
    score = lambda one: -abs(float(one["x"]) - 1)  # noqa: E731
    soup = greedy_soup(loaders([{"x": torch.tensor(place)} for place in places]), score)
    # alone: 1 (-0.8) < 2 and 3 (-2) < 0 (-9); {1, 2}: 1.6, better; {1, 2, 3}: 0.733, better; with 10: 3.05, worse
    assert soup.members == (1, 2, 3)
    assert soup.score == pytest.approx(-(1 - 2.2 / 3))
    assert soup.own_scores == pytest.approx((-9, -0.8, -2, -2))
    torch.testing.assert_close(soup.state["x"], torch.tensor(2.2 / 3))


def test_a_candidate_without_a_score_stays_out() -> None:
    scores = iter([float("nan"), 0.5, 0.4, float("nan")])
    soup = greedy_soup(loaders([state(0), state(1), state(2)]), lambda _: next(scores))
    assert soup.members == (1,)
    with pytest.raises(ModelError, match="none of the 2 states has a score"):
        greedy_soup(loaders([state(0), state(1)]), lambda _: float("nan"))


@settings(max_examples=60, deadline=None)
@given(
    places=st.lists(st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3), min_size=1, max_size=8),
    target=st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3),
    direction=st.sampled_from(["maximize", "minimize"]),
    grain=st.sampled_from([1e-6, 1.0, 50.0]),
)
def test_the_greedy_soup_is_never_below_its_best_member(places: list[list[float]], target: list[float], direction: Any, grain: float) -> None:
    """grain: how coarse the score is; a coarse one has many ties."""
    sign = -1 if direction == "maximize" else 1
    score = lambda one: sign * float(((one["x"] - torch.tensor(target)).square().sum() / grain).round())  # noqa: E731
    states = [{"x": torch.tensor(place)} for place in places]
    soup = greedy_soup(loaders(states), score, direction)
    best = (max if direction == "maximize" else min)(map(score, states))
    assert soup.own_scores == tuple(map(score, states))
    assert soup.score >= best if direction == "maximize" else soup.score <= best
    assert soup.score == score(soup.state), "the score is of the state that comes back"
    assert soup.own_scores[soup.members[0]] == best
    mean = np.mean([places[member] for member in soup.members], axis=0)
    np.testing.assert_allclose(soup.state["x"].double(), mean, rtol=1e-5, atol=1e-5)
    assert len(set(soup.members)) == len(soup.members)


# --- Beta moving average


@pytest.mark.parametrize("b", [0.5, 1.0, 3.0])
def test_beta_weights_are_the_density(b: float) -> None:
    total = 11
    found = [beta_weight(step, total, b) for step in range(total + 1)]
    np.testing.assert_allclose(found, stats.beta(b, b).pdf((np.arange(total + 1) + 0.5) / (total + 1)), rtol=1e-12)
    np.testing.assert_allclose(found, found[::-1], rtol=1e-12)
    assert beta_weight(0, 0, b) > 0, "a fine-tune without steps"


@pytest.mark.parametrize(("step", "total", "b"), [(-1, 5, 0.5), (6, 5, 0.5), (2, 5, 0.0)])
def test_beta_weights_of_no_step_are_refused(step: int, total: int, b: float) -> None:
    with pytest.raises(ValueError, match="beta_weight needs"):
        beta_weight(step, total, b)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_the_running_average_is_the_weighted_mean(dtype: torch.dtype, tolerance: float) -> None:
    total = 40
    torch.manual_seed(0)
    path = [[torch.randn(3, 2, dtype=dtype), torch.randn(5, dtype=dtype)] for _ in range(total + 1)]
    average = [tensor.clone() for tensor in path[0]]
    places = [tensor.data_ptr() for tensor in average]
    so_far = beta_weight(0, total)
    for step in range(1, total + 1):
        weight = beta_weight(step, total)
        so_far += weight
        update_average(average, path[step], weight / so_far)
    weights = np.array([beta_weight(step, total) for step in range(total + 1)])
    for index, tensor in enumerate(average):
        stacked = np.stack([own[index].double().numpy() for own in path])
        direct = np.tensordot(weights / weights.sum(), stacked, axes=1)
        np.testing.assert_allclose(tensor.double(), direct, rtol=tolerance, atol=tolerance)
    assert [tensor.data_ptr() for tensor in average] == places, "in place"
