"""Whether short trials rank configurations as long runs do: Spearman's rho, with what chance alone would give."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autoft.report.selection import finite


@dataclass(frozen=True)
class Pair:
    """One configuration's score after a short trial and after a long run of `long_steps` optimizer steps."""

    label: str
    short: float
    long: float
    long_steps: int


@dataclass(frozen=True)
class Horizon:
    """Every pair measured; n of them went into `spearman`. A configuration run long in two ways is in two pairs."""

    short_steps: int
    pairs: tuple[Pair, ...]
    spearman: float | None
    n: int


def horizon_of(summary: Mapping[str, Any]) -> Horizon | None:
    """What a run measured; None if it measured nothing."""
    found = summary["search"].get("horizon")
    pairs = [
        Pair(item["label"], short, long, item["long_steps"])
        for item in (found or {}).get("pairs", [])
        if (short := finite(item["short"])) is not None and (long := finite(item["long"])) is not None
    ]
    return Horizon(found["short_steps"], tuple(pairs), finite(found.get("spearman")), found["n"]) if pairs else None


def chance(n: int) -> float:
    """Two standard deviations of Spearman's rho between n unrelated scores without ties: 2 / sqrt(n - 1) (Kendall & Gibbons 1990)."""
    return 2 / math.sqrt(n - 1) if n > 1 else math.inf


def horizon_sentence(found: Horizon) -> str:
    """Rho and n, and whether so many pairs can tell it from chance."""
    if found.spearman is None:
        return (
            f"With {found.n} pair{'s' if found.n != 1 else ''} of a short and a long run, no rank correlation was computed: this does not show"
            " whether short trials rank as long runs do."
        )
    rho = f"{found.spearman:.2f}".replace("-", "\N{MINUS SIGN}")
    mixed = " of differing lengths" if len({pair.long_steps for pair in found.pairs}) > 1 else ""
    text = f"Spearman's rho between short and long runs{mixed} is {rho} over n = {found.n} pairs"
    limit = chance(found.n)
    if limit >= 1:
        return f"{text}: too few to tell from chance, so this does not show whether short trials rank as long runs do."
    if abs(found.spearman) < limit:
        return f"{text}. Unrelated scores would give up to ±{limit:.2f}, so this does not show that short trials rank as long runs do."
    if found.spearman < 0:
        return f"{text}, beyond the ±{limit:.2f} of unrelated scores: short trials rank configurations the wrong way round."
    return f"{text}, beyond the ±{limit:.2f} of unrelated scores: short trials say something about long runs."
