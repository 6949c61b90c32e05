"""FTP, Fast Trainable Projection (Tian et al., NeurIPS 2023, arXiv 2310.19182): each step of any optimizer is projected back towards the
pre-trained weights, within a radius for each tensor that is learned on the way from gradients that are there anyway.

For a tensor W with anchor W0, its row r (one output; a vector is one row), and t the number of its own steps from 1:

    q      = sum_r <g[r], C[r]> / N[r]            dL/dgamma from this step's gradient and the step before's C and N; k q where q > 0
    gamma  = gamma - mu Adam(q)                   betas .9 and .999; starts at 1e-8
    C      = W after the base's step - W0
    N[r]   = sum |C[r]| + 1e-8                    the radius is in the MARS norm, the largest absolute row sum
    gamma  = clip(gamma, 1e-8, max_r N[r])
    W      = W0 + clamp(gamma / N, 0, 1) C

Formulas and constants are those of the official code (GT-RIPL/FTP, MIT), here around any optimizer. Unlike there, state belongs to
tensors, not to positions, and is saved; t counts a tensor's own steps, which is the same if it has a gradient in every step.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from autoft.optim.anchored import AnchoredOptimizer, Bundle, check_range, multiply
from autoft.optim.radii import SMALLEST, Radii, check_names


class FTP(AnchoredOptimizer):
    """Projects every step of `base`. Costs no pass through the model, and memory for one copy of the constrained weights (C).

    The anchor is the caller's, not copied; within a step there is one more temporary copy. In the first step, gamma is 1e-8: only
    excluded tensors (a new head) move. BatchNorm's running statistics are no parameters and are left alone.
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        named_parameters: Iterable[tuple[str, Tensor]],
        anchor: Mapping[str, Tensor],
        *,
        k: float = 1.0,
        mu: float = 1e-2,
        mu_reference_lr: float | None = None,
        exclude: Iterable[str] = (),
    ) -> None:
        """
        Args:
            base, named_parameters, anchor, exclude: see `AnchoredOptimizer`.
            k: from 0 to 1; how readily a radius shrinks. 1 is strongest and the official default; at 0 it only grows, up to what is used.
            mu: the rate of gamma's Adam; 1e-2 in the official code, whatever the learning rate.
            mu_reference_lr: if given, gamma's rate is mu * (its group's present lr) / mu_reference_lr. gamma grows by about mu a step,
                so that small learning rates are held to the anchor for long otherwise, or large ones never (reconstructed; the official
                recipes have lr 1e-4 for Adam and 1e-2 for SGD).

        Raises:
            ConfigError, ValueError: see `AnchoredOptimizer`; or a number out of its range.
        """
        check_range("k", k, 0.0, 1.0)
        check_range("mu", mu, 0.0)
        if mu_reference_lr is not None:
            check_range("mu_reference_lr", mu_reference_lr, 0.0, open_low=True)
        super().__init__(base, named_parameters, anchor, exclude)
        self._mu, self._reference = mu, mu_reference_lr
        self._balls = [_Ball(bundle, k) for bundle in self.bundles]

    def _before_step(self) -> list[tuple[list[int], Tensor]]:
        return [ball.radius_gradient() for ball in self._balls]

    def _after_step(self, before: list[tuple[list[int], Tensor]]) -> None:
        for ball, (active, gradient) in zip(self._balls, before, strict=True):
            ball.project(active, gradient, self._rate(ball.bundle))

    def _rate(self, bundle: Bundle) -> float | Tensor:
        """gamma's learning rate: a number, or (tensors,) where the tensors are of several groups."""
        if self._reference is None:
            return self._mu
        rates: dict[int, float | Tensor] = {group: self.param_groups[group]["lr"] * (self._mu / self._reference) for group in bundle.members}
        if len(rates) == 1:
            return next(iter(rates.values()))
        return torch.stack([bundle.members[group] * rate for group, rate in rates.items()]).sum(dim=0)

    def _own_state(self) -> dict[str, Any]:
        return {name: values for ball in self._balls for name, values in ball.state().items()}

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        check_names([name for bundle in self.bundles for name in bundle.names], state)
        for ball in self._balls:
            ball.load(state)


class _Ball:
    """The radii of one bundle and what the next gradient of theirs needs: C in a flat buffer, N for each row."""

    def __init__(self, bundle: Bundle, k: float) -> None:
        rows = bundle.rows
        self.bundle, self._k = bundle, k
        self._radii = Radii(rows, len(bundle.names), SMALLEST)
        self._deviation = rows.empty().zero_()
        self._views = rows.views(self._deviation)
        self._norms = rows.numbers(rows.count, SMALLEST)

    def radius_gradient(self) -> tuple[list[int], Tensor]:
        """The tensors with a gradient, and dL/dgamma (tensors,), meaningless for others. Overwrites the active ones' C with g C."""
        bundle = self.bundle
        active = bundle.with_gradient()
        multiply(active, self._views, [parameter.grad for parameter in bundle.parameters])
        gradient = bundle.rows.totals(bundle.rows.sums(self._deviation) / self._norms)
        return active, torch.where(gradient > 0, gradient * self._k, gradient)

    def project(self, active: list[int], gradient: Tensor, rate: float | Tensor) -> None:
        """Train gamma, then move the active weights into its ball. C and N of inactive tensors come out as they were."""
        bundle, rows, radii = self.bundle, self.bundle.rows, self._radii
        bundle.write_deviations(active, self._views)
        self._norms = rows.sums(self._deviation, torch.abs) + SMALLEST
        radii.descend(gradient, rate, bundle.mask(active))
        radii.gamma = torch.minimum(radii.gamma.clamp(min=SMALLEST), rows.largest(self._norms))
        # W - (1 - ratio) C is W0 + ratio C, and leaves a row inside the ball as it is, to the bit.
        outside = (1 - rows.spread(radii.gamma) / self._norms).clamp(min=0)
        bundle.subtract(active, rows.scaled(self._deviation, outside))

    def state(self) -> dict[str, dict[str, Tensor]]:
        states = self._radii.state(self.bundle.names)
        for name, view in zip(self.bundle.names, self._views, strict=True):
            states[name]["deviation"] = view
        return states

    def load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        self._radii.load(self.bundle.names, state)
        for name, view in zip(self.bundle.names, self._views, strict=True):
            stored = state[name]["deviation"]
            if stored.shape != view.shape:
                raise ValueError(f"the state of {name!r} is of shape {tuple(stored.shape)}, the parameter of {tuple(view.shape)}")
            view.copy_(stored)
        self._norms = self.bundle.rows.sums(self._deviation, torch.abs) + SMALLEST
