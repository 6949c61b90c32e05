"""Figures as text on every page: durations, counts, exact numbers."""

from autoft.report.metrics import MISSING


def duration(seconds: float | None) -> str:
    """`4.2 s`, `48 s`, `3 min 07 s`, `5 h 02 min`, `2 d 04 h`."""
    if seconds is None:
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, large, part, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {large} {whole % size // part:02d} {small}"
    return f"{whole} s"


def count(number: float | None) -> str:
    """`1,234,567`."""
    return MISSING if number is None else f"{number:,}"


def tidy(text: str) -> str:
    """A sentence whose figures stay together with their per-cent signs."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def exact(number: float | None) -> str:
    """A number that reads back to the same bits; empty for None."""
    return "" if number is None else repr(number)


def short(number: float | None) -> str:
    """Three significant digits."""
    return MISSING if number is None else f"{number:.3g}"
