"""A comparison as plain text, for a terminal."""

from autoft.comparison.analysis import Analysis, Entry, analyse
from autoft.comparison.names import memory_text, plus_minus, seconds_text
from autoft.comparison.records import Comparison
from autoft.report.metrics import axis_title
from autoft.report.table import WIDTH, aligned, plain

Column = list[str]  # a heading in two parts, then a cell for each method
GAP = 2  # spaces between columns, as `aligned` sets them


def format_comparison(comparison: Comparison, width: int = WIDTH) -> str:
    """The methods by average OOD in at most `width` columns, with a note below on whatever did not run.

    One table if that fits, else as many below each other as are needed, each with the methods' names; where even a single figure
    does not fit beside a name, every figure gets a line of its own.
    """
    found = analyse(comparison)
    names, *columns = _columns(found)
    blocks = _blocks(names, columns, width)
    tables = [aligned(list(zip(*block, strict=True)), rule_after=2) for block in blocks]
    if any(len(line) > width for table in tables for line in table):
        tables = _long_form(names, columns)
    return "\n".join([_title(found), *(line for table in tables for line in ("", *table)), *_notes(found)])


def seeds_text(entry: Entry) -> str:
    """`5`, `4 of 5` where some did not finish, `no seed` for a method whose one run stands for all."""
    if entry.deterministic:
        return "no seed" if entry.finished else "failed"
    return str(entry.finished) if entry.finished == entry.expected else f"{entry.finished} of {entry.expected}"


def _title(found: Analysis) -> str:
    comparison = found.comparison
    better = "higher" if comparison.direction == "maximize" else "lower"
    seeds = "one seed" if found.seeds < 2 else f"± 95 % over {found.seeds} seeds"
    return f"{axis_title(comparison.metric)}, {seeds}; {better} is better"


def _columns(found: Analysis) -> list[Column]:
    metric, entries = found.comparison.metric, found.entries
    columns = [
        ["method", "", *(f"{plain(entry.title)}{' *' if entry.problems else ''}" for entry in entries)],
        ["seeds", "", *map(seeds_text, entries)],
        ["average", "OOD", *(plus_minus(entry.ood, metric) for entry in entries)],
    ]
    if any(entry.to_finetune for entry in entries):
        gaps = [entry.to_finetune.mean if entry.to_finetune else None for entry in entries]
        columns.append(["against", "fine-tuning", *(plus_minus(gap, metric, sign=True) for gap in gaps)])
    if found.robust:
        columns.append(["effective", "robustness", *(plus_minus(entry.robustness, metric, sign=True) for entry in entries)])
    columns.append(["average", "ID", *(plus_minus(entry.id, metric) for entry in entries)])
    for column in found.of_split("test_ood"):
        columns.append([plain(column.dataset), "(OOD)", *(plus_minus(entry.scores.get(column), metric) for entry in entries)])
    columns.append(["train", "s", *(seconds_text(entry.train_seconds) for entry in entries)])
    return [*columns, ["peak MB", _memory_kind(found), *(memory_text(entry.peak_memory_bytes) for entry in entries)]]


def _memory_kind(found: Analysis) -> str:
    return "/".join(sorted({entry.peak_memory_kind for entry in found.entries if entry.peak_memory_kind}))


def _blocks(names: Column, columns: list[Column], width: int) -> list[list[Column]]:
    """The columns shared out, in order, over as few tables as fit into `width`, none much wider than the others."""
    blocks = _packed(names, columns, width)
    while len(narrower := _packed(names, columns, width - 1)) == len(blocks) and width > 1:
        blocks, width = narrower, width - 1
    return blocks


def _packed(names: Column, columns: list[Column], width: int) -> list[list[Column]]:
    start = max(map(len, names))
    blocks, used = [[names]], start
    for column in columns:
        size = GAP + max(map(len, column))
        if used + size > width and len(blocks[-1]) > 1:
            blocks.append([names])
            used = start
        blocks[-1].append(column)
        used += size
    return blocks


def _long_form(names: Column, columns: list[Column]) -> list[list[str]]:
    """A paragraph for each method."""
    headings = [" ".join(column[:2]).strip() for column in columns]
    return [
        [name, *(f"  {column[row]:<14}{heading}" for heading, column in zip(headings, columns, strict=True))]
        for row, name in enumerate(names)
        if row >= 2
    ]


def _notes(found: Analysis) -> list[str]:
    bad = [entry for entry in found.entries if entry.problems]
    lines = [f"  {plain(entry.title)}: {_printable('; '.join(entry.problems))}" for entry in bad]
    return ["", "* mean over the seeds that finished:", *lines] if bad else []


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)
