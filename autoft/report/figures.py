"""The report's figures, each drawn once with matplotlib and written twice: PNG for plots/, SVG for the page."""

import csv
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Cells = Sequence[object]
# Every colour the figures use, by the page's CSS variable. They differ from each other so that the SVG can name them again;
# the page redefines them for dark screens. Blue and greys stay apart for every kind of colour blindness, and shapes differ too.
INK, MUTED, RULE, PAPER, ACCENT, TINT = "#1c1e21", "#5f6670", "#d9dce1", "#fffffe", "#1f5fbf", "#b9cdec"
_VARIABLES: Mapping[str, str] = {INK: "ink", MUTED: "muted", RULE: "rule", PAPER: "paper", ACCENT: "accent", TINT: "tint"}
SIZE = (5.4, 3.5)  # inches; one column of the page
TALL = 4.1  # inches
_RC: Any = {  # matplotlib types the keys of its own settings
    "svg.fonttype": "none",  # real text: it takes the page's font and can be selected
    "text.parse_math": False,  # a `$` in a name is a dollar sign
    "font.family": "DejaVu Sans",  # ships with matplotlib, so PNGs look the same everywhere
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
}


@dataclass(frozen=True)
class Plot:
    """A drawn figure with its words: `label` for those who cannot see it, `caption` below it, `lines` as CSV."""

    name: str
    figure: Figure
    label: str
    caption: str
    lines: Sequence[Cells]

    def csv(self) -> str:
        """The numbers behind the figure, header first."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(self.lines)
        return buffer.getvalue()


@contextmanager
def style() -> Iterator[None]:
    """Figures must be made and written inside this block; nothing of it stays afterwards."""
    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")  # a name in a script the font lacks
        yield


def new_figure(height: float = SIZE[1]) -> tuple[Figure, Axes]:
    """A figure one column wide, `height` inches tall, with one pair of axes. Owned by nobody: no pyplot state."""
    figure = Figure(figsize=(SIZE[0], height), layout="constrained")
    return figure, figure.subplots()


def short_name(name: str) -> str:
    """A name that leaves room for the figure."""
    return name if len(name) <= 26 else f"{name[:25]}…"


def whole_numbers(axes: Axes, numbers: Sequence[int]) -> None:
    """Ticks at whole numbers only, and room around a single one."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if numbers:
        pad = max(0.5, 0.02 * (max(numbers) - min(numbers)))
        axes.set_xlim(min(numbers) - pad, max(numbers) + pad)


def legend_above(axes: Axes, columns: int = 3) -> None:
    """A legend over the axes, or none if nothing has a label."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2, handlelength=1.8, columnspacing=1.4)


def names_beside(axes: Axes, names: Sequence[str]) -> None:
    """One row a name, top to bottom, without an axis line."""
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), [short_name(name) for name in names])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)


def png(figure: Figure) -> bytes:
    """The figure on white, 160 dots an inch. Fixes its layout, so that SVG made afterwards has the same one and costs half."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    figure.set_layout_engine("none")
    return buffer.getvalue()


def svg(figure: Figure, name: str, label: str) -> str:
    """The figure as inline SVG: the page's colours and font, `label` for those who cannot see it, no address of any kind.

    Args:
        name: keeps the ids of several figures in one page apart.
        label: plain text; escaped here.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    view = re.search(r'viewBox="([^"]+)"', text)
    assert view is not None
    body = text[text.index(">", view.end()) + 1 :]
    body = re.sub(r"<style.*?</style>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r"(<g\b[^>]*?) id=\"[^\"]*\"", r"\1", body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = body.replace("xlink:href=", "href=")
    for color, variable in _VARIABLES.items():
        body = body.replace(color, f"var(--{variable})")
    body = re.sub(r"\s*\n\s*", " ", body)
    return f'<svg viewBox="{view.group(1)}" role="img" aria-label="{escape(label)}">{body.strip()}'
