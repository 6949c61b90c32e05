"""The coordinator: asks Optuna for hyperparameters, hands them to an executor, tells Optuna what came of them.

It is the only process that writes to the study. A trial is RUNNING in the database from the moment it is asked until its end has
been written to the journal and told; a coordinator that finds RUNNING trials adopts them: same number, same parameters.
"""

import logging
import math
import statistics
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from optuna.study import Study
from optuna.trial import Trial, TrialState

from autoft.config import StudyConfig
from autoft.enqueue import configuration_name
from autoft.errors import ClusterError, Interrupted, TrialCodeError
from autoft.executor import Event, Executor, Failed, FailureKind, Finished, Job, Reported, Stopped
from autoft.journal import Entry, Journal
from autoft.samplers import SeededSampler, make_pruner
from autoft.search_space import sample_hyperparameters
from autoft.trial import TrialResult, report_steps

logger = logging.getLogger(__name__)

ID_ATTRIBUTE = "autoft:id"
RUN_ATTRIBUTE = "run"
FAILURE_ATTRIBUTE = "failure_kind"
INFRASTRUCTURE_RETRIES = 20
FAILED_TRIALS_LIMIT = 5  # trials in a row given up for infrastructure before the search stops
FINISHED_STATES = (TrialState.COMPLETE, TrialState.PRUNED)

Observe = Callable[[dict[str, Any]], None]


def count_finished(study: Study) -> int:
    """Trials that count towards `n_trials`: complete and pruned ones."""
    return len(study.get_trials(deepcopy=False, states=FINISHED_STATES))


@dataclass
class _Running:
    """A trial between ask and tell."""

    trial: Trial
    job: Job
    known_steps: frozenset[int] = frozenset()  # reported by an earlier run: Optuna keeps the first report of a step
    reports: list[tuple[int, float]] = field(default_factory=list)
    enqueued: bool = False  # never pruned: the study is not to be worse than this configuration
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
        self._last_report = report_steps(config)[-1]
        self._one_objective = len(config.search.objectives) == 1  # Optuna takes reports and prunes for one only
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
        name = configuration_name(trial)
        self._running[trial.number] = _Running(trial, job, frozenset(known_steps or ()), enqueued=name is not None)
        self._executor.submit(job)
        named = {"name": name} if name else {}
        self._observe({"event": "trial_started", "trial": trial.number, "adopted": known_steps is not None, **named})

    def _handle(self, event: Event) -> None:
        running = self._running.get(event.number)
        if running is None:  # a late word from a worker that was given up
            return
        match event:
            case Reported(_, report):
                self._report(running, report.step, report.score)
            case Finished(_, result, worker):
                details = _details(result, worker)
                if running.pruned:
                    self._end(running, "pruned", None, details)
                elif all(map(math.isfinite, (result.score, *result.values.values()))):
                    self._end(running, "complete", result, details)
                else:
                    self._end(running, "pruned", None, details, FailureKind.DIVERGED)
            case Stopped(_, samples, seconds, worker):
                self._end(running, "pruned", None, {"worker": worker, "seconds": seconds, "samples": samples})
            case Failed():
                self._fail(running, event)

    def _report(self, running: _Running, step: int, score: float) -> None:
        running.reports.append((step, score))
        if step not in running.known_steps and self._one_objective:
            running.trial.report(score, step)
        self._observe({"event": "trial_reported", "trial": running.job.number, "step": step, "score": score})
        may_prune = self._one_objective and not running.enqueued and not running.pruned and step < self._last_report
        if may_prune and running.trial.should_prune():
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
        self, running: _Running, state: Any, result: TrialResult | None, details: dict[str, Any], failure: FailureKind | None = None
    ) -> None:
        """Write a trial's end to the journal, then to the study."""
        if failure is not None:
            details = details | {FAILURE_ATTRIBUTE: failure.value}
        entry = Entry(
            study_id=study_id(self._study),
            number=running.job.number,
            digest=running.job.hyperparameters.digest(),
            state=state,
            score=None if result is None else result.score,
            reports=tuple(running.reports) if self._one_objective else (),
            details=details | {"attempts": running.attempts},
            values=() if result is None else tuple(result.values[name] for name in self._config.search.objectives),
        )
        self._journal.append(entry)
        tell(self._study, running.trial, entry)
        del self._running[running.job.number]
        self._finished += state != "failed"
        self._observe(
            {"event": "trial_ended", "trial": entry.number, "state": state, "score": entry.score, "finished": self._finished, **entry.details}
        )


def _details(result: TrialResult, worker: str) -> dict[str, Any]:
    """What is noted on a trial beside its score."""
    repeats = {"repeats": list(result.repeats), "repeat_sd": statistics.stdev(result.repeats)} if len(result.repeats) > 1 and math.isfinite(result.score) else {}
    interval = {"ci_low": result.ci_low, "ci_high": result.ci_high} if math.isfinite(result.score) else {}
    return {"worker": worker, "seconds": result.seconds, "samples": result.samples, **interval, **repeats}


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
            study.tell(trial, list(entry.values) or entry.score)
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
