"""Which figures of the search a run has, what each says in words, and the numbers behind it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from autoft.report import search_plots as draw
from autoft.report.enqueued import named
from autoft.report.figures import Cells, Plot
from autoft.report.horizon import horizon_of, horizon_sentence
from autoft.report.metrics import format_value, metric_in_text
from autoft.report.results import study_direction, study_metric
from autoft.report.selection import confirmation_of, finite, selection_sentences, trial_label
from autoft.report.trials import Trial, best_so_far

REFERENCE = "cross_entropy"
SHOWN = 8  # enqueued configurations named in a figure's label; a warm start may have hundreds


def search_plots(summary: Mapping[str, Any], trials: Sequence[Trial]) -> Iterator[Plot]:
    """The search's figures that this run has data for."""
    trials = named(summary, trials)
    yield from _loss_weights(summary)
    yield from _history(summary, trials)
    yield from _intermediate(summary, trials)
    yield from _candidates(summary, trials)
    yield from _pareto(summary, trials)
    yield from _horizon(summary)


def pareto_front(summary: Mapping[str, Any]) -> dict[int, tuple[float, float]]:
    """(val_id, val_ood) of every trial on the front that has both, by number; empty for a single objective."""
    front = {}
    for item in summary["search"].get("pareto") or []:
        x, y = finite(item["values"].get("val_id")), finite(item["values"].get("val_ood"))
        if x is not None and y is not None:
            front[item["number"]] = (x, y)
    return front


def reference_term(summary: Mapping[str, Any]) -> str:
    """The loss term whose weight is fixed at 1."""
    return str(summary["search"].get("reference") or REFERENCE)


def _chosen(summary: Mapping[str, Any]) -> tuple[int | None, str]:
    """The number of the trial that won, and what a figure calls it: after a confirmation it need not have the best score."""
    best = summary["search"].get("best_trial")
    return (best["number"] if best else None), "chosen trial" if summary["search"].get("confirmation") else "best trial"


def _loss_weights(summary: Mapping[str, Any]) -> Iterator[Plot]:
    best = summary["search"].get("best_trial")
    weights = best["hyperparameters"]["loss_weights"] if best else {}
    if weights:
        reference = reference_term(summary)
        said = ", ".join(f"{name} {value:.3g}" for name, value in sorted(weights.items(), key=lambda item: -item[1]))
        caption = (
            f"Weights of the loss terms; {reference.replace('_', '-')}, weight 1 (dashed line), is the reference. Terms differ in scale, so a long bar"
            " is not by itself a strong influence: the weight norms are means over all parameters and act weakly even at weight 10."
        )
        figure = draw.loss_weights(weights, reference)
        yield Plot("loss_weights", figure, f"Loss weights, log scale: {said}", caption, [("term", "weight"), *weights.items()])


def _history(summary: Mapping[str, Any], trials: Sequence[Trial]) -> Iterator[Plot]:
    if not trials:
        return
    metric, direction = study_metric(summary), study_direction(summary)
    (number, called), best = _chosen(summary), summary["search"].get("best_trial")
    running = dict(best_so_far(trials, direction))
    found = f"{called.removesuffix(' trial')} {format_value(best['score'], metric)} in trial {number}" if best else "no trial completed"
    given = [trial_label(trial.number, trial.name) for trial in trials if trial.name][:SHOWN]
    lines: list[Cells] = [("trial", "state", "score", "best_so_far", "name", "ci_low", "ci_high")]
    lines += [(t.number, t.state, t.last_score, running.get(t.number), t.name, t.ci_low, t.ci_high) for t in trials]
    yield Plot(
        "history",
        draw.history(trials, metric, direction, number, called),
        f"Optimisation history of {len(trials)} trials: {found}{'; enqueued: ' + ', '.join(given) if given else ''}",
        f"Score of each trial on VAL_OOD{', with 95 % intervals' if any(t.interval for t in trials) else ''};"
        f" {'higher' if direction == 'maximize' else 'lower'} is better.{' Squares are configurations the search was given.' if given else ''}"
        " The best of many noisy scores is optimistic: expect less on new data.",
        lines,
    )


def _intermediate(summary: Mapping[str, Any], trials: Sequence[Trial]) -> Iterator[Plot]:
    reported = [trial for trial in trials if trial.reports]
    if not any(len(trial.reports) > 1 for trial in reported):
        return
    stopped = sum(trial.state != "complete" for trial in reported)
    yield Plot(
        "intermediate_values",
        draw.intermediate(reported, study_metric(summary), *_chosen(summary)),
        f"Reported VAL_OOD scores by optimizer step for {len(reported)} trials, {stopped} of them stopped early",
        "What trials reported on VAL_OOD on the way. Dotted lines that end in a cross were stopped early.",
        [("trial", "step", "score"), *((t.number, step, score) for t in reported for step, score in t.reports.items())],
    )


def _candidates(summary: Mapping[str, Any], trials: Sequence[Trial]) -> Iterator[Plot]:
    found = confirmation_of(summary)
    if found is None:
        return
    intervals = {trial.number: trial.interval for trial in trials if trial.interval is not None}
    several = len(found.candidates) > 1
    caption = (
        f"Fresh runs of {found.steps:,} steps on VAL_OOD, and the search score each configuration was taken for."
        f"{' The mean of the winner is the best of several and still a little optimistic.' if several else ''}"
        f"{' Shaded: means that these runs do not tell from the winner’s.' if several and found.margin_se is not None else ''}"
    )
    lines: list[Cells] = [("trial", "name", "search_score", "run", "score")]
    lines += [(c.number, c.name, c.search_score, index, run) for c in found.candidates for index, run in enumerate(c.runs)]
    said = " ".join(selection_sentences(found))
    yield Plot("candidates", draw.candidates(found, intervals), f"Confirmation of {len(found.candidates)} configurations. {said}", caption, lines)


def _pareto(summary: Mapping[str, Any], trials: Sequence[Trial]) -> Iterator[Plot]:
    front = pareto_front(summary)
    if not front:
        return
    metric, (number, _) = study_metric(summary), _chosen(summary)
    said = "; ".join(
        f"trial {trial} {format_value(x, metric)} ID and {format_value(y, metric)} OOD" for trial, (x, y) in sorted(front.items(), key=lambda item: item[1])
    )
    names = {trial.number: trial.name for trial in trials} | {item["number"]: item.get("name") or "" for item in summary["search"]["pareto"]}
    points = {t.number: (t.val_id, t.score) for t in trials if t.state == "complete" and t.score is not None and t.val_id is not None}
    lines: list[Cells] = [("trial", "name", "val_id", "val_ood", "on_front")]
    lines += [(trial, names.get(trial, ""), x, y, int(trial in front)) for trial, (x, y) in sorted((points | front).items())]
    yield Plot(
        "pareto",
        draw.pareto(trials, front, metric, number),
        f"Validation {metric_in_text(metric)} in and out of distribution; Pareto front: {said}",
        "Every complete trial by both objectives. No trial is better than one on the front in both; which of them is best is a matter of what"
        f" each objective is worth. Noise moves trials on and off the front.{' Vertical lines: 95 % intervals.' if any(t.interval for t in trials) else ''}",
        lines,
    )


def _horizon(summary: Mapping[str, Any]) -> Iterator[Plot]:
    found = horizon_of(summary)
    if found is None or len(found.pairs) < 2:  # one point shows nothing about order
        return
    lines: list[Cells] = [("label", "short", "long", "short_steps", "long_steps")]
    lines += [(pair.label, pair.short, pair.long, found.short_steps, pair.long_steps) for pair in found.pairs]
    said = horizon_sentence(found)
    figure = draw.horizon(found, study_metric(summary))
    yield Plot("horizon", figure, f"Short against long runs of {len(found.pairs)} pairs. {said}", said, lines)
