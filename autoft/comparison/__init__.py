"""What a comparison of methods shows: statistics over seeds, a table, Markdown and one page, from its recorded results alone."""

from pathlib import Path

from autoft.comparison.records import Comparison


def write_comparison(comparison: Comparison, path: Path) -> Path:
    """`autoft.comparison.page.write_comparison`; matplotlib and jinja2 are imported here only when a page is written."""
    from autoft.comparison.page import write_comparison as write

    return write(comparison, path)
