"""FTP, TPGM and SPD as their formulas read: one tensor and one row at a time, in float64, with base optimizers written out too."""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

Weights = dict[str, Tensor]
Batch = tuple[Tensor, Tensor]


class Base:
    """AdamW with decoupled decay, or SGD with momentum and coupled decay, of one tensor."""

    def __init__(self, kind: str, lr: float, weight_decay: float) -> None:
        self.kind, self.lr, self.weight_decay = kind, lr, weight_decay
        self.t = 0
        self.m: Tensor | float = 0.0
        self.v: Tensor | float = 0.0

    def moved(self, w: Tensor, g: Tensor) -> Tensor:
        """The weights after one step."""
        self.t += 1
        if self.kind == "sgd":
            g = g + self.weight_decay * w
            self.m = g if self.t == 1 else 0.9 * self.m + g
            return w - self.lr * self.m
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g**2
        step = self.m / (1 - 0.9**self.t) / ((self.v / (1 - 0.999**self.t)) ** 0.5 + 1e-8)
        return w - self.lr * self.weight_decay * w - self.lr * step


def rows_of(w: Tensor) -> list[Tensor]:
    """The rows that share a norm: outputs of a matrix or a convolution, a vector as a whole."""
    return [w[r].reshape(-1) for r in range(len(w))] if w.dim() > 1 else [w]


def put_together(rows: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack([row.reshape(like.shape[1:]) for row in rows]) if like.dim() > 1 else rows[0]


class FTPTensor:
    """Section b.1 of our specification of the methods, for one tensor."""

    def __init__(self, w0: Tensor, base: Base, k: float, mu: float) -> None:
        self.w0, self.base, self.k, self.mu = w0, base, k, mu
        self.t = 0
        self.gamma, self.mg, self.vg = 1e-8, 0.0, 0.0

    def moved(self, w: Tensor, g: Tensor) -> Tensor:
        self.t += 1
        t = self.t
        c = self.base.moved(w, g) - self.w0
        n = [float(row.abs().sum()) + 1e-8 for row in rows_of(c)]
        if t > 1:
            q = sum(float((gr * cr).sum()) / nr for gr, cr, nr in zip(rows_of(g), rows_of(self.c), self.n, strict=True))
            if q > 0:
                q = self.k * q
            self.mg = 0.9 * self.mg + 0.1 * q
            self.vg = 0.999 * self.vg + 0.001 * q**2
            self.gamma -= self.mu * (self.mg / (1 - 0.9**t)) / ((self.vg / (1 - 0.999**t)) ** 0.5 + 1e-8)
            self.gamma = min(max(self.gamma, 1e-8), max(n))
        self.c, self.n = c, n
        return self.w0 + put_together([min(self.gamma / nr, 1.0) * cr for nr, cr in zip(n, rows_of(c), strict=True)], c)


class SPDTensor:
    """Section b.4, for one tensor."""

    def __init__(self, w0: Tensor, base: Base, strength: float) -> None:
        self.w0, self.base, self.strength = w0, base, strength
        self.fired = 0

    def moved(self, w: Tensor, g: Tensor) -> Tensor:
        d = w - self.w0
        c = -float((g * d).sum())
        new = self.base.moved(w, g)
        if c >= 0:
            return new
        radius, before = float((new - self.w0).norm()), float(d.norm())
        r = min(max((radius - before) / radius, 0.0), 1.0)
        self.fired += r > 0
        return new - self.strength * r * (new - self.w0)


class BaseTensor:
    """A tensor that is excluded."""

    def __init__(self, base: Base) -> None:
        self.base = base

    def moved(self, w: Tensor, g: Tensor) -> Tensor:
        return self.base.moved(w, g)


class Run:
    """A model trained with one of the classes above for each of its tensors."""

    def __init__(self, model: nn.Module, rule: Callable[[str, Tensor], FTPTensor | SPDTensor | BaseTensor]) -> None:
        self.model = copy.deepcopy(model)
        self.weights: Weights = {name: w.detach().clone() for name, w in self.model.named_parameters()}
        self.rules = {name: rule(name, w.clone()) for name, w in self.weights.items()}

    def step(self, batch: Batch) -> None:
        self.model.train()
        leaves = {name: w.clone().requires_grad_() for name, w in self.weights.items()}
        gradients = torch.autograd.grad(loss_at(self.model, leaves, batch), list(leaves.values()))
        for name, g in zip(leaves, gradients, strict=True):
            self.weights[name] = self.rules[name].moved(self.weights[name], g)


def loss_at(model: nn.Module, weights: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Cross entropy of the model with other weights than its own."""
    return functional.cross_entropy(functional_call(model, dict(weights), (batch[0],)), batch[1])


class TPGMRadii:
    """Section b.3: radii as parameters that autograd differentiates through `functional_call`, trained by PyTorch's Adam."""

    def __init__(self, anchor: Weights, norm: str) -> None:
        self.anchor, self.norm = anchor, norm
        self.gamma = {name: torch.zeros((), dtype=torch.float64, requires_grad=True) for name in anchor}
        self.adam = torch.optim.Adam(list(self.gamma.values()), lr=1e-2)
        self.started = False

    def project(self, model: nn.Module, weights: Weights, batch: Batch) -> Weights:
        """One update of the radii on a held-out batch; the weights projected with what comes of it."""
        model.eval()
        self.adam.zero_grad()
        loss_at(model, {**weights, **self._projected(weights)}, batch).backward()
        self.adam.step()
        return {**weights, **{name: w.detach() for name, w in self._projected(weights).items()}}

    def _projected(self, weights: Weights) -> Weights:
        found = {}
        for name, w0 in self.anchor.items():
            c = weights[name] - w0
            norms = torch.stack([row.abs().sum() for row in rows_of(c)]) if self.norm == "mars" else c.norm()[None]
            gamma = self.gamma[name]
            with torch.no_grad():
                if not self.started:
                    gamma.copy_(norms.min() / 2)
                gamma.clamp_(1e-8, float(norms.max()))
            ratio = (gamma / (norms + 1e-8)).clamp(0, 1)
            found[name] = w0 + (ratio.reshape(-1, *[1] * (c.dim() - 1)) if c.dim() > 1 else ratio) * c
        self.started = True
        return found
