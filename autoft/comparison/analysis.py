"""Every figure a comparison shows, computed once: the methods ranked by average OOD, and what each is measured against."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from autoft.comparison.names import title
from autoft.comparison.records import FINETUNE, LINEAR_PROBE, OURS, ZERO_SHOT, Comparison, MemoryKind, Method, Run, json_rows
from autoft.comparison.statistics import BySeed, Difference, Mean, corrected, difference, mean_of
from autoft.report.results import Column, Results, results
from autoft.report.robustness import Baseline, effective_robustness, fit_baseline

ACCURACIES = ("accuracy", "worst_group_accuracy")  # metrics that effective robustness is defined for


@dataclass(frozen=True)
class Entry:
    """One method's figures, in the metric's own unit, seconds and bytes.

    by_seed: average OOD and ID of each seed, by split. problems: runs that failed, are absent or are not scored everywhere, named.
    to_finetune, to_baseline: difference in average OOD, own less other; None for the method itself.
    """

    method: Method
    title: str
    deterministic: bool
    finished: int
    expected: int
    problems: tuple[str, ...]
    scores: Mapping[Column, Mean]
    by_seed: Mapping[str, BySeed]
    val_ood: Mean | None
    train_seconds: float | None
    tune_seconds: float | None
    peak_memory_bytes: int | None
    peak_memory_kind: MemoryKind | None
    steps: int | None
    robustness: Mean | None = None
    to_finetune: Difference | None = None
    to_baseline: Difference | None = None

    @property
    def name(self) -> str:
        """The method's name in records."""
        return self.method.name

    @property
    def ours(self) -> bool:
        """Whether this is AutoFT."""
        return self.name in OURS

    @property
    def ood(self) -> Mean | None:
        """Average OOD over seeds."""
        return self.average("test_ood")

    @property
    def id(self) -> Mean | None:
        """Average ID over seeds."""
        return self.average("test_id")

    def average(self, split: str) -> Mean | None:
        """The mean over seeds of the average over a split's data sets; None if no seed has them all."""
        values = list(self.by_seed[split].values())
        return mean_of(values) if values else None

    @property
    def seconds(self) -> float | None:
        """Training one model, and the tuning before it; None where the training time is not known."""
        return None if self.train_seconds is None else self.train_seconds + (self.tune_seconds or 0.0)


@dataclass(frozen=True)
class Analysis:
    """entries: best average OOD first, those without one last. baseline: name of the best baseline, chosen by mean VAL_OOD score.

    reference: the line effective robustness is measured from, where the metric is an accuracy.
    """

    comparison: Comparison
    entries: tuple[Entry, ...]
    columns: tuple[Column, ...]
    baseline: str | None
    reference: Baseline | None

    @property
    def robust(self) -> bool:
        """Whether there is effective robustness to show."""
        return any(entry.robustness is not None for entry in self.entries)

    @property
    def ranked(self) -> bool:
        """Whether there are enough seeds anywhere for the signed-rank test."""
        return any(item and item.wilcoxon is not None for entry in self.entries for item in (entry.to_finetune, entry.to_baseline))

    @property
    def seeds(self) -> int:
        """How many seeds the comparison has."""
        return len(self.comparison.seeds)

    @property
    def sign(self) -> int:
        """What makes a difference positive where it is an improvement."""
        return 1 if self.comparison.direction == "maximize" else -1

    def of_split(self, split: str) -> tuple[Column, ...]:
        """The data sets of a split."""
        return tuple(column for column in self.columns if column.split == split)

    def entry(self, name: str | None) -> Entry | None:
        """The method of that name, if it is here."""
        return next((entry for entry in self.entries if entry.name == name), None)

    def best_tuning(self, entry: Entry) -> float | None:
        """The best score among a method's tuning evaluations."""
        scored = [score for score in entry.method.tuning_scores if score is not None]
        return max(scored, key=lambda score: self.sign * score) if scored else None

    def rank(self, entry: Entry) -> int:
        """A method's place by average OOD, from 1."""
        return self.entries.index(entry) + 1

    def between(self, first: Entry, second: Entry, split: str = "test_ood") -> Difference | None:
        """First less second on a split's average, by seed, not corrected for how many are looked at."""
        return difference(first.by_seed[split], second.by_seed[split])


def analyse(comparison: Comparison) -> Analysis:
    """Everything that is shown. Nothing depends on the order of methods, runs or seeds."""
    metric, direction = comparison.metric, comparison.direction
    grid = results({"metric": metric, "direction": direction, "evaluations": json_rows(comparison)})
    entries = {method.name: _entry(comparison, grid, method) for method in comparison.methods}
    sign = 1 if direction == "maximize" else -1
    baseline = _best_baseline(entries.values(), sign)
    images = {split: sum(grid.images(column) for column in grid.of_split(split)) for split in ("test_id", "test_ood")}
    reference = _reference(entries, images) if metric in ACCURACIES else None
    if reference is not None:
        entries = {name: replace(entry, robustness=_robustness(entry, reference, images)) for name, entry in entries.items()}
    columns = {"to_finetune": _against(entries, FINETUNE), "to_baseline": _against(entries, baseline)}
    found = [
        replace(entry, to_finetune=columns["to_finetune"].get(name), to_baseline=columns["to_baseline"].get(name))
        for name, entry in entries.items()
    ]
    found.sort(key=lambda entry: (entry.ood is None, -sign * entry.ood.value if entry.ood else 0.0, entry.name))
    return Analysis(comparison, tuple(found), grid.columns, baseline, reference)


def _entry(comparison: Comparison, grid: Results, method: Method) -> Entry:
    runs = comparison.runs_of(method.name)
    done = [run for run in runs if run.error is None]
    deterministic = comparison.deterministic(method.name)
    rows = {None if deterministic else row.seed: row for row in grid.model(method.name)}
    by_seed = {
        split: {seed: average.value for seed, row in rows.items() if (average := grid.average(row, split)) is not None}
        for split in ("test_id", "test_ood")
    }
    values = {column: [row.scores[column].value for row in rows.values() if column in row.scores] for column in grid.columns}
    peak = max((run for run in runs if run.peak_memory_bytes is not None), key=lambda run: run.peak_memory_bytes or 0, default=None)
    return Entry(
        method=method,
        title=title(method.name),
        deterministic=deterministic,
        finished=len(done),
        expected=1 if deterministic else max(len(comparison.seeds), len(runs)),
        problems=_problems(comparison, grid, runs, deterministic),
        scores={column: mean_of(found) for column, found in values.items() if found},
        by_seed=by_seed,
        val_ood=_mean([run.val_ood for run in done]),
        train_seconds=_average([run.train_seconds for run in done]),
        tune_seconds=_average([run.tune_seconds for run in runs]),
        peak_memory_bytes=None if peak is None else peak.peak_memory_bytes,
        peak_memory_kind=None if peak is None else peak.peak_memory_kind,
        steps=max((run.steps for run in done if run.steps is not None), default=None),
    )


def _problems(comparison: Comparison, grid: Results, runs: Sequence[Run], deterministic: bool) -> tuple[str, ...]:
    found = []
    for run in runs:
        who = "its only run" if run.seed is None else f"seed {run.seed}"
        scored = {(row.dataset, row.split) for row in run.evaluations if row.metric == grid.metric}
        lacking = [column.dataset for column in grid.columns if (column.dataset, column.split) not in scored]
        if run.error is not None:
            found.append(f"{who} failed ({run.error})")
        elif lacking:
            found.append(f"{who} was not scored on {', '.join(lacking)}")
    absent = set() if deterministic else set(comparison.seeds) - {run.seed for run in runs}
    return (*found, *(f"seed {seed} was not run" for seed in sorted(absent)))


def _best_baseline(entries: Iterable[Entry], sign: int) -> str | None:
    """The best mean VAL_OOD score of those that are neither AutoFT nor zero-shot; validation data only."""
    eligible = [entry for entry in entries if entry.name not in (*OURS, ZERO_SHOT) and entry.val_ood is not None]
    eligible.sort(key=lambda entry: (-sign * entry.val_ood.value if entry.val_ood else 0.0, entry.name))
    return eligible[0].name if eligible else None


def _against(entries: Mapping[str, Entry], other: str | None) -> dict[str, Difference | None]:
    """Each method less one of them on average OOD, Holm's correction over the column."""
    if other is None or other not in entries:
        return {}
    reference = entries[other].by_seed["test_ood"]
    return corrected({name: difference(entry.by_seed["test_ood"], reference) for name, entry in entries.items() if name != other})


def _reference(entries: Mapping[str, Entry], images: Mapping[str, int]) -> Baseline | None:
    """The line through every run of plain fine-tuning and of linear probing; None if neither ran."""
    points = [point for name in (FINETUNE, LINEAR_PROBE) if name in entries for point in _both(entries[name])]
    return fit_baseline(points, id_images=images["test_id"], ood_images=images["test_ood"]) if points else None


def _robustness(entry: Entry, reference: Baseline, images: Mapping[str, int]) -> Mean | None:
    """Mean over seeds; the line is taken as given, so its own uncertainty is in no interval."""
    return _mean([effective_robustness(x, y, reference, images["test_id"]) for x, y in _both(entry)])


def _both(entry: Entry) -> list[tuple[float, float]]:
    """(average ID, average OOD) of each run that has both."""
    x, y = entry.by_seed["test_id"], entry.by_seed["test_ood"]
    return [(x[seed], y[seed]) for seed in sorted(x.keys() & y.keys(), key=lambda seed: seed or 0)]


def _mean(values: Iterable[float | None]) -> Mean | None:
    known = [value for value in values if value is not None]
    return mean_of(known) if known else None


def _average(values: Iterable[float | None]) -> float | None:
    mean = _mean(values)
    return None if mean is None else mean.value
