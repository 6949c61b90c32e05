"""Reports of progress, thinned out for whoever cannot show each of them."""

import time
from collections.abc import Callable

Report = Callable[[str, int, int], None]


def paced(report: Report, seconds: float) -> Report:
    """Calls `report(field, done, of)` at most every so many seconds; of each field the last one, where done equals of, in any case.

    The first of a field is not told before that time has passed: what is done at once needs no progress.
    """
    since: dict[str, float] = {}

    def told(field: str, done: int, of: int) -> None:
        now = time.monotonic()
        if done == of or now - since.setdefault(field, now) >= seconds:
            since[field] = now
            report(field, done, of)

    return told
