"""Metrics: on the device for a trial's score, and with confidence intervals for a report. No model, no data loading.

Nothing here returns NaN: predictions that are not finite raise `NonFiniteScore`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import special
from torch import Tensor
from torch.nn import functional

from autoft.config import Metric
from autoft.errors import DataError

Array = np.ndarray[Any, Any]
MetricFunction = Callable[[Tensor, Tensor, Tensor | None, int], Tensor]

RESAMPLES = 1000
# The group of an example that is in none, such as an image of FMoW from no region.
NO_GROUP = -1
# Bootstrap counts held at once: bounds memory at 64 MB whatever the number of examples and classes.
_COUNTS_AT_ONCE = 2**23


class NonFiniteScore(ArithmeticError):
    """Logits or the metric made of them are NaN or infinite, so there is no score."""


@dataclass(frozen=True)
class Score:
    """A metric on a set of `n` examples with a two-sided confidence interval, ci_low <= value <= ci_high."""

    metric: str
    value: float
    ci_low: float
    ci_high: float
    n: int


def metric_fn(metric: Metric) -> MetricFunction:
    """The metric as a function (logits, labels, groups, class_count) -> scalar tensor on the logits' device.

    logits (n, class_count) of any float type, labels (n,) int64 in [0, class_count), groups (n,) integers or None for the class
    labels; only worst_group_accuracy looks at groups, and leaves out examples whose group is -1. The scalar is float64 where the
    device has it. The function waits for the device, to raise

        DataError: there are no examples, or none in a group, or the shapes do not fit.
        NonFiniteScore: a logit or the result is not finite.
    """
    function = _METRICS[metric]

    def checked(logits: Tensor, labels: Tensor, groups: Tensor | None, class_count: int) -> Tensor:
        _check_shapes(logits, labels, groups, class_count)
        value = function(logits, labels, groups, class_count)
        if not bool(torch.isfinite(logits).all() & torch.isfinite(value)):
            raise NonFiniteScore(f"{metric} cannot be computed: the model's outputs for {len(logits)} examples are not all finite")
        return value

    return checked


def metric_value(metric: Metric, logits: Tensor, labels: Tensor, groups: Tensor | None, class_count: int) -> float:
    """`metric_fn(metric)` as a Python float. Raises DataError and NonFiniteScore likewise."""
    return float(metric_fn(metric)(logits, labels, groups, class_count))


def score_predictions(
    metric: Metric,
    logits: Tensor | Array,
    labels: Tensor | Array,
    groups: Tensor | Array | None,
    class_count: int,
    confidence: float = 0.95,
    seed: int = 0,
) -> Score:
    """A metric with its two-sided confidence interval; the same input gives the same interval.

    The interval is about drawing other test examples, not about training again.

    accuracy: Clopper and Pearson 1934, exact: coverage is at least `confidence`.
    macro_f1: bias-corrected percentile bootstrap over examples, `RESAMPLES` resamples. Approximate: in simulations the 95% interval
        held the true value 91 to 97% of the time with five or more examples a class on average, and 72% with 180 classes of which
        most had one or two. Macro F1 itself is biased downwards there. The plain percentile interval did worse, 81% at ten a class.
    worst_group_accuracy: from exact intervals of the groups, see `_worst_group_interval`; coverage is at least `confidence`. The
        value itself is biased downwards: the minimum of noisy accuracies lies below the accuracy of the worst group, the more so
        the smaller and the more numerous the groups are. The interval allows for that.
    cross_entropy: Student's t interval of the mean on the logarithmic scale. Losses are positive with a long right tail, where
        this covered more often in simulations than the plain t interval and the percentile bootstrap, and it stays above 0. Too
        narrow where all of the loss is in a few examples. One example shows no spread: the interval is the value alone.

    Args:
        metric: one of `autoft.config.Metric`.
        logits: (n, class_count).
        labels: (n,) integers in [0, class_count).
        groups: (n,) integers, -1 for an example in no group; or None for the class labels.
        class_count: number of classes.
        confidence: of the interval, in (0, 1).
        seed: of the bootstrap.

    Raises:
        DataError: there are no examples, or none in a group, or shapes or labels do not fit.
        NonFiniteScore: a logit or the metric is not finite.
    """
    scores, target = _on_cpu(logits), _on_cpu(labels).long()
    group = None if groups is None else _on_cpu(groups).long()
    _check_shapes(scores, target, group, class_count)
    if int(target.min()) < 0 or int(target.max()) >= class_count:
        raise DataError(f"labels must lie in 0..{class_count - 1}, got {int(target.min())}..{int(target.max())}")
    value = metric_value(metric, scores, target, group, class_count)
    low, high = _INTERVALS[metric](scores, target, group, class_count, confidence, seed)
    return Score(metric, value, min(low, value), max(high, value), len(target))


def pool_index(projection: Sequence[Sequence[int]]) -> Tensor:
    """The columns of the logits that each class of a set pools, (classes, widest) int64; a shorter pool repeats its first column."""
    widest = max(map(len, projection))
    return torch.tensor([[*columns, *([columns[0]] * (widest - len(columns)))] for columns in projection])


def pooled_logits(logits: Tensor, pools: Tensor) -> Tensor:
    """Logits of a set's own classes: of each, the largest in its pool, as is usual for ObjectNet (Barbu et al. 2019).

    logits (n, study's classes), pools (classes, widest) by `pool_index`, on the same device; returns (n, classes).
    """
    return logits[:, pools].amax(dim=2)


def clopper_pearson(correct: Array, total: Array, low_tail: float, high_tail: float) -> tuple[Array, Array]:
    """Exact binomial bounds (Clopper and Pearson 1934): each fails with at most the given probability.

    correct, total: integer arrays of one shape, 0 <= correct <= total, total > 0.
    """
    low = special.betaincinv(np.maximum(correct, 1), total - correct + 1, low_tail)
    high = special.betaincinv(correct + 1, np.maximum(total - correct, 1), 1 - high_tail)
    return np.where(correct == 0, 0.0, low), np.where(correct == total, 1.0, high)


def _accuracy(logits: Tensor, labels: Tensor, _groups: Tensor | None, _class_count: int) -> Tensor:
    return (logits.argmax(dim=1) == labels).to(_exact(logits.device)).mean()


def _macro_f1(logits: Tensor, labels: Tensor, _groups: Tensor | None, class_count: int) -> Tensor:
    """Mean F1 over the classes that occur among the labels; as WILDS does for iWildCam (Koh et al. 2021)."""
    predictions = logits.argmax(dim=1)
    hits = (predictions == labels).long()
    counts = torch.zeros(3, class_count, dtype=torch.int64, device=logits.device)
    ones = torch.ones_like(labels)
    counts[0].index_add_(0, labels, hits)
    counts[1].index_add_(0, predictions, ones)
    counts[2].index_add_(0, labels, ones)
    hit, predicted, actual = counts.to(_exact(logits.device))
    f1 = 2 * hit / (predicted + actual).clamp(min=1)
    mean: Tensor = f1.sum() / (actual > 0).sum()  # a class without labels has no hits, so its F1 is 0
    return mean


def _worst_group_accuracy(logits: Tensor, labels: Tensor, groups: Tensor | None, _class_count: int) -> Tensor:
    """Minimum over groups that occur; as WILDS does for FMoW's regions, of which "Other" does not count (Koh et al. 2021)."""
    correct, total = _group_counts(logits, labels, groups)
    return (correct.to(_exact(logits.device)) / total).min()


def _cross_entropy(logits: Tensor, labels: Tensor, _groups: Tensor | None, _class_count: int) -> Tensor:
    return _losses(logits, labels).mean()


_METRICS: Mapping[str, MetricFunction] = {
    "accuracy": _accuracy,
    "macro_f1": _macro_f1,
    "worst_group_accuracy": _worst_group_accuracy,
    "cross_entropy": _cross_entropy,
}


def _accuracy_interval(
    logits: Tensor, labels: Tensor, _groups: Tensor | None, _class_count: int, confidence: float, _seed: int
) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = clopper_pearson((logits.argmax(dim=1) == labels).sum().numpy(), np.array(len(labels)), tail, tail)
    return float(low), float(high)


def _macro_f1_interval(
    logits: Tensor, labels: Tensor, _groups: Tensor | None, class_count: int, confidence: float, seed: int
) -> tuple[float, float]:
    """Bias-corrected percentile bootstrap (Efron 1981) over examples.

    A resample is a draw of counts for the (label, prediction) pairs that occur: that is all F1 depends on. Classes that miss in a
    resample do not count in it, as classes that miss in the data do not count in the value.
    """
    pairs, counts = np.unique(labels.numpy() * class_count + logits.argmax(dim=1).numpy(), return_counts=True)
    actual, predicted = np.divmod(pairs, class_count)
    right = actual == predicted
    rng = np.random.default_rng(seed)
    rows = max(1, _COUNTS_AT_ONCE // len(pairs))
    values = []
    for start in range(0, RESAMPLES, rows):
        drawn = rng.multinomial(len(labels), counts / len(labels), size=min(rows, RESAMPLES - start))  # (resamples, pairs)
        hits = _sum_by(drawn[:, right], actual[right], class_count)
        labelled = _sum_by(drawn, actual, class_count)
        f1 = 2 * hits / np.maximum(labelled + _sum_by(drawn, predicted, class_count), 1)
        values.append(f1.sum(axis=1) / (labelled > 0).sum(axis=1))
    resampled = np.concatenate(values)
    value = float(_macro_f1(logits, labels, None, class_count))
    below = np.mean(resampled < value) + np.mean(resampled == value) / 2
    shift = special.ndtri(np.clip(below, 1 / RESAMPLES, 1 - 1 / RESAMPLES))
    tail = special.ndtri((1 + confidence) / 2)
    low, high = np.quantile(resampled, special.ndtr([2 * shift - tail, 2 * shift + tail]))
    return float(low), float(high)


def _worst_group_interval(
    logits: Tensor, labels: Tensor, groups: Tensor | None, _class_count: int, confidence: float, _seed: int
) -> tuple[float, float]:
    """From Clopper-Pearson bounds L_g and U_g of each group: [min L_g, min U_g], the tail of U divided by the number of groups.

    min L_g exceeds the worst group's accuracy only if that group's own L does, so L needs no correction; min U_g falls short only
    if some group's U does, hence Bonferroni there. A bootstrap of the minimum is no alternative: it resamples around accuracies
    that are already too low, and of 50 equal groups of 50 its 95% interval held the true value in none of 400 simulations.
    """
    correct, total = (counts.numpy() for counts in _group_counts(logits, labels, groups))
    tail = (1 - confidence) / 2
    low, high = clopper_pearson(correct, total, tail, tail / len(total))
    return float(low.min()), float(high.min())


def _cross_entropy_interval(
    logits: Tensor, labels: Tensor, _groups: Tensor | None, _class_count: int, confidence: float, _seed: int
) -> tuple[float, float]:
    losses = _losses(logits, labels).numpy()
    mean, n = float(losses.mean()), len(losses)
    if n == 1 or mean == 0:
        return mean, mean
    # Delta method: the standard error of ln(mean). It is at most 1, since losses are not negative, so exp() does not overflow.
    error = float(losses.std(ddof=1)) / np.sqrt(n) / mean
    factor = np.exp(special.stdtrit(n - 1, (1 + confidence) / 2) * error)
    return float(mean / factor), float(mean * factor)


_INTERVALS: Mapping[str, Callable[[Tensor, Tensor, Tensor | None, int, float, int], tuple[float, float]]] = {
    "accuracy": _accuracy_interval,
    "macro_f1": _macro_f1_interval,
    "worst_group_accuracy": _worst_group_interval,
    "cross_entropy": _cross_entropy_interval,
}


def _group_counts(logits: Tensor, labels: Tensor, groups: Tensor | None) -> tuple[Tensor, Tensor]:
    """Right predictions and examples of each group that occurs, (groups,) int64 each. Raises DataError if no example is in a group."""
    present, index = torch.unique(labels if groups is None else groups, return_inverse=True)
    correct = torch.zeros(len(present), dtype=torch.int64, device=logits.device)
    total = torch.zeros_like(correct)
    correct.index_add_(0, index, (logits.argmax(dim=1) == labels).long())
    total.index_add_(0, index, torch.ones_like(index))
    if groups is not None:
        counted = present != NO_GROUP
        correct, total = correct[counted], total[counted]
    if not len(total):
        raise DataError(f"worst_group_accuracy needs groups: none of the {len(labels)} examples is in one")
    return correct, total


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(z_i)[y_i] of each example; the softmax in float32 or wider, the result in float64 where there is one."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return functional.cross_entropy(wide, labels, reduction="none").to(_exact(logits.device))


def _sum_by(counts: Array, column_class: Array, class_count: int) -> Array:
    """Add up the columns of each class: (rows, columns) and (columns,) in [0, class_count) to (rows, class_count)."""
    order = np.argsort(column_class, kind="stable")
    classes, starts = np.unique(column_class[order], return_index=True)
    sums = np.zeros((len(counts), class_count), dtype=np.int64)
    if len(classes):
        sums[:, classes] = np.add.reduceat(counts[:, order], starts, axis=1)
    return sums


def _exact(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64


def _on_cpu(values: Tensor | Array) -> Tensor:
    return torch.as_tensor(values).detach().cpu()


def _check_shapes(logits: Tensor, labels: Tensor, groups: Tensor | None, class_count: int) -> None:
    if labels.ndim != 1 or logits.shape != (len(labels), class_count) or (groups is not None and groups.shape != labels.shape):
        shapes = f"logits {tuple(logits.shape)}, labels {tuple(labels.shape)}"
        shapes += "" if groups is None else f", groups {tuple(groups.shape)}"
        raise DataError(f"predictions must have logits (n, {class_count}), labels (n,) and groups (n,); got {shapes}")
    if len(labels) == 0:
        raise DataError("a metric needs at least one example; the set is empty")
