"""A careful verdict: what the evaluations say about the checkpoint, and what they do not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoft.report.leakage import leakage_caution
from autoft.report.metrics import format_difference, format_interval, format_value, metric_in_text
from autoft.report.results import Results, Row, Score, model_name, name_in_text, overlap, results
from autoft.report.selection import confirmation_of, margin_sentence

CAVEAT = (
    "Intervals are 95 % and cover the sampling of test images only, not what another seed or another search would give."
    " The models see the same images, so a paired test of their predictions would separate them better than comparing intervals."
)
OVERLAP: Mapping[bool | None, str] = {
    True: "the intervals overlap, so this run does not tell them apart",
    False: "the intervals do not overlap",
    None: "there are no intervals to compare",
}
SPLITS: Mapping[str, str] = {"test_ood": "Out of distribution", "test_id": "In distribution"}


@dataclass(frozen=True)
class Statement:
    """A sentence, and the comparisons with other models that belong to it."""

    text: str
    comparisons: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join([self.text, *(f"{comparison[0].upper()}{comparison[1:]}." for comparison in self.comparisons)])


def subject(grid: Results) -> str | None:
    """The model the report is about: WiSE-FT's if it was made, else the final fine-tune."""
    present = {row.model for row in grid.rows}
    return next((model for model in ("wise_ft", "final") if model in present), None)


def verdict(summary: Mapping[str, Any]) -> list[Statement]:
    """Shared images, the checkpoint on average OOD against zero-shot and every baseline, on average ID, and how sure its choice was.

    `CAVEAT` goes with it. Several seeds of one model are read as their mean value with the widest of their intervals.
    """
    grid = results(summary)
    name = subject(grid)
    state = summary["state"]
    found = [] if state == "complete" else [Statement(f"This run is not complete (state: {state}); what follows is what it has so far.")]
    caution = leakage_caution(summary)
    found += [Statement(caution)] if caution else []
    if name is None:
        return [*found, _without_tests(summary), *_selection(summary)]
    for split in SPLITS:
        statement = _on_split(grid, name, split)
        if statement is not None:
            found.append(statement)
        elif split == "test_ood":
            found.append(
                Statement("No out-of-distribution test set was evaluated, so this run does not say how robust the checkpoint is.")
            )
    return [*found, *_selection(summary), *_interpolation(summary)]


def compare(own: Score, other: Score, grid: Results) -> str:
    """`2.1 points above`, `0.12 nats lower (better) than` or `level with`: the size as printed, whatever the intervals say."""
    size = format_difference(own.value - other.value, grid.metric)
    if float(size.split()[0]) == 0:
        return "level with"
    more = own.value > other.value
    if grid.direction == "minimize":
        return f"{size} {'higher (worse)' if more else 'lower (better)'} than"
    return f"{size} {'above' if more else 'below'}"


def _on_split(grid: Results, name: str, split: str) -> Statement | None:
    own = _pooled(grid, grid.model(name), split)
    if own is None:
        return None
    columns = grid.of_split(split)
    where = columns[0].dataset if len(columns) == 1 else f"average of {len(columns)} test sets"
    text = f"{SPLITS[split]} ({where}), {model_name(name)} has {_a(metric_in_text(grid.metric))} of {_shown(own, grid.metric)}"
    comparisons = []
    for other in dict.fromkeys(row.model for row in grid.rows if row.model not in ("final", "wise_ft")):
        score = _pooled(grid, grid.model(other), split)
        if score is not None:
            against = f"{name_in_text(other)}, {_shown(score, grid.metric)}"
            comparisons.append(f"{compare(own, score, grid)} {against}: {OVERLAP[overlap(own, score)]}")
    return Statement(f"{text}." if comparisons else f"{text}; no other model was evaluated there.", tuple(comparisons))


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _shown(score: Score, metric: str) -> str:
    """Value and interval that stay on one line (no-break spaces)."""
    text = f"{format_value(score.value, metric)} {format_interval(score.low, score.high, metric)}".rstrip()
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _pooled(grid: Results, rows: Sequence[Row], split: str) -> Score | None:
    scores = [score for row in rows if (score := grid.average(row, split)) is not None]
    if not scores:
        return None
    ends = [score.interval for score in scores]
    known = [interval for interval in ends if interval is not None]
    value = sum(score.value for score in scores) / len(scores)
    if len(known) < len(ends):
        return Score(value, None, None, scores[0].n)
    return Score(value, min(low for low, _ in known), max(high for _, high in known), scores[0].n)


def _without_tests(summary: Mapping[str, Any]) -> Statement:
    best = summary["search"].get("best_trial")
    if best is None:
        return Statement("No trial finished with a score, so there is no checkpoint to judge.")
    metric = results(summary).metric
    confirmed = confirmation_of(summary)
    score, which = Score(best["score"], best.get("ci_low"), best.get("ci_high"), 0), "best trial"
    if confirmed is not None and confirmed.winner.mean is not None:
        score, which = Score(confirmed.winner.mean, None, None, 0), "chosen configuration, run again with fresh seeds,"
    return Statement(
        f"No test set was evaluated. The {which} has {_a(metric_in_text(metric))} of {_shown(score, metric)} on VAL_OOD,"
        " the set it was chosen on: that figure flatters the checkpoint and says little about new data."
    )


def _selection(summary: Mapping[str, Any]) -> list[Statement]:
    """How far the winner leads the runner-up, where that was measured."""
    confirmed = confirmation_of(summary)
    return [] if confirmed is None or confirmed.standing == "alone" else [Statement(f"Choice of configuration: {margin_sentence(confirmed)}")]


def _interpolation(summary: Mapping[str, Any]) -> list[Statement]:
    wise_ft = summary.get("wise_ft") or {}
    if wise_ft.get("alpha") == 0:
        return [
            Statement("WiSE-FT chose alpha 0: the checkpoint has the zero-shot weights, since fine-tuning did not help on validation data.")
        ]
    if wise_ft.get("alpha") == 1:
        return [Statement("WiSE-FT chose alpha 1: the checkpoint is the fine-tuned model unchanged.")]
    return []
