"""What is drawn of the search: history, intermediate values, loss weights, confirmed candidates, the Pareto front, short against long."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from autoft.report.figures import ACCENT, INK, MUTED, PAPER, TALL, TINT, legend_above, names_beside, new_figure, whole_numbers
from autoft.report.horizon import Horizon
from autoft.report.metrics import axis_label, scale
from autoft.report.selection import Confirmation
from autoft.report.trials import Trial, best_so_far

_SHAPES = ("o", "s", "^", "D", "v", "P")


def history(trials: Sequence[Trial], metric: str, direction: str, best: int | None, best_label: str = "best trial") -> Figure:
    """Score of each trial with its interval, the best so far, and marks at the bottom for trials without a score.

    Enqueued configurations (those with a name) are squares.
    """
    figure, axes = new_figure()
    factor = scale(metric)
    line = best_so_far(trials, direction)
    if line:
        axes.step([n for n, _ in line], [factor * s for _, s in line], where="post", color=ACCENT, label="best so far", zorder=2)
    _score_whiskers(axes, [(t.number, t) for t in trials if t.state == "complete"], factor)
    groups = (
        ("complete", False, "o", INK, INK, "complete"),
        ("complete", True, "s", PAPER, ACCENT, "enqueued"),
        ("pruned", False, "o", PAPER, MUTED, "pruned (last report)"),
        ("pruned", True, "s", PAPER, MUTED, "enqueued, pruned"),
    )
    for state, named, marker, face, edge, label in groups:
        points = [(t.number, factor * t.last_score) for t in trials if t.state == state and bool(t.name) is named and t.last_score is not None]
        if points:
            axes.plot(*zip(*points, strict=True), marker, mfc=face, mec=edge, ms=6 if named else 4.5, ls="none", label=label, zorder=3)
    for trial in trials:
        if trial.number == best and trial.score is not None:
            marker = "s" if trial.name else "o"
            axes.plot(best, factor * trial.score, marker, mfc=ACCENT, mec=ACCENT, ms=8, ls="none", label=best_label, zorder=4)
    _without_score(axes, trials)
    whole_numbers(axes, [t.number for t in trials])
    axes.set_xlabel("trial")
    axes.set_ylabel(f"VAL_OOD {axis_label(metric)}")
    legend_above(axes)
    return figure


def _without_score(axes: Axes, trials: Sequence[Trial]) -> None:
    for unscored, marker, label in (("failed", "x", "failed"), ("pruned", "|", "pruned without a score")):
        numbers = [t.number for t in trials if t.state == unscored and t.last_score is None]
        if numbers:
            bottom = axes.get_xaxis_transform()
            axes.plot(numbers, [0.03] * len(numbers), marker, color=INK, ms=6, ls="none", transform=bottom, label=label, clip_on=False)


def _score_whiskers(axes: Axes, points: Sequence[tuple[float, Trial]], factor: float) -> None:
    """Vertical 95 % intervals of scores at their x; fainter the more there are."""
    known = [(x, trial.interval) for x, trial in points if trial.interval is not None]
    if known:
        x, ends = [x for x, _ in known], [end for _, end in known]
        faint = 0.7 if len(known) <= 40 else 0.3
        low, high = ([factor * end[index] for end in ends] for index in (0, 1))
        axes.vlines(x, low, high, color=MUTED, lw=0.8, alpha=faint, zorder=1)


def intermediate(trials: Sequence[Trial], metric: str, best: int | None, best_label: str = "best trial") -> Figure:
    """Reported scores of each trial against its step."""
    figure, axes = new_figure()
    factor = scale(metric)
    labelled: set[str] = set()
    faint = 1.0 if len(trials) <= 40 else 0.45
    for trial in sorted(trials, key=lambda trial: trial.number == best):
        label, color, dashes, width = ("complete", MUTED, "-", 0.9) if trial.state == "complete" else ("stopped early", MUTED, ":", 1.1)
        opacity = faint
        if trial.number == best:
            label, color, width, opacity = best_label, ACCENT, 2.2, 1.0
        end = "o" if trial.state == "complete" else "x"
        steps, scores = list(trial.reports), [factor * score for score in trial.reports.values()]
        if steps:
            name = label if label not in labelled else "_"
            last = [len(steps) - 1]
            axes.plot(steps, scores, dashes, marker=end, markevery=last, ms=4, color=color, lw=width, alpha=opacity, label=name)
            labelled.add(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("optimizer step of the trial")
    axes.set_ylabel(f"VAL_OOD {axis_label(metric)}")
    legend_above(axes)
    return figure


def loss_weights(weights: Mapping[str, float], reference: str = "cross_entropy") -> Figure:
    """Weights as horizontal bars on a log scale, largest on top, their numbers beside them; a weight of zero has no bar."""
    figure, axes = new_figure(0.75 + 0.29 * max(len(weights), 2))
    names = sorted(weights, key=lambda name: -weights[name])
    positive = [value for value in weights.values() if value > 0] or [1.0]
    low = math.ceil(math.log10(min(positive))) - 1  # powers of ten
    high = math.ceil(math.log10(max(*positive, 1.0)))
    low, high = min(low, high - 1), max(high, low + 1)
    for place, name in enumerate(names):
        value = weights[name]
        if value > 0:
            axes.barh(place, value - 10.0**low, left=10.0**low, height=0.62, color=TINT if name == reference else ACCENT)
        axes.text(1.03, place, f"{value:.3g}", va="center", fontsize=9, transform=axes.get_yaxis_transform())
    axes.set_xscale("log")
    axes.set_xlim(10.0**low, 10.0**high)
    axes.axvline(1, color=INK, lw=0.9, ls="--", zorder=3)
    names_beside(axes, names)
    axes.xaxis.set_major_locator(FixedLocator([10.0**power for power in range(low, high + 1)]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("weight (log scale)")
    return figure


def candidates(confirmation: Confirmation, intervals: Mapping[int, tuple[float, float]]) -> Figure:
    """Each confirmed configuration: its single runs, their mean, and the score (with interval) the search had chosen it by.

    intervals: 95 % interval of a trial's search score, by number.
    """
    shown = [candidate for candidate in confirmation.candidates if candidate.runs or candidate.search_score is not None]
    figure, axes = new_figure(1.15 + 0.34 * len(shown))
    factor = scale(confirmation.metric)
    winner, spread = confirmation.winner, confirmation.margin_se
    if winner.mean is not None and spread is not None and len(shown) > 1:
        ends = (factor * (winner.mean - 2 * spread), factor * (winner.mean + 2 * spread))
        axes.axvspan(*ends, color=TINT, alpha=0.45, lw=0, zorder=0, label="2 standard errors from the winner")
    for place, candidate in enumerate(shown):
        first = place == 0
        color = ACCENT if candidate.number == winner.number else INK
        if candidate.search_score is not None:
            if candidate.number in intervals:
                axes.plot([factor * end for end in intervals[candidate.number]], [place + 0.22] * 2, color=MUTED, lw=0.8)
            axes.plot(factor * candidate.search_score, place + 0.22, "x", color=MUTED, ms=6, label="search score" if first else "_")
        runs = [factor * run for run in candidate.runs]
        axes.plot(runs, [place - 0.08] * len(runs), "o", mfc=PAPER, mec=color, ms=5, ls="none", label="single runs" if first else "_")
        if candidate.mean is not None:
            axes.plot(factor * candidate.mean, place - 0.08, "|", color=color, ms=15, mew=2.2, label="mean" if first else "_")
    names_beside(axes, [candidate.label[0].upper() + candidate.label[1:] for candidate in shown])
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_xlabel(f"VAL_OOD {axis_label(confirmation.metric)}")
    legend_above(axes, 2)
    return figure


def pareto(trials: Sequence[Trial], front: Mapping[int, tuple[float, float]], metric: str, chosen: int | None) -> Figure:
    """VAL_OOD against VAL_ID of every complete trial, the front joined, the chosen trial large.

    front: (val_id, val_ood) of a trial on the front, by number.
    """
    figure, axes = new_figure(TALL)
    factor = scale(metric)
    scored = [(t.val_id, t) for t in trials if t.state == "complete" and t.score is not None and t.val_id is not None]
    _score_whiskers(axes, [(factor * x, t) for x, t in scored], factor)
    for named, marker, label in ((False, "o", "other trials"), (True, "s", "enqueued")):
        points = [(factor * x, factor * (t.score or 0.0)) for x, t in scored if t.number not in front and bool(t.name) is named]
        if points:
            axes.plot(*zip(*points, strict=True), marker, mfc=PAPER, mec=MUTED, ms=5, ls="none", label=label, zorder=2)
    line = sorted((factor * x, factor * y) for x, y in front.values())
    axes.plot(*zip(*line, strict=True), "o-", color=ACCENT, lw=1.1, ms=5.5, label="Pareto front", zorder=3)
    if chosen is not None and chosen in front:
        x, y = front[chosen]
        axes.plot(factor * x, factor * y, "o", mfc=PAPER, mec=ACCENT, mew=2.2, ms=10, ls="none", label="chosen", zorder=4)
    axes.margins(0.08)
    axes.set_xlabel(f"VAL_ID {axis_label(metric)}")
    axes.set_ylabel(f"VAL_OOD {axis_label(metric)}")
    legend_above(axes)
    return figure


def horizon(found: Horizon, metric: str) -> Figure:
    """Score after a long run against the score of the short trial, one shape for each length of the long run."""
    figure, axes = new_figure(TALL)
    factor = scale(metric)
    for index, steps in enumerate(sorted({pair.long_steps for pair in found.pairs})):
        points = [(factor * pair.short, factor * pair.long) for pair in found.pairs if pair.long_steps == steps]
        shape, face = _SHAPES[index % len(_SHAPES)], PAPER if index % 2 else ACCENT
        axes.plot(*zip(*points, strict=True), shape, mfc=face, mec=ACCENT, ls="none", label=f"{steps:,} steps")
    axes.margins(0.08)
    axes.set_xlabel(f"after {found.short_steps:,} steps: VAL_OOD {axis_label(metric)}")
    axes.set_ylabel(f"after the long run: VAL_OOD {axis_label(metric)}")
    legend_above(axes)
    return figure
