"""How values of a metric read: names, units and precision."""

import math
from collections.abc import Mapping

from autoft.config import METRIC_DIRECTIONS, Direction

NAMES: Mapping[str, str] = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "worst_group_accuracy": "Worst-group accuracy",
    "cross_entropy": "Cross-entropy",
}
SHARES = frozenset({"accuracy", "macro_f1", "worst_group_accuracy"})
MISSING = "–"
MINUS = "−"


def metric_name(metric: str) -> str:
    """A metric's name as a reader sees it."""
    return NAMES.get(metric, metric)


def metric_in_text(metric: str) -> str:
    """A metric's name inside a sentence: `accuracy`, `macro F1`."""
    name = metric_name(metric)
    return name[0].lower() + name[1:] if metric in NAMES else name


def metric_direction(metric: str) -> Direction:
    """Whether more or less of a metric is better; a metric we do not know is maximised."""
    return METRIC_DIRECTIONS.get(metric, "maximize")


def unit(metric: str) -> str:
    """The unit of a metric's values, for axis labels."""
    return "%" if metric in SHARES else "nats" if metric == "cross_entropy" else ""


def scale(metric: str) -> float:
    """What a stored value is multiplied by to be read in `unit(metric)`."""
    return 100.0 if metric in SHARES else 1.0


def axis_label(metric: str) -> str:
    """Name and unit, as an axis carries them."""
    return f"{metric_in_text(metric)} ({unit(metric)})" if unit(metric) else metric_in_text(metric)


def axis_title(metric: str) -> str:
    """`axis_label` at the start of a line."""
    label = axis_label(metric)
    return label[0].upper() + label[1:] if metric in NAMES else label


def format_value(value: float | None, metric: str) -> str:
    """`56.8 %` for shares, three decimals for cross-entropy, four significant digits otherwise."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{_number(value, metric)} %" if metric in SHARES else _number(value, metric)


def format_interval(low: float | None, high: float | None, metric: str) -> str:
    """`[50.9, 62.4]` in the metric's unit; empty if there is no interval."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"[{_number(low, metric)}, {_number(high, metric)}]"


def format_difference(difference: float, metric: str) -> str:
    """A size without its sign: `2.1 points` for shares (percentage points), else the number and its unit."""
    if metric in SHARES:
        text = _number(abs(difference), metric)
        return f"{text} point" if text == "1.0" else f"{text} points"
    text = _number(abs(difference), metric)
    return f"{text} {unit(metric)}".strip()


def _number(value: float, metric: str) -> str:
    text = f"{100 * value:.1f}" if metric in SHARES else f"{value:.3f}" if metric == "cross_entropy" else f"{value:.4g}"
    if float(text) == 0:  # no "-0.0"
        text = text.lstrip("-")
    return text.replace("-", MINUS) if "e" not in text else text
