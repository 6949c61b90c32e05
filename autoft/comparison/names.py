"""What methods are called, and how figures over seeds are written, wherever they are shown."""

from collections.abc import Mapping
from typing import Any

from autoft.comparison.statistics import Mean
from autoft.report.metrics import MINUS, MISSING, SHARES, format_interval, format_value, unit
from autoft.report.results import model_name

TITLES: Mapping[str, str] = {
    "linear_probe": "Linear probing",
    "lp_ft": "LP-FT",
    "flyp": "FLYP",
    "wise_ft": "WiSE-FT",
    "drm": "DRM",
    "ftp": "FTP",
    "tpgm": "TPGM",
    "spd": "SPD",
    "saft": "SAFT",
    "core_tuning": "Core-tuning",
    "ldifs": "LDIFS",
    "car_ft": "CAR-FT",
    "lipsum_ft": "Lipsum-FT",
    "clipood": "CLIPood",
    "soup": "Model soup",
    "autoft": "AutoFT",
    "autoft_extended": "AutoFT (extended)",
}
COMMON = frozenset({"zero_shot", "linear_probe", "finetune", "soup"})  # names that are no proper names


def title(name: str) -> str:
    """A method's name as a reader sees it; one we do not know stays as it is."""
    return TITLES.get(name) or model_name(name)


def title_in_text(name: str) -> str:
    """A method's name inside a sentence: common nouns start in lower case."""
    text = title(name)
    return text[0].lower() + text[1:] if name in COMMON else text


def number(value: float | None, metric: str) -> str:
    """A value without its unit: `56.8` for a share."""
    return format_value(value, metric).removesuffix(" %")


def signed(value: float | None, metric: str) -> str:
    """`+2.1` or `−0.4`, in points for shares."""
    text = number(value, metric)
    return text if text == MISSING or text.startswith(MINUS) or float(text) == 0 else f"+{text}"


def plus_minus(mean: Mean | None, metric: str, sign: bool = False) -> str:
    """`56.8 ± 0.4` with half the interval over seeds; the value alone with one seed."""
    if mean is None:
        return MISSING
    text = signed(mean.value, metric) if sign else number(mean.value, metric)
    return text if mean.half is None else f"{text} ± {number(mean.half, metric)}"


def interval(mean: Mean | None, metric: str) -> str:
    """`[50.9, 62.4]`, empty with one seed."""
    return "" if mean is None else format_interval(mean.low, mean.high, metric)


def p_text(p: float | None) -> str:
    """`0.013`, or `< 0.001`."""
    return MISSING if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def unit_of_difference(metric: str) -> str:
    """What differences are in: percentage points for shares."""
    return "points" if metric in SHARES else unit(metric)


def chosen_text(values: Mapping[str, Any]) -> str:
    """`lr 3e-05, loss_weights.hinge 0.1`: nested mappings by dotted names, four significant digits."""
    return ", ".join(f"{name} {value}" for name, value in chosen_pairs(values))


def knobs_text(knobs: Mapping[str, str]) -> str:
    """`lr: 1e-6 to 1e-2 (log); alpha: 0 to 1`."""
    return "; ".join(f"{name}: {span}" for name, span in knobs.items())


def memory_text(size: int | None) -> str:
    """Megabytes (1e6 bytes), whole."""
    return MISSING if size is None else f"{size / 1e6:,.0f}"


def seconds_text(seconds: float | None) -> str:
    """Seconds: one decimal below ten, whole above."""
    return MISSING if seconds is None else f"{seconds:.1f}" if seconds < 9.95 else f"{seconds:,.0f}"


def chosen_pairs(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(dotted name, value as text) of hyperparameters."""
    found: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += chosen_pairs(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", f"{value:.4g}" if isinstance(value, float) else str(value)))
    return found
