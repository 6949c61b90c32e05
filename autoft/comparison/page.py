"""The page of a comparison: one HTML file that needs nothing else, in the looks of report.html."""

import logging
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from autoft.comparison import captions, names
from autoft.comparison.analysis import Analysis, analyse
from autoft.comparison.plots import gallery
from autoft.comparison.records import Comparison
from autoft.comparison.table import seeds_text
from autoft.comparison.verdict import verdict
from autoft.files import write_text
from autoft.report import figures, metrics, text
from autoft.report.results import split_name

logger = logging.getLogger(__name__)
TITLES = {"average_ood": "Out of distribution, by method", "id_ood": "In against out of distribution", "cost_ood": "Cost"}


def write_comparison(comparison: Comparison, path: Path) -> Path:
    """Write the page, whole or not at all; returns its path. Raises OSError."""
    write_text(path, render(comparison))
    logger.info("comparison written", extra={"action": "comparison_written", "path": str(path)})
    return path


def render(comparison: Comparison) -> str:
    """The page as HTML, with every text of the comparison escaped."""
    found = analyse(comparison)
    return _environment().get_template("comparison.html.j2").render(
        comparison=comparison,
        found=found,
        verdict=verdict(comparison),
        metric=comparison.metric,
        figures=_draw(found),
        columns=[*found.of_split("test_ood"), *found.of_split("test_id")],
        failed=[entry for entry in found.entries if entry.problems],
    )


def _draw(found: Analysis) -> list[dict[str, object]]:
    with figures.style():
        # The label is escaped and matplotlib escapes every text it draws, so the SVG is markup of our own making.
        return [
            {
                "name": plot.name,
                "title": TITLES[plot.name],
                "caption": plot.caption,
                "svg": Markup(figures.svg(plot.figure, plot.name, plot.label)),
            }
            for plot in gallery(found)
        ]


def _environment() -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("autoft.comparison", "templates"), PackageLoader("autoft.report", "templates")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": text.duration, "count": text.count, "exact": text.exact, "tidy": text.tidy}
    shown = (names.number, names.signed, names.plus_minus, names.interval, names.p_text, names.chosen_pairs, names.memory_text, names.title)
    environment.globals |= {function.__name__: function for function in shown}
    environment.globals |= {
        "captions": captions,
        "seeds_text": seeds_text,
        "split_name": split_name,
        "axis_title": metrics.axis_title,
        "metric_in_text": metrics.metric_in_text,
        "value_text": metrics.format_value,
    }
    return environment
