"""One trainable radius for each tensor: how far FTP and TPGM let its rows move from the anchor. Trained by Adam, all at once."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from autoft.optim.rows import Rows

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # of Adam, fixed in the official FTP and TPGM code
SMALLEST = 1e-8  # the least radius, and what is added to norms, in the same code

_FIELDS = ("gamma", "mean", "square", "steps")


class Radii:
    """gamma (tensors,) and its Adam moments; `steps` counts each tensor's own updates."""

    def __init__(self, rows: Rows, tensors: int, start: float) -> None:
        self.gamma = rows.numbers(tensors, start)
        self.mean = rows.numbers(tensors, 0.0)
        self.square = rows.numbers(tensors, 0.0)
        self.steps = rows.numbers(tensors, 0.0)

    def descend(self, gradient: Tensor, rate: float | Tensor, mask: Tensor | None) -> None:
        """One Adam step on gamma for the tensors in `mask` (all if None). `gradient`, and `rate` if no number: (tensors,)."""
        steps = self.steps + 1
        mean = self.mean * BETA1 + gradient * (1 - BETA1)
        square = self.square * BETA2 + gradient.square() * (1 - BETA2)
        # 1 - beta^t, which float32 would round badly for small t.
        spread = (square / -torch.expm1(steps * math.log(BETA2))).sqrt() + EPSILON
        gamma = self.gamma - rate * (mean / -torch.expm1(steps * math.log(BETA1))) / spread
        for name, new in zip(_FIELDS, (gamma, mean, square, steps), strict=True):
            setattr(self, name, new if mask is None else torch.where(mask, new, getattr(self, name)))

    def state(self, names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
        """{parameter name: {field: scalar}}."""
        return {name: {field: getattr(self, field)[i] for field in _FIELDS} for i, name in enumerate(names)}

    def load(self, names: Sequence[str], state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over what `state` returned."""
        for field in _FIELDS:
            values = torch.stack([state[name][field].reshape(()) for name in names])
            setattr(self, field, values.to(self.gamma))


def check_names(expected: Sequence[str], found: Mapping[str, object]) -> None:
    """Raises ValueError unless `found` is of the expected parameters."""
    if set(expected) != found.keys():
        raise ValueError(f"the state is of other parameters; they differ in {sorted(set(expected) ^ found.keys())[:5]}")
