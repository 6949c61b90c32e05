"""Axes of shares on a logit scale, shared by every scatter: where values are drawn, the limits, and round ticks."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter

from autoft.report.metrics import SHARES

_LOGIT_TICKS = (0.1, 0.5, 1, 2, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80, 85, 90, 93, 95, 97, 98, 99, 99.5, 99.9)
_EDGE = 1e-3  # shares are drawn no closer than this to 0 and 1, where a logit axis has no end


def drawn(value: Any, metric: str) -> Any:
    """Where a value is drawn: at its logit for shares, else where it is."""
    if metric not in SHARES:
        return value
    share = np.clip(value, _EDGE, 1 - _EDGE)
    return np.log(share / (1 - share))


def limits(values: Iterable[float], metric: str) -> tuple[float, float]:
    """Limits in drawn coordinates with room on both sides of some values; at least a little wide."""
    places = np.asarray(drawn(np.array(list(values)), metric))
    low, high = float(places.min()), float(places.max())
    pad = max(0.1 * (high - low), 0.05)
    return low - pad, high + pad


def label_shares(axis: Axis, low: float, high: float, metric: str) -> None:
    """Ticks at round percentages between two drawn coordinates; other metrics keep matplotlib's."""
    if metric in SHARES:
        axis.set_major_locator(FixedLocator(_logit_ticks(low, high)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 / (1 + math.exp(-value)):.4g}"))


def _logit_ticks(low: float, high: float) -> list[float]:
    """Round percentages inside the limits, thinned until at most seven are left."""
    ticks = [math.log(share / (100 - share)) for share in _LOGIT_TICKS]
    inside = [tick for tick in ticks if low <= tick <= high]
    if len(inside) < 3:  # a narrow range: every whole or half per cent
        shares = [half / 2 for half in range(1, 200)]
        inside = [tick for tick in (math.log(share / (100 - share)) for share in shares) if low <= tick <= high]
    return inside[:: max(1, math.ceil(len(inside) / 7))]
