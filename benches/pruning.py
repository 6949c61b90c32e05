"""Whether pruning pays on short trials: `python -m benches.pruning`.

Every configuration is trained once, unpruned, with all its reports, and each part of it is timed: that is its curve. Then each pruner goes
through the same configurations in the real coordinator, over an executor that plays the curves back on a simulated clock: two workers, a
report's validation pass counted where a pruner asks for it, a pruned trial ended at the report at which it was pruned. So all pruners see the
very same trials, and what differs is what they cut short. The sampler is the random one: TPE's suggestions depend on what was pruned.

    pruning_time_ratio   search seconds with the default pruner / without, median over seeds (goal: at most 0.5 at the same confirmed score)

The confirmed score is that of the configuration with the best score at the end of the search, the mean of `CONFIRM` runs with fresh seeds.
"""

import argparse
import heapq
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import scipy.stats

from autoft.config import StudyConfig, load_config
from autoft.errors import TrialCodeError
from autoft.executor import Emit, Event, Finished, Job, Reported, Stopped
from autoft.journal import Journal
from autoft.ledger import study_id
from autoft.pipeline import package_versions
from autoft.search import Coordinator
from autoft.search_space import Hyperparameters
from autoft.stages import StageRequest
from autoft.trial import Report, TrialDiverged, TrialResult, run_trial, trial_splits
from autoft.workspace import Workspace, configure_torch
from benches.figures import CORES, HERE, hardware, spread, write

SHARED = HERE.parents[1] / "shared"
CONFIRM = 3
WORKERS = 2
PRUNERS = ("none", "median", "hyperband")  # wilcoxon compares repeats, which these trials do not have


@dataclass(frozen=True)
class Curve:
    """One configuration trained to its end. Seconds are of the training between two reports; a report's own come on top.

    result: None where the loss was not finite.
    """

    seconds: Sequence[float]
    reports: Sequence[Report]
    scoring_seconds: float
    result: TrialResult | None


class Playback:
    """Plays curves back on `WORKERS` simulated workers; `seconds` is its clock."""

    def __init__(self, curves: dict[str, Curve], scores_reports: bool) -> None:
        self._curves, self._scores = curves, scores_reports
        self._due: list[tuple[float, int]] = []  # when which trial says its next word
        self._words: dict[int, Iterator[tuple[float, Event]]] = {}
        self._next: dict[int, Event] = {}
        self.seconds = 0.0

    slots = WORKERS
    ahead = 0

    def submit(self, job: Job) -> None:
        """Start a trial now."""
        self._words[job.number] = self._say(job)
        self._schedule(job.number)

    def poll(self, timeout_seconds: float) -> list[Event]:
        """What happens next; the clock goes there."""
        if not self._due:
            return []
        self.seconds, number = heapq.heappop(self._due)
        event = self._next.pop(number)
        if isinstance(event, Reported):
            self._schedule(number)
        return [event]

    def prune(self, number: int) -> None:
        """End a trial at the report it has just made."""
        self._due = [entry for entry in self._due if entry[1] != number]
        heapq.heappush(self._due, (self.seconds, number))
        self._next[number] = Stopped(number, 0, 0.0, "playback")

    def forget(self) -> None:
        """Nothing is left to forget."""

    def run_stages(self, request: StageRequest, emit: Emit) -> None:
        """There are none."""
        raise NotImplementedError

    def run_all_stages(self, requests: Sequence[StageRequest], emit: Emit) -> Iterator[tuple[int, TrialCodeError | None]]:
        """There are none."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to close."""

    def _schedule(self, number: int) -> None:
        after, self._next[number] = next(self._words[number])
        heapq.heappush(self._due, (self.seconds + after, number))

    def _say(self, job: Job) -> Iterator[tuple[float, Event]]:
        curve = self._curves[job.hyperparameters.digest()]
        waited = 0.0
        for seconds, report in zip(curve.seconds[:-1], curve.reports[:-1], strict=True):
            waited += seconds
            if self._scores:
                yield waited + curve.scoring_seconds, Reported(job.number, report)
                waited = 0.0
        result = curve.result
        assert result is not None
        yield waited + curve.seconds[-1] + curve.scoring_seconds, Finished(job.number, result, "playback")


def main() -> None:
    """Measure the curves and play them back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", nargs="+", type=Path, default=[SHARED / "examples" / f"{name}.yaml" for name in ("pacs", "cifar10")])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--steps", type=int, help="of a trial (default: the study's)")
    parser.add_argument("--dry-run", action="store_true", help="print the figures and write nothing")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    configure_torch(CORES)
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="autoft-bench-") as folder:
        for path in args.studies:
            changes = ["search.sampler=random", "search.pruner=hyperband", f"search.n_trials={args.trials}"]
            config = load_config(path, changes + ([f"trial.steps={args.steps}"] if args.steps else []))
            figures[config.study] = measure(config, args.seeds, Path(folder))
            print(config.study, json.dumps(figures[config.study], indent=1), flush=True)
    if not args.dry_run:
        setting = {"trials": args.trials, "seeds": args.seeds, "workers": WORKERS, "confirm_runs": CONFIRM, "sampler": "random"}
        record = {"date": time.strftime("%Y-%m-%d"), "hardware": hardware(), "versions": package_versions(), "setting": setting, "figures": figures}
        ratio = statistics.median([row["time_ratio"] for figure in figures.values() for row in figure["hyperband"]["rows"]])
        print(write(record, "pruning", {"pruning_time_ratio": ratio}))


def measure(config: StudyConfig, seeds: int, folder: Path) -> dict[str, Any]:
    """Time ratio and confirmed score of each pruner against none, a row a seed."""
    workspace = Workspace.load(config, "cpu", folder / "cache", trial_splits(config))
    curves: dict[str, Curve] = {}
    rows: dict[str, list[dict[str, float]]] = {pruner: [] for pruner in PRUNERS}
    confirmed: dict[str, float] = {}
    for seed in range(seeds):
        for pruner in PRUNERS:
            seconds, pruned, winner = search(config, seed, pruner, workspace, curves, folder / f"{config.study}-{seed}-{pruner}")
            if winner.digest() not in confirmed:
                confirmed[winner.digest()] = confirm(workspace, winner)
            rows[pruner].append({"seconds": seconds, "pruned": pruned, "confirmed": confirmed[winner.digest()]})
            rows[pruner][-1]["time_ratio"] = seconds / rows["none"][-1]["seconds"]
            rows[pruner][-1]["confirmed_minus_none"] = rows[pruner][-1]["confirmed"] - rows["none"][-1]["confirmed"]
    found: dict[str, Any] = {pruner: {"time_ratio": spread([row["time_ratio"] for row in of]), "rows": of} for pruner, of in rows.items()}
    return {**found, "rank_correlation_of_first_report": first_report_correlation(list(curves.values()))}


def search(
    config: StudyConfig, seed: int, pruner: str, workspace: Workspace, curves: dict[str, Curve], folder: Path
) -> tuple[float, int, Hyperparameters]:
    """One search over played-back trials: its simulated seconds, how many trials were pruned, and the winner."""
    section = config.search.model_copy(update={"seed": seed, "pruner": pruner})
    config = config.model_copy(update={"search": section})
    study = optuna.create_study(direction=config.direction)
    executor = _Recording(workspace, curves, scores_reports=pruner != "none")
    journal = Journal(folder / "journal.jsonl", study_id(study))
    Coordinator(config, study, executor, journal, lambda event: None, lambda: False).run()
    pruned = sum(trial.state == optuna.trial.TrialState.PRUNED for trial in study.trials)
    return executor.seconds, pruned, executor.jobs[study.best_trial.number].hyperparameters


class _Recording(Playback):
    """Trains what it has no curve of, before it plays it back; a configuration that diverges is left out of nothing: it has the worst score."""

    def __init__(self, workspace: Workspace, curves: dict[str, Curve], scores_reports: bool) -> None:
        super().__init__(curves, scores_reports)
        self._workspace = workspace
        self.jobs: dict[int, Job] = {}

    def submit(self, job: Job) -> None:
        """Start a trial now."""
        self.jobs[job.number] = job
        if job.hyperparameters.digest() not in self._curves:
            self._curves[job.hyperparameters.digest()] = record(self._workspace, job.hyperparameters)
        super().submit(job)


def record(workspace: Workspace, hyperparameters: Hyperparameters) -> Curve:
    """Train one configuration to its end."""
    started = time.perf_counter()
    workspace.score("val_ood")
    scoring = time.perf_counter() - started
    trial, seconds, reports = run_trial(workspace, hyperparameters), list[float](), list[Report]()
    started = time.perf_counter()
    while True:
        try:
            reports.append(next(trial))
        except StopIteration as end:
            return Curve(seconds, reports, scoring, end.value)
        except TrialDiverged:
            return _diverged(workspace, seconds, reports, scoring, time.perf_counter() - started)
        now = time.perf_counter()
        seconds.append(max(0.0, now - started - scoring))
        started = now


def _diverged(workspace: Workspace, seconds: list[float], reports: list[Report], scoring: float, last: float) -> Curve:
    worst = 0.0 if workspace.config.direction == "maximize" else 1e9
    result = TrialResult(score=worst, ci_low=worst, ci_high=worst, values={workspace.config.search.objectives[0]: worst}, repeats=(worst,), steps=0, samples=0, seconds=0.0)
    step = reports[-1].step if reports else 0
    return Curve([*seconds, last], [*reports, Report(step + 1, worst)], scoring, result)


def confirm(workspace: Workspace, hyperparameters: Hyperparameters) -> float:
    """The mean score of fresh runs."""
    scores = []
    for repeat in range(CONFIRM):
        trial = run_trial(workspace, replace(hyperparameters, seed=10_000 + repeat))
        while True:
            try:
                next(trial)
            except StopIteration as end:
                scores.append(end.value.score)
                break
    return statistics.fmean(scores)


def first_report_correlation(curves: Sequence[Curve]) -> float | None:
    """Spearman's correlation of a trial's first report with its result: what a pruner can know."""
    pairs = [(curve.reports[0].score, curve.result.score) for curve in curves if curve.result is not None and len(curve.reports) > 1]
    if len({first for first, _ in pairs}) < 2 or len({last for _, last in pairs}) < 2:
        return None
    return float(scipy.stats.spearmanr([first for first, _ in pairs], [last for _, last in pairs]).statistic)


if __name__ == "__main__":
    main()
