"""What runs over several seeds say: means, paired differences, tests. Plain numbers in, plain numbers out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from scipy import special, stats

CONFIDENCE = 0.95
WILCOXON_FROM = 6  # pairs; with fewer, the smallest two-sided p of the signed-rank test is above 0.05
Seed = int | None  # None: a method without a seed, whose one run stands for every seed
BySeed = Mapping[Seed, float]


@dataclass(frozen=True)
class Mean:
    """A mean over n seeds with its 95 % interval over seeds; no interval with one seed."""

    value: float
    low: float | None
    high: float | None
    n: int

    @property
    def half(self) -> float | None:
        """Half the interval's width: the figure after ±."""
        return None if self.high is None else self.high - self.value

    @property
    def excludes_zero(self) -> bool | None:
        """Whether 0 lies outside the interval; None without an interval."""
        return None if self.low is None or self.high is None else self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Difference:
    """One method's scores less another's, seed by seed, in the metric's own unit.

    p: two-sided paired t-test; wilcoxon: signed-rank test, from `WILCOXON_FROM` pairs on; both before and after Holm's correction.
    None where there are too few pairs, or nothing that varies. Without a common seed it is the difference of the two means, n = 0.
    """

    mean: Mean
    p: float | None = None
    wilcoxon: float | None = None
    p_holm: float | None = None
    wilcoxon_holm: float | None = None


def mean_of(values: Sequence[float]) -> Mean:
    """Mean with Student's t interval, value ± t(0.975, n-1) s / sqrt(n). `values` is not empty; their order does not matter."""
    n = len(values)
    value = math.fsum(values) / n
    if n == 1:
        return Mean(value, None, None, 1)
    spread = math.sqrt(math.fsum((x - value) ** 2 for x in values) / (n - 1))
    half = float(special.stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * spread / math.sqrt(n)
    return Mean(value, value - half, value + half, n)


def pairs(first: BySeed, second: BySeed) -> list[tuple[float, float]]:
    """Scores of two methods at each seed both have, by seed; a run without a seed is paired with every seed of the other."""
    if None in first and None in second:
        return [(first[None], second[None])]
    seeds = set(second if None in first else first if None in second else first.keys() & second.keys())
    ordered = sorted(seeds, key=lambda seed: seed or 0)
    return [(first[None if None in first else seed], second[None if None in second else seed]) for seed in ordered]


def difference(first: BySeed, second: BySeed) -> Difference | None:
    """First less second by seed, uncorrected; None if one of them has no score."""
    if not first or not second:
        return None
    found = [a - b for a, b in pairs(first, second)]
    if not found:
        gap = math.fsum(first.values()) / len(first) - math.fsum(second.values()) / len(second)
        return Difference(Mean(gap, None, None, 0))
    mean = mean_of(found)
    if mean.n == 1 or (mean.half or 0.0) <= 1e-12 * max(map(abs, found)):  # rounding alone is no spread
        return Difference(mean)
    p = float(stats.ttest_1samp(found, 0.0).pvalue)
    return Difference(mean, p, float(stats.wilcoxon(found).pvalue) if mean.n >= WILCOXON_FROM else None)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction (Holm 1979): p-values that hold for the whole family; None takes no part and stays None."""
    tested = sorted((value, index) for index, value in enumerate(values) if value is not None)
    adjusted: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (value, index) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * value))
        adjusted[index] = highest
    return adjusted


def corrected(differences: Mapping[str, Difference | None]) -> dict[str, Difference | None]:
    """A column of differences with both tests corrected over its methods."""
    names = list(differences)
    found = [differences[name] for name in names]
    t = holm([None if item is None else item.p for item in found])
    rank = holm([None if item is None else item.wilcoxon for item in found])
    return {
        name: None if item is None else replace(item, p_holm=p, wilcoxon_holm=w)
        for name, item, p, w in zip(names, found, t, rank, strict=True)
    }
