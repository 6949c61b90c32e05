"""The configurations a search was given to start with, and whether it found better ones."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autoft.report.metrics import format_difference, format_interval, format_value
from autoft.report.results import name_in_text, study_direction, study_metric
from autoft.report.selection import APART, confirmation_of, finite
from autoft.report.trials import Trial


@dataclass(frozen=True)
class Enqueued:
    """One enqueued configuration and how its trial ended; low and high: 95 % interval of the score, where known.

    is_baseline: a configuration in its own right, rather than one that another search had found.
    """

    number: int
    name: str
    score: float | None
    state: str
    low: float | None = None
    high: float | None = None
    is_baseline: bool = True


def enqueued_of(summary: Mapping[str, Any], trials: Sequence[Trial]) -> list[Enqueued]:
    """What was enqueued, in the order of the summary, with the intervals of the table of trials."""
    sources = [item["study"] for item in summary["search"].get("transfer") or []]
    taken_over = ("from ", *(f"{source} #" for source in sources))  # how the name of a trial from another study begins
    ends = {trial.number: trial.interval for trial in trials if trial.interval is not None}
    found = []
    for item in summary["search"].get("enqueued") or []:
        number, name = item["number"], item["name"]
        low, high = ends.get(number, (None, None))
        own = not name.startswith(taken_over)
        found.append(Enqueued(number, name, finite(item.get("score")), item["state"].lower(), low, high, is_baseline=own))
    return found


def named(summary: Mapping[str, Any], trials: Sequence[Trial]) -> list[Trial]:
    """The trials, each with the name the summary gives it where the table of trials has none."""
    names = {item["number"]: item["name"] for item in summary["search"].get("enqueued") or []}
    return [trial if trial.name else replace(trial, name=names.get(trial.number, "")) for trial in trials]


def baseline_sentence(summary: Mapping[str, Any], trials: Sequence[Trial]) -> str | None:
    """The best searched trial against the best enqueued baseline, both by their search score on VAL_OOD; None without baselines.

    Where the confirmation measured the noise of a trial, two standard errors of the difference of two trials decide.
    """
    baselines = [item for item in enqueued_of(summary, trials) if item.is_baseline]
    if not baselines:
        return None
    metric, direction = study_metric(summary), study_direction(summary)
    sign = 1 if direction == "maximize" else -1
    scored = [item for item in baselines if item.score is not None and item.state.endswith("complete")]
    searched = _searched(trials, {item.number for item in baselines})
    if not scored:
        return "No enqueued baseline has a score on VAL_OOD to compare the search with."
    base = max(scored, key=lambda item: sign * (item.score or 0.0))
    base_text = f"trial {base.number}, {name_in_text(base.name)}: {_shown(base.score, (base.low, base.high), metric)}"
    if not searched:
        return f"No other trial has a score to compare with the best enqueued baseline ({base_text})."
    best = max(searched, key=lambda trial: sign * (trial.score or 0.0))
    gain = sign * ((best.score or 0.0) - (base.score or 0.0))
    best_text = f"trial {best.number}: {_shown(best.score, best.interval or (None, None), metric)}"
    said = f"the best of {_count(searched, 'searched trial')} ({best_text})"
    size = format_difference(gain, metric)
    if gain <= 0 or float(size.split()[0]) == 0:
        return f"The search did not beat its baselines on VAL_OOD: {said} is {_behind(size)} the best of them ({base_text}).{_chosen(summary, baselines)}"
    against = f"the best of {_count(baselines, 'enqueued baseline')} ({base_text})"
    return f"On VAL_OOD, {said} is {size} better than {against}{_doubt(summary, gain)}{_chosen(summary, baselines)}"


def _chosen(summary: Mapping[str, Any], baselines: Sequence[Enqueued]) -> str:
    best = summary["search"].get("best_trial")
    name = next((item.name for item in baselines if best and item.number == best["number"]), None)
    return "" if name is None else f" The configuration that was chosen is a baseline itself: {name_in_text(name)}."


def _count(items: Sequence[object], noun: str) -> str:
    return f"{len(items)} {noun}{'s' if len(items) != 1 else ''}"


def _behind(size: str) -> str:
    return "level with" if float(size.split()[0]) == 0 else f"{size} behind"


def _doubt(summary: Mapping[str, Any], gain: float) -> str:
    """What seed noise says of a difference between two trials, with the bias of taking the best of many.

    A trial is the mean of its repeats. The noise of runs longer than a trial is not that of trials.
    """
    found = confirmation_of(summary)
    biased = "the best of many noisy scores is optimistic"
    if found is None or found.noise_sd is None or not found.same_steps:
        return f"; {biased}, and the noise of a trial was not measured."
    error = found.noise_sd * math.sqrt(2 / (summary["search"].get("repeats") or 1))
    said = f"two trials of one configuration differ by {format_difference(error, found.metric)} (standard error)"
    if gain < APART * error:
        return f": within the noise, since {said}."
    return f", and {said}: more than noise, though {biased}."


def _searched(trials: Sequence[Trial], baselines: set[int]) -> list[Trial]:
    return [trial for trial in trials if trial.state == "complete" and trial.score is not None and trial.number not in baselines]


def _shown(score: float | None, interval: tuple[float | None, float | None], metric: str) -> str:
    return f"{format_value(score, metric)} {format_interval(*interval, metric)}".rstrip()
