"""Images that two sets share: what was found between each pair of sets, and whether a reader must be warned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SHOWN = 3  # pairs named in the verdict


@dataclass(frozen=True)
class SharedImages:
    """Copies between sets `a` and `b`, with how many images each has.

    exact: copies by content. near: images that look alike; None where they were not looked for. Counts of images: of the set that has more
    of them, where the two differ. allowed: the study file lets this pair share exact copies.
    """

    a: str
    b: str
    exact: int
    near: int | None
    n_a: int | None
    n_b: int | None
    allowed: bool

    @property
    def any(self) -> bool:
        """Whether the two share an image."""
        return bool(self.exact or self.near)

    @property
    def matters(self) -> bool:
        """Whether that touches a result: two validation sets may share images, since no result is read from either."""
        return self.any and {self.a, self.b} != {"val_ood", "val_id"}


def leakage_of(summary: Mapping[str, Any]) -> list[SharedImages]:
    """Every pair of sets that was looked at, those that share images first."""
    pairs = [_pair(item) for item in (summary.get("leakage") or {}).get("pairs", [])]
    return sorted(pairs, key=lambda pair: (not pair.matters, not pair.any))


def max_distance(summary: Mapping[str, Any]) -> float | None:
    """In how many bits the perceptual hashes of near copies differ at most; None if near copies were not looked for."""
    found = summary.get("leakage") or {}
    distance = found.get("max_distance", found.get("near_duplicates"))
    return None if distance is None else float(distance)


def leakage_warnings(summary: Mapping[str, Any]) -> list[str]:
    """A sentence for each pair that shares images and should not."""
    return [f"{pair.a} and {pair.b} share images: {_copies(pair)}." for pair in leakage_of(summary) if pair.matters]


def leakage_caution(summary: Mapping[str, Any]) -> str | None:
    """One sentence for all of them; None if there is nothing to warn about."""
    pairs = [pair for pair in leakage_of(summary) if pair.matters]
    if not pairs:
        return None
    named = "; ".join(f"{pair.a} and {pair.b} ({_copies(pair)})" for pair in pairs[:SHOWN])
    more = f"; and {len(pairs) - SHOWN} more pairs" if len(pairs) > SHOWN else ""
    return f"Caution: sets share images, so scores on them are not all of unseen images: {named}{more}."


def _pair(item: Mapping[str, Any]) -> SharedImages:
    """A pair as {a, b, exact, near, ...}, or as `autoft.data.leakage` counts it, by side."""
    if "a" in item:
        return SharedImages(item["a"], item["b"], item["exact"], item["near"], item.get("n_a"), item.get("n_b"), bool(item.get("allowed")))
    exact, near = (_more([item.get(f"first_{kind}"), item.get(f"second_{kind}")]) for kind in ("exact", "near"))
    sizes = (item.get("first_size"), item.get("second_size"))
    return SharedImages(item["first"], item["second"], exact or 0, near, *sizes, bool(item.get("allowed")))


def _more(counts: Sequence[int | None]) -> int | None:
    return max((count for count in counts if count is not None), default=None)


def _copies(pair: SharedImages) -> str:
    parts = []
    if pair.exact:
        parts.append(f"{pair.exact:,} exact cop{'ies' if pair.exact != 1 else 'y'}{', allowed by the study file' if pair.allowed else ''}")
    if pair.near:
        parts.append(f"{pair.near:,} near cop{'ies' if pair.near != 1 else 'y'}")
    return " and ".join(parts)
