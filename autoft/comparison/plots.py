"""The figures of a comparison: average OOD by method, ID against OOD, cost against OOD."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from autoft.comparison.analysis import Analysis, Entry
from autoft.comparison.names import plus_minus
from autoft.comparison.records import ZERO_SHOT
from autoft.report.axes import drawn, label_shares, limits
from autoft.report.figures import ACCENT, INK, MUTED, PAPER, TALL, Plot, legend_above, names_beside, new_figure
from autoft.report.metrics import SHARES, axis_label, metric_in_text, scale
from autoft.report.text import duration

# Places for a number beside a dot, in points, nearest first.
_AROUND = ((1, 0), (0.7, 0.7), (-0.7, 0.7), (0.7, -0.7), (-0.7, -0.7), (0, 1), (0, -1), (-1, 0))
_OFFSETS = tuple((reach * x, reach * y) for reach in (9, 12, 16, 22) for x, y in _AROUND)
_NUMBER = (11.0, 8.0)  # width and height of a drawn number with the room it needs, in points
_TIMES = (*(unit * times for unit in (1, 60) for times in (1, 2, 5, 10, 20, 30)), *(3600 * times for times in (1, 2, 5, 10, 20, 50, 100)))


def gallery(found: Analysis) -> Iterator[Plot]:
    """Every figure there is data for. Call inside `figures.style()`."""
    entries = [entry for entry in found.entries if entry.ood is not None]
    if entries:
        yield _dots(found, entries)
    both = [entry for entry in entries if entry.id is not None]
    if both:
        yield _id_ood(found, both)
    paid = [entry for entry in entries if entry.seconds]
    if paid:
        yield _cost(found, paid)


def _dots(found: Analysis, entries: Sequence[Entry]) -> Plot:
    """Each method's average OOD with its interval, and every seed as a small dot."""
    metric = found.comparison.metric
    factor = scale(metric)
    figure, axes = new_figure(0.75 + 0.36 * len(entries))
    for place, entry in enumerate(entries):
        marker, face, edge = _marker(entry)
        mean = entry.average("test_ood")
        assert mean is not None
        values = [factor * value for value in entry.by_seed["test_ood"].values()]
        if not entry.deterministic:
            axes.plot(values, [place + 0.26] * len(values), ".", color=edge, ms=4.5, mew=0, alpha=0.6, zorder=1)
        if mean.low is not None and mean.high is not None:
            axes.plot([factor * mean.low, factor * mean.high], [place, place], color=edge, lw=1.6, solid_capstyle="butt", zorder=2)
        axes.plot(factor * mean.value, place, marker, mfc=face, mec=edge, ms=11 if marker == "*" else 7, zorder=3)
    names_beside(axes, [f"{entry.title}  {found.rank(entry)}" for entry in entries])
    for tick, entry in zip(axes.get_yticklabels(), entries, strict=True):
        tick.set_color(ACCENT if entry.ours else INK)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    sets = found.of_split("test_ood")
    axes.set_xlabel(f"{'average ' if len(sets) > 1 else ''}{axis_label(metric)}")
    said = "; ".join(f"{entry.title} {plus_minus(entry.ood, metric)}" for entry in entries)
    intervals = "with 95 % intervals over seeds; small dots are single seeds" if found.seeds > 1 else "with one seed, so no intervals"
    where = f"{'Average over' if len(sets) > 1 else 'On'} {', '.join(column.dataset for column in sets)}"
    caption = f"{where}, {intervals}. Blue: AutoFT. The number is the rank, used in the other figures."
    return Plot("average_ood", figure, f"Average OOD {metric_in_text(metric)}: {said}", caption, [])


def _id_ood(found: Analysis, entries: Sequence[Entry]) -> Plot:
    """Average OOD against average ID, logit axes for shares, with the reference line of effective robustness."""
    metric = found.comparison.metric
    figure, axes = new_figure(TALL)
    points = [(entry.id.value, entry.ood.value) for entry in entries if entry.id and entry.ood]
    xs, ys = limits([x for x, _ in points], metric), limits([y for _, y in points], metric)
    if found.reference is not None:
        shares = 1 / (1 + np.exp(-np.linspace(*xs, 100)))
        line = [found.reference.expected(float(share)) for share in shares]
        path = (drawn(shares, metric), drawn(np.array(line), metric))
        axes.plot(*path, color=MUTED, lw=0.9, ls="--", zorder=0, label="effective robustness 0")
    axes.set_xlim(*xs)
    axes.set_ylim(*ys)
    label_shares(axes.xaxis, *xs, metric)
    label_shares(axes.yaxis, *ys, metric)
    _numbered(axes, found, entries, [(float(drawn(x, metric)), float(drawn(y, metric))) for x, y in points])
    axes.set_xlabel(f"average in distribution {axis_label(metric)}")
    axes.set_ylabel(f"average out of distribution {axis_label(metric)}")
    legend_above(axes, 2)
    said = "; ".join(f"{entry.title} {plus_minus(entry.id, metric)} and {plus_minus(entry.ood, metric)}" for entry in entries)
    line_text = " Dashed: the line that effective robustness is measured from." if found.reference is not None else ""
    caption = f"Means over seeds{'; logit axes' if metric in SHARES else ''}. Numbers are ranks.{line_text}"
    return Plot("id_ood", figure, f"Average ID and OOD {metric_in_text(metric)}: {said}", caption, [])


def _cost(found: Analysis, entries: Sequence[Entry]) -> Plot:
    """Average OOD against the time of training one model and the tuning before it."""
    metric = found.comparison.metric
    figure, axes = new_figure(TALL)
    points = [(entry.seconds, scale(metric) * entry.ood.value) for entry in entries if entry.seconds and entry.ood]
    axes.set_xscale("log")
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    axes.set_xlim(low / 1.5, high * 1.5)
    heights = [y for _, y in points]
    zero = found.entry(ZERO_SHOT)
    if zero is not None and zero.ood is not None and not zero.seconds:
        heights.append(scale(metric) * zero.ood.value)
        axes.axhline(heights[-1], color=MUTED, lw=0.9, ls="--", zorder=0, label="zero-shot, which costs nothing")
    pad = max(0.1 * (max(heights) - min(heights)), 1e-3 * scale(metric))
    axes.set_ylim(min(heights) - pad, max(heights) + pad)
    _time_axis(axes, low / 1.5, high * 1.5)
    _numbered(axes, found, entries, points)
    axes.set_xlabel("tuning and training one model (log scale)")
    axes.set_ylabel(f"average out of distribution {axis_label(metric)}")
    legend_above(axes, 2)
    said = "; ".join(f"{entry.title} {duration(entry.seconds)} and {plus_minus(entry.ood, metric)}" for entry in entries)
    caption = "What a method's tuning and one training run took, and its average OOD. Numbers are ranks."
    return Plot("cost_ood", figure, f"Time and average OOD {metric_in_text(metric)}: {said}", caption, [])


def _time_axis(axes: Axes, low: float, high: float) -> None:
    """Ticks at round times between two numbers of seconds, at most six."""
    inside = [seconds for seconds in _TIMES if low <= seconds <= high]
    kept = inside[:: max(1, math.ceil(len(inside) / 6))]
    axes.set_xticks(kept, [duration(seconds).replace(".0", "").replace(" 00 s", "").replace(" 00 min", "") for seconds in kept])
    axes.set_xticks([], minor=True)


def _numbered(axes: Axes, found: Analysis, entries: Sequence[Entry], points: Sequence[tuple[float, float]]) -> None:
    """A dot for each method with its rank beside it, where it covers no other dot or number if there is such a place."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    factor = 72 / figure.dpi
    places = [tuple(factor * axes.transData.transform(point)) for point in points]
    taken: list[tuple[float, float]] = []
    for index, (entry, (x, y), place) in enumerate(zip(entries, points, places, strict=True)):
        marker, face, edge = _marker(entry)
        axes.plot(x, y, marker, mfc=face, mec=edge, ms=11 if marker == "*" else 6.5, zorder=3 if entry.ours else 2)
        others = places[:index] + places[index + 1 :]
        room = 1.3 if marker == "*" else 1.0  # a star is wider than a dot
        offset = min(((room * x, room * y) for x, y in _OFFSETS), key=lambda o: _covered((place[0] + o[0], place[1] + o[1]), others, taken))
        taken.append((place[0] + offset[0], place[1] + offset[1]))
        axes.annotate(
            str(found.rank(entry)),
            (x, y),
            xytext=offset,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            color=ACCENT if entry.ours else INK,
            weight="bold" if entry.ours else "normal",
            zorder=4,
        )


def _covered(at: tuple[float, float], dots: Sequence[tuple[float, ...]], numbers: Sequence[tuple[float, float]]) -> int:
    """How many dots and numbers a number at that place, in points, would touch."""
    width, height = _NUMBER
    near_dots = sum(abs(at[0] - dot[0]) < 0.85 * width and abs(at[1] - dot[1]) < 0.85 * height for dot in dots)
    return near_dots + 2 * sum(abs(at[0] - x) < width and abs(at[1] - y) < height for x, y in numbers)


def _marker(entry: Entry) -> tuple[str, str, str]:
    """(marker, face, edge): AutoFT blue, extended hollow; a star for zero-shot and a diamond for plain fine-tuning, as in the report."""
    kinds = {
        "zero_shot": ("*", MUTED, MUTED),
        "finetune": ("D", PAPER, INK),
        "autoft": ("o", ACCENT, ACCENT),
        "autoft_extended": ("o", PAPER, ACCENT),
    }
    return kinds.get(entry.name, ("o", PAPER, MUTED))
