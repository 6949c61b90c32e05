"""From a run folder to plots/ and report.html."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from autoft.errors import AutoFTError
from autoft.files import read_json, write_text
from autoft.report import figures, metrics
from autoft.report.enqueued import baseline_sentence, enqueued_of, named
from autoft.report.gallery import gallery
from autoft.report.horizon import horizon_of
from autoft.report.leakage import leakage_of, leakage_warnings, max_distance
from autoft.report.results import Results, metrics_of, model_name, results, split_name, study_direction, study_metric
from autoft.report.schema import check_summary
from autoft.report.selection import confirmation_of, selection_sentences
from autoft.report.table import has_average
from autoft.report.text import count, duration, exact, short, tidy
from autoft.report.trials import Trial, read_trials, top_trials
from autoft.report.verdict import CAVEAT, subject, verdict

logger = logging.getLogger(__name__)
TOP_TRIALS = 10
OPTIONAL: Mapping[str, Sequence[str]] = {
    "description": ("model", "data", "n_classes", "skipped"),
    "search": (
        *("sampler", "pruner", "seed", "steps", "batch_size"),
        *("repeats", "objectives", "pareto", "reference", "preset", "layerwise", "enqueued", "confirmation", "horizon", "transfer"),
    ),
    "final": ("hyperparameters",),
    "wise_ft": ("select_on",),
    "cost": ("workers", "baseline_samples", "search_eval_samples", "confirm_samples", "confirm_seconds"),
}
BEST = ("name", "ci_low", "ci_high")  # optional keys of search.best_trial
FIGURES = (
    *("intervals_ood", "intervals_id", "loss_weights", "history", "intermediate_values", "candidates", "pareto", "horizon"),
    *("alpha_curve", "path", "id_ood", "epochs"),
)


def write_report(run_dir: Path) -> Path:
    """Write `plots/*.png` with the CSV behind each, then `report.html`; every file appears whole or not at all.

    Reads `summary.json` and `trials.csv` and looks for `checkpoints/`; nothing outside the run folder.

    Returns:
        The path of the page.

    Raises:
        AutoFTError: summary.json is absent or does not fit its schema, or trials.csv is not a table of trials.
        OSError: the folder cannot be written.
    """
    summary = read_json(run_dir / "summary.json")
    if not isinstance(summary, dict):
        raise AutoFTError(f"{run_dir / 'summary.json'} is absent or is not a JSON object; has the run finished?")
    check_summary(summary)
    trials = read_trials(run_dir / "trials.csv")
    drawn = _draw(run_dir / "plots", summary, trials)
    path = run_dir / "report.html"
    write_text(path, render(summary, trials, drawn, checkpoints(run_dir)))
    logger.info("report written", extra={"action": "report_written", "path": str(path)})
    return path


def render(summary: Mapping[str, Any], trials: Sequence[Trial], drawn: Mapping[str, Mapping[str, Any]], folders: Sequence[str]) -> str:
    """The page as HTML, with every text of the summary escaped. `drawn` maps a figure's name to its `svg` and `caption`; `folders` are the checkpoints there are."""
    summary, trials = _filled(summary), named(summary, trials)
    grid = results(summary)
    grids = [results(summary, metric) for metric in metrics_of(summary)]
    direction = study_direction(summary)
    return _environment().get_template("report.html.j2").render(
        summary=summary,
        verdict=verdict(summary),
        caveat=CAVEAT,
        grid=grid,
        others=[other for other in grids if other.metric != grid.metric],
        subject=subject(grid),
        best=summary["search"].get("best_trial"),
        confirmation=confirmation_of(summary),
        baselines=baseline_sentence(summary, trials),
        enqueued=enqueued_of(summary, trials),
        blocks=_blocks(summary, trials),
        horizon=horizon_of(summary),
        leakage=leakage_of(summary),
        leakage_warnings=leakage_warnings(summary),
        max_distance=max_distance(summary),
        direction=direction,
        study_metric=study_metric(summary),
        plots=drawn,
        top=top_trials(trials, direction, TOP_TRIALS),
        kinds=_failure_kinds(trials),
        checkpoints=folders,
    )


def checkpoints(run_dir: Path) -> list[str]:
    """The checkpoint folders a run has, the recommended one first."""
    return [name for name in ("wise_ft", "final") if (run_dir / "checkpoints" / name).is_dir()]


def _draw(folder: Path, summary: Mapping[str, Any], trials: Sequence[Trial]) -> dict[str, dict[str, Any]]:
    """Write every figure; returns its SVG and caption by name. Figures of an earlier report that this one lacks go away."""
    folder.mkdir(exist_ok=True)
    drawn = {}
    with figures.style():
        for name, plot in gallery(summary, trials).items():
            _write_bytes(folder / f"{name}.png", figures.png(plot.figure))
            write_text(folder / f"{name}.csv", plot.csv())
            # The label is escaped and matplotlib escapes every text it draws, so the SVG is markup of our own making.
            drawn[name] = {"svg": Markup(figures.svg(plot.figure, name, plot.label)), "caption": plot.caption}
    for stale in folder.iterdir():
        if stale.suffix in (".png", ".csv") and stale.stem in FIGURES and stale.stem not in drawn:
            stale.unlink()
    return drawn


def _write_bytes(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _filled(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The summary with None for every optional key, so that the template can be strict about names."""
    filled = {"description": {}, "final": {}, "wise_ft": None, "leakage": None, "notes": [], **summary}
    for section, keys in OPTIONAL.items():
        if filled[section] is not None:
            filled[section] = dict.fromkeys(keys) | filled[section]
    if filled["search"]["best_trial"]:
        filled["search"]["best_trial"] = dict.fromkeys(BEST) | filled["search"]["best_trial"]
    return filled


def _blocks(summary: Mapping[str, Any], trials: Sequence[Trial]) -> list[tuple[str, float | None, float | None]]:
    """(block, learning rate, weight decay) of the winner of a layerwise search; from the summary, else from the table of trials."""
    best = summary["search"]["best_trial"]
    if not best:
        return []
    row = next((trial for trial in trials if trial.number == best["number"]), None)
    found = best["hyperparameters"]
    rates = found.get("layer_lr") or (row.layer_lr if row else {})
    decays = found.get("layer_weight_decay") or (row.layer_weight_decay if row else {})
    return [(name, rates.get(name), decays.get(name)) for name in dict.fromkeys([*rates, *decays])]


def _failure_kinds(trials: Sequence[Trial]) -> dict[str, int]:
    kinds = [trial.failure_kind for trial in trials if trial.failure_kind]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("autoft.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "count": count, "exact": exact, "short": short, "tidy": tidy}
    environment.globals |= {
        "metric_name": metrics.metric_name,
        "metric_in_text": metrics.metric_in_text,
        "axis_title": metrics.axis_title,
        "value_text": metrics.format_value,
        "interval_text": metrics.format_interval,
        "model_name": model_name,
        "split_name": split_name,
        "has_average": has_average,
        "selection_sentences": selection_sentences,
        "points": points,
        "shares": metrics.SHARES,
        "split_spans": _split_spans,
    }
    return environment


def _split_spans(grid: Results) -> list[tuple[str, int]]:
    """(split, columns of the table it takes, its average included) in the table's order."""
    splits = dict.fromkeys(column.split for column in grid.columns)
    return [(split, len(grid.of_split(split)) + has_average(grid, split)) for split in splits]


def points(difference: float | None, metric: str) -> str:
    """A difference with its sign and without its unit."""
    if difference is None:
        return metrics.MISSING
    size = metrics.format_difference(difference, metric).split()[0]
    return f"{metrics.MINUS}{size}" if difference < 0 and float(size) else size
