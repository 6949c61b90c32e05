"""Figures against slow independent computations, and what must not change them."""

import itertools
import math
import random

import numpy as np
import pytest

from autoft.comparison.analysis import analyse
from autoft.comparison.records import Comparison
from autoft.comparison.statistics import difference, holm, mean_of
from tests.comparison.factory import LEVELS, comparison, document, scored

T = {2: 12.7062047362, 3: 4.30265272991, 5: 2.77644510520, 8: 2.36462425159}  # t(0.975, n-1) from tables


def t_density_tail(t: float, df: int) -> float:
    """P(|T| > t) by the trapezoid rule on the density; the rest beyond 4000 is negligible for df >= 2."""
    x = np.linspace(abs(t), 4000, 4_000_001)
    y = (1 + x**2 / df) ** (-(df + 1) / 2)
    constant = math.gamma((df + 1) / 2) / (math.sqrt(df * math.pi) * math.gamma(df / 2))
    return float(2 * constant * np.trapezoid(y, x))


def signed_rank_p(values: list[float]) -> float:
    """Two-sided exact p of the signed-rank test by going through every sign pattern; no ties, no zeros."""
    ranks = np.argsort(np.argsort(np.abs(values))) + 1
    seen = ranks[np.array(values) > 0].sum()
    sums = [sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign) for signs in itertools.product((0, 1), repeat=len(values))]
    below, above = (sum(total <= seen for total in sums), sum(total >= seen for total in sums))
    return min(1.0, 2 * min(below, above) / len(sums))


@pytest.mark.parametrize("n", list(T))
def test_the_mean_has_students_interval(n: int) -> None:
    values = [random.Random(n).gauss(0.5, 0.1) for _ in range(n)]
    found = mean_of(values)
    half = T[n] * np.std(values, ddof=1) / np.sqrt(n)
    assert (found.value, found.low, found.high, found.n) == pytest.approx((np.mean(values), np.mean(values) - half, np.mean(values) + half, n))


def test_paired_tests_are_those_of_their_definitions() -> None:
    rng = random.Random(3)
    first, second = ({seed: rng.gauss(0.5, 0.02) for seed in range(8)} for _ in range(2))
    found = difference(first, second)
    gaps = np.array([first[seed] - second[seed] for seed in range(8)])
    assert found is not None and found.p is not None
    assert found.mean.value == pytest.approx(gaps.mean())
    assert found.mean.half == pytest.approx(T[8] * gaps.std(ddof=1) / np.sqrt(8))
    assert found.p == pytest.approx(t_density_tail(gaps.mean() / (gaps.std(ddof=1) / np.sqrt(8)), 7), rel=1e-5)
    assert found.wilcoxon == pytest.approx(signed_rank_p(list(gaps)))


@pytest.mark.parametrize(("n", "tested"), [(5, False), (6, True)])
def test_the_signed_rank_test_needs_six_seeds(n: int, tested: bool) -> None:
    rng = random.Random(0)
    found = difference({seed: rng.random() for seed in range(n)}, {seed: rng.random() for seed in range(n)})
    assert found is not None and (found.wilcoxon is not None) == tested


def test_holm_is_stepped_down_and_leaves_out_what_was_not_tested() -> None:
    assert holm([0.01, None, 0.04, 0.03, 0.005]) == pytest.approx([0.03, None, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_column_is_corrected_over_its_own_methods() -> None:
    found = analyse(comparison())
    for column in ("to_finetune", "to_baseline"):
        items = [item for entry in found.entries if (item := getattr(entry, column)) is not None]
        assert len(items) == len(LEVELS) - 1
        assert [item.p_holm for item in items] == pytest.approx(holm([item.p for item in items]))


def test_one_pair_or_none_has_no_interval_and_no_test() -> None:
    one = difference({0: 0.6}, {0: 0.5, 1: 0.9})
    assert one is not None and (one.mean.n, one.mean.low, one.p) == (1, None, None) and one.mean.value == pytest.approx(0.1)
    none = difference({0: 0.6, 1: 0.7}, {2: 0.5})
    assert none is not None and (none.mean.n, none.mean.low) == (0, None) and none.mean.value == pytest.approx(0.15)
    assert difference({}, {0: 0.5}) is None


def test_what_does_not_vary_is_not_tested() -> None:
    found = difference({seed: 0.3 + 0.1 * seed for seed in range(3)}, {seed: 0.1 + 0.1 * seed for seed in range(3)})
    assert found is not None and found.p is None and found.mean.value == pytest.approx(0.2)


def test_zero_shot_is_paired_with_every_seed() -> None:
    found = analyse(scored({"zero_shot": [0.40], "finetune": [0.50, 0.52, 0.54]}))
    zero = found.entry("zero_shot")
    assert zero is not None and zero.to_finetune is not None and zero.ood is not None
    assert (zero.to_finetune.mean.n, zero.ood.n, zero.ood.low) == (3, 1, None)
    assert zero.to_finetune.mean.value == pytest.approx(-0.12)
    assert zero.to_finetune.mean.half == pytest.approx(T[3] * 0.02 / math.sqrt(3))


def test_a_zero_shot_run_with_a_seed_stands_for_every_seed_all_the_same() -> None:
    given = document(("zero_shot", "finetune"))
    plain = analyse(Comparison.from_dict(given))
    for run in given["runs"]:
        run["seed"] = 0 if run["seed"] is None else run["seed"]
    seeded = analyse(Comparison.from_dict(given))
    assert [entry.to_finetune for entry in seeded.entries] == [entry.to_finetune for entry in plain.entries]
    assert seeded.seeds == 5


def test_order_of_methods_and_runs_changes_nothing() -> None:
    given = document()
    shuffled = document()
    random.Random(5).shuffle(shuffled["methods"])
    random.Random(6).shuffle(shuffled["runs"])
    a, b = analyse(Comparison.from_dict(given)), analyse(Comparison.from_dict(shuffled))
    assert a.entries == b.entries
    assert a.baseline == b.baseline


def test_relabelling_seeds_changes_no_figure() -> None:
    given, moved = document(), document()
    for run in moved["runs"]:
        run["seed"] = None if run["seed"] is None else 100 - 7 * run["seed"]
    a, b = analyse(Comparison.from_dict(given)), analyse(Comparison.from_dict(moved))
    for x, y in zip(a.entries, b.entries, strict=True):
        assert (x.name, x.ood) == (y.name, y.ood)
        assert (x.to_finetune is None) == (y.to_finetune is None)
        if x.to_finetune and y.to_finetune:
            assert x.to_finetune.p == pytest.approx(y.to_finetune.p)


def test_a_constant_on_every_score_leaves_differences() -> None:
    scores: dict[str, list[float | None]] = {"finetune": [0.5, 0.52, 0.49], "flyp": [0.55, 0.56, 0.50], "autoft": [0.53, 0.58, 0.55]}
    moved: dict[str, list[float | None]] = {name: [value + 0.125 for value in values if value is not None] for name, values in scores.items()}
    for x, y in zip(analyse(scored(scores)).entries, analyse(scored(moved)).entries, strict=True):
        assert x.name == y.name
        for first, second in ((x.to_finetune, y.to_finetune), (x.to_baseline, y.to_baseline)):
            assert (first is None) == (second is None)
            if first and second:
                assert (first.mean.value, first.mean.low, first.p) == pytest.approx((second.mean.value, second.mean.low, second.p))


def test_the_best_baseline_is_chosen_on_validation_and_is_not_autoft() -> None:
    given = document(("zero_shot", "finetune", "flyp", "wise_ft", "autoft", "autoft_extended"))
    best = {"zero_shot": 0.99, "finetune": 0.3, "flyp": 0.6, "wise_ft": 0.5, "autoft": 0.9, "autoft_extended": 0.95}
    for run in given["runs"]:
        run["val_ood"] = best[run["method"]]
    found = analyse(Comparison.from_dict(given))
    assert found.baseline == "flyp"  # wise_ft is ahead on the test sets
    assert found.entries[0].name in ("wise_ft", "autoft_extended")
    flyp = found.entry("flyp")
    assert flyp is not None and flyp.to_baseline is None
    for run in given["runs"]:
        run["val_ood"] = 1 - best[run["method"]]
    given["metric"], given["direction"] = "cross_entropy", "minimize"
    assert analyse(Comparison.from_dict(given)).baseline == "flyp"


def test_runs_that_failed_or_are_absent_are_counted_and_named() -> None:
    found = analyse(scored({"finetune": [0.5, 0.52, 0.54], "spd": [0.5, None], "autoft": [None, None, None]}))
    spd, ours = found.entry("spd"), found.entry("autoft")
    assert spd is not None and ours is not None and spd.ood is not None and spd.to_finetune is not None
    assert (spd.finished, spd.expected, spd.ood.n, spd.to_finetune.mean.n) == (1, 3, 1, 1)
    assert spd.problems == ("seed 1 failed (loss was not finite)", "seed 2 was not run")
    assert (ours.finished, ours.ood, ours.to_finetune) == (0, None, None)
    assert found.entries[-1] is ours


def test_a_run_that_misses_a_test_set_is_named_and_not_averaged() -> None:
    given = document(("finetune", "autoft"))
    given["runs"][0]["evaluations"] = [row for row in given["runs"][0]["evaluations"] if row["dataset"] != "art"]
    entry = analyse(Comparison.from_dict(given)).entry("finetune")
    assert entry is not None and entry.ood is not None
    assert entry.ood.n == 4
    assert entry.problems == ("seed 0 was not scored on art",)


def test_lower_is_better_where_the_direction_says_so() -> None:
    found = analyse(scored({"finetune": [1.0, 1.1], "autoft": [0.8, 0.9], "flyp": [1.4, 1.5]}, metric="cross_entropy"))
    assert [entry.name for entry in found.entries] == ["autoft", "finetune", "flyp"]
    assert not found.robust


def test_effective_robustness_is_the_distance_from_a_logit_line() -> None:
    found = analyse(comparison())
    points = [(x, y) for name in ("finetune", "linear_probe") if (e := found.entry(name)) for x, y in _points(e.by_seed)]
    x, y = (np.log(np.array(side) / (1 - np.array(side))) for side in zip(*points, strict=True))
    slope, intercept = np.polyfit(x, y, 1)
    for entry in found.entries:
        expected = [b - 1 / (1 + math.exp(-(slope * math.log(a / (1 - a)) + intercept))) for a, b in _points(entry.by_seed)]
        assert entry.robustness is not None and entry.robustness.value == pytest.approx(np.mean(expected))


def test_there_is_no_effective_robustness_without_its_baselines_or_for_other_metrics() -> None:
    assert not analyse(comparison(("zero_shot", "flyp", "autoft"))).robust
    assert not analyse(Comparison.from_dict(document() | {"metric": "macro_f1"})).robust


def _points(by_seed: dict[str, dict[int | None, float]]) -> list[tuple[float, float]]:
    return [(x, by_seed["test_ood"][seed]) for seed, x in by_seed["test_id"].items()]
