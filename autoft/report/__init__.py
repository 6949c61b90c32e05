"""What a finished run shows: the results table, plots and one self-contained page, from the files of its run folder alone."""

from pathlib import Path


def write_report(run_dir: Path) -> Path:
    """`autoft.report.page.write_report`; matplotlib and jinja2 are imported here only when a report is written."""
    from autoft.report.page import write_report as write

    return write(run_dir)
