"""Where trials run: the protocol between the coordinator and its workers, and the in-process implementation.

The Ray implementation is `workers.ray_executor`; both run `autoft.trial.run_trial` and `autoft.stages.run_stages`.
"""

import functools
import math
import re
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import torch

from autoft.batch_split import is_out_of_memory
from autoft.config import StudyConfig
from autoft.data.stream import StreamLost
from autoft.errors import AutoFTError, TrialCodeError
from autoft.pace import measure, typical
from autoft.search_space import Hyperparameters
from autoft.stages import StageRequest, load_workspace, run_stages
from autoft.together import Wanted, program_of, run_trials_together
from autoft.trial import Report, TrialDiverged, TrialResult, TrialStopped, trial_splits
from autoft.workspace import Workspace, configure_torch


class FailureKind(StrEnum):
    """Why a trial failed; decides what happens next."""

    INFRASTRUCTURE = "infrastructure"  # a worker, node or database was lost: the trial runs again
    OUT_OF_MEMORY = "out_of_memory"  # the batch does not fit the device
    DIVERGED = "diverged"  # the loss or score is not finite: never again with these parameters
    TIMEOUT = "timeout"  # it took longer than --trial-timeout: once more, on a fresh worker
    CANCELLED = "cancelled"  # somebody stopped it; nothing is wrong with it
    CODE = "code"  # a bug or bad data: every trial would fail


@dataclass(frozen=True)
class Job:
    """A trial to run, or with `confirm_steps` a confirmation run of that many steps; those have negative numbers."""

    number: int
    hyperparameters: Hyperparameters
    confirm_steps: int | None = None


@dataclass(frozen=True)
class Reported:
    """A running trial has an intermediate score."""

    number: int
    report: Report


@dataclass(frozen=True)
class Finished:
    """A trial ran to its end."""

    number: int
    result: TrialResult
    worker: str


@dataclass(frozen=True)
class Stopped:
    """A trial stopped early because it was pruned; says what it had cost by then."""

    number: int
    samples: int
    seconds: float
    worker: str


@dataclass(frozen=True)
class Failed:
    """A trial did not end well; says what it had cost where that is known."""

    number: int
    kind: FailureKind
    message: str
    worker: str
    samples: int = 0
    seconds: float = 0.0


Event = Reported | Finished | Stopped | Failed
Emit = Callable[[dict[str, Any]], None]


class Executor(Protocol):
    """Runs trials somewhere. Used by one thread; never raises for a trial's failure, which is an event."""

    @property
    def slots(self) -> int:
        """How many trials can run at once, now."""
        ...

    @property
    def ahead(self) -> int:
        """How many jobs to have ready beyond the slots, so that no worker waits for the next one; 0: trials run within `poll`."""
        ...

    def submit(self, job: Job) -> None:
        """Start a trial, or queue it until a worker is free."""
        ...

    def poll(self, timeout_seconds: float) -> list[Event]:
        """What happened since the last call; waits at most about that long for something to happen."""
        ...

    def prune(self, number: int) -> None:
        """Stop a running trial at its next step; it ends as `Stopped`, or `Finished` if it was faster."""
        ...

    def forget(self) -> None:
        """Drop what runs and what is queued; nothing more is heard of it. Trials have numbers only: another study's would be taken for it."""
        ...

    def run_stages(self, request: StageRequest, emit: Emit) -> None:
        """Run the stages after the search on one worker that has a whole worker's device, or all cores, to itself."""
        ...

    def run_all_stages(self, requests: Sequence[StageRequest], emit: Emit) -> Iterator[tuple[int, TrialCodeError | None]]:
        """Run many requests, several at once where there are workers; yields the position of each when it has ended.

        A fine-tune that diverged is yielded with its error; every other error is raised.
        """
        ...

    def close(self) -> None:
        """Stop everything and give the workers back."""
        ...


# How torch, cuDNN, cuBLAS, NCCL and Triton begin what they say of a device that failed. Their calls are asynchronous: it is not known which
# kernel it was, and every later call of the process may fail too.
_DEVICE_ERRORS = re.compile(
    r"(CUDA|HIP|cuDNN|NCCL) (driver |kernel |unknown )?error|CU(DNN|BLAS|SOLVER|SPARSE|FFT)_STATUS|device-side assert|Triton Error \[CUDA\]|No CUDA GPUs", re.IGNORECASE
)
_ACCELERATOR_ERROR = getattr(torch, "AcceleratorError", ())  # torch 2.8 and newer


def classify_failure(error: BaseException) -> FailureKind:
    """The kind of failure an exception raised inside a trial stands for."""
    if is_out_of_memory(error):
        return FailureKind.OUT_OF_MEMORY
    if isinstance(error, _ACCELERATOR_ERROR) or (isinstance(error, RuntimeError) and _DEVICE_ERRORS.search(str(error))):
        return FailureKind.INFRASTRUCTURE
    # torch notices the end of a process that decodes images in a signal handler as well, which raises wherever the program stands
    if isinstance(error, StreamLost) or (isinstance(error, RuntimeError) and "DataLoader worker (pid" in str(error)):
        return FailureKind.INFRASTRUCTURE
    return FailureKind.CODE


def trial_limit(timeout_seconds: float | None, job: Job, config: StudyConfig) -> float:
    """Seconds a job may take; a confirmation run of more steps than a trial as much longer."""
    return math.inf if timeout_seconds is None else timeout_seconds * max(1.0, (job.confirm_steps or 0) / config.trial.steps)


def timed_out(number: int, limit_seconds: float, worker: str, seconds: float, samples: int = 0) -> Failed:
    """The event of a trial that took longer than it may."""
    return Failed(number, FailureKind.TIMEOUT, f"not done after {limit_seconds:g} s (--trial-timeout)", worker, samples, seconds)


def describe_failure(error: BaseException) -> str:
    """A user's mistake in one line, anything else with its traceback."""
    if isinstance(error, AutoFTError | torch.OutOfMemoryError):
        return str(error)
    return "".join(traceback.format_exception(error))


def trial_events(workspace: Workspace, job: Job, is_pruned: Callable[[], bool], worker: str) -> Iterator[Event]:
    """Run one trial; its reports as they come, then how it ended. Raises nothing."""
    return events_together(workspace, [job], lambda number: is_pruned(), worker)


def events_together(workspace: Workspace, jobs: Sequence[Job], is_pruned: Callable[[int], bool], worker: str) -> Iterator[Event]:
    """Run trials, several as one program where they can be; each one's reports as they come, then how it ended. Raises nothing."""
    wanted = [Wanted(job.hyperparameters, functools.partial(is_pruned, job.number), job.confirm_steps) for job in jobs]
    for index, outcome in run_trials_together(workspace, wanted):
        yield _event(jobs[index].number, outcome, worker)


def _event(number: int, outcome: Report | TrialResult | Exception, worker: str) -> Event:
    match outcome:
        case Report():
            return Reported(number, outcome)
        case TrialResult():
            return Finished(number, outcome, worker)
        case TrialStopped():
            return Stopped(number, outcome.samples, outcome.seconds, worker)
        case TrialDiverged():
            return Failed(number, FailureKind.DIVERGED, str(outcome), worker, outcome.samples, outcome.seconds)
        case _:
            return Failed(number, classify_failure(outcome), describe_failure(outcome), worker)


class InProcessExecutor:
    """Runs trials in this process: no Ray, for debugging and for machines without it.

    Args:
        should_stop: ends a trial at its next step; it stays RUNNING in the study.
        stages_stop: ends the stages after the search at their next step; None: `should_stop` does.
        trial_timeout_seconds: a trial that takes longer ends at its next step, as a timeout; a confirmation run of more steps may take
            longer by as much, and each of several trials together as many times as long. None: no limit.
        trials_together: how many trials run as one program, where they can share one; None: as many as are fastest on this device, which is
            measured here (`autoft.pace`) and remembered.
        observe: takes the event "trials_together", which says what was measured.
    """

    def __init__(
        self,
        config: StudyConfig,
        *,
        device: str,
        threads: int,
        cache_dir: Path,
        should_stop: Callable[[], bool],
        stages_stop: Callable[[], bool] | None = None,
        trial_timeout_seconds: float | None = None,
        trials_together: int | None = 1,
        observe: Emit = lambda event: None,
    ) -> None:
        self._config, self._timeout, self._deadline = config, trial_timeout_seconds, math.inf
        configure_torch(threads)
        workspace = Workspace.load(config, device, cache_dir, trial_splits(config))
        self._workspace: Workspace | None = workspace
        self._together = trials_together or _measured(workspace, observe)
        self._device, self._cache_dir, self._should_stop = device, cache_dir, should_stop
        self._stages_stop = stages_stop or should_stop
        self._queue: deque[Job] = deque()
        self._running: Iterator[Event] | None = None
        self._left: set[int] = set()  # trials that run
        self._pruned: set[int] = set()

    @property
    def slots(self) -> int:
        """How many trials run together."""
        return self._together

    @property
    def ahead(self) -> int:
        """None: a trial runs while this is polled, so asking ahead would save nothing and know one result less."""
        return 0

    def submit(self, job: Job) -> None:
        """Queue a trial."""
        self._queue.append(job)

    def prune(self, number: int) -> None:
        """Stop a trial at its next step."""
        self._pruned.add(number)

    def poll(self, timeout_seconds: float) -> list[Event]:
        """Runs the current trials until one of them reports or ends, however long that takes."""
        if self._running is None:
            if not self._queue:
                time.sleep(timeout_seconds)  # as Ray's does: whoever asks may have nothing to submit for a while
                return []
            self._start()
        assert self._running is not None
        event = next(self._running)
        if not isinstance(event, Reported):
            self._left.discard(event.number)
            self._running = self._running if self._left else None
        if isinstance(event, Stopped) and event.number not in self._pruned:
            if self._should_stop():
                return []  # the whole run is stopping: the trial stays RUNNING and is adopted by the next run
            return [timed_out(event.number, self._limit, event.worker, event.seconds, event.samples)]
        return [event]

    def forget(self) -> None:
        """Drop the running trial and the queue."""
        self._queue.clear()
        self._pruned.clear()
        self._left.clear()
        self._running = None

    def _start(self) -> None:
        """Begin with the trial that has waited longest, and with those after it that can share its program."""
        assert self._workspace is not None
        first = self._queue.popleft()
        jobs = [first]
        if self._together > 1 and (program := self._program(first)) is not None:
            jobs += [job for job in self._queue if self._program(job) == program][: self._together - 1]
            self._queue = deque(job for job in self._queue if job not in jobs)
        self._limit = trial_limit(self._timeout, first, self._config) * len(jobs)
        self._deadline = time.monotonic() + self._limit
        self._left = {job.number for job in jobs}
        self._running = events_together(self._workspace, jobs, self._ends, "in-process")

    def _program(self, job: Job) -> object | None:
        assert self._workspace is not None
        return program_of(self._workspace, Wanted(job.hyperparameters, confirm_steps=job.confirm_steps))

    def _ends(self, number: int) -> bool:
        return number in self._pruned or self._should_stop() or time.monotonic() > self._deadline

    def run_stages(self, request: StageRequest, emit: Emit) -> None:
        """Run the stages after the search in this process."""
        self._workspace = None  # the stages load their own, with every split
        run_stages(request, load_workspace(request.config, self._device, self._cache_dir), emit, self._stages_stop)

    def run_all_stages(self, requests: Sequence[StageRequest], emit: Emit) -> Iterator[tuple[int, TrialCodeError | None]]:
        """Run the requests one after the other in this process."""
        self._workspace = None
        kept: tuple[StudyConfig, Workspace] | None = None
        for index, request in enumerate(requests):
            if kept is None or kept[0] != request.config:
                kept = None  # before the next one is loaded
                kept = (request.config, load_workspace(request.config, self._device, self._cache_dir))
            try:
                run_stages(request, kept[1], emit, self._stages_stop)
            except TrialCodeError as error:
                yield index, error.with_traceback(None)
            else:
                yield index, None

    def close(self) -> None:
        """Nothing outlives this object."""
        self._running = None


def _measured(workspace: Workspace, observe: Emit) -> int:
    """How many trials of a workspace's study run fastest together."""
    pace = measure(workspace, typical(workspace.config.search_space))
    observe({"event": "trials_together", "count": pace.trials, "seconds": pace.seconds, "reason": pace.reason})
    return pace.trials
