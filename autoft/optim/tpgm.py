"""TPGM, Trainable Projected Gradient Method (Tian et al., CVPR 2023, arXiv 2303.10720): weights are projected into a ball around the
pre-trained ones, whose radius, one for each tensor, is trained on held-out examples (bi-level).

For a tensor W with anchor W0 and C = W - W0, its row r (one output; a vector is one row):

    N[r]    = sum |C[r]|  ("mars"), or the Euclidean norm of the whole tensor, then one row ("l2")
    gamma   = min_r N[r] / 2 at the first projection; always clipped to [1e-8, max_r N[r]] before use
    W'      = W0 + clamp(gamma / (N + 1e-8), 0, 1) C
    gamma   = gamma - Adam(dL(W') / dgamma)         L on held-out examples, in evaluation mode; rate 1e-2
    dL/dgamma = sum over rows outside the ball of <dL/dW'[r], C[r]> / (N[r] + 1e-8)
    W       = W' with the new gamma

Formulas and constants are those of the official code (PotatoTian/TPGM), restated. Its DomainNet runs project after every step and train
gamma once each time; its ImageNet run fine-tunes first and trains gamma 200 times at the end: `iterations=200`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from autoft.errors import ConfigError
from autoft.optim.anchored import AnchoredOptimizer, Bundle, check_range, multiply
from autoft.optim.radii import SMALLEST, Radii, check_names

Norm = Literal["mars", "l2"]
NORMS = get_args(Norm)


class TPGM(AnchoredOptimizer):
    """`step` is the base's; `project` after it trains the radii and projects. Keeps a few numbers for each tensor.

    While it projects it needs C and another temporary copy of the weights besides what a forward and a backward pass take.
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        named_parameters: Iterable[tuple[str, Tensor]],
        anchor: Mapping[str, Tensor],
        *,
        norm: Norm = "mars",
        mu: float = 1e-2,
        every: int = 1,
        iterations: int = 1,
        exclude: Iterable[str] = (),
    ) -> None:
        """
        Args:
            base, named_parameters, anchor, exclude: see `AnchoredOptimizer`.
            norm: "mars", the largest absolute row sum, or "l2", the Euclidean norm of a tensor.
            mu: the rate of gamma's Adam; 1e-2 in the official code.
            every: `project` does something after every so many steps.
            iterations: updates of gamma, each with a loss of its own, at each projection.

        Raises:
            ConfigError, ValueError: see `AnchoredOptimizer`; or a number out of its range.
        """
        if norm not in NORMS:
            raise ConfigError(f"norm = {norm!r} is not valid; it must be one of {', '.join(NORMS)}")
        check_range("mu", mu, 0.0)
        check_range("every", every, 1)
        check_range("iterations", iterations, 1)
        super().__init__(base, named_parameters, anchor, exclude, whole=norm == "l2")
        self._every, self._iterations, self._steps = every, iterations, 0
        self._balls = [_Ball(bundle, norm, mu) for bundle in self.bundles]

    def project(self, held_out_loss: Callable[[], Tensor], model: nn.Module | None = None) -> Tensor | None:
        """Train the radii on held-out examples and project the weights. Nothing here waits for the device.

        Args:
            held_out_loss: computes a loss from the model's parameters as they are when it is called: projected. It is called
                `iterations` times, under gradients, or not at all if no projection is due. `grad` of parameters stays as it is.
            model: put in evaluation mode meanwhile, so that its BatchNorm statistics stay. Without it, that is the caller's task.

        Returns: the loss, detached, of the last call; None if `every` says that it is not the turn.
        """
        if self._steps % self._every:
            return None
        value = None
        with evaluation_mode(model) if model is not None else nullcontext(), torch.no_grad():
            for ball in self._balls:
                ball.open()
            for _ in range(self._iterations):
                for ball in self._balls:
                    ball.write()
                value = self._train_radii(held_out_loss)
            for ball in self._balls:
                ball.write()
                ball.close()
        return value

    def _train_radii(self, held_out_loss: Callable[[], Tensor]) -> Tensor:
        parameters = [parameter for bundle in self.bundles for parameter in bundle.parameters]
        wanted = [parameter for parameter in parameters if parameter.requires_grad]
        with torch.enable_grad():
            loss = held_out_loss()
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True) if wanted else ()
        found = dict(zip(map(id, wanted), gradients, strict=True))
        for ball in self._balls:
            ball.descend([found.get(id(parameter)) for parameter in ball.bundle.parameters])
        return loss.detach()

    def _before_step(self) -> None:
        pass

    def _after_step(self, before: None) -> None:
        self._steps += 1

    def _own_state(self) -> dict[str, Any]:
        return {"steps": self._steps, "radii": {name: values for ball in self._balls for name, values in ball.state().items()}}

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        if set(state) != {"steps", "radii"}:
            raise ValueError(f"this is no state of TPGM: it has {sorted(state)[:5]}, not steps and radii")
        check_names([name for bundle in self.bundles for name in bundle.names], state["radii"])
        self._steps = state["steps"]
        for ball in self._balls:
            ball.load(state["radii"])


class _Ball:
    """The radii of one bundle; between `open` and `close` also C in a flat buffer and N of each row."""

    def __init__(self, bundle: Bundle, norm: Norm, mu: float) -> None:
        self.bundle, self._norm, self._mu = bundle, norm, mu
        self._radii = Radii(bundle.rows, len(bundle.names), 0.0)  # 0: no radius yet
        self._deviation: Tensor | None = None

    def open(self) -> None:
        """Take the weights as they are for those to be projected."""
        bundle, rows = self.bundle, self.bundle.rows
        self._deviation = rows.empty()
        bundle.write_deviations(range(len(bundle.names)), rows.views(self._deviation))
        sums = rows.sums(self._deviation, torch.abs if self._norm == "mars" else torch.square)
        self._norms = sums if self._norm == "mars" else sums.sqrt()

    def write(self) -> None:
        """Give gamma its start if it has none, clip it, and write the projected weights into the model."""
        bundle, rows, radii = self.bundle, self.bundle.rows, self._radii
        largest = rows.largest(self._norms)
        gamma = torch.where(radii.gamma == 0, rows.smallest(self._norms) / 2, radii.gamma)
        # A tensor that has never moved (largest 0) waits for its radius: it would start at the least one.
        radii.gamma = torch.where(largest > 0, torch.minimum(gamma.clamp(min=SMALLEST), largest.clamp(min=SMALLEST)), radii.gamma)
        assert self._deviation is not None
        self._relative = rows.spread(radii.gamma) / (self._norms + SMALLEST)
        bundle.write_sums(rows.scaled(self._deviation, self._relative.clamp(max=1)))

    def descend(self, gradients: Sequence[Tensor | None]) -> None:
        """One step of gamma's Adam, given dL/dW' of each tensor; those without one keep their radius."""
        bundle, rows = self.bundle, self.bundle.rows
        assert self._deviation is not None
        products = self._deviation.clone()
        active = [i for i, gradient in enumerate(gradients) if gradient is not None]
        multiply(active, rows.views(products), gradients)
        outside = self._relative <= 1  # at the border too, as torch.clamp has it
        self._radii.descend(rows.totals(rows.sums(products) / (self._norms + SMALLEST) * outside), self._mu, bundle.mask(active))

    def close(self) -> None:
        """Free the buffer."""
        self._deviation = None

    def state(self) -> dict[str, dict[str, Tensor]]:
        return self._radii.state(self.bundle.names)

    def load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        self._radii.load(self.bundle.names, state)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode and each of its modules back in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
