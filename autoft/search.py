"""The coordinator: asks Optuna for hyperparameters, hands them to an executor, tells Optuna what came of them.

It is the only process that writes to the study. A trial is RUNNING in the database from the moment it is asked until its end has
been written to the journal and told; a coordinator that finds RUNNING trials adopts them: same number, same parameters.

No worker waits for the database: suggestions are asked ahead, and what the study is to be told waits until the coordinator has
nothing more urgent to do. Between two looks at the workers it does one thing at the study.

While the database is away, trials that run go on: their reports and ends wait in the ledger, nothing is asked and nothing pruned.
"""

import logging
import math
import statistics
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from optuna.study import Study
from optuna.trial import Trial, TrialState

from autoft.config import StudyConfig
from autoft.enqueue import configuration_name
from autoft.errors import ClusterError, Interrupted, StorageUnavailable, TrialCodeError
from autoft.executor import Event, Executor, Failed, FailureKind, Finished, Job, Reported, Stopped
from autoft.journal import Entry, Journal
from autoft.ledger import FAILURE_ATTRIBUTE, Ledger, replay_journal, tell
from autoft.lifeline import ALWAYS_THERE, Lifeline, Observe, Outage, Wish
from autoft.samplers import SeededSampler, make_pruner
from autoft.search_space import sample_hyperparameters
from autoft.trial import TrialResult, report_steps

logger = logging.getLogger(__name__)

RETRIES = {FailureKind.INFRASTRUCTURE: 20, FailureKind.TIMEOUT: 1}  # how often a trial is run again, by why it failed
FAILED_TRIALS_LIMIT = 5  # trials in a row given up before the search stops


@dataclass
class _Running:
    """A trial between ask and tell."""

    trial: Trial
    job: Job
    known_steps: frozenset[int] = frozenset()  # reported by an earlier run: Optuna keeps the first report of a step
    reports: list[tuple[int, float]] = field(default_factory=list)
    adopted: bool = False  # begun by an earlier coordinator
    enqueued: bool = False  # never pruned: the study is not to be worse than this configuration
    pruned: bool = False
    attempts: int = 1
    failures: dict[FailureKind, int] = field(default_factory=dict)


class Coordinator:
    """One study's search, from wherever it stands to `n_trials` finished trials."""

    def __init__(
        self,
        config: StudyConfig,
        study: Study,
        executor: Executor,
        journal: Journal,
        observe: Observe,
        should_stop: Callable[[], bool],
        lifeline: Lifeline = ALWAYS_THERE,
        outage: Outage | None = None,
    ) -> None:
        self._config, self._study, self._executor, self._journal = config, study, executor, journal
        self._observe, self._should_stop, self._lifeline = observe, should_stop, lifeline
        self._outage = outage or Outage(lifeline, observe)
        self._ledger = Ledger(self._outage)
        self._running: dict[int, _Running] = {}  # handed to the executor
        self._ready: deque[_Running] = deque()  # asked ahead: RUNNING in the study, to be handed out next
        self._undecided: dict[int, _Running] = {}  # have reported since it was last seen whether to prune them
        self._finished = self._given_up = 0
        self._orphans = True  # whether the study may hold RUNNING trials that are not ours or the ledger's
        self._paused = False
        self._last_report = report_steps(config)[-1]
        self._one_objective = len(config.search.objectives) == 1  # Optuna takes reports and prunes for one only
        study.sampler = SeededSampler(config.search)
        study.pruner = make_pruner(config)

    def run(self) -> None:
        """Search until `n_trials` trials are finished and told.

        Raises:
            Interrupted: `should_stop()` said so, and running trials are adopted by the next run; or somebody wished the study to end.
            StudyLocked: another coordinator has taken the study over.
            TrialCodeError: a trial failed in a way that every trial would.
            ClusterError: workers keep dying, or the batch does not fit the device.
            StorageError: the database was away for too long.
        """
        self._finished = self._outage.patiently(lambda: replay_journal(self._config, self._study, self._journal), self._should_stop)
        try:
            while self._finished < self._config.search.n_trials or self._ledger or self._orphans:
                self._obey()
                busy = self._attend()
                while busy and self._executor.ahead == 0:  # its trials run while it is polled: all there is to do comes first
                    busy = self._attend()
                self._hand_out()
                for event in self._executor.poll(timeout_seconds=0.0 if busy else 0.2):
                    self._handle(event)
        except (Interrupted, TrialCodeError, ClusterError):
            while self._ledger.write_one():
                pass
            raise

    def _obey(self) -> None:
        """What signals, successors and other people's wishes ask."""
        of = f"{self._finished} of {self._config.search.n_trials} trials finished"
        if self._should_stop():
            raise Interrupted(f"stopped with {of}")
        self._lifeline.check_owner()
        wish = self._lifeline.wish()
        if wish == Wish.CANCEL:
            self._cancel()
        if wish in (Wish.STOP, Wish.CANCEL) and self._ready:
            self._put_back()
        if wish in (Wish.STOP, Wish.CANCEL) and not self._running and not self._ready:
            raise Interrupted(f"{'stopped' if wish == Wish.STOP else 'cancelled'} on request with {of}", 0)
        if (wish == Wish.PAUSE) != self._paused:
            self._paused = wish == Wish.PAUSE
            self._observe({"event": "paused" if self._paused else "resumed", "study": self._config.study})

    def _cancel(self) -> None:
        for running in list(self._running.values()):
            self._end(running, "failed", None, {"message": "cancelled on request"}, FailureKind.CANCELLED)

    def _put_back(self) -> None:
        """Leave to the next run what was asked ahead and never began."""
        try:
            while self._ready:
                self._study._storage.set_trial_state_values(self._ready[-1].trial._trial_id, TrialState.WAITING)
                self._ready.pop()
        except StorageUnavailable as error:
            self._ready.clear()  # the next run finds them RUNNING, and adopts them
            self._outage.began(error)

    def _attend(self) -> bool:
        """Do one thing at the study: tell it what waits, else decide on pruning, else adopt or ask for trials. Whether there may be more."""
        if self._ledger:
            return self._ledger.write_one()
        if self._undecided:
            self._decide(self._undecided.pop(next(iter(self._undecided))))
            return True
        return self._ask()

    def _ask(self) -> bool:
        """Ask for one trial more; first of all take over those that an earlier coordinator, or an outage, left RUNNING."""
        if self._lifeline.wish() != Wish.RUN or not self._outage.may_try():
            return False
        asked = True
        try:
            if self._orphans:
                self._adopt()
                self._orphans = False
            elif self._wanted() > 0 and len(self._running) + len(self._ready) < self._executor.slots + self._executor.ahead:
                self._prepare(self._study.ask())
            else:
                return False
            self._outage.ended()
        except StorageUnavailable as error:
            self._orphans = True  # a trial that was asked for may have been made
            self._outage.began(error)
            asked = False
        return asked

    def _hand_out(self, freed: int = 0) -> None:
        """Give trials to free workers; `freed`: how many of those that run have ended, though it is not on record yet."""
        while self._ready and self._lifeline.wish() == Wish.RUN and len(self._running) - freed < self._executor.slots:
            running = self._ready.popleft()
            number = running.job.number
            self._running[number] = running
            self._executor.submit(running.job)
            name = configuration_name(running.trial)
            named = {"name": name} if name else {}
            self._observe({"event": "trial_started", "trial": number, "adopted": running.adopted, **named})

    def _wanted(self) -> int:
        return self._config.search.n_trials - self._finished - len(self._running) - len(self._ready)

    def _adopt(self) -> None:
        """Run again what was left RUNNING, drawing the parameters that had not been drawn yet."""
        ours = {*self._running, *(running.job.number for running in self._ready)}
        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if frozen.number in ours:
                continue
            trial = Trial(self._study, frozen._trial_id)
            if self._wanted() > 0:
                self._prepare(trial, frozen.intermediate_values.keys())
            else:  # n_trials was lowered in the meantime
                trial.set_user_attr(FAILURE_ATTRIBUTE, FailureKind.CANCELLED.value)
                self._study.tell(trial, state=TrialState.FAIL)

    def _prepare(self, trial: Trial, known_steps: Collection[int] | None = None) -> None:
        """Draw a trial's parameters. `known_steps`: those it has reported; None: it is new."""
        job = Job(trial.number, sample_hyperparameters(trial, self._config.search_space))
        enqueued = configuration_name(trial) is not None
        self._ready.append(_Running(trial, job, frozenset(known_steps or ()), adopted=known_steps is not None, enqueued=enqueued))

    def _handle(self, event: Event) -> None:
        running = self._running.get(event.number)
        if running is None:  # a late word from a worker that was given up
            return
        if not isinstance(event, Reported):
            self._undecided.pop(event.number, None)
            self._hand_out(freed=1)  # the worker goes on at once
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
            self._ledger.add(lambda: running.trial.report(score, step))
        self._observe({"event": "trial_reported", "trial": running.job.number, "step": step, "score": score})
        if self._one_objective and not running.enqueued and not running.pruned and step < self._last_report and not self._outage.is_on:
            self._undecided[running.job.number] = running

    def _decide(self, running: _Running) -> None:
        """Prune a trial if its reports are poor."""
        try:
            if running.trial.should_prune():
                running.pruned = True
                self._executor.prune(running.job.number)
        except StorageUnavailable as error:
            self._outage.began(error)

    def _fail(self, running: _Running, failure: Failed) -> None:
        number = running.job.number
        logger.warning("trial %d failed (%s): %s", number, failure.kind, failure.message.strip().splitlines()[-1])
        cost = {"seconds": failure.seconds, "samples": failure.samples}
        details = {"worker": failure.worker, "message": failure.message[-2000:], **cost}
        match failure.kind:
            case FailureKind.DIVERGED:
                self._end(running, "pruned", None, details, failure.kind)
            case FailureKind.INFRASTRUCTURE | FailureKind.TIMEOUT:
                self._retry(running, failure, details)
            case FailureKind.CANCELLED:
                self._end(running, "failed", None, details, failure.kind)
            case FailureKind.OUT_OF_MEMORY:
                self._end(running, "failed", None, details, failure.kind)
                raise ClusterError(
                    f"trial {number} ran out of memory with trial.batch_size = {self._config.trial.batch_size}; lower it, or give "
                    f"workers a larger share of a device ({failure.message.splitlines()[0]})"
                )
            case FailureKind.CODE:
                self._end(running, "failed", None, details, failure.kind)
                raise TrialCodeError(f"trial {number} failed, and so would every other:\n{failure.message}")

    def _retry(self, running: _Running, failure: Failed, details: dict[str, Any]) -> None:
        """Run a trial again that was lost through no fault of its parameters, or give it up."""
        failures = running.failures[failure.kind] = running.failures.get(failure.kind, 0) + 1
        if failures <= RETRIES[failure.kind]:
            running.attempts += 1
            running.known_steps |= {step for step, _ in running.reports}
            running.reports.clear()
            number = running.job.number
            self._observe({"event": "trial_retried", "trial": number, "attempt": running.attempts, "message": failure.message})
            self._executor.submit(running.job)
            return
        self._end(running, "failed", None, details, failure.kind)
        self._given_up += 1
        if self._given_up >= FAILED_TRIALS_LIMIT:
            raise ClusterError(f"{self._given_up} trials in a row were given up ({failure.kind}): {failure.message}")

    def _end(
        self, running: _Running, state: Any, result: TrialResult | None, details: dict[str, Any], failure: FailureKind | None = None
    ) -> None:
        """Write a trial's end to the journal, then to the study."""
        if failure is not None:
            details = details | {FAILURE_ATTRIBUTE: failure.value}
        entry = Entry(
            study_id=self._journal.study_id,
            number=running.job.number,
            digest=running.job.hyperparameters.digest(),
            state=state,
            score=None if result is None else result.score,
            reports=tuple(running.reports) if self._one_objective else (),
            details=details | {"attempts": running.attempts},
            values=() if result is None else tuple(result.values[name] for name in self._config.search.objectives),
        )
        self._journal.append(entry)
        del self._running[running.job.number]
        if state != "failed":
            self._finished += 1
            self._given_up = 0
        self._ledger.add(lambda: tell(self._study, running.trial, entry))
        self._observe(
            {"event": "trial_ended", "trial": entry.number, "state": state, "score": entry.score, "finished": self._finished, **entry.details}
        )


def _details(result: TrialResult, worker: str) -> dict[str, Any]:
    """What is noted on a trial beside its score."""
    repeats = {"repeats": list(result.repeats), "repeat_sd": statistics.stdev(result.repeats)} if len(result.repeats) > 1 and math.isfinite(result.score) else {}
    interval = {"ci_low": result.ci_low, "ci_high": result.ci_high} if math.isfinite(result.score) else {}
    split = {"batch_split": result.batch_split, "batch_split_exact": result.batch_split_exact} if result.batch_split > 1 else {}
    return {"worker": worker, "seconds": result.seconds, "samples": result.samples, **interval, **repeats, **split}
