"""SPD, Selective Projection Decay (Tian et al., NeurIPS 2024, arXiv 2411.01713): weight decay towards the pre-trained weights, only for
tensors that a descent step would bring back and that moved away all the same.

For each tensor, with g its gradient, W its weights before and W~ after the base's step, W0 its anchor, norms Euclidean over the tensor:

    c = -<g, W - W0>
    c < 0:  W = W~ - strength * clamp((|W~ - W0| - |W - W0|) / |W~ - W0|, 0, 1) * (W~ - W0)        else W = W~

Formulas as in the official AdamSPD, restated; here around any optimizer, and 0/0 counts as 0 (there a tensor that has not moved gives NaN).
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from autoft.optim.anchored import AnchoredOptimizer, check_range, multiply


class SPD(AnchoredOptimizer):
    """Pulls the tensors that `base` moved too far. No state of its own; a temporary copy of the weights or two within a step.

    The base's own weight decay is expected to be 0, as in the paper; another one pulls towards 0 besides.
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        named_parameters: Iterable[tuple[str, Tensor]],
        anchor: Mapping[str, Tensor],
        *,
        strength: float = 1.0,
        exclude: Iterable[str] = (),
    ) -> None:
        """
        Args:
            base, named_parameters, anchor, exclude: see `AnchoredOptimizer`.
            strength: the paper's lambda, from 0, which is the base alone. 1 puts a tensor back to its distance of before the step. The
                default is our choice; the paper's code has it as `weight_decay`.

        Raises:
            ConfigError, ValueError: see `AnchoredOptimizer`; or a negative strength.
        """
        check_range("strength", strength, 0.0)
        super().__init__(base, named_parameters, anchor, exclude, whole=True)
        self._strength = strength

    def _before_step(self) -> list[tuple[list[int], Tensor, Tensor, Tensor]]:
        """For each bundle: the tensors with a gradient, a buffer, |W - W0| and <g, W - W0> (tensors,)."""
        found = []
        for bundle in self.bundles:
            active, flat = bundle.with_gradient(), bundle.rows.empty()
            views = bundle.rows.views(flat)
            bundle.write_deviations(active, views)
            distance = bundle.rows.sums(flat, torch.square).sqrt()
            multiply(active, views, [parameter.grad for parameter in bundle.parameters])
            found.append((active, flat, distance, bundle.rows.sums(flat)))
        return found

    def _after_step(self, before: list[tuple[list[int], Tensor, Tensor, Tensor]]) -> None:
        for bundle, (active, flat, old, inner) in zip(self.bundles, before, strict=True):
            bundle.write_deviations(active, bundle.rows.views(flat))
            new = bundle.rows.sums(flat, torch.square).sqrt()
            # Where `new` is 0, `old` decides between 0 / tiny and something negative: 0 either way.
            growth = ((new - old) / new.clamp(min=torch.finfo(new.dtype).tiny)).clamp(0, 1)
            decay = torch.where(inner > 0, growth * self._strength, torch.zeros_like(growth))
            bundle.subtract(active, bundle.rows.scaled(flat, decay))

    def _own_state(self) -> dict[str, Any]:
        return {}

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        if state:
            raise ValueError("this is no state of SPD, which has none of its own")
