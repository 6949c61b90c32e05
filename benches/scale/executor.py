"""Simulated workers on a simulated clock, behind the `Executor` protocol.

Trials take simulated seconds and cost nothing. What the coordinator does between two polls takes real time, and that is added to the clock. Where it
has nothing to do and waits for a trial, no real time passes: the clock jumps.
"""

import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from autoft.executor import Emit, Event, Finished, Job, Reported, Stopped
from autoft.stages import StageRequest
from autoft.trial import Report, TrialResult

_WAIT_SECONDS = 0.0005  # real ones, between two looks at a coordinator that is to give work to a free worker


@dataclass(frozen=True)
class Load:
    """What simulated trials are like.

    Attributes:
        trial_seconds: from a trial's start to its end, its reports evenly between.
        reports: steps at which a trial reports; the last is its end.
        score: of a job.
        samples: a trial's training examples.
    """

    trial_seconds: float
    reports: tuple[int, ...]
    score: Callable[[Job], float]
    samples: int = 1024


class SimulatedExecutor:
    """See the module.

    Jobs that are submitted before the first poll start at clock 0, each with another part of its time to go, as in the middle of a study.

    Args:
        limit: how many jobs are awaited after the first poll; while fewer have come and a worker is free, the clock does not jump.
        wall: real seconds.
        wait: lets real seconds pass.
    """

    def __init__(
        self,
        workers: int,
        load: Load,
        limit: int,
        wall: Callable[[], float] = time.perf_counter,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._workers, self._load, self._limit, self._wall, self._wait = workers, load, limit, wall, wait
        self._order = itertools.count()
        self._due: list[tuple[float, int, Event]] = []
        self._running: dict[int, float] = {}  # trial -> when it began
        self._free: deque[float] = deque()  # since when each worker without a trial has been so
        self._clock = self._left = 0.0
        self._began = False
        self._waiting: list[Job] = []
        self._idle = 0.0
        self._ended_at: float | None = None
        self.submitted = self.ended = 0  # since the first poll
        self.coordinator_seconds = 0.0  # real ones, between polls

    @property
    def slots(self) -> int:
        """All workers."""
        return self._workers

    @property
    def ahead(self) -> int:
        """As `RayExecutor`'s."""
        return 1 + self._workers // 16

    @property
    def is_done(self) -> bool:
        """Whether the awaited jobs have come."""
        return self.submitted >= self._limit

    @property
    def seconds(self) -> float:
        """Simulated seconds from the first poll until the last awaited job came, or until now."""
        return self._clock if self._ended_at is None else self._ended_at

    @property
    def idle_share(self) -> float:
        """Worker-seconds without a trial over worker-seconds, in `seconds`."""
        waiting = sum(max(0.0, self.seconds - since) for since in self._free)
        return (self._idle + waiting) / (self._workers * self.seconds)

    def submit(self, job: Job) -> None:
        """Start a trial on the worker that has been free for longest."""
        if not self._began:
            self._waiting.append(job)
            return
        now = self._now()
        since = self._free.popleft()
        self.submitted += 1
        if self.submitted == self._limit:
            self._ended_at = now
        self._idle += max(0.0, (now if self._ended_at is None else self._ended_at) - since)
        self._start(job, now, done=0.0)

    def poll(self, timeout_seconds: float) -> list[Event]:
        """What has happened by now, or next."""
        if not self._began and timeout_seconds == 0:  # the coordinator still hands out the trials to begin with
            return []
        if not self._began:
            self._begin()
        else:
            now = self._now()
            self.coordinator_seconds += now - self._clock
            self._clock = now
        if timeout_seconds > 0 and (not self._due or self._due[0][0] > self._clock):  # else the coordinator has more to do, in real time
            if self._free and not self.is_done:
                before = self._wall()
                self._wait(_WAIT_SECONDS)
                self._clock += self._wall() - before
            elif self._due:
                self._clock = self._due[0][0]
        events = list(self._pop_due())
        self.ended += sum(not isinstance(event, Reported) for event in events)
        self._left = self._wall()
        return events

    def prune(self, number: int) -> None:
        """End a trial after one more step, unless it has ended by then."""
        began = self._running.get(number)
        if began is not None:
            now, load = self._now(), self._load
            at = now + load.trial_seconds / load.reports[-1]
            self._push(at, Stopped(number, load.samples, at - began, "simulated"))

    def forget(self) -> None:
        """Drop everything."""
        self._due.clear()
        self._running.clear()

    def run_stages(self, request: StageRequest, emit: Emit) -> None:
        """Not part of a search."""
        raise NotImplementedError("simulated workers run trials only")

    def run_all_stages(self, requests: Sequence[StageRequest], emit: Emit) -> Iterator[tuple[int, Any]]:
        """Not part of a search."""
        raise NotImplementedError("simulated workers run trials only")

    def close(self) -> None:
        """Nothing to close."""

    def _now(self) -> float:
        return self._clock + self._wall() - self._left

    def _begin(self) -> None:
        self._began = True
        for index, job in enumerate(self._waiting):
            self._start(job, 0.0, done=index / len(self._waiting))
        self._free.extend([0.0] * (self._workers - len(self._waiting)))

    def _start(self, job: Job, now: float, done: float) -> None:
        """Plan a trial's events; `done` is the part of it that lies behind."""
        load, score = self._load, self._load.score(job)
        began = now - done * load.trial_seconds
        self._running[job.number] = began
        for index, step in enumerate(load.reports, 1):
            at = began + load.trial_seconds * index / len(load.reports)
            if at > now:
                self._push(at, Reported(job.number, Report(step, score * index / len(load.reports))))
        result = TrialResult(
            score=score, ci_low=score - 0.02, ci_high=score + 0.02, values={"val_ood": score}, repeats=(score,), steps=load.reports[-1],
            samples=load.samples, seconds=load.trial_seconds,
        )  # fmt: skip
        self._push(began + load.trial_seconds, Finished(job.number, result, "simulated"))

    def _push(self, at: float, event: Event) -> None:
        heapq.heappush(self._due, (at, next(self._order), event))

    def _pop_due(self) -> Iterator[Event]:
        while self._due and self._due[0][0] <= self._clock:
            at, _, event = heapq.heappop(self._due)
            if event.number not in self._running:  # it was pruned
                continue
            if not isinstance(event, Reported):
                del self._running[event.number]
                self._free.append(at)
            yield event
