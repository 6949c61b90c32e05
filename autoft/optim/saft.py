"""SAFT's mask: which entries of a model are fine-tuned, chosen once, at the zero-shot weights, by the magnitude of their gradient.

SAFT, sparse adaptation for fine-tuning (arXiv 2407.03036): train the small part of the weights (0.1 %) whose gradient of the loss over the
fine-tuning set is largest, leave the others as they are. Its abstract says that much; no official code was found. One global threshold,
k = int(density * P) and |sum of the batches' gradients| follow an unofficial implementation. Excluded tensors and the choice among ties
are reconstructed.
"""

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from autoft.errors import ConfigError, ModelError

Reduction = Literal["abs_of_sum", "sum_of_abs"]

_BLOCK = 2**22  # entries looked at together while a threshold is sought: temporaries of tens of megabytes, however large a tensor is
_DIGIT = 16  # bits of a magnitude that one histogram tells apart: 65,536 bins


class GradientMagnitudes:
    """Gradient magnitudes summed over batches: one backward and one `add` for each batch, then `result`.

    Batches must be of one size (or their losses sums) for all examples to count alike. The model's weights must stay the same throughout.

    Args:
        named_parameters: those that will train, in definition order, for instance `model.named_parameters()`; such that take no gradient
            are left out. Their gradients are dropped, so that nothing from before counts.
        reduction: `abs_of_sum`, the absolute value of the summed gradient: SAFT's. Batches that disagree cancel. Takes no memory of its
            own: the sum is what autograd leaves in `.grad`, which nobody may zero in between. `sum_of_abs`: the sum of each batch's
            absolute gradient; takes one more copy of the parameters.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], reduction: Reduction = "abs_of_sum") -> None:
        if reduction not in get_args(Reduction):
            raise ConfigError(f"reduction = {reduction!r} must be one of {', '.join(get_args(Reduction))}")
        self._parameters = {name: parameter for name, parameter in named_parameters if parameter.requires_grad}
        self._reduction = reduction
        self._sums: dict[str, Tensor] = {}
        self.batches = 0
        _drop_gradients(self._parameters.values())

    @torch.no_grad()
    def add(self) -> None:
        """Count the gradients of the batch whose backward has just run. Does not wait for the device.

        Raises:
            RuntimeError: `abs_of_sum`, and somebody has dropped the gradients of earlier batches.
        """
        gradients = {name: parameter.grad for name, parameter in self._parameters.items() if parameter.grad is not None}
        if self._reduction == "abs_of_sum":
            lost = [name for name, total in self._sums.items() if gradients.get(name) is not total]
            if lost:
                raise RuntimeError(f"gradients were zeroed between two batches, that of {lost[0]} among them; they are the sum so far")
            self._sums = gradients
        else:
            self._add_magnitudes(gradients)
        self.batches += 1

    def _add_magnitudes(self, gradients: Mapping[str, Tensor]) -> None:
        for name, gradient in gradients.items():
            if name not in self._sums:
                wide = torch.promote_types(gradient.dtype, torch.float32)
                self._sums[name] = torch.zeros_like(gradient, dtype=wide)
        if gradients:
            torch._foreach_abs_(list(gradients.values()))
            torch._foreach_add_([self._sums[name] for name in gradients], list(gradients.values()))
        _drop_gradients(self._parameters.values())

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        """The summed magnitudes by parameter name, each of its parameter's shape; 0 where no gradient came. Ends the accumulation.

        The parameters have no gradients afterwards. The sum is not divided by the number of batches: the order is the same.
        """
        if not self.batches:
            raise RuntimeError("no batch was added: there are no gradients to choose by")
        sums, self._sums, self.batches = self._sums, {}, 0
        _drop_gradients(self._parameters.values())
        if sums:
            torch._foreach_abs_(list(sums.values()))
        return {name: sums.get(name, _zeros(parameter)) for name, parameter in self._parameters.items()}


def _drop_gradients(parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def _zeros(parameter: Tensor) -> Tensor:
    """Zeros of a parameter's shape that take no memory."""
    return torch.zeros((), dtype=parameter.dtype, device=parameter.device).expand(parameter.shape)


@torch.no_grad()
def select(magnitudes: Mapping[str, Tensor], density: float, exclude: Sequence[str] = ()) -> dict[str, Tensor]:
    """The entries to train: of all tensors together the k = max(1, int(density * P)) with the largest magnitude, exactly k.

    P counts the entries of the tensors that are not excluded. Among equal magnitudes at the threshold the first count, in the mapping's
    order and then in row-major order. So zeros are taken only where there are fewer than k other entries. Nothing is sorted: the
    threshold is found exactly, in two passes of histograms (four for float64).

    Args:
        magnitudes: by parameter name, any shapes, layouts and devices; what `GradientMagnitudes.result` returns. Signs do not matter.
        density: share of the entries to keep, in (0, 1].
        exclude: patterns as of a shell (`head.*`) for names that are kept whole, beside those k: a newly initialised head, say.

    Returns:
        For every name, in order: row-major positions in the flattened tensor, ascending, on the tensor's device; int32 where they fit,
        else int64. Empty for a tensor of which nothing is kept.

    Raises:
        ConfigError: density is out of range, or a pattern matches no name.
        ModelError: a magnitude is not finite.
    """
    if not 0.0 < density <= 1.0:
        raise ConfigError(f"density = {density!r} must be greater than 0 and at most 1")
    excluded = _matching(exclude, magnitudes)
    masked = {name: values for name, values in magnitudes.items() if name not in excluded}
    entries = sum(values.numel() for values in masked.values())
    k = max(1, int(density * entries)) if entries else 0
    dtype = _common_dtype(masked.values())
    threshold, ties = _threshold(masked, k, dtype)
    kept = {}
    for name, values in magnitudes.items():
        if name in excluded:
            kept[name] = torch.arange(values.numel(), dtype=index_dtype(values.numel()), device=values.device)
        else:
            kept[name], ties = _kept(values, threshold, ties, dtype)
    return kept


def index_dtype(entries: int) -> torch.dtype:
    """The smaller type that holds every position in a tensor of so many entries."""
    return torch.int32 if entries <= torch.iinfo(torch.int32).max else torch.int64


def _matching(patterns: Sequence[str], names: Iterable[str]) -> set[str]:
    names = list(names)
    found: set[str] = set()
    for pattern in patterns:
        matches = fnmatch.filter(names, pattern)
        if not matches:
            raise ConfigError(f"exclude: {pattern!r} matches none of the {len(names)} parameters; they are named like {', '.join(names[-3:])}")
        found.update(matches)
    return found


def _common_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """Magnitudes of several types compare as the widest of them, float32 at least."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _keys(magnitudes: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """A tensor in row-major order, block by block, as integers in the order of the magnitudes: bits of non-negative floats are such."""
    integer = torch.int64 if dtype == torch.float64 else torch.int32
    flat = magnitudes.detach().reshape(-1)
    for start in range(0, len(flat), _BLOCK):
        yield flat[start : start + _BLOCK].to(dtype).abs().view(integer)


def _threshold(magnitudes: Mapping[str, Tensor], k: int, dtype: torch.dtype) -> tuple[int, int]:
    """The k-th largest key, and how many of the entries equal to it are among the k: a radix selection, from the highest digit down."""
    _check_finite(magnitudes)
    prefix, wanted = 0, k
    for shift in range(torch.finfo(dtype).bits - _DIGIT, -1, -_DIGIT):
        histogram = torch.zeros(2**_DIGIT, dtype=torch.int64)
        for values in magnitudes.values():
            for keys in _keys(values, dtype):
                digits = keys >> shift
                inside = digits[digits >> _DIGIT == prefix] - (prefix << _DIGIT)
                histogram += torch.bincount(inside, minlength=2**_DIGIT).cpu()
        at_least = histogram.flip(0).cumsum(0).flip(0)
        digit = int((at_least >= wanted).nonzero().max()) if wanted else 0
        wanted -= int(at_least[digit] - histogram[digit])
        prefix = prefix << _DIGIT | digit
    return prefix, wanted


def _check_finite(magnitudes: Mapping[str, Tensor]) -> None:
    for name, values in magnitudes.items():
        if not bool(torch.isfinite(values).all()):
            raise ModelError(f"the gradient of {name} at the zero-shot weights is not finite, so no mask can be chosen by it")


def _kept(magnitudes: Tensor, threshold: int, ties: int, dtype: torch.dtype) -> tuple[Tensor, int]:
    """Positions above the threshold and the first `ties` at it; how many ties are left for later tensors."""
    found = [torch.empty(0, dtype=index_dtype(magnitudes.numel()), device=magnitudes.device)]
    start = 0
    for keys in _keys(magnitudes, dtype):
        keep = keys > threshold
        if ties:
            equal = (keys == threshold).nonzero().squeeze(1)[:ties]
            keep[equal] = True
            ties -= len(equal)
        found.append((keep.nonzero().squeeze(1) + start).to(index_dtype(magnitudes.numel())))
        start += len(keys)
    return torch.cat(found), ties
