"""Effective robustness: the baseline, the distance to it, accuracies at the edges, and its figure."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy import stats
from scipy.special import expit, logit
from sklearn.linear_model import LinearRegression

from autoft.errors import DataError
from autoft.report import plots
from autoft.report.figures import png, style
from autoft.report.results import Score
from autoft.report.robustness import MIN_SPREAD, Scale, accuracy_score, effective_robustness, fit_baseline, robustness_interval

TO = {"logit": logit, "probit": stats.norm.ppf}
FROM = {"logit": expit, "probit": stats.norm.cdf}
shares = st.floats(0.02, 0.98)
points = st.lists(st.tuples(shares, shares), min_size=2, max_size=12)
scales = pytest.mark.parametrize("scale", ["logit", "probit"])


@scales
@given(points=points, at=shares)
def test_the_baseline_is_the_least_squares_line(scale: Scale, points: list[tuple[float, float]], at: float) -> None:
    ids, oods = np.array(points).T
    assume(np.ptp(logit(ids)) > 1.01 * MIN_SPREAD)
    baseline = fit_baseline(points, scale)
    reference = LinearRegression().fit(TO[scale](ids)[:, None], TO[scale](oods))
    assert baseline.models == len(points)
    if abs(reference.coef_[0]) <= 1e-9:
        return  # whether it rises is rounding
    if reference.coef_[0] < 0:
        assert not baseline.slope_fitted and baseline.slope == 1
        return
    assert baseline.slope_fitted
    assert baseline.slope == pytest.approx(reference.coef_[0], rel=1e-6, abs=1e-9)
    assert baseline.intercept == pytest.approx(reference.intercept_, rel=1e-6, abs=1e-6)
    expected = float(FROM[scale](reference.predict(np.array([[TO[scale](at)]]))[0]))
    assert baseline.expected(at) == pytest.approx(expected, abs=1e-6)
    assert effective_robustness(at, 0.4, baseline) == pytest.approx(0.4 - expected, abs=1e-6)


@scales
def test_models_on_a_line_have_no_effective_robustness(scale: Scale) -> None:
    ids = [0.3, 0.55, 0.8, 0.95]
    oods = [float(FROM[scale](0.8 * TO[scale](x) - 0.5)) for x in ids]
    baseline = fit_baseline(list(zip(ids, oods, strict=True)), scale)
    assert (baseline.slope, baseline.intercept) == pytest.approx((0.8, -0.5))
    assert [effective_robustness(x, y, baseline) for x, y in zip(ids, oods, strict=True)] == pytest.approx([0] * 4, abs=1e-12)


@scales
@pytest.mark.parametrize("points", [[(0.8, 0.6)], [(0.8, 0.5), (0.8, 0.7)], [(0.8, 0.5), (0.805, 0.7)], [(0.8, 0.7), (0.9, 0.5)]])
def test_baselines_too_alike_or_falling_give_slope_1_through_their_mean(points: list[tuple[float, float]], scale: Scale) -> None:
    baseline = fit_baseline(points, scale)
    assert not baseline.slope_fitted and baseline.slope == 1
    place = TO[scale]
    assert baseline.intercept == pytest.approx(np.mean([place(y) for _, y in points]) - np.mean([place(x) for x, _ in points]))
    if len(points) == 1:
        assert effective_robustness(0.8, 0.6, baseline) == pytest.approx(0)
        assert effective_robustness(0.8, 0.7, baseline) == pytest.approx(0.1)


def test_the_threshold_is_in_logits_whatever_the_axes() -> None:
    for scale in ("logit", "probit"):
        for spread, fitted in ((0.99 * MIN_SPREAD, False), (1.01 * MIN_SPREAD, True)):
            pair = [(0.9, 0.5), (float(expit(logit(0.9) + spread)), 0.6)]
            assert fit_baseline(pair, scale).slope_fitted == fitted  # type: ignore[arg-type]


def test_accuracies_of_0_and_1_lie_half_an_image_inside() -> None:
    baseline = fit_baseline([(0.0, 0.0), (1.0, 1.0)], id_images=9, ood_images=99)
    assert baseline.slope == pytest.approx(logit(99.5 / 100) / logit(9.5 / 10))
    assert baseline.expected(1.0, images=9) == pytest.approx(0.995)
    assert effective_robustness(1.0, 1.0, baseline, id_images=9) == pytest.approx(0.005), "the OOD accuracy itself is not moved"
    assert baseline.expected(1 - 1e-6, images=9) == pytest.approx(float(expit(baseline.slope * logit(1 - 1e-6)))), "nor is any other"
    assert math.isfinite(fit_baseline([(0.0, 1.0)]).intercept), "nobody has to know the number of images"


@pytest.mark.parametrize("wrong", [-0.01, 1.01, 56.0, float("nan")])
def test_what_is_no_accuracy_is_refused(wrong: float) -> None:
    baseline = fit_baseline([(0.8, 0.6)])
    for use in (lambda: fit_baseline([(wrong, 0.5)]), lambda: effective_robustness(wrong, 0.5, baseline), lambda: effective_robustness(0.5, wrong, baseline)):
        with pytest.raises(DataError, match=r"accuracies in \[0, 1\]"):
            use()
    with pytest.raises(DataError, match="at least one baseline model"):
        fit_baseline([])


@pytest.mark.parametrize(("correct", "n"), [(0, 30), (7, 30), (30, 30), (4567, 10000)])
def test_the_interval_is_clopper_and_pearsons_shifted(correct: int, n: int) -> None:
    score = accuracy_score(correct / n, n)
    exact = stats.binomtest(correct, n).proportion_ci(0.95, method="exact")
    assert (score.low, score.high) == pytest.approx((exact.low, exact.high))
    assert score.interval is not None
    baseline = fit_baseline([(0.3, 0.2), (0.9, 0.7)])
    low, high = robustness_interval(0.8, score.interval, baseline)
    rho = effective_robustness(0.8, score.value, baseline)
    assert low <= rho <= high
    assert (rho - low, high - rho) == pytest.approx((score.value - exact.low, exact.high - score.value))


@pytest.mark.parametrize(("accuracy", "n"), [(0.5, 0), (0.123, 10), (1.5, 10)])
def test_an_accuracy_that_no_count_gives_is_refused(accuracy: float, n: int) -> None:
    with pytest.raises(DataError, match="no number of right answers"):
        accuracy_score(accuracy, n)


# --- figures


def drawn(figure: Figure, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the line that the legend calls so."""
    (axes,) = figure.axes
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return np.asarray(line.get_xdata(), dtype=float), np.asarray(line.get_ydata(), dtype=float)


@scales
def test_the_figure_shows_models_intervals_and_the_line_on_logit_axes(scale: Scale) -> None:
    models = [("zero-shot", 60, 55), ("fine-tuned", 90, 70), ("perfect", 100, 100)]
    scored = [(name, accuracy_score(x / 100, 100), accuracy_score(y / 100, 100)) for name, x, y in models]
    baseline = fit_baseline([(x.value, y.value) for _, x, y in scored[:2]], scale)
    with style():
        figure = plots.robustness(scored, baseline)
        assert png(figure).startswith(b"\x89PNG")
    assert drawn(figure, "zero-shot") == (pytest.approx(logit([0.6])), pytest.approx(logit([0.55])))
    x, y = drawn(figure, "baseline")
    assert expit(y) == pytest.approx([baseline.expected(float(share)) for share in expit(x)], abs=1e-3)
    (axes,) = figure.axes
    widths = [np.ptp(np.asarray(line.get_xdata(), dtype=float)) for line in axes.lines]
    assert any(width == pytest.approx(logit(scored[0][1].high) - logit(scored[0][1].low)) for width in widths), "an ID interval"
    low, high = axes.get_xlim()
    assert low < logit(0.6) and high > logit(0.99)
    alone = plots.robustness(scored[:1], fit_baseline([(0.6, 0.55)], scale))
    drawn(alone, "baseline (slope 1, not fitted)")


def test_the_interpolation_path_is_on_logit_axes_for_shares_only() -> None:
    curve = [{"alpha": a, "val_id": x, "val_ood": y} for a, x, y in ((0.0, 0.6, 0.5), (0.5, 0.9, 0.7), (1.0, 1.0, 0.4))]
    for metric, place in (("accuracy", logit), ("cross_entropy", np.asarray)):
        figure = plots.path({"alpha": 0.5, "curve": curve}, metric)
        x, y = drawn(figure, "alpha 0.5 (selected)")
        assert (x, y) == (pytest.approx(place([0.9])), pytest.approx(place([0.7])))
        low, high = figure.axes[0].get_xlim()
        assert all(low < value < high for value in (place([0.6])[0], min(place([0.999])[0], 1.0) if metric == "cross_entropy" else logit(0.999)))


def test_scores_without_intervals_are_drawn_without() -> None:
    figure = plots.robustness([("one", Score(0.5, None, None, 0), Score(0.4, None, None, 0))], fit_baseline([(0.5, 0.4)]))
    assert len(figure.axes[0].lines) == 2
