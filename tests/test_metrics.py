"""Metrics and their intervals: against scikit-learn and scipy, invariances, and how often the intervals hold the truth."""

import json
import math
import time
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sklearn_metrics

from autoft.config import Metric
from autoft.errors import DataError
from autoft.evaluate import NonFiniteScore, Score, metric_fn, metric_value, score_predictions

Array = np.ndarray[Any, Any]
METRICS: tuple[Metric, ...] = get_args(Metric)
every_metric = pytest.mark.parametrize("metric", METRICS)


def predictions(seed: int, n: int, classes: int, signal: float = 2.0, groups: int = 3) -> tuple[Array, Array, Array]:
    """Logits (n, classes) float64, labels (n,), groups (n,)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    logits = rng.normal(0, 2, (n, classes))
    logits[np.arange(n), labels] += signal
    return logits, labels, rng.integers(groups, size=n)


def independent(metric: str, logits: Array, labels: Array, groups: Array) -> float:
    """The metric by scikit-learn, or by hand where it has none."""
    predicted = logits.argmax(axis=1)
    if metric == "accuracy":
        return float(sklearn_metrics.accuracy_score(labels, predicted))
    if metric == "macro_f1":
        return float(sklearn_metrics.f1_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0))
    if metric == "worst_group_accuracy":
        return min(float(sklearn_metrics.accuracy_score(labels[groups == g], predicted[groups == g])) for g in set(groups.tolist()))
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return float(sklearn_metrics.log_loss(labels, probabilities, labels=range(logits.shape[1])))


@every_metric
@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000), n=st.integers(1, 60), classes=st.integers(2, 12), signal=st.floats(0, 6), groups=st.integers(1, 9)
)
def test_value_is_that_of_scikit_learn(metric: Metric, seed: int, n: int, classes: int, signal: float, groups: int) -> None:
    logits, labels, group = predictions(seed, n, classes, signal, groups)
    score = score_predictions(metric, logits, labels, group, classes)
    assert score.value == pytest.approx(independent(metric, logits, labels, group), rel=1e-9, abs=1e-12)
    assert score.ci_low <= score.value <= score.ci_high
    assert (score.metric, score.n) == (metric, n)
    assert score.ci_low >= 0
    assert math.isfinite(score.ci_high)
    assert score.ci_high <= 1 or metric == "cross_entropy"


@every_metric
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_trials_score_is_the_reports_value(metric: Metric, dtype: torch.dtype) -> None:
    logits, labels, groups = (torch.from_numpy(values) for values in predictions(1, 200, 7))
    logits = logits.to(dtype)
    on_device = metric_fn(metric)(logits, labels, groups, 7)
    assert on_device.shape == ()
    assert on_device.dtype == torch.float64
    assert float(on_device) == score_predictions(metric, logits, labels, groups, 7).value
    assert metric_value(metric, logits, labels, groups, 7) == float(on_device)
    assert float(on_device) == pytest.approx(independent(metric, logits.double().numpy(), labels.numpy(), groups.numpy()), rel=1e-6)


@pytest.mark.parametrize(("correct", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (7, 20), (199, 200), (4321, 10_000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_accuracy_interval_is_scipys_exact_one(correct: int, n: int, confidence: float) -> None:
    labels = (np.arange(n) >= correct).astype(np.int64)  # the model always says 0
    score = score_predictions("accuracy", np.tile([1.0, 0.0], (n, 1)), labels, None, 2, confidence)
    expected = stats.binomtest(correct, n).proportion_ci(confidence, method="exact")
    assert (score.ci_low, score.ci_high) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)


@every_metric
def test_the_order_of_examples_does_not_matter(metric: Metric) -> None:
    logits, labels, groups = predictions(2, 300, 6)
    order = np.random.default_rng(0).permutation(300)
    first = score_predictions(metric, logits, labels, groups, 6)
    second = score_predictions(metric, logits[order], labels[order], groups[order], 6)
    assert (first.value, first.ci_low, first.ci_high) == pytest.approx((second.value, second.ci_low, second.ci_high), rel=1e-12)


@every_metric
def test_names_of_classes_and_of_groups_do_not_matter(metric: Metric) -> None:
    logits, labels, groups = predictions(3, 300, 6)
    order = np.random.default_rng(0).permutation(6)
    renamed = np.array([101, -7, 40_000])[groups]
    first = score_predictions(metric, logits, labels, groups, 6)
    second = score_predictions(metric, logits[:, order], np.argsort(order)[labels], renamed, 6)
    assert second.value == pytest.approx(first.value, rel=1e-12)
    tolerance = 0.01 if metric == "macro_f1" else 1e-12  # its resamples are drawn in the order of the classes
    assert (second.ci_low, second.ci_high) == pytest.approx((first.ci_low, first.ci_high), abs=tolerance)


@every_metric
def test_the_same_input_and_seed_give_the_same_interval(metric: Metric) -> None:
    logits, labels, groups = predictions(4, 200, 5)
    assert score_predictions(metric, logits, labels, groups, 5, seed=3) == score_predictions(
        metric, torch.from_numpy(logits), torch.from_numpy(labels), torch.from_numpy(groups), 5, seed=3
    )


@every_metric
def test_more_confidence_is_wider_and_more_data_is_narrower(metric: Metric) -> None:
    def width(n: int, confidence: float) -> float:
        score = score_predictions(metric, *predictions(5, n, 4), 4, confidence)
        return score.ci_high - score.ci_low

    assert width(400, 0.8) < width(400, 0.95) < width(400, 0.99)
    assert width(6400, 0.95) < 0.4 * width(400, 0.95)


def test_classes_without_labels_do_not_count_in_macro_f1() -> None:
    logits = np.eye(5)[[0, 1, 0, 4]]  # the last example is called 4, a class that has no label
    labels = np.array([0, 1, 0, 1])
    assert score_predictions("macro_f1", logits, labels, None, 5).value == pytest.approx((1.0 + 2 / 3) / 2)


def test_groups_default_to_the_classes() -> None:
    logits, labels, _ = predictions(6, 300, 5)
    assert score_predictions("worst_group_accuracy", logits, labels, None, 5) == score_predictions(
        "worst_group_accuracy", logits, labels, labels, 5
    )


def test_one_group_is_plain_accuracy() -> None:
    logits, labels, _ = predictions(7, 100, 5)
    worst = score_predictions("worst_group_accuracy", logits, labels, np.zeros(100, np.int64), 5)
    plain = score_predictions("accuracy", logits, labels, None, 5)
    assert (worst.value, worst.ci_low, worst.ci_high) == pytest.approx((plain.value, plain.ci_low, plain.ci_high))


def test_macro_f1_by_hand() -> None:
    """Labels 0 0 0 1 1 2 called 0 0 1 1 3 3: F1 is 4/5, 1/2 and 0 of the three classes that have labels; class 3 has none."""
    logits, labels = np.eye(4)[[0, 0, 1, 1, 3, 3]], np.array([0, 0, 0, 1, 1, 2])
    value = score_predictions("macro_f1", logits, labels, None, 4).value
    assert value == pytest.approx((4 / 5 + 1 / 2 + 0) / 3)
    reference = sklearn_metrics.f1_score(labels, logits.argmax(axis=1), labels=np.unique(labels), average="macro")
    assert value == pytest.approx(float(reference))


def test_worst_group_accuracy_by_hand() -> None:
    """Group 5 is right in 2 of 3, group 7 in 1 of 2; the three in no group are all wrong."""
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    called = np.array([0, 0, 1, 1, 0, 0, 0, 0])
    groups = np.array([5, 5, 5, 7, 7, -1, -1, -1])
    score = score_predictions("worst_group_accuracy", np.eye(2)[called], labels, groups, 2)
    exact = [stats.binomtest(1, 2).proportion_ci(0.95, method="exact").low, stats.binomtest(2, 3).proportion_ci(0.95, method="exact").low]
    assert (score.value, score.ci_low, score.n) == (0.5, pytest.approx(min(exact)), 8)


def test_examples_in_no_group_do_not_count_in_worst_group_accuracy_alone() -> None:
    logits, labels, groups = predictions(12, 300, 5)
    groups[labels == 2] = -1
    logits[labels == 2, 2] -= 50
    inside = groups >= 0
    for metric in METRICS:
        all_of_them = score_predictions(metric, logits, labels, groups, 5)
        those_in_groups = score_predictions(metric, logits[inside], labels[inside], groups[inside], 5)
        same = all_of_them.value == those_in_groups.value
        assert same == (metric == "worst_group_accuracy")
        if same:
            assert (all_of_them.ci_low, all_of_them.ci_high) == (those_in_groups.ci_low, those_in_groups.ci_high)


def test_worst_group_accuracy_needs_an_example_in_a_group() -> None:
    logits, labels, _ = predictions(13, 20, 4)
    nowhere = np.full(20, -1)
    with pytest.raises(DataError, match="none of the 20 examples is in one"):
        score_predictions("worst_group_accuracy", logits, labels, nowhere, 4)
    with pytest.raises(DataError, match="none of the 20 examples is in one"):
        metric_fn("worst_group_accuracy")(*map(torch.from_numpy, (logits, labels, nowhere)), 4)
    assert score_predictions("accuracy", logits, labels, nowhere, 4).n == 20


def test_groups_matter_to_worst_group_accuracy_alone() -> None:
    logits, labels, groups = predictions(8, 100, 5)
    for metric in METRICS:
        with_groups, without = (score_predictions(metric, logits, labels, g, 5).value for g in (groups, None))
        assert (with_groups == without) == (metric != "worst_group_accuracy")


@every_metric
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_no_score(metric: Metric, bad: float) -> None:
    logits, labels, groups = predictions(9, 20, 4)
    logits[7, 2] = bad
    with pytest.raises(NonFiniteScore, match=f"{metric}.*20 examples"):
        score_predictions(metric, logits, labels, groups, 4)
    with pytest.raises(ArithmeticError):
        metric_fn(metric)(torch.from_numpy(logits), torch.from_numpy(labels), None, 4)


def test_a_loss_that_overflows_is_no_score() -> None:
    logits = torch.tensor([[3e38, -3e38]])
    with pytest.raises(NonFiniteScore):
        metric_fn("cross_entropy")(logits, torch.tensor([1]), None, 2)
    assert float(metric_fn("accuracy")(logits, torch.tensor([1]), None, 2)) == 0.0


@every_metric
def test_an_empty_set_and_parts_that_do_not_fit_are_refused(metric: Metric) -> None:
    empty = np.zeros((0, 3)), np.zeros(0, np.int64)
    with pytest.raises(DataError, match="empty"):
        score_predictions(metric, *empty, None, 3)
    with pytest.raises(DataError, match="empty"):
        metric_fn(metric)(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), None, 3)
    logits, labels, groups = predictions(10, 20, 4)
    for wrong in ((logits[:19], labels, None, 4), (logits, labels, None, 5), (logits, labels, groups[:3], 4), (logits, labels[:, None], None, 4)):
        with pytest.raises(DataError, match="logits"):
            score_predictions(metric, *wrong)
    with pytest.raises(DataError, match=r"0\.\.3, got 0\.\.4"):
        score_predictions(metric, logits, labels + (labels == 3), None, 4)


@every_metric
def test_a_score_is_plain_json_numbers_even_for_one_example(metric: Metric) -> None:
    score = score_predictions(metric, np.array([[2.0, 0.0, 0.0]], np.float32), np.array([0]), None, 3)
    assert isinstance(score, Score)
    assert all(type(value) is float for value in (score.value, score.ci_low, score.ci_high))
    json.dumps(vars(score), allow_nan=False)


def covered(metric: Metric, n: int, classes: int, truth: float, seeds: range, signal: float = 2.0) -> float:
    """How often the 95% interval holds the population's value."""
    scores = [score_predictions(metric, *predictions(seed, n, classes, signal), classes) for seed in seeds]
    return float(np.mean([score.ci_low <= truth <= score.ci_high for score in scores]))


@pytest.mark.parametrize(("metric", "least"), [("accuracy", 0.95), ("macro_f1", 0.93), ("cross_entropy", 0.93)])
def test_intervals_hold_the_truth_as_often_as_they_say(metric: Metric, least: float) -> None:
    truth = score_predictions(metric, *predictions(10_001, 400_000, 4), 4).value
    rate = covered(metric, 150, 4, truth, range(300))
    slack = 2.6 * math.sqrt(0.05 * 0.95 / 300)  # what 300 simulations of exact 95% would miss by, at most once in a hundred
    assert least - slack <= rate
    assert rate <= 0.95 + slack


def test_bias_corrected_bootstrap_with_five_examples_a_class() -> None:
    """The plain percentile bootstrap holds the truth in 85 of these 100."""
    truth = score_predictions("macro_f1", *predictions(10_001, 400_000, 50, signal=7.0), 50).value
    assert covered("macro_f1", 250, 50, truth, range(100), signal=7.0) >= 0.90


def test_worst_group_interval_holds_the_truth_among_many_equal_groups() -> None:
    """Of many equal groups, the worst accuracy seen is far below the true one; a bootstrap interval would lie below it altogether."""
    truth = score_predictions("accuracy", *predictions(10_001, 400_000, 4), 4).value
    values = [score_predictions("worst_group_accuracy", *predictions(seed, 1000, 4, groups=40), 4) for seed in range(150)]
    assert np.mean([score.value for score in values]) < truth - 0.1
    assert np.mean([score.ci_low <= truth <= score.ci_high for score in values]) >= 0.95


def test_intervals_of_a_large_set_are_fast() -> None:
    logits, labels, _ = predictions(11, 10_000, 200)
    started = time.process_time()
    for metric in METRICS:
        score_predictions(metric, logits, labels, None, 200)
    assert time.process_time() - started < 5.0
