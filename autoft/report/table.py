"""The results as plain text, for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from autoft.report.metrics import MISSING, axis_title, format_difference, format_interval, format_value
from autoft.report.results import Results, Row, Score, results, split_name
from autoft.report.selection import Confirmation, Standing, confirmation_of

WIDTH = 100
AVERAGE = {"test_id": "average ID", "test_ood": "average OOD"}
NAME_WIDTH = 26
STANDINGS: Mapping[Standing, str] = {"toss": "a coin toss", "close": "not distinguishable", "ahead": "clearly ahead"}


def summary_table(summary: Mapping[str, Any]) -> list[list[str]]:
    """A header, then a row a model: its name and `56.8 % [50.9, 62.4]` for each data set and average of the study's metric."""
    grid = results(summary)
    headings = [" ".join(parts).strip() for parts in _headings(grid)]
    return [["model", *headings], *([row.label, *(_cell(score, grid.metric) for score in _scores(grid, row))] for row in grid.rows)]


def format_table(summary: Mapping[str, Any], width: int = WIDTH) -> str:
    """The results table in at most `width` columns.

    One line a model if that fits, else intervals go below their values, else every score gets a line of its own.
    """
    grid = results(summary)
    if not grid.rows:
        return "No test set was evaluated."
    title = f"{axis_title(grid.metric)} with 95 % intervals; {'higher' if grid.direction == 'maximize' else 'lower'} is better"
    header, *rows = summary_table(summary)
    headings = _headings(grid)
    one_line = [["", *(name for name, _ in headings)], ["model", *(about for _, about in headings)], *rows]
    tall = [*one_line[:2], *(line for row in grid.rows for line in _two_lines(grid, row))]
    for lines in (one_line, tall):
        text = aligned(lines, rule_after=2)
        if max(map(len, text)) <= width:
            return "\n".join([title, "", *text])
    return "\n".join([title, *_long_form(header, rows)])


def selection_line(summary: Mapping[str, Any]) -> str | None:
    """One line on which configuration won the confirmation and whether its lead exceeds the noise; None if none was run.

    Without control characters, whatever a configuration is called.
    """
    found = confirmation_of(summary)
    if found is None:
        return None
    winner, second = found.winner, found.runner_up
    runs = f"{len(winner.runs)} fresh run{'s' if len(winner.runs) != 1 else ''}"
    text = f"Winner: {plain(winner.label)}, {format_value(winner.mean, found.metric)} over {runs}"
    if second is None or found.margin is None:
        return f"{text}; no other configuration was confirmed"
    return f"{text}; {format_difference(found.margin, found.metric)} ahead of {plain(second.label)}, {_against_noise(found)}"


def _against_noise(found: Confirmation) -> str:
    if found.margin_se is None:
        return "noise not measured"
    return f"standard error {format_difference(found.margin_se, found.metric)}: {STANDINGS[found.standing]}"


def plain(label: str) -> str:
    """A label without control characters, cut short."""
    text = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in label)
    return text if len(text) <= NAME_WIDTH + 12 else f"{text[: NAME_WIDTH + 11]}…"


def _headings(grid: Results) -> list[tuple[str, str]]:
    """(name, which split and how many images) of every column, in the order of `_scores`."""
    kinds = {"test_id": "ID", "test_ood": "OOD"}
    found = []
    for split in dict.fromkeys(column.split for column in grid.columns):
        columns = grid.of_split(split)
        if has_average(grid, split):
            found.append((AVERAGE[split], f"({len(columns)} sets)"))
        found += [(column.dataset, f"({kinds.get(split, split_name(split))}, n={grid.images(column)})") for column in columns]
    return found


def has_average(grid: Results, split: str) -> bool:
    """Whether a split's average says more than its only data set."""
    return split in AVERAGE and len(grid.of_split(split)) > 1


def _scores(grid: Results, row: Row) -> list[Score | None]:
    found: list[Score | None] = []
    for split in dict.fromkeys(column.split for column in grid.columns):
        if has_average(grid, split):
            found.append(grid.average(row, split))
        found += [row.scores.get(column) for column in grid.of_split(split)]
    return found


def _cell(score: Score | None, metric: str) -> str:
    if score is None:
        return MISSING
    return f"{format_value(score.value, metric)} {format_interval(score.low, score.high, metric)}".rstrip()


def _two_lines(grid: Results, row: Row) -> list[list[str]]:
    scores = _scores(grid, row)
    values = [MISSING if score is None else format_value(score.value, grid.metric) for score in scores]
    intervals = ["" if score is None else format_interval(score.low, score.high, grid.metric) for score in scores]
    return [[row.label, *values], ["", *intervals]]


def aligned(lines: Sequence[Sequence[str]], rule_after: int) -> list[str]:
    """Columns padded to their widest cell: the first to the left, figures to the right."""
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    text = [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in lines
    ]
    return [*text[:rule_after], "─" * (sum(widths) + 2 * (len(widths) - 1)), *text[rule_after:]]


def _long_form(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    text: list[str] = []
    for row in rows:
        text += ["", row[0], *(f"  {cell:<22}{name}" for name, cell in zip(header[1:], row[1:], strict=True))]
    return text
