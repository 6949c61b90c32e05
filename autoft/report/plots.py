"""What is drawn after the search: epochs, alpha, ID against OOD, intervals. The search's own figures are in `search_plots`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from autoft.report.axes import drawn, label_shares, limits
from autoft.report.figures import (
    ACCENT,
    INK,
    MUTED,
    PAPER,
    SIZE,
    TALL,
    TINT,
    legend_above,
    names_beside,
    new_figure,
    short_name,
    whole_numbers,
)
from autoft.report.metrics import axis_label, metric_in_text, scale, unit
from autoft.report.results import Results, Row, Score
from autoft.report.robustness import Baseline

# (marker, face, edge) of a model wherever it appears; WiSE-FT's own scatter has a star for zero-shot and diamonds for fine-tuned.
_MARKERS: Mapping[str, tuple[str, str, str]] = {
    "zero_shot": ("*", MUTED, MUTED),
    "finetune": ("D", PAPER, INK),
    "final": ("o", PAPER, ACCENT),
    "wise_ft": ("o", ACCENT, ACCENT),
}
_OTHERS = ("s", "^", "v", "P", "X", "<", ">", "p")


def epochs(final: Mapping[str, Any], metric: str) -> Figure:
    """VAL_ID score and training loss of each epoch of the final fine-tune, the kept epoch marked."""
    figure, axes = new_figure()
    rows = final["epochs"]
    numbers = [row["epoch"] for row in rows]
    axes.plot(numbers, [scale(metric) * row["val_id"] for row in rows], "o-", color=ACCENT, label=f"VAL_ID {metric_in_text(metric)}")
    axes.set_ylabel(f"VAL_ID {axis_label(metric)}")
    losses = [(row["epoch"], row["train_loss"]) for row in rows if row.get("train_loss") is not None]
    handles, labels = axes.get_legend_handles_labels()
    if losses:
        right = axes.twinx()
        right.spines["right"].set_visible(True)
        right.grid(visible=False)
        right.plot(*zip(*losses, strict=True), "s--", color=MUTED, mfc=PAPER, lw=1.2, ms=4.5, label="training loss (right)")
        right.set_ylabel("training loss")
        handles, labels = ([*a, *b] for a, b in zip((handles, labels), right.get_legend_handles_labels(), strict=True))
    if final.get("best_epoch") in numbers:
        axes.axvline(final["best_epoch"], color=ACCENT, lw=0.9, ls=":")
    whole_numbers(axes, numbers)
    axes.set_xlabel("epoch")
    axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2, handlelength=2.2)
    return figure


def alpha_curve(wise_ft: Mapping[str, Any], metric: str) -> Figure:
    """Validation scores against alpha, OOD above ID on scales of their own, the selected alpha marked."""
    figure = Figure(figsize=(SIZE[0], TALL), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    curve = sorted(wise_ft["curve"], key=lambda point: point["alpha"])
    alphas = [point["alpha"] for point in curve]
    for axes, key, marker, color, face in zip(panels, ("val_ood", "val_id"), "os", (ACCENT, MUTED), (ACCENT, PAPER), strict=True):
        axes.plot(alphas, [scale(metric) * point[key] for point in curve], marker=marker, color=color, mfc=face, ms=4.5)
        axes.axvline(wise_ft["alpha"], color=INK, lw=0.9, ls=":", label=f"selected alpha {wise_ft['alpha']:g}")
        axes.set_ylabel(f"{key.upper()} ({unit(metric)})" if unit(metric) else key.upper())
        axes.yaxis.set_major_locator(MaxNLocator(5))
    panels[0].set_xlim(-0.04, 1.04)
    panels[1].set_xlabel("alpha (0: zero-shot, 1: fine-tuned)")
    legend_above(panels[0])
    return figure


def path(wise_ft: Mapping[str, Any], metric: str) -> Figure:
    """Validation OOD against validation ID as alpha goes from 0 (star) to 1 (hollow dot), the selected alpha filled; logit axes for shares."""
    figure, axes = new_figure(TALL)
    curve = sorted(wise_ft["curve"], key=lambda point: point["alpha"])
    ids, oods = ([point[key] for point in curve] for key in ("val_id", "val_ood"))
    x, y = (drawn(np.array(values, dtype=float), metric) for values in (ids, oods))
    axes.plot(x, y, ".-", color=TINT, lw=2, mfc=MUTED, mec=MUTED, ms=5, zorder=2)
    for index, point in enumerate(curve):
        alpha = point["alpha"]
        marker, face, edge = _MARKERS["zero_shot" if alpha == 0 else "final"]
        if alpha in (0, 1):
            label = f"alpha {alpha:g} ({'zero-shot' if alpha == 0 else 'fine-tuned'})"
            axes.plot(x[index], y[index], marker, mfc=face, mec=edge, ms=12 if alpha == 0 else 7, ls="none", label=label, zorder=3)
        if alpha == wise_ft["alpha"]:
            axes.plot(x[index], y[index], "o", mfc=ACCENT, mec=ACCENT, ms=7, ls="none", label=f"alpha {alpha:g} (selected)", zorder=4)
    _place_axes(axes, [], [], list(zip(ids, oods, strict=True)), metric)
    axes.set_xlabel(f"VAL_ID {axis_label(metric)}")
    axes.set_ylabel(f"VAL_OOD {axis_label(metric)}")
    legend_above(axes, 2)
    return figure


def robustness(models: Sequence[tuple[str, Score, Score]], baseline: Baseline) -> Figure:
    """OOD over ID accuracy of models (name, ID, OOD) on logit axes, with intervals and the baseline that effective robustness is over.

    A baseline fitted on probit axes is drawn as the slight curve it is here.
    """
    figure, axes = new_figure(TALL)
    xs, _ = _place_axes(axes, [x for _, x, _ in models], [y for _, _, y in models], [], "accuracy")
    span = np.linspace(*xs, 200)
    label = "baseline" if baseline.slope_fitted else "baseline (slope 1, not fitted)"
    expected = np.array([baseline.expected(1 / (1 + math.exp(-place))) for place in span])
    axes.plot(span, drawn(expected, "accuracy"), color=MUTED, lw=0.9, ls="--", zorder=0, label=label)
    for index, (name, x, y) in enumerate(models):
        _whiskers(axes, x, y, "accuracy", INK)
        place = (drawn(x.value, "accuracy"), drawn(y.value, "accuracy"))
        axes.plot(*place, _OTHERS[index % len(_OTHERS)], mfc=PAPER, mec=INK, ms=7, ls="none", label=short_name(name))
    axes.set_xlabel("accuracy in distribution (%)")
    axes.set_ylabel("accuracy out of distribution (%)")
    legend_above(axes, 2)
    return figure


def scatter(grid: Results, wise_ft: Mapping[str, Any] | None) -> Figure | None:
    """Average OOD against average ID of each model, with intervals; logit axes for shares. None if no model has both."""
    found = [(row, grid.average(row, "test_id"), grid.average(row, "test_ood")) for row in grid.rows]
    points = [(row, x, y) for row, x, y in found if x is not None and y is not None]
    if not points:
        return None
    figure, axes = new_figure(TALL)
    path = [(p["test_id"], p["test_ood"]) for p in (wise_ft or {}).get("curve", []) if "test_id" in p and "test_ood" in p]
    xs, ys = _place_axes(axes, [p[1] for p in points], [p[2] for p in points], path, grid.metric)
    if path:
        points_of_path = np.array(path, dtype=float)
        axes.plot(drawn(points_of_path[:, 0], grid.metric), drawn(points_of_path[:, 1], grid.metric), color=TINT, lw=2, zorder=1, label="alpha 0 to 1")
    span = np.linspace(min(xs[0], ys[0]), max(xs[1], ys[1]), 200)
    axes.plot(span, span, color=MUTED, lw=0.9, ls="--", zorder=0, label="equal ID and OOD" if _meets(xs, ys) else "_")
    for row, x, y in points:
        marker, face, edge = marker_of(row, grid)
        _whiskers(axes, x, y, grid.metric, edge)
        size = 12 if marker == "*" else 7
        axes.plot(drawn(x.value, grid.metric), drawn(y.value, grid.metric), marker, mfc=face, mec=edge, ms=size, ls="none", label=short_name(row.label))
    axes.set_xlabel(f"average in distribution {axis_label(grid.metric)}")
    axes.set_ylabel(f"average out of distribution {axis_label(grid.metric)}")
    legend_above(axes, 2)
    return figure


def intervals(grid: Results, split: str) -> Figure | None:
    """Each model's average on a split with its interval, one above the other. None if no model has one."""
    rows = [(row, score) for row in grid.rows if (score := grid.average(row, split)) is not None]
    if not rows:
        return None
    figure, axes = new_figure(0.75 + 0.29 * len(rows))
    factor = scale(grid.metric)
    for place, (row, score) in enumerate(rows):
        marker, face, edge = marker_of(row, grid)
        if score.interval is not None:
            axes.plot([factor * end for end in score.interval], [place, place], color=edge, lw=1.6, solid_capstyle="butt")
        axes.plot(factor * score.value, place, marker, mfc=face, mec=edge, ms=11 if marker == "*" else 7)
    names_beside(axes, [row.label for row, _ in rows])
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_xlabel(f"{'average ' if len(grid.of_split(split)) > 1 else ''}{axis_label(grid.metric)}")
    return figure


def marker_of(row: Row, grid: Results) -> tuple[str, str, str]:
    """(marker, face, edge) of a model, the same in every figure; models we do not know share out the other shapes."""
    index = list(dict.fromkeys(other.model for other in grid.rows)).index(row.model)
    return _MARKERS.get(row.model, (_OTHERS[index % len(_OTHERS)], PAPER, INK))


def line_is_outside(grid: Results) -> bool:
    """Whether every model lies so far from equal ID and OOD that the scatter cannot show that line."""
    points = [(x, y) for row in grid.rows if (x := grid.average(row, "test_id")) and (y := grid.average(row, "test_ood"))]
    if not points:
        return False
    return not _meets(_range([x for x, _ in points], [], grid.metric), _range([y for _, y in points], [], grid.metric))


def _place_axes(
    axes: Axes, x: Sequence[Score], y: Sequence[Score], path: Sequence[tuple[float, float]], metric: str
) -> tuple[tuple[float, float], tuple[float, float]]:
    xs, ys = _range(x, [p[0] for p in path], metric), _range(y, [p[1] for p in path], metric)
    axes.set_xlim(*xs)
    axes.set_ylim(*ys)
    for axis, (low, high) in ((axes.xaxis, xs), (axes.yaxis, ys)):
        label_shares(axis, low, high, metric)
    return xs, ys


def _range(scores: Sequence[Score], extra: Sequence[float], metric: str) -> tuple[float, float]:
    return limits([end for score in scores for end in (score.value, *(score.interval or ()))] + list(extra), metric)


def _whiskers(axes: Axes, x: Score, y: Score, metric: str, color: str) -> None:
    if x.interval is not None:
        axes.plot(drawn(np.array(x.interval), metric), [drawn(y.value, metric)] * 2, color=color, lw=0.8, alpha=0.6)
    if y.interval is not None:
        axes.plot([drawn(x.value, metric)] * 2, drawn(np.array(y.interval), metric), color=color, lw=0.8, alpha=0.6)


def _meets(xs: tuple[float, float], ys: tuple[float, float]) -> bool:
    return xs[0] <= ys[1] and ys[0] <= xs[1]
