"""Averages of weights: model soups, the Fisher-weighted merge, and the Beta moving average of one fine-tune.

States are matched by name and averaged in fp32 or wider. Integer buffers are not averaged. BatchNorm statistics are averaged like
the rest: see `autoft.batch_norm` for what to do about them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autoft.config import Direction
from autoft.errors import ModelError
from autoft.models.state import State, check_same_entries, interpolate, mix, widened

# Loads a state when it is needed, so that a soup of many fine-tunes fits in memory: `partial(read_state, folder, device)`, or
# `lambda: state` for one that is at hand.
Loader = Callable[[], State]


@dataclass(frozen=True, kw_only=True)
class Soup:
    """A soup and what it was made of.

    members: positions in the list of candidates, in the order they joined.
    score: of the soup, on the set that chose the members: optimistic, as any score that was selected on.
    state: the average of the members.
    own_scores: each candidate's score alone, in the order of the list.
    """

    members: tuple[int, ...]
    score: float
    state: dict[str, Tensor]
    own_scores: tuple[float, ...]


@torch.no_grad()
def uniform_soup(states: Sequence[Loader]) -> dict[str, Tensor]:
    """The mean of all states (Wortsman et al. 2022, "Model soups", arXiv 2203.05482).

    Integer buffers, and the dtype of every entry, are the first state's. Three states' worth of memory, whatever their number.

    Raises:
        ModelError: there are no states, or an entry has two shapes. KeyError: the states have different names.
    """
    if not states:
        raise ModelError("a soup needs at least one state")
    mean, form = _start(states[0]())
    for count, load in enumerate(states[1:], start=2):
        mean = _joined(mean, form, load(), 1 / count)
    return _as_stored(mean, form)


@torch.no_grad()
def greedy_soup(states: Sequence[Loader], score: Callable[[State], float], direction: Direction = "maximize") -> Soup:
    """The greedy soup (Wortsman et al. 2022, "Model soups", arXiv 2203.05482, recipe 1).

    Candidates are taken from the best to the worst by their own score, the earlier first among equals; one stays in if the average
    with it does not score lower than the average without it. So the soup is never worse than the best candidate on the set that
    `score` looks at, which therefore must be held out, and not a test set. Every state is loaded twice; three states' worth of memory,
    whatever their number.

    Args:
        states: the candidates.
        score: of a state, on the selection set; NaN keeps a candidate out.
        direction: whether a larger or a smaller score is better.

    Raises:
        ModelError: there are no states, none has a score, or an entry has two shapes. KeyError: the states have different names.
    """
    if not states:
        raise ModelError("a soup needs at least one state")
    own = tuple(float(score(load())) for load in states)
    sign = 1 if direction == "maximize" else -1
    order = sorted((index for index, value in enumerate(own) if not math.isnan(value)), key=lambda index: -sign * own[index])
    if not order:
        raise ModelError(f"none of the {len(states)} states has a score: all are NaN")
    mean, form = _start(states[order[0]]())
    members, best = [order[0]], own[order[0]]
    for index in order[1:]:
        wider = _joined(mean, form, states[index](), 1 / (len(members) + 1))
        value = float(score(_as_stored(wider, form)))
        if sign * value >= sign * best:
            mean, best = wider, value
            members.append(index)
    return Soup(members=tuple(members), score=best, state=_as_stored(mean, form), own_scores=own)


@torch.no_grad()
def fisher_merge(
    zero_shot: State, fine_tuned: State, fisher_zero_shot: State, fisher_fine_tuned: State, alpha: float, floor: float = 1e-8
) -> dict[str, Tensor]:
    """((1 - alpha) F0 t0 + alpha F1 t1) / ((1 - alpha) F0 + alpha F1), entry by entry: WiSE-FT's released code (Matena & Raffel 2022).

    Equal Fishers give `interpolate`, and so do entries without one, such as buffers; alpha 0 and 1 are the ends to the bit.

    Args:
        fisher_zero_shot, fisher_fine_tuned: diagonal Fisher information at each end, by name, each entry shaped as the weights; see
            `autoft.fisher`.
        floor: what smaller Fisher values are raised to; where both ends are below it the merge is plain interpolation.

    Raises:
        KeyError: the states, or the Fishers, have different names.
        ModelError: an entry has two shapes, alpha is not in [0, 1], or a Fisher does not belong to an entry.
    """
    merged = interpolate(zero_shot, fine_tuned, alpha)
    check_same_entries(fisher_zero_shot, fisher_fine_tuned)
    _check_fishers(zero_shot, fisher_zero_shot)
    if alpha in (0.0, 1.0):
        return merged
    for name, fisher in fisher_zero_shot.items():
        pull = (1 - alpha) * widened(fisher).clamp(min=floor)
        push = alpha * widened(fisher_fine_tuned[name]).clamp(min=floor)
        merged[name] = mix(zero_shot[name], fine_tuned[name], push / (pull + push))
    return merged


def beta_weight(step: int, total_steps: int, b: float = 0.5) -> float:
    """What the weights after `step` steps count in CLIPood's temporal ensemble (Shu et al. 2023, arXiv 2302.00864).

    The density of Beta(b, b) at (step + 0.5) / (total_steps + 1); step 0 is the zero-shot model. With the default b = 0.5 both
    ends count most; b = 1 is the plain mean. Only ratios of these numbers matter.

    Raises:
        ValueError: step is not in 0..total_steps, or b is not positive.
    """
    if not 0 <= step <= total_steps or b <= 0:
        raise ValueError(f"beta_weight needs 0 <= step <= total_steps and b > 0, got {step=}, {total_steps=}, {b=}")
    place = (step + 0.5) / (total_steps + 1)
    log_norm = 2 * math.lgamma(b) - math.lgamma(2 * b)
    return math.exp((b - 1) * (math.log(place) + math.log1p(-place)) - log_norm)


@torch.no_grad()
def update_average(average: list[Tensor], weights: list[Tensor], share: float) -> None:
    """average <- average + share (weights - average), in place, in a few kernels and without waiting for the device.

    With share = w_t / (w_0 + ... + w_t) the average after step t is sum(w_s theta_s) / sum(w_s) over s = 0..t.

    Args:
        average, weights: tensors of equal shapes, dtypes and devices, in the same order.
        share: of `weights` in the new average, in [0, 1].
    """
    torch._foreach_lerp_(average, weights, share)


def _start(state: State) -> tuple[dict[str, Tensor], State]:
    """A state as the mean of one, and its form: integer buffers as they are, of the rest shapes and dtypes without values."""
    form = {name: tensor.to("meta") if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    return {name: widened(tensor) for name, tensor in state.items() if tensor.is_floating_point()}, form


def _joined(mean: Mapping[str, Tensor], form: State, state: State, share: float) -> dict[str, Tensor]:
    """The mean with one state more, which gets `share` of it. A running mean: equal states average to themselves exactly."""
    check_same_entries(form, state)
    return {name: torch.lerp(tensor, state[name].to(tensor.dtype), share) for name, tensor in mean.items()}


def _as_stored(mean: Mapping[str, Tensor], form: State) -> dict[str, Tensor]:
    """The mean as a whole state in its form, sharing nothing with what it was made of."""
    return {name: mean[name].to(tensor.dtype, copy=True) if name in mean else tensor.clone() for name, tensor in form.items()}


def _check_fishers(state: State, fisher: State) -> None:
    for name, values in fisher.items():
        if name not in state:
            raise ModelError(f"there is a Fisher of {name}, which the weights do not have")
        if not state[name].is_floating_point():
            raise ModelError(f"there is a Fisher of {name}, which is {state[name].dtype} and not averaged")
        if values.shape != state[name].shape:
            raise ModelError(f"the Fisher of {name} has shape {tuple(values.shape)}, its weights {tuple(state[name].shape)}")
