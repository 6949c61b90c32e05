"""The evaluations of summary.json as a grid: models down, data sets across, averages with intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoft.report.metrics import metric_direction

MODEL_NAMES: Mapping[str, str] = {
    "zero_shot": "Zero-shot",
    "finetune": "Plain fine-tuning",
    "flyp": "FLYP (contrastive)",
    "l2sp": "L2-SP",
    "published-iwildcam": "Published iWildCam configuration",
    "published-fmow": "Published FMoW configuration",
    "published-imagenet": "Published ImageNet configuration",
    "final": "AutoFT",
    "wise_ft": "AutoFT + WiSE-FT",
}
SPLIT_NAMES: Mapping[str, str] = {
    "test_id": "In distribution",
    "test_ood": "Out of distribution",
    "val_id": "Validation, in distribution",
    "val_ood": "Validation, out of distribution",
}
SPLITS = ("test_id", "test_ood", "val_id", "val_ood")


@dataclass(frozen=True)
class Score:
    """A value with its 95 % interval and the number of images behind it."""

    value: float
    low: float | None
    high: float | None
    n: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """(low, high), or None where either end is unknown."""
        if self.low is None or self.high is None or not (math.isfinite(self.low) and math.isfinite(self.high)):
            return None
        return self.low, self.high


@dataclass(frozen=True)
class Column:
    """One data set of one split."""

    dataset: str
    split: str


@dataclass(frozen=True)
class Row:
    """One model trained with one seed, and its scores."""

    model: str
    seed: int | None
    label: str
    scores: Mapping[Column, Score]


@dataclass(frozen=True)
class Results:
    """Every evaluation of one metric."""

    metric: str
    direction: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    def of_split(self, split: str) -> tuple[Column, ...]:
        """The data sets of a split, in the order of the summary."""
        return tuple(column for column in self.columns if column.split == split)

    def average(self, row: Row, split: str) -> Score | None:
        """A row's mean over the data sets of a split, each counting the same; None unless the row has them all."""
        columns = self.of_split(split)
        if not columns or any(column not in row.scores for column in columns):
            return None
        return mean_score([row.scores[column] for column in columns])

    def images(self, column: Column) -> int:
        """How many images a data set has: the most any model was scored on."""
        return max((row.scores[column].n for row in self.rows if column in row.scores), default=0)

    def model(self, model: str) -> tuple[Row, ...]:
        """The rows of a model, one a seed."""
        return tuple(row for row in self.rows if row.model == model)


def mean_score(scores: Sequence[Score]) -> Score:
    """The mean of scores on different images, with a 95 % interval.

    The interval recovers each set's variance from its own two ends, so that asymmetric intervals stay asymmetric (MOVER, Zou &
    Donner 2008, "Construction of confidence limits about effect measures"). It takes the sets as independent: sets that share
    images give too narrow an interval.
    """
    count = len(scores)
    value = math.fsum(score.value for score in scores) / count
    intervals = [score.interval for score in scores]
    known = [interval for interval in intervals if interval is not None]
    total = sum(score.n for score in scores)
    if len(known) < count:
        return Score(value, None, None, total)
    below = math.sqrt(math.fsum((score.value - low) ** 2 for score, (low, _) in zip(scores, known, strict=True))) / count
    above = math.sqrt(math.fsum((high - score.value) ** 2 for score, (_, high) in zip(scores, known, strict=True))) / count
    return Score(value, value - below, value + above, total)


def overlap(first: Score, second: Score) -> bool | None:
    """Whether two intervals share a point; None if either is unknown."""
    a, b = first.interval, second.interval
    return None if a is None or b is None else a[0] <= b[1] and b[0] <= a[1]


def study_metric(summary: Mapping[str, Any]) -> str:
    """The study's metric: named in the summary, else the first one evaluated, else accuracy."""
    evaluations = summary.get("evaluations", [])
    return str(summary.get("metric") or (evaluations[0]["metric"] if evaluations else "accuracy"))


def study_direction(summary: Mapping[str, Any]) -> str:
    """`maximize` or `minimize`: named in the summary, else the metric's own."""
    return str(summary.get("direction") or metric_direction(study_metric(summary)))


def metrics_of(summary: Mapping[str, Any]) -> list[str]:
    """Every metric evaluated, the study's own first."""
    own = study_metric(summary)
    found = dict.fromkeys(str(item["metric"]) for item in summary.get("evaluations", []))
    return [own, *(metric for metric in found if metric != own)] if own in found else list(found) or [own]


def results(summary: Mapping[str, Any], metric: str | None = None) -> Results:
    """The grid of one metric (default: the study's). Zero-shot first, then baselines, then AutoFT's own models."""
    metric = metric or study_metric(summary)
    items = [item for item in summary.get("evaluations", []) if item["metric"] == metric]
    columns = dict.fromkeys(Column(str(item["dataset"]), str(item["split"])) for item in items)
    runs: dict[tuple[str, int | None], dict[Column, Score]] = {}
    for item in items:
        scores = runs.setdefault((str(item["model"]), item.get("seed")), {})
        scores[Column(str(item["dataset"]), str(item["split"]))] = Score(item["value"], item.get("ci_low"), item.get("ci_high"), item["n"])
    models = [model for model, _ in runs]
    names = _names(summary)
    rows = [Row(model, seed, _label(names.get(model, model), seed, models.count(model) > 1), scores) for (model, seed), scores in runs.items()]
    direction = study_direction(summary) if metric == study_metric(summary) else metric_direction(metric)
    return Results(metric, direction, tuple(sorted(columns, key=_split_order)), tuple(sorted(rows, key=_model_order)))


def model_name(model: str) -> str:
    """A model's name as a reader sees it; `published/fmow` and `published-fmow` are the same."""
    return MODEL_NAMES.get(model.replace("/", "-"), model)


def name_in_text(model: str) -> str:
    """A model's name inside a sentence: our own start in lower case unless they are proper names; a user's stays as it is."""
    name = model_name(model)
    word = name.split()[0] if name.split() else name
    return name if name == model or word[1:] != word[1:].lower() or any(c.isdigit() for c in word) else name[0].lower() + name[1:]


def split_name(split: str) -> str:
    """A split's name as a reader sees it."""
    return SPLIT_NAMES.get(split, split)


def _names(summary: Mapping[str, Any]) -> dict[str, str]:
    """What `final` and `wise_ft` are called in a run without a search: the configuration that was fine-tuned."""
    method = summary.get("method")
    return {} if method is None else {"final": model_name(str(method)), "wise_ft": f"{model_name(str(method))} + WiSE-FT"}


def _label(model: str, seed: int | None, several: bool) -> str:
    return f"{model_name(model)}, seed {seed}" if several else model_name(model)


def _split_order(column: Column) -> int:
    return SPLITS.index(column.split) if column.split in SPLITS else len(SPLITS)


def _model_order(row: Row) -> int:
    return {"zero_shot": 0, "final": 2, "wise_ft": 3}.get(row.model, 1)
