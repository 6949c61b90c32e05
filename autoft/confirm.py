"""The best trials once more, with fresh seeds: the best of many noisy scores is optimistic, and may be the best by luck.

Every candidate is run with the same fresh seeds, so that candidates are compared on the same batches.
"""

import logging
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import TrialState

from autoft.config import StudyConfig, section_hash
from autoft.enqueue import configuration_name
from autoft.errors import ClusterError, Interrupted, TrialCodeError
from autoft.executor import Executor, Failed, FailureKind, Finished, Job
from autoft.files import read_json, write_json
from autoft.samplers import derive_seed
from autoft.search_space import Hyperparameters, sample_hyperparameters

logger = logging.getLogger(__name__)

RETRIES = {FailureKind.INFRASTRUCTURE: 20, FailureKind.TIMEOUT: 1}  # how often a run is made again, by why it failed


@dataclass(frozen=True)
class Candidate:
    """A complete trial that may win."""

    number: int
    name: str | None
    score: float
    hyperparameters: Hyperparameters


def candidates(study: Study, config: StudyConfig) -> list[Candidate]:
    """The best complete trials, best first: `search.confirm.top` of them. With several objectives, the first of them decides.

    Raises:
        TrialCodeError: no trial is complete.
    """
    complete = [trial for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if trial.values is not None]
    if not complete:
        raise TrialCodeError(f"study {config.study} has no complete trial: every one was pruned or diverged")
    sign = -1 if study.directions[0] == optuna.study.StudyDirection.MAXIMIZE else 1
    ranked = sorted(complete, key=lambda trial: (sign * trial.values[0], trial.number))
    found = [Candidate(t.number, configuration_name(t), t.values[0], sample_hyperparameters(t, config.search_space)) for t in ranked]
    return found[: config.search.confirm.top]


@dataclass(frozen=True)
class Confirmation:
    """What the second look found. `runs` has, by trial number, a record of score, samples and seconds for each fresh run."""

    config: StudyConfig
    candidates: Sequence[Candidate]
    runs: dict[int, list[dict[str, Any]]]

    @property
    def winner(self) -> Candidate:
        """The candidate with the best mean over fresh runs; the best trial if nothing was confirmed."""
        sign = 1 if self.config.direction == "maximize" else -1
        means = {candidate.number: self.mean(candidate) for candidate in self.candidates}
        known = [candidate for candidate in self.candidates if means[candidate.number] is not None]
        return max(known, key=lambda candidate: sign * (means[candidate.number] or 0.0)) if known else self.candidates[0]

    def scores(self, candidate: Candidate) -> list[float]:
        """The scores of a candidate's fresh runs; a diverged one has none."""
        return [run["score"] for run in self.runs.get(candidate.number, []) if run["score"] is not None]

    def mean(self, candidate: Candidate) -> float | None:
        """The mean score of a candidate's fresh runs; None if one of them diverged or there are none."""
        scores = self.scores(candidate)
        return statistics.fmean(scores) if scores and len(scores) == self.config.search.confirm.repeats else None

    def summary(self) -> dict[str, Any] | None:
        """For summary.json: every candidate, the winner's margin, and the noise it is to be seen against."""
        section = self.config.search.confirm
        if not section.repeats:
            return None
        noise = pooled_deviation([self.scores(candidate) for candidate in self.candidates])
        confirmed, margin = self.mean(self.winner), self._margin()
        flattering = 1 if self.config.direction == "maximize" else -1
        return {
            "steps": section.steps or self.config.trial.steps,
            "repeats": section.repeats,
            "candidates": [self._row(candidate) for candidate in self.candidates],
            "winner": self.winner.number,
            "margin": margin,
            "noise_sd": noise,
            "margin_se": None if noise is None or margin is None else noise * math.sqrt(2 / section.repeats),
            "optimism": None if confirmed is None else flattering * (self.winner.score - confirmed),
        }

    def _margin(self) -> float | None:
        """How far the winner's mean is ahead of the next, in the study's direction."""
        means = sorted(mean for candidate in self.candidates if (mean := self.mean(candidate)) is not None)
        if len(means) < 2:
            return None
        return means[-1] - means[-2] if self.config.direction == "maximize" else means[1] - means[0]

    def _row(self, candidate: Candidate) -> dict[str, Any]:
        scores = self.scores(candidate)
        return {
            "number": candidate.number,
            "name": candidate.name,
            "search_score": candidate.score,
            "scores": scores,
            "mean": self.mean(candidate),
            "sd": statistics.stdev(scores) if len(scores) > 1 else None,
        }

    def total(self, name: str) -> float:
        """The sum of `samples` or `seconds` over all fresh runs."""
        return float(sum(run[name] for runs in self.runs.values() for run in runs))


def pooled_deviation(groups: Sequence[Sequence[float]]) -> float | None:
    """The standard deviation within groups, pooled over them; None where no group has two values."""
    spread = [(len(group) - 1, statistics.variance(group)) for group in groups if len(group) > 1]
    freedom = sum(n for n, _ in spread)
    return math.sqrt(sum(n * variance for n, variance in spread) / freedom) if freedom else None


def read_confirmation(study: Study, config: StudyConfig, run_dir: Path, fingerprint: str) -> Confirmation | None:
    """What the run folder holds for the study's present candidates; None if runs are missing."""
    confirmation = Confirming(study, config, run_dir, fingerprint)
    return None if confirmation.missing() else confirmation.result()


class Confirming:
    """The fresh runs of a study's candidates, kept in `confirmation.json` as they end. Reads the study when it is made, and not after.

    Raises:
        TrialCodeError: no trial is complete.
    """

    def __init__(self, study: Study, config: StudyConfig, run_dir: Path, fingerprint: str) -> None:
        section = config.search.confirm
        self._config, self._path = config, run_dir / "confirmation.json"
        self._steps = section.steps or config.trial.steps
        self._candidates = candidates(study, config)
        self._key = section_hash([fingerprint, self._steps, list(config.search.objectives)])
        self._jobs: dict[int, tuple[str, Job]] = {}  # by job number: key of the run, job
        for candidate in self._candidates:
            for repeat in range(section.repeats):
                hp = replace(candidate.hyperparameters, seed=derive_seed(config.search.seed, "confirm", repeat))
                number = -1 - len(self._jobs)
                self._jobs[number] = (hp.digest(), Job(number, hp, self._steps))
        stored = read_json(self._path)
        self._runs: dict[str, dict[str, Any]] = stored["runs"] if isinstance(stored, dict) and stored.get("key") == self._key else {}

    def missing(self) -> list[Job]:
        """Runs that have not ended yet."""
        return [job for key, job in self._jobs.values() if key not in self._runs]

    def result(self) -> Confirmation:
        repeats = self._config.search.confirm.repeats
        records = [self._runs[key] for key, _ in self._jobs.values()]
        by_number = {c.number: records[i * repeats : (i + 1) * repeats] for i, c in enumerate(self._candidates)}
        return Confirmation(self._config, self._candidates, by_number)

    def run(
        self,
        executor: Executor,
        observe: Callable[[dict[str, Any]], None],
        should_stop: Callable[[], bool],
        is_paused: Callable[[], bool] = lambda: False,
    ) -> Confirmation:
        """Run what the run folder does not hold yet, as many at a time as there are workers; while it is paused nothing new is begun.

        Raises:
            Interrupted: `should_stop()` said so; what has ended is kept.
            TrialCodeError, ClusterError: runs cannot be made.
        """
        if self.missing():
            observe({"event": "stage_started", "stage": "confirm"})
            self._run(executor, observe, should_stop, is_paused)
            observe({"event": "stage_ended", "stage": "confirm"})
        return self.result()

    def _run(
        self, executor: Executor, observe: Callable[[dict[str, Any]], None], should_stop: Callable[[], bool], is_paused: Callable[[], bool]
    ) -> None:
        waiting, running, attempts = self.missing(), dict[int, Job](), dict[int, int]()
        while waiting or running:
            if should_stop():
                raise Interrupted(f"stopped with {len(self._runs)} of {len(self._jobs)} confirmation runs done")
            while waiting and len(running) < executor.slots and not is_paused():
                job = waiting.pop(0)
                running[job.number] = job
                executor.submit(job)
            for event in executor.poll(timeout_seconds=0.2):
                if event.number not in running:
                    continue
                if isinstance(event, Finished):
                    result = event.result
                    score = result.score if math.isfinite(result.score) else None
                    self._record(running.pop(event.number), {"score": score, "samples": result.samples, "seconds": result.seconds}, observe)
                elif isinstance(event, Failed) and event.kind == FailureKind.DIVERGED:
                    record = {"score": None, "samples": event.samples, "seconds": event.seconds}
                    self._record(running.pop(event.number), record, observe)
                elif isinstance(event, Failed):
                    attempts[event.number] = attempts.get(event.number, 0) + 1
                    waiting.insert(0, self._retry(running.pop(event.number), event, attempts[event.number]))

    def _retry(self, job: Job, failure: Failed, attempts: int) -> Job:
        if attempts <= RETRIES.get(failure.kind, 0):
            logger.warning("a confirmation run was lost (%s) and runs again", failure.message)
            return job
        if failure.kind == FailureKind.CODE:
            raise TrialCodeError(f"a confirmation run failed:\n{failure.message}")
        raise ClusterError(f"a confirmation run failed ({failure.kind}): {failure.message}")

    def _record(self, job: Job, record: dict[str, Any], observe: Callable[[dict[str, Any]], None]) -> None:
        key, _ = self._jobs[job.number]
        self._runs[key] = record
        write_json(self._path, {"key": self._key, "runs": self._runs})
        observe({"event": "stage_progress", "stage": "confirm", "done": len(self._runs), "of": len(self._jobs)})
