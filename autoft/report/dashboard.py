"""What a study shows of itself in optuna-dashboard: a note in Markdown, and figures as plotly's JSON. Nothing here knows the database.

The same study gives the same text and figures, so that whoever stores them can leave alone what has not changed. Every word that is not ours
is escaped: a name can be neither a link, nor markup, nor the end of a table's cell.
"""

import html
import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from autoft.config import StudyConfig
from autoft.enqueue import configuration_name
from autoft.report.metrics import axis_label, format_value, metric_in_text, scale
from autoft.report.results import SPLITS, Results, model_name, results, split_name
from autoft.report.text import count, duration
from autoft.trials_table import trial_seconds

MOST_POINTS = 200  # of a figure: it is kept in the database in pieces of 2 KB, and sent to every visitor every few seconds
MOST_NAMES = 12
MOST_LETTERS = 120
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
_INK, _ACCENT, _MUTED = "#1a1a1a", "#0b6fa4", "#8a8a8a"


def escape_markdown(value: object) -> str:
    """Text that Markdown shows as it is, on one line: every ASCII sign that is no letter or digit becomes an entity.

    Entities keep text from being markup, but not from being made a link afterwards, as `www.` and addresses of mail are; an invisible
    WORD JOINER inside those does. Control characters and those that turn the direction of writing are left out.
    """
    shown = [" " if c in "\r\n\t" else c for c in str(value) if c in "\r\n\t" or unicodedata.category(c)[0] != "C"]
    text = "".join(shown)
    text = text[: MOST_LETTERS - 1] + "…" if len(text) > MOST_LETTERS else text
    joined = text.replace("://", ":\u2060//").replace("@", "@\u2060")
    joined = joined.replace("www.", "www\u2060.").replace("WWW.", "WWW\u2060.").replace("Www.", "Www\u2060.")
    return "".join(c if c.isalnum() or c == " " or not c.isascii() else f"&#{ord(c)};" for c in joined)


def dashboard_note(
    config: StudyConfig, summary: Mapping[str, Any] | None, trials: Sequence[FrozenTrial], state: str, classes: Sequence[str] = ()
) -> str:
    """The study's configuration and where it stands, as Markdown.

    Args:
        summary: summary.json of a finished run, or as much of it as there is; None: none yet.
        trials: the study's trials.
        state: of the study: running, paused, complete ...
        classes: the names of its classes; the first few are shown.
    """
    parts = [f"## {escape_markdown(config.study)}: {escape_markdown(state)}", _progress(config, trials), _settings(config, classes)]
    if summary:
        parts += [_results_table(results(summary)), _alpha_line(summary), _cost_line(summary)]
    return "\n\n".join(part for part in parts if part) + "\n"


def dashboard_figures(config: StudyConfig, summary: Mapping[str, Any] | None, trials: Sequence[FrozenTrial]) -> dict[str, dict[str, Any]]:
    """The figures there is something to show in, by id: `autoft-cost`, `autoft-alpha`, `autoft-id-ood`; each plotly's `data` and `layout`."""
    summary = summary or {}
    drawn = {"autoft-cost": _cost(config, trials), "autoft-alpha": _alpha(config, summary), "autoft-id-ood": _id_ood(config, summary)}
    return {name: figure for name, figure in drawn.items() if figure is not None}


# --- the note -------------------------------------------------------------------------------------------------------------------------


def _progress(config: StudyConfig, trials: Sequence[FrozenTrial]) -> str:
    states = [trial.state for trial in trials]
    finished = sum(state in _FINISHED for state in states)
    running, failed = states.count(TrialState.RUNNING), states.count(TrialState.FAIL)
    more = [f"{running} running"] * bool(running) + [f"{failed} failed"] * bool(failed)
    text = f"{finished} of {config.search.n_trials} trials finished" + (f" ({', '.join(more)})" if more else "")
    best = _best(config, trials)
    if best is None:
        return f"{text}."
    name = configuration_name(best)
    which = f"trial {best.number}" + (f", {escape_markdown(name)}" if name else "")
    return f"{text}. Best {config.search.objectives[0].upper()} {metric_in_text(config.metric)}: **{format_value(best.values[0], config.metric)}** ({which})."


def _settings(config: StudyConfig, classes: Sequence[str]) -> str:
    search, space = config.search, config.search_space
    names = ", ".join(map(str, classes[:MOST_NAMES])) + (" ..." if len(classes) > MOST_NAMES else "")
    rows = {
        "model": config.model.name.rstrip("/").rpartition("/")[2] if config.model.name.startswith("local-dir:") else config.model.name,
        "classes": f"{len(classes)}: {names}" if classes else None,
        "metric": f"{metric_in_text(config.metric)}, {config.direction}d",
        "search": f"{search.n_trials} trials, sampler {search.sampler}, pruner {search.pruner}, seed {search.seed}",
        "loss terms": ", ".join((space.reference, *space.terms)),
        "trial": f"{config.trial.steps} steps of {config.trial.batch_size} examples, repeated {config.trial.repeats}x",
        "final fine-tune": f"{config.final.epochs} epochs of batches of {config.final.batch_size}",
    }
    return _table(["setting", "value"], [[escape_markdown(name), _cell(value)] for name, value in rows.items() if value is not None])


def _cell(value: str) -> str:
    return ", ".join(escape_markdown(part) for part in value.split(", "))  # each name is cut by itself


def _results_table(grid: Results) -> str:
    if not grid.rows:
        return ""
    head = ["model", *(f"{split_name(column.split)}: {column.dataset}" for column in grid.columns)]
    rows = []
    for row in grid.rows:
        scores = [row.scores.get(column) for column in grid.columns]
        rows.append([escape_markdown(row.label), *(escape_markdown(format_value(score.value if score else None, grid.metric)) for score in scores)])
    return f"### Results ({metric_in_text(grid.metric)})\n\n{_table([escape_markdown(text) for text in head], rows)}"


def _alpha_line(summary: Mapping[str, Any]) -> str:
    wise_ft = summary.get("wise_ft")
    return f"WiSE-FT picked alpha {wise_ft['alpha']:g} on {escape_markdown(wise_ft.get('select_on', 'val_ood')).upper()}." if wise_ft else ""


def _cost_line(summary: Mapping[str, Any]) -> str:
    cost = summary.get("cost")
    if not cost:
        return ""
    search, final = (f"{duration(cost[f'{part}_seconds'])} ({count(cost[f'{part}_samples'])} examples)" for part in ("search", "final"))
    return f"Cost: search {search}, final fine-tune {final}."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of escaped cells."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# --- the figures ----------------------------------------------------------------------------------------------------------------------


def _cost(config: StudyConfig, trials: Sequence[FrozenTrial]) -> dict[str, Any] | None:
    """Score of every trial, and the best so far, over the workers' time spent until then."""
    factor, better = scale(config.metric), max if config.direction == "maximize" else min
    points: list[tuple[float, float, str, float]] = []
    spent = 0.0
    for trial in sorted((trial for trial in trials if trial.state.is_finished()), key=lambda trial: trial.number):
        spent += trial_seconds(trial) or 0.0
        score = _score(trial)
        if score is not None:
            best = better(score, points[-1][3]) if points else score
            points.append((spent, score, _hover(trial), best))
    if not points:
        return None
    seconds, unit = (3600.0, "hours") if spent > 7200 else (60.0, "minutes")
    shown = _thinned(points)
    x = [_round(point[0] / seconds) for point in shown]
    dots: dict[str, Any] = {"type": "scatter", "mode": "markers", "name": "trials", "x": x, "y": [_round(factor * point[1]) for point in shown]}
    dots |= {"text": [point[2] for point in shown], "hoverinfo": "text+y", "marker": {"color": _MUTED, "size": 6}}
    line: dict[str, Any] = {"type": "scatter", "mode": "lines", "name": "best so far", "x": x, "y": [_round(factor * point[3]) for point in shown]}
    line |= {"line": {"shape": "hv", "color": _ACCENT}}
    return _figure("Score over the cost of the search", [dots, line], f"training time of all trials ({unit})", f"VAL_OOD {axis_label(config.metric)}")


def _alpha(config: StudyConfig, summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Validation scores against WiSE-FT's alpha."""
    wise_ft = summary.get("wise_ft")
    if not wise_ft or not wise_ft.get("curve"):
        return None
    factor = scale(config.metric)
    curve = sorted(wise_ft["curve"], key=lambda point: point["alpha"])
    alphas = [_round(point["alpha"]) for point in curve]
    traces = []
    for key, color in (("val_ood", _ACCENT), ("val_id", _MUTED)):
        values = [_round(factor * point[key]) for point in curve]
        traces.append({"type": "scatter", "mode": "lines+markers", "name": key.upper(), "x": alphas, "y": values, "line": {"color": color}})
    figure = _figure("WiSE-FT: score over alpha", traces, "alpha (0: zero-shot, 1: fine-tuned)", axis_label(config.metric))
    chosen = _round(wise_ft["alpha"])
    mark = {"type": "line", "x0": chosen, "x1": chosen, "yref": "paper", "y0": 0, "y1": 1, "line": {"dash": "dot", "color": _INK, "width": 1}}
    figure["layout"]["shapes"] = [mark]
    return figure


def _id_ood(config: StudyConfig, summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Each model's mean score out of distribution over that in distribution: on test sets, else on validation sets."""
    grid = results(summary)
    for id_split, ood_split in (SPLITS[:2], SPLITS[2:]):
        found = [(row, grid.average(row, id_split), grid.average(row, ood_split)) for row in grid.rows]
        both = [(row, x, y) for row, x, y in found if x is not None and y is not None]
        if both:
            break
    else:
        return None
    factor = scale(grid.metric)
    traces = []
    for row, x, y in both[:MOST_NAMES]:
        named = _plain(row.label)
        color = _ACCENT if row.model in ("final", "wise_ft") else _MUTED
        trace = {"type": "scatter", "mode": "markers", "name": named, "x": [_round(factor * x.value)], "y": [_round(factor * y.value)]}
        traces.append(trace | {"marker": {"size": 11, "color": color, "symbol": "star" if row.model == "zero_shot" else "circle"}})
    x_title, y_title = (f"{split_name(split).lower()}: {axis_label(grid.metric)}" for split in (id_split, ood_split))
    return _figure("Out of distribution against in distribution", traces, x_title, y_title)


def _figure(title: str, data: list[dict[str, Any]], x_title: str, y_title: str) -> dict[str, Any]:
    layout = {"title": {"text": title}, "xaxis": {"title": {"text": x_title}}, "yaxis": {"title": {"text": y_title}}, "showlegend": True}
    return {"data": data, "layout": layout}


def _thinned(points: list[Any]) -> list[Any]:
    """At most MOST_POINTS of them, evenly taken, the first and the last among them."""
    if len(points) <= MOST_POINTS:
        return points
    step = (len(points) - 1) / (MOST_POINTS - 1)
    return [points[round(index * step)] for index in range(MOST_POINTS)]


def _score(trial: FrozenTrial) -> float | None:
    value = trial.values[0] if trial.state == TrialState.COMPLETE and trial.values else None
    return value if value is not None and math.isfinite(value) else None


def _best(config: StudyConfig, trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    scored = [(score, trial) for trial in trials if (score := _score(trial)) is not None]
    if not scored:
        return None
    pick = max if config.direction == "maximize" else min
    return pick(scored, key=lambda pair: pair[0])[1]


def _hover(trial: FrozenTrial) -> str:
    name = configuration_name(trial)
    return str(trial.number) + (f" {_plain(name)}" if name else "")


def _plain(value: object) -> str:
    """Text that plotly shows as it is: it reads a little HTML of its own."""
    text = "".join(c if unicodedata.category(c)[0] != "C" else " " for c in str(value))[:MOST_LETTERS]
    return html.escape(model_name(text))


def _round(value: float) -> float | None:
    """Five digits are enough to draw with; what is not finite is left out, as JSON has no such number."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
