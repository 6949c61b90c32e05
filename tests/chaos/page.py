"""`python -m tests.chaos.page`: print the figures of latest.json into docs/reliability.md."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.chaos.scenarios import OUT, SCENARIOS

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
MARK = "<!-- printed by `python -m tests.chaos.page` from tests/chaos/latest.json; everything below is replaced -->"
# What a scenario's figures are called on the page, in order; those of several seeds are shown as a range.
SHOWN = {
    "storm": ("states", "happened", "longest_outage_seconds", "trials_retried", "trials_adopted", "coordinators", "ended_for_want_of_the_database", "ended_for_want_of_the_database_while_starting", "scores_reproduced", "largest_difference"),
    "storm-pruned": ("states", "happened", "longest_outage_seconds", "trials_retried", "trials_adopted", "coordinators", "ended_for_want_of_the_database", "ended_for_want_of_the_database_while_starting", "scores_reproduced", "largest_difference"),
    "partition": ("how", "takeover_seconds", "deposed_noticed_seconds", "writes_of_the_first", "writes_of_the_rival", "writes_of_the_first_after_the_takeover"),
    "points": ("durable_steps", "kinds_of_steps", "points", "equal"),
    "crowd": ("coordinators", "ended"),
    "full_disk": ("times_filled",),
    "secrets": ("processes_watched", "readings", "tables"),
}


def main() -> int:
    """Replace what stands below the mark."""
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(MARK) == 1, f"{PAGE} needs the line {MARK} once"
    PAGE.write_text(text[: text.index(MARK)] + MARK + "\n" + figures(json.loads(OUT.read_text())), encoding="utf-8")
    return 0


def figures(document: dict[str, Any]) -> str:
    """Everything below the mark."""
    return "\n".join(_lines(document)) + "\n"


def _lines(document: dict[str, Any]) -> Iterator[str]:
    machine, versions, records = document["machine"], document["versions"], document["records"]
    yield ""
    yield f"On {machine['cpus']} cores and {machine['memory_gib']} GiB, {machine['system']}; " + ", ".join(f"{name} {version}" for name, version in versions.items()) + "."
    yield ""
    yield "| scenario | seeds | passed | checks | seconds |"
    yield "|---|---|---|---|---|"
    for name in SCENARIOS:
        runs = [record for record in records if record["scenario"] == name]
        if not runs:
            yield f"| {name} | **not run** | | | |"
            continue
        checks = [check for record in runs for check in record["checks"]]
        passed = sum(record["passed"] for record in runs)
        seconds = _range([record["seconds"] for record in runs])
        yield f"| {name} | {_seeds([record['seed'] for record in runs])} | {passed} of {len(runs)} | {sum(check['passed'] for check in checks)} of {len(checks)} | {seconds} |"
    for name in SCENARIOS:
        yield from _figures_of(name, [record for record in records if record["scenario"] == name])
    yield from _failures(records)


def _figures_of(name: str, records: list[dict[str, Any]]) -> Iterator[str]:
    rows = []
    for figure in SHOWN[name]:
        values = [record["figures"][figure] for record in records if figure in record["figures"]]
        rows += [f"| {figure.replace('_', ' ')} | {_together(values)} |"] if values else []
    if rows:
        yield from ("", f"**{name}**", "", "| | |", "|---|---|", *rows)


def _failures(records: list[dict[str, Any]]) -> Iterator[str]:
    failed = [(record, check) for record in records for check in record["checks"] if not check["passed"]]
    yield ""
    if not failed:
        yield "No check failed." if records else "Nothing was run."
        return
    yield f"Checks that failed ({len(failed)}):"
    yield ""
    for record, check in failed:
        found = str(check.get("found", "")).strip().splitlines()
        yield f"- {record['scenario']}, seed {record['seed']}: {check['name']}" + (f": `{found[-1][:160]}`" if found else "")


def _together(values: list[Any]) -> str:
    """One value, a range of numbers, or of mappings a range for every key."""
    if all(isinstance(value, dict) for value in values):
        keys = list(dict.fromkeys(key for value in values for key in value))
        return ", ".join(f"{key} {_range([value.get(key, 0) for value in values])}" for key in keys)
    return _range(values)


def _range(values: list[Any]) -> str:
    found = sorted({value for value in values if isinstance(value, int | float)})
    if not found:
        return ", ".join(sorted({str(value) for value in values}))
    shown = [f"{value:.3g}" if isinstance(value, float) and abs(value) < 100 else f"{value:.0f}" for value in (found[0], found[-1])]
    return shown[0] if shown[0] == shown[1] else f"{shown[0]} to {shown[1]}"


def _seeds(seeds: list[int]) -> str:
    found = sorted(seeds)
    return f"{found[0]} to {found[-1]}" if len(found) > 1 and found == list(range(found[0], found[-1] + 1)) else ", ".join(map(str, found))


if __name__ == "__main__":
    sys.exit(main())
