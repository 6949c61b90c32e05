"""Which figures a run has, what each says in words, and the numbers behind it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from autoft.report import plots
from autoft.report.figures import Cells, Plot
from autoft.report.metrics import SHARES, format_interval, format_value, metric_in_text, metric_name
from autoft.report.results import Results, Score, results, study_metric
from autoft.report.search_gallery import search_plots
from autoft.report.trials import Trial


def gallery(summary: Mapping[str, Any], trials: Sequence[Trial]) -> dict[str, Plot]:
    """Every figure this run has data for, by name. Call inside `figures.style()`."""
    grid = results(summary)
    makers = (_intervals(grid), search_plots(summary, trials), _final(summary), _alpha(summary), _path(summary), _scatter(grid, summary))
    return {plot.name: plot for maker in makers for plot in maker}


def _intervals(grid: Results) -> Iterator[Plot]:
    for split, name in (("test_ood", "intervals_ood"), ("test_id", "intervals_id")):
        figure = plots.intervals(grid, split)
        scores = [(row, score) for row in grid.rows if (score := grid.average(row, split)) is not None]
        if figure is not None:
            said = "; ".join(f"{row.label} {_said(score, grid.metric)}" for row, score in scores)
            sets = ", ".join(column.dataset for column in grid.of_split(split))
            yield Plot(
                name,
                figure,
                f"{metric_name(grid.metric)} on {sets}: {said}",
                f"Average over {sets}, with 95 % intervals." if len(grid.of_split(split)) > 1 else f"On {sets}, with 95 % intervals.",
                [("model", "seed", "value", "ci_low", "ci_high"), *((r.model, r.seed, s.value, s.low, s.high) for r, s in scores)],
            )


def _final(summary: Mapping[str, Any]) -> Iterator[Plot]:
    final = summary.get("final") or {}
    if not final.get("epochs"):
        return
    kept = f", epoch {final['best_epoch']} kept" if final.get("best_epoch") is not None else ""
    yield Plot(
        "epochs",
        plots.epochs(final, study_metric(summary)),
        f"VAL_ID score and training loss of {len(final['epochs'])} epochs of the final fine-tune{kept}",
        f"The final fine-tune by epoch{kept} (dotted line); the epoch is chosen on VAL_ID.",
        [("epoch", "val_id", "train_loss"), *((row["epoch"], row["val_id"], row.get("train_loss")) for row in final["epochs"])],
    )


def _alpha(summary: Mapping[str, Any]) -> Iterator[Plot]:
    wise_ft = summary.get("wise_ft")
    if not wise_ft or not wise_ft["curve"]:
        return
    metric = study_metric(summary)
    chosen_on = f" on {wise_ft['select_on'].upper()}" if wise_ft.get("select_on") else ""
    ends = ", ".join(f"alpha {p['alpha']:g}: {format_value(p['val_ood'], metric)}" for p in wise_ft["curve"])
    yield Plot(
        "alpha_curve",
        plots.alpha_curve(wise_ft, metric),
        f"Validation {metric_in_text(metric)} against alpha, {wise_ft['alpha']:g} selected; VAL_OOD by alpha: {ends}",
        f"Interpolation between the zero-shot and the fine-tuned weights. Alpha was selected{chosen_on}; no test set was used.",
        [("alpha", "val_id", "val_ood"), *((p["alpha"], p["val_id"], p["val_ood"]) for p in wise_ft["curve"])],
    )


def _path(summary: Mapping[str, Any]) -> Iterator[Plot]:
    wise_ft = summary.get("wise_ft")
    if not wise_ft or len(wise_ft["curve"]) < 2:
        return
    metric = study_metric(summary)
    first, *_, last = sorted(wise_ft["curve"], key=lambda point: point["alpha"])
    ends = " to ".join(
        f"{format_value(p['val_id'], metric)} ID and {format_value(p['val_ood'], metric)} OOD at alpha {p['alpha']:g}" for p in (first, last)
    )
    lines: list[Cells] = [("alpha", "val_id", "val_ood"), *((p["alpha"], p["val_id"], p["val_ood"]) for p in wise_ft["curve"])]
    caption = "The same scores in one plane: what each step of alpha gains or costs in and out of distribution."
    yield Plot("path", plots.path(wise_ft, metric), f"Interpolation path on validation data, from {ends}", caption, lines)


def _scatter(grid: Results, summary: Mapping[str, Any]) -> Iterator[Plot]:
    figure = plots.scatter(grid, summary.get("wise_ft"))
    if figure is None:
        return
    pairs = [(row, grid.average(row, "test_id"), grid.average(row, "test_ood")) for row in grid.rows]
    lines: list[Cells] = [("model", "seed", "average_id", "average_ood")]
    lines += [(row.model, row.seed, x.value, y.value) for row, x, y in pairs if x and y]
    said = "; ".join(f"{row.label} {_said(x, grid.metric)} and {_said(y, grid.metric)}" for row, x, y in pairs if x and y)
    outside = " The line of equal ID and OOD lies outside the figure." if plots.line_is_outside(grid) else ""
    caption = f"Average over test sets, with 95 % intervals{'; logit axes' if grid.metric in SHARES else ''}.{outside}"
    yield Plot("id_ood", figure, f"Average ID and OOD {metric_in_text(grid.metric)}: {said}", caption, lines)


def _said(score: Score | None, metric: str) -> str:
    return "not evaluated" if score is None else f"{format_value(score.value, metric)} {format_interval(score.low, score.high, metric)}".strip()
