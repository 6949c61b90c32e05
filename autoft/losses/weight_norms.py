"""Norms of the weights and of their distance to the zero-shot weights, as means over all P entries of all trainable parameters.

AutoFT (arXiv 2401.10220) divides by the parameter count and takes no square root. L2 to the start is L2-SP (Li et al. 2018, arXiv
1802.01483) up to that factor. The anchor must be a clone: in the authors' final run it shared storage with the weights, so both
distances were 0 throughout.

`l1_zero` ... `l2_init` say what is meant. Training uses their closed forms, for all active terms at once, a cache-sized block at a time:
`add_norm_gradients` at every step, `norm_values` only where somebody wants to read them.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

# Exponent of each norm; the *_init ones are of the distance to the anchor.
NORM_ORDERS: Mapping[str, int] = {"l1_zero": 1, "l2_zero": 2, "l1_init": 1, "l2_init": 2}

# Entries worked on at a time. CPU: a block and its temporaries stay in the second-level cache (of 2^14 ... 2^20 this was fastest), and
# float32 sums stay short enough to be exact to 1e-6. Elsewhere: few kernels, and temporaries of 64 MB however large the model is.
_CPU_BLOCK = 2**16
_DEVICE_BLOCK = 2**24


def l1_zero(parameters: Sequence[Tensor]) -> Tensor:
    """(1/P) sum_j |theta_j|; a scalar."""
    return torch.stack([theta.abs().sum() for theta in parameters]).sum() / _entries(parameters)


def l2_zero(parameters: Sequence[Tensor]) -> Tensor:
    """(1/P) sum_j theta_j^2; a scalar."""
    return torch.stack([theta.square().sum() for theta in parameters]).sum() / _entries(parameters)


def l1_init(parameters: Sequence[Tensor], anchor: Sequence[Tensor]) -> Tensor:
    """(1/P) sum_j |theta_j - anchor_j|; a scalar. `anchor` has the parameters' order and shapes."""
    return l1_zero([theta - start for theta, start in zip(parameters, anchor, strict=True)])


def l2_init(parameters: Sequence[Tensor], anchor: Sequence[Tensor]) -> Tensor:
    """(1/P) sum_j (theta_j - anchor_j)^2; a scalar. `anchor` has the parameters' order and shapes."""
    return l2_zero([theta - start for theta, start in zip(parameters, anchor, strict=True)])


@torch.no_grad()
def norm_values(
    parameters: Sequence[Tensor], anchor: Sequence[Tensor], names: Sequence[str], entries: int | None = None
) -> dict[str, Tensor]:
    """The value of each named norm of `NORM_ORDERS`, a scalar without gradient; a pass over all weights.

    Args:
        parameters: trainable parameters, any shapes, one device.
        anchor: their zero-shot values in the same order, not sharing storage with them. Looked at by the *_init norms only.
        names: at least one.
        entries: P, where the parameters are only parts of those it counts; their values then add up to the norm's.

    Raises:
        ValueError: `anchor` does not match the parameters, or shares storage with them.
    """
    _check_anchor(names, parameters, anchor)
    sums: dict[str, list[Tensor]] = {name: [] for name in names}
    for theta, start in _blocks(parameters, _anchor_or_self(names, parameters, anchor)):
        operands = _operands(names, theta, start)
        for name in names:
            sums[name].extend(_sums(operands[name], NORM_ORDERS[name]))
    return {name: torch.stack(sums[name]).sum() / (entries or _entries(parameters)) for name in names}


@torch.no_grad()
def add_norm_gradients(
    parameters: Sequence[Tensor], anchor: Sequence[Tensor], weights: Mapping[str, Tensor], entries: int | None = None
) -> None:
    """Add the gradient of sum_k w_k n_k to every parameter's `grad`, in place; a parameter without one gets one.

    It is sum_k (w_k / P) sign(x_k) for order 1 and (2 w_k / P) x_k for order 2, x = theta or theta - anchor. Call it after `backward` of the
    other terms and before gradients are clipped. The result is to the bit what autograd over the whole sum would leave in `grad` for a
    parameter that the other terms use once, and saves a second set of gradients in memory.

    Args:
        parameters, anchor, entries: as for `norm_values`.
        weights: scalar tensor for each wanted norm of `NORM_ORDERS`, on the parameters' device.

    Raises:
        ValueError: `anchor` does not match the parameters, or shares storage with them.
    """
    names = tuple(weights)
    _check_anchor(names, parameters, anchor)
    factors = {name: NORM_ORDERS[name] * (weights[name] / (entries or _entries(parameters))) for name in names}
    for theta, start, gradient in _blocks(parameters, _anchor_or_self(names, parameters, anchor), _gradients(parameters)):
        operands = _operands(names, theta, start)
        total = _gradient(names[0], operands[names[0]], factors[names[0]])
        for name in names[1:]:
            torch._foreach_add_(total, _gradient(name, operands[name], factors[name]))
        torch._foreach_add_(gradient, total)


def _gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Each parameter's `grad`. Missing ones start at -0, which alone leaves every number it is added to as it is, +0 and -0 included."""
    found = []
    for theta in parameters:
        if theta.grad is None:
            theta.grad = torch.full_like(theta, -0.0)
        found.append(theta.grad)
    return found


def _sums(operand: list[Tensor], order: int) -> list[Tensor]:
    """sum |x|^order of each tensor."""
    if order == 1 and operand[0].device.type == "cpu":  # the CPU's L1 norm is not vectorised
        return [tensor.sum() for tensor in torch._foreach_abs(operand)]
    return list(torch._foreach_pow(torch._foreach_norm(operand, order), order))


def _gradient(name: str, operand: list[Tensor], factor: Tensor) -> list[Tensor]:
    if NORM_ORDERS[name] == 2:
        return list(torch._foreach_mul(operand, factor))
    signs = list(torch._foreach_sign(operand))
    torch._foreach_mul_(signs, factor)
    return signs


def _operands(names: Sequence[str], theta: list[Tensor], start: list[Tensor]) -> dict[str, list[Tensor]]:
    """What each norm is taken of: the weights, or their distance to the anchor, subtracted once for all."""
    moved = list(torch._foreach_sub(theta, start)) if any(_relative(name) for name in names) else []
    return {name: moved if _relative(name) else theta for name in names}


def _blocks(*groups: Sequence[Tensor]) -> Iterator[tuple[list[Tensor], ...]]:
    """Cut parallel lists of tensors into parallel lists of about a block's number of entries; large tensors are split, as views."""
    limit = _CPU_BLOCK if groups[0][0].device.type == "cpu" else _DEVICE_BLOCK
    block: list[tuple[Tensor, ...]] = []
    size = 0
    for tensors in zip(*groups, strict=True):
        large = tensors[0].numel() > limit and all(tensor.is_contiguous() for tensor in tensors)
        for piece in zip(*(tensor.view(-1).split(limit) for tensor in tensors), strict=True) if large else [tensors]:
            if block and size + piece[0].numel() > limit:
                yield tuple(map(list, zip(*block, strict=True)))
                block, size = [], 0
            block.append(piece)
            size += piece[0].numel()
    yield tuple(map(list, zip(*block, strict=True)))


def _anchor_or_self(names: Sequence[str], parameters: Sequence[Tensor], anchor: Sequence[Tensor]) -> Sequence[Tensor]:
    """The anchor if a norm looks at it; else the parameters stand in, so that callers without *_init norms need none."""
    return anchor if any(_relative(name) for name in names) else parameters


def _relative(name: str) -> bool:
    return name.endswith("_init")


def _entries(parameters: Sequence[Tensor]) -> int:
    return sum(theta.numel() for theta in parameters)


def _check_anchor(names: Sequence[str], parameters: Sequence[Tensor], anchor: Sequence[Tensor]) -> None:
    if not any(_relative(name) for name in names):
        return
    if [theta.shape for theta in parameters] != [start.shape for start in anchor]:
        raise ValueError(f"the anchor has {len(anchor)} tensors that do not match the {len(parameters)} parameters one by one in shape")
    for theta, start in zip(parameters, anchor, strict=True):
        if theta.numel() and theta.data_ptr() == start.data_ptr():
            raise ValueError("the anchor shares storage with the parameters, so every distance to it would be 0; clone it")
