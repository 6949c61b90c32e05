"""How the configuration was chosen: the confirmation runs, and what their noise allows to be said of the choice."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from autoft.report.metrics import format_difference, format_value
from autoft.report.results import name_in_text, study_direction, study_metric

# How many standard errors the winner must lead by to be called ahead: about 95 % for one comparison fixed beforehand. It errs on
# the generous side, since the winner is the best of several and the noise is estimated from few runs.
APART = 2.0
FEW = 5  # degrees of freedom below which an estimate of noise is called uncertain
Standing = Literal["alone", "unknown", "toss", "close", "ahead"]
_WORDS: Mapping[Standing, str] = {
    "toss": "the two are not distinguishable, and the choice between them is a coin toss",
    "close": "the two are not distinguishable by these runs",
    "ahead": "it is clearly ahead",
}


@dataclass(frozen=True)
class Candidate:
    """One confirmed configuration. runs: scores of its fresh runs, those that have one; mean and sd: over them."""

    number: int
    name: str
    search_score: float | None
    runs: tuple[float, ...]
    mean: float | None
    sd: float | None

    @property
    def label(self) -> str:
        """`trial 17`, or `trial 3 (L2-SP)` where it has a name."""
        return trial_label(self.number, self.name)


@dataclass(frozen=True)
class Confirmation:
    """The candidates, best mean first, and the winner's lead over the next one with the standard error of such a lead.

    margin, noise_sd and margin_se are in the metric's own unit (shares for accuracy); None where not known.
    """

    metric: str
    direction: str
    steps: int
    search_steps: int | None
    repeats: int
    candidates: tuple[Candidate, ...]
    winner: Candidate
    margin: float | None
    noise_sd: float | None
    margin_se: float | None

    @property
    def runner_up(self) -> Candidate | None:
        """The best candidate that did not win."""
        return next((c for c in self.candidates if c.number != self.winner.number and c.mean is not None), None)

    @property
    def degrees_of_freedom(self) -> int:
        """How many independent differences between runs of one configuration the noise is estimated from."""
        return sum(max(len(candidate.runs) - 1, 0) for candidate in self.candidates)

    @property
    def same_steps(self) -> bool:
        """Whether a confirmation run is as long as a trial, so that their scores measure the same thing."""
        return self.search_steps is None or self.search_steps == self.steps

    @property
    def standing(self) -> Standing:
        """What the margin says, in standard errors: below one a toss, below `APART` close, else ahead."""
        if self.runner_up is None or self.margin is None:
            return "alone"
        if self.margin_se is None:
            return "unknown"
        if self.margin <= 0 or self.margin < self.margin_se:
            return "toss"
        return "close" if self.margin < APART * self.margin_se else "ahead"

    def flattery(self, candidate: Candidate) -> float | None:
        """How much better than its confirmed mean the search had a candidate; positive: the search score was optimistic."""
        if candidate.search_score is None or candidate.mean is None:
            return None
        difference = candidate.search_score - candidate.mean
        return difference if self.direction == "maximize" else -difference


def finite(value: float | None) -> float | None:
    """The value, or None for None, nan and infinities."""
    return value if value is not None and math.isfinite(value) else None


def trial_label(number: int, name: str | None) -> str:
    """`trial 17`, or `trial 3 (L2-SP)` for a configuration with a name."""
    return f"trial {number} ({name_in_text(name)})" if name else f"trial {number}"


def confirmation_of(summary: Mapping[str, Any]) -> Confirmation | None:
    """The confirmation of a run; None if there was none, or if nothing in it has a score."""
    found = summary["search"].get("confirmation")
    if not found:
        return None
    direction = study_direction(summary)
    sign = -1 if direction == "maximize" else 1
    candidates = [_candidate(item) for item in found["candidates"]]
    candidates.sort(key=lambda candidate: math.inf if candidate.mean is None else sign * candidate.mean)
    winner = next((candidate for candidate in candidates if candidate.number == found["winner"]), None)
    if winner is None or winner.mean is None:
        return None
    return Confirmation(
        metric=study_metric(summary),
        direction=direction,
        steps=found["steps"],
        search_steps=summary["search"].get("steps"),
        repeats=found["repeats"],
        candidates=tuple(candidates),
        winner=winner,
        margin=finite(found.get("margin")),
        noise_sd=finite(found.get("noise_sd")),
        margin_se=finite(found.get("margin_se")),
    )


def _candidate(item: Mapping[str, Any]) -> Candidate:
    runs = tuple(run for run in map(finite, item["scores"]) if run is not None)
    return Candidate(
        item["number"], item.get("name") or "", finite(item.get("search_score")), runs, finite(item.get("mean")), finite(item.get("sd"))
    )


def margin_sentence(found: Confirmation) -> str:
    """The winner's lead against the noise of seeds, and whether that makes it the better one."""
    winner, second = _capital(found.winner.label), found.runner_up
    standing = found.standing
    if second is None or found.margin is None:
        return f"{winner} is the only configuration that was confirmed, so there is no lead to judge."
    size = format_difference(found.margin, found.metric)
    lead = f"{winner} leads the runner-up, {second.label}, by {size}"
    if float(size.split()[0]) == 0:
        lead = f"{winner} is level with the runner-up, {second.label}"
    elif found.margin < 0:
        lead = f"{winner} was chosen although its mean is {size} behind that of {second.label}"
    if found.margin_se is None or standing not in _WORDS:
        return f"{lead}; each ran once, so the noise of a seed is not known and the lead may be luck."
    error = format_difference(found.margin_se, found.metric)
    return f"{lead}; one configuration confirmed twice would differ by {error} (standard error, {_runs(found.repeats)} each): {_WORDS[standing]}."


def noise_sentence(found: Confirmation) -> str | None:
    """What one run varies by and how well that is known; None where no configuration ran twice."""
    if found.noise_sd is None:
        return None
    total = sum(len(candidate.runs) for candidate in found.candidates)
    text = (
        f"A single run varies by {format_difference(found.noise_sd, found.metric)} (standard deviation over seeds, pooled over"
        f" {_runs(total)} of {len(found.candidates)} configuration{'s' if len(found.candidates) != 1 else ''})"
    )
    doubt = "; from so few runs that is itself uncertain" if found.degrees_of_freedom < FEW else ""
    return f"{text}{doubt}. All runs are scored on the same VAL_OOD images, so what other images would give is not in it."


def optimism_sentence(found: Confirmation) -> str | None:
    """The winner's score in the search against its mean over fresh runs; None where one of them is not known."""
    winner, extra = found.winner, found.flattery(found.winner)
    if extra is None:
        return None
    text = (
        f"The search had scored {winner.label} {format_value(winner.search_score, found.metric)}; its {_runs(len(winner.runs))} with fresh"
        f" seeds average {format_value(winner.mean, found.metric)}"
    )
    if not found.same_steps:
        return f"{text}. They ran {found.steps:,} steps against {found.search_steps:,} in the search, so more than luck lies between the two."
    size = format_difference(extra, found.metric)
    if float(size.split()[0]) == 0:
        return f"{text}: the same."
    if extra > 0:
        return f"{text}: the search score was {size} too good."
    return f"{text}: {size} better than in the search, which did not flatter it."


def overtaken_sentence(found: Confirmation) -> str | None:
    """That the best search score did not hold, where another configuration won."""
    scored = [c for c in found.candidates if c.search_score is not None and c.mean is not None]
    if not scored:
        return None
    better = max if found.direction == "maximize" else min
    first = better(scored, key=lambda candidate: candidate.search_score or 0.0)
    if first.number == found.winner.number or first.search_score == found.winner.search_score:
        return None
    return (
        f"The best search score of them, {format_value(first.search_score, found.metric)} by {first.label}, did not hold:"
        f" confirmed at {format_value(first.mean, found.metric)}, it was not chosen."
    )


def selection_sentences(found: Confirmation) -> list[str]:
    """Everything the report says in words of a confirmation, the margin first."""
    sentences = (margin_sentence(found), noise_sentence(found), optimism_sentence(found), overtaken_sentence(found))
    return [sentence for sentence in sentences if sentence]


def _runs(count: int) -> str:
    return f"{count} run{'s' if count != 1 else ''}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
