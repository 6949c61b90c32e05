"""The coordinator: asks Optuna for hyperparameters, hands them to an executor, tells Optuna what came of them.

It is the only process that writes to the study. A trial is RUNNING in the database from the moment it is asked until its end has
been written to the journal and told; a coordinator that finds RUNNING trials adopts them: same number, same parameters.
"""

import hashlib
import logging
import math
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from autoft.config import SearchConfig, StudyConfig
from autoft.errors import ClusterError, Interrupted, TrialCodeError
from autoft.executor import Event, Executor, Failed, FailureKind, Finished, Job, Reported, Stopped
from autoft.journal import Entry, Journal
from autoft.search_space import Hyperparameters, sample_hyperparameters
from autoft.trial import report_steps

logger = logging.getLogger(__name__)

ID_ATTRIBUTE = "autoft:id"
RUN_ATTRIBUTE = "run"
FAILURE_ATTRIBUTE = "failure_kind"
INFRASTRUCTURE_RETRIES = 20
FAILED_TRIALS_LIMIT = 5  # trials in a row given up for infrastructure before the search stops
FINISHED_STATES = (TrialState.COMPLETE, TrialState.PRUNED)

Observe = Callable[[dict[str, Any]], None]


class SeededSampler(optuna.samplers.BaseSampler):
    """Gives every trial its own random stream, a function of (seed, trial number, parameter).

    A sampler that lives as long as its process repeats itself after a restart, or depends on how often it was restarted. Here
    a fresh inner sampler is made for each trial, and an independent draw depends on nothing but seed, number and name: with the
    random sampler the parameters of trial n are the same whatever happened before.
    """

    def __init__(self, config: SearchConfig) -> None:
        self._config = config
        self._inner: optuna.samplers.BaseSampler = self._make(0)

    def _make(self, *key: int | str) -> optuna.samplers.BaseSampler:
        seed = derive_seed(self._config.seed, *key)
        if self._config.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(seed=seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._inner = self._make(trial.number)
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        return self._make(trial.number, param_name).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        self._inner.after_trial(study, trial, state, values)


def derive_seed(*key: int | str) -> int:
    """A 32-bit seed that depends on every part of the key."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest()[:4])


def make_pruner(config: StudyConfig) -> optuna.pruners.BasePruner:
    """The study's pruner, scaled to the steps at which its trials report."""
    steps = report_steps(config)
    match config.search.pruner:
        case "hyperband":
            return optuna.pruners.HyperbandPruner(min_resource=steps[0], max_resource=steps[-1], reduction_factor=3)
        case "median":
            return optuna.pruners.MedianPruner(n_startup_trials=5)
        case "none":
            return optuna.pruners.NopPruner()


def count_finished(study: Study) -> int:
    """Trials that count towards `n_trials`: complete and pruned ones."""
    return len(study.get_trials(deepcopy=False, states=FINISHED_STATES))


def best_trial(study: Study, config: StudyConfig) -> tuple[FrozenTrial, Hyperparameters]:
    """The best complete trial, in the study's direction, and its hyperparameters replayed through the sampling function.

    Raises:
        TrialCodeError: no trial is complete.
    """
    try:
        trial = study.best_trial
    except ValueError:
        raise TrialCodeError(f"study {config.study} has no complete trial: every one was pruned or diverged") from None
    return trial, sample_hyperparameters(trial, config.search_space)


@dataclass
class _Running:
    """A trial between ask and tell."""

    trial: Trial
    job: Job
    known_steps: frozenset[int] = frozenset()  # reported by an earlier run: Optuna keeps the first report of a step
    reports: list[tuple[int, float]] = field(default_factory=list)
    pruned: bool = False
    attempts: int = 1


class Coordinator:
    """One study's search, from wherever it stands to `n_trials` finished trials."""

    def __init__(
        self, config: StudyConfig, study: Study, executor: Executor, journal: Journal, observe: Observe, should_stop: Callable[[], bool]
    ) -> None:
        self._config, self._study, self._executor, self._journal = config, study, executor, journal
        self._observe, self._should_stop = observe, should_stop
        self._running: dict[int, _Running] = {}
        self._given_up = 0
        study.sampler = SeededSampler(config.search)
        study.pruner = make_pruner(config)

    def run(self) -> None:
        """Search until `n_trials` trials are finished.

        Raises:
            Interrupted: `should_stop()` said so; running trials stay RUNNING and are adopted by the next run.
            TrialCodeError: a trial failed in a way that every trial would.
            ClusterError: workers keep dying, or the batch does not fit the device.
        """
        self._finished = replay_journal(self._config, self._study, self._journal)
        self._adopt()
        while self._finished < self._config.search.n_trials:
            if self._should_stop():
                raise Interrupted(f"stopped with {self._finished} of {self._config.search.n_trials} trials finished")
            self._fill()
            for event in self._executor.poll(timeout_seconds=0.2):
                self._handle(event)

    def _fill(self) -> None:
        while len(self._running) < self._executor.slots and self._finished + len(self._running) < self._config.search.n_trials:
            self._start(self._study.ask())

    def _adopt(self) -> None:
        """Run again what an earlier coordinator left RUNNING, drawing the parameters it had not drawn yet."""
        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if self._finished + len(self._running) < self._config.search.n_trials:
                self._start(Trial(self._study, frozen._trial_id), frozen.intermediate_values.keys())
            else:  # n_trials was lowered in the meantime
                self._study.tell(frozen.number, state=TrialState.FAIL)

    def _start(self, trial: Trial, known_steps: Collection[int] | None = None) -> None:
        hyperparameters = sample_hyperparameters(trial, self._config.search_space)
        job = Job(trial.number, hyperparameters)
        self._running[trial.number] = _Running(trial, job, frozenset(known_steps or ()))
        self._executor.submit(job)
        self._observe({"event": "trial_started", "trial": trial.number, "adopted": known_steps is not None})

    def _handle(self, event: Event) -> None:
        running = self._running.get(event.number)
        if running is None:  # a late word from a worker that was given up
            return
        match event:
            case Reported(_, report):
                self._report(running, report.step, report.score)
            case Finished(_, result, worker):
                details = {"worker": worker, "seconds": result.seconds, "samples": result.samples}
                if running.pruned:
                    self._end(running, "pruned", None, details)
                elif math.isfinite(result.score):
                    self._end(running, "complete", result.score, details)
                else:
                    self._end(running, "pruned", None, details, FailureKind.DIVERGED)
            case Stopped(_, samples, seconds, worker):
                self._end(running, "pruned", None, {"worker": worker, "seconds": seconds, "samples": samples})
            case Failed():
                self._fail(running, event)

    def _report(self, running: _Running, step: int, score: float) -> None:
        running.reports.append((step, score))
        if step not in running.known_steps:
            running.trial.report(score, step)
        self._observe({"event": "trial_reported", "trial": running.job.number, "step": step, "score": score})
        last = step >= self._config.trial.steps
        if not last and not running.pruned and running.trial.should_prune():
            running.pruned = True
            self._executor.prune(running.job.number)

    def _fail(self, running: _Running, failure: Failed) -> None:
        number = running.job.number
        logger.warning("trial %d failed (%s): %s", number, failure.kind, failure.message.strip().splitlines()[-1])
        cost = {"seconds": failure.seconds, "samples": failure.samples}
        details = {"worker": failure.worker, "message": failure.message[-2000:], **cost}
        match failure.kind:
            case FailureKind.DIVERGED:
                self._end(running, "pruned", None, details, failure.kind)
            case FailureKind.INFRASTRUCTURE if running.attempts <= INFRASTRUCTURE_RETRIES:
                running.attempts += 1
                running.known_steps |= {step for step, _ in running.reports}
                running.reports.clear()
                self._observe({"event": "trial_retried", "trial": number, "attempt": running.attempts, "message": failure.message})
                self._executor.submit(running.job)
            case FailureKind.INFRASTRUCTURE:
                self._end(running, "failed", None, details, failure.kind)
                self._given_up += 1
                if self._given_up >= FAILED_TRIALS_LIMIT:
                    raise ClusterError(f"{self._given_up} trials were lost {INFRASTRUCTURE_RETRIES} times each: {failure.message}")
            case FailureKind.OUT_OF_MEMORY:
                self._end(running, "failed", None, details, failure.kind)
                raise ClusterError(
                    f"trial {number} ran out of memory with trial.batch_size = {self._config.trial.batch_size}; lower it, or give "
                    f"workers a larger share of a device ({failure.message.splitlines()[0]})"
                )
            case FailureKind.CODE:
                self._end(running, "failed", None, details, failure.kind)
                raise TrialCodeError(f"trial {number} failed, and so would every other:\n{failure.message}")

    def _end(
        self, running: _Running, state: Any, score: float | None, details: dict[str, Any], failure: FailureKind | None = None
    ) -> None:
        """Write a trial's end to the journal, then to the study."""
        if failure is not None:
            details = details | {FAILURE_ATTRIBUTE: failure.value}
        entry = Entry(
            study_id=study_id(self._study),
            number=running.job.number,
            digest=running.job.hyperparameters.digest(),
            state=state,
            score=score,
            reports=tuple(running.reports),
            details=details | {"attempts": running.attempts},
        )
        self._journal.append(entry)
        tell(self._study, running.trial, entry)
        del self._running[running.job.number]
        self._finished += state != "failed"
        self._observe(
            {"event": "trial_ended", "trial": entry.number, "state": state, "score": score, "finished": self._finished, **entry.details}
        )


def study_id(study: Study) -> str:
    """The id that ties a run folder's journal to its study, made when first asked for."""
    known = study.user_attrs.get(ID_ATTRIBUTE)
    if known is None:
        known = uuid.uuid4().hex
        study.set_user_attr(ID_ATTRIBUTE, known)
    return str(known)


def tell(study: Study, trial: Trial, entry: Entry) -> None:
    """Write a journal entry to a RUNNING trial of the study."""
    details = {name: value for name, value in entry.details.items() if name != FAILURE_ATTRIBUTE}
    trial.set_user_attr(RUN_ATTRIBUTE, details)
    if FAILURE_ATTRIBUTE in entry.details:
        trial.set_user_attr(FAILURE_ATTRIBUTE, entry.details[FAILURE_ATTRIBUTE])
    match entry.state:
        case "complete":
            study.tell(trial, entry.score)
        case "pruned":
            study.tell(trial, state=TrialState.PRUNED)
        case "failed":
            study.tell(trial, state=TrialState.FAIL)


def replay_journal(config: StudyConfig, study: Study, journal: Journal) -> int:
    """Tell the study what the journal knows and the database lost; returns how many trials are finished.

    Only a trial that is still RUNNING with the very parameters of the journal's line is told.

    Raises:
        StudyConflict: the journal is another study's.
    """
    running = {trial.number: trial for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))}
    for entry in journal.entries():
        frozen = running.pop(entry.number, None)
        if frozen is None:
            continue
        trial = Trial(study, frozen._trial_id)
        if sample_hyperparameters(trial, config.search_space).digest() != entry.digest:
            continue
        for step, score in entry.reports:
            if step not in frozen.intermediate_values:
                trial.report(score, step)
        tell(study, trial, entry)
        logger.info("trial %d told from the journal", entry.number)
    return count_finished(study)
