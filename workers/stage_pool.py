"""Stages on Ray actors: requests handed out to as many actors as there is room for, each again if its actor is lost."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from autoft.errors import AutoFTError, ClusterError, Interrupted, TrialCodeError
from autoft.executor import Emit
from autoft.stages import StageRequest
from workers.actor import StageWorker
from workers.capacity import cluster_nodes, shortage
from workers.cluster import WorkerSpec, first_line
from workers.watch import Watch

logger = logging.getLogger(__name__)

ATTEMPTS = 5
STOP_SECONDS = 10.0  # what the actors are given to stop by themselves; what they have finished is kept in any case
WAIT_WARNING_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class StageRoom:
    """What each actor is given: CPU cores (as many threads), a share of a GPU, and the device it computes on."""

    cpus: int
    gpus: float
    device: str


@dataclass(eq=False)
class _Worker:
    """An actor, the request it works on, and what it will say next: whether it sees the run folder, then its events."""

    actor: Any
    index: int = -1
    sees: Any | None = None
    events: Any | None = None

    @property
    def waiting_for(self) -> Any | None:
        return self.sees if self.sees is not None else self.events


class StagePool:
    """Runs stage requests on actors of their own, `count()` of them at once; asked again while the pool runs."""

    def __init__(self, room: StageRoom, cache_dir: Path, should_stop: Callable[[], bool], count: Callable[[], int]) -> None:
        self._room, self._cache_dir, self._should_stop, self._count = room, cache_dir, should_stop, count
        self._workers: list[_Worker] = []
        self._requests: Sequence[StageRequest] = ()
        self._pending: deque[int] = deque()
        self._losses: list[int] = []
        self._worked_at = time.monotonic()

    def run(self, requests: Sequence[StageRequest], emit: Emit) -> Iterator[tuple[int, TrialCodeError | None]]:
        """Run all requests; yields each one's position when it has ended, with the error if its fine-tune diverged.

        Raises:
            Interrupted: `should_stop()` said so.
            ClusterError: an actor was lost `ATTEMPTS` times over one request, or does not see its run folder; or the cluster's head is gone.
        """
        self._requests, self._pending, self._losses = requests, deque(range(len(requests))), [0] * len(requests)
        deadline, target, watch = math.inf, self._count(), Watch(self._count)
        try:
            while self._pending or self._busy():
                target = max(1, watch.news(time.monotonic()) or target)
                if self._should_stop() and deadline == math.inf:
                    deadline = time.monotonic() + STOP_SECONDS
                    for worker in self._workers:
                        worker.actor.stop.remote()
                if deadline == math.inf:
                    self._assign(target)
                    self._warn_of_waiting()
                elif time.monotonic() > deadline or not self._busy():
                    raise Interrupted("stopped after the search")
                yield from self._listen(emit)
        finally:
            for worker in self._workers:
                ray.kill(worker.actor)
            self._workers.clear()

    def _warn_of_waiting(self) -> None:
        now = time.monotonic()
        if any(worker.events is not None for worker in self._workers):
            self._worked_at = now
        elif now - self._worked_at > WAIT_WARNING_SECONDS:
            needs = WorkerSpec(count=1, device=self._room.device, cpus=self._room.cpus, gpus=self._room.gpus)
            logger.warning("no worker has had room for %d s: %s", now - self._worked_at, shortage(cluster_nodes(), needs))
            self._worked_at = now

    def _busy(self) -> bool:
        return any(worker.index >= 0 for worker in self._workers)

    def _assign(self, target: int) -> None:
        self._take_back()
        while self._pending:
            worker = next((worker for worker in self._workers if worker.index < 0), None)
            if worker is None and len(self._workers) >= target:
                return
            if worker is None:
                worker = _Worker(StageWorker.options(num_cpus=self._room.cpus, num_gpus=self._room.gpus).remote())  # type: ignore[attr-defined]
                self._workers.append(worker)
            worker.index = self._pending.popleft()
            worker.sees = worker.actor.sees.remote(self._requests[worker.index].run_dir / "study.yaml")

    def _take_back(self) -> None:
        """A request whose actor has found no room goes to an idle actor instead: the cluster may have shrunk for good."""
        for waiting in [worker for worker in self._workers if worker.index >= 0 and worker.sees is not None]:
            if not self._pending and any(worker.index < 0 for worker in self._workers):
                self._pending.appendleft(waiting.index)
                ray.kill(waiting.actor)
                self._workers.remove(waiting)

    def _listen(self, emit: Emit) -> Iterator[tuple[int, TrialCodeError | None]]:
        by_reference = {worker.waiting_for: worker for worker in self._workers if worker.index >= 0}
        if not by_reference:
            time.sleep(0.2)
            return
        ready, _ = ray.wait(list(by_reference), num_returns=1, timeout=0.2)
        for reference in ready:
            worker = by_reference[reference]
            try:
                if worker.sees is not None:
                    self._start(worker, ray.get(worker.sees))
                else:
                    event = ray.get(next(worker.events))  # type: ignore[arg-type]
                    if event["event"] in ("epoch_ended", "stage_ended"):
                        self._losses[worker.index] = 0  # what has been reached is not lost with the worker
                    emit(event)
            except StopIteration:
                yield self._ended(worker), None
            except RayTaskError as error:
                if isinstance(error.cause, TrialCodeError):
                    yield self._ended(worker), error.cause
                else:
                    raise _cause(error) from None
            except RayError as error:
                self._lost(worker, error)

    def _start(self, worker: _Worker, sees: bool) -> None:
        request = self._requests[worker.index]
        if not sees:
            raise ClusterError(f"the run folder {request.run_dir} is not visible on the worker's node; choose a shared one with --runs")
        worker.sees = None
        room = self._room
        worker.events = worker.actor.run.options(num_returns="streaming").remote(request, room.device, room.cpus, self._cache_dir)

    def _ended(self, worker: _Worker) -> int:
        index, worker.index, worker.events = worker.index, -1, None
        return index

    def _lost(self, worker: _Worker, error: RayError) -> None:
        """An actor is gone: another one goes on with its request, from what is recorded in the run folder."""
        self._workers.remove(worker)
        ray.kill(worker.actor)
        self._losses[worker.index] += 1
        logger.warning("a worker that ran final stages was lost (attempt %d): %s", self._losses[worker.index], first_line(error))
        if self._losses[worker.index] >= ATTEMPTS:
            raise ClusterError(f"the final stages were lost {ATTEMPTS} times without getting any further; see the logs of Ray")
        self._pending.appendleft(worker.index)


def _cause(error: RayTaskError) -> Exception:
    cause = error.cause
    if isinstance(cause, Interrupted):
        return Interrupted(str(cause))
    return cause if isinstance(cause, AutoFTError | OSError) else error
