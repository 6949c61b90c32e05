"""Trials on Ray actors: one warm actor a worker, replaced when it dies."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from autoft.config import StudyConfig
from autoft.errors import ClusterError, TrialCodeError
from autoft.executor import Emit, Event, Failed, FailureKind, Job, Reported
from autoft.stages import StageRequest
from workers.actor import TrialWorker
from workers.cluster import WorkerSpec, first_line, plan_workers
from workers.stage_pool import StagePool, StageRoom

logger = logging.getLogger(__name__)

GROW_SECONDS = 5.0  # how often the cluster is asked whether it has grown
START_FAILURES = 5  # workers in a row that die before they are ready
WAIT_WARNING_SECONDS = 60.0


@dataclass(eq=False)
class _Worker:
    """An actor and what it is doing."""

    actor: Any
    loading: Any | None  # the reference of its `load` call, until that has ended
    name: str = ""
    job: Job | None = None
    events: Any | None = None  # the stream of the running trial

    @property
    def waiting_for(self) -> Any | None:
        """What to wait on for this worker's next word."""
        return self.loading if self.loading is not None else self.events


class RayExecutor:
    """One actor per worker of a `WorkerSpec`, on the connected cluster.

    Args:
        grow: called every few seconds for the number of workers there should be; None keeps the number of `spec`.
    """

    def __init__(
        self, config: StudyConfig, spec: WorkerSpec, cache_dir: Path, should_stop: Callable[[], bool], grow: Callable[[], int] | None = None
    ) -> None:
        self._config, self._spec, self._cache_dir, self._should_stop, self._grow = config, spec, cache_dir, should_stop, grow
        self._workers: list[_Worker] = []
        self._queue: list[Job] = []
        self._start_failures = 0
        self._grown_at = self._ready_at = time.monotonic()
        self._target = spec.count

    @property
    def slots(self) -> int:
        """Workers that are ready for trials."""
        return sum(worker.loading is None for worker in self._workers)

    def submit(self, job: Job) -> None:
        """Give a trial to an idle worker, or queue it until there is one."""
        self._queue.append(job)
        self._assign()

    def prune(self, number: int) -> None:
        """Stop a running trial at its next step."""
        for worker in self._workers:
            if worker.job is not None and worker.job.number == number:
                worker.actor.prune.remote(number)

    def poll(self, timeout_seconds: float) -> list[Event]:
        """What the workers said since the last call.

        Raises:
            ClusterError: workers cannot start.
        """
        self._keep_workers()
        by_reference = {worker.waiting_for: worker for worker in self._workers if worker.waiting_for is not None}
        if not by_reference:
            time.sleep(timeout_seconds)
            return []
        ready, _ = ray.wait(list(by_reference), num_returns=1, timeout=timeout_seconds)
        events = [event for reference in ready for event in self._hear(by_reference[reference])]
        self._assign()
        return events

    def run_stages(self, request: StageRequest, emit: Emit) -> None:
        """Run the stages on one actor with all cores or a whole GPU of a node; tried again if the actor is lost."""
        self._release()
        gpus, cores = (min(1.0, self._spec.gpus * self._spec.count), self._spec.cpus) if self._spec.gpus else (0.0, _cores_of_a_node())
        pool = StagePool(StageRoom(cpus=cores, gpus=gpus, device=self._spec.device), self._cache_dir, self._should_stop, lambda: 1)
        for _, error in pool.run([request], emit):
            if error is not None:
                raise error

    def run_all_stages(self, requests: Sequence[StageRequest], emit: Emit) -> Iterator[tuple[int, TrialCodeError | None]]:
        """Run many requests, as many at once as there were workers for trials, and more if the cluster grows."""
        self._release()
        room = StageRoom(cpus=self._spec.cpus, gpus=self._spec.gpus, device=self._spec.device)
        return StagePool(room, self._cache_dir, self._should_stop, self._grow or (lambda: self._spec.count)).run(requests, emit)

    def close(self) -> None:
        """Kill the actors; their trials stay RUNNING in the study."""
        self._release()

    def _keep_workers(self) -> None:
        """Start workers that are missing: at first, after a loss, or because the cluster has grown."""
        now = time.monotonic()
        if self._grow is not None and now - self._grown_at > GROW_SECONDS:
            self._grown_at = now
            self._target = max(self._target, self._grow())
        while len(self._workers) < self._target:
            actor = TrialWorker.options(num_cpus=self._spec.cpus, num_gpus=self._spec.gpus).remote(  # type: ignore[attr-defined]
                self._config, self._spec.device, self._spec.cpus, self._cache_dir
            )
            self._workers.append(_Worker(actor, loading=actor.load.remote()))
        if self.slots:
            self._ready_at = now
        elif now - self._ready_at > WAIT_WARNING_SECONDS:
            logger.warning("no worker has been ready for %d s; the cluster has %s", now - self._ready_at, ray.cluster_resources())
            self._ready_at = now

    def _assign(self) -> None:
        for worker in self._workers:
            if self._queue and worker.loading is None and worker.job is None:
                worker.job = self._queue.pop(0)
                worker.events = worker.actor.run.options(num_returns="streaming").remote(worker.job)

    def _hear(self, worker: _Worker) -> list[Event]:
        try:
            if worker.loading is not None:
                return self._loaded(worker, *ray.get(worker.loading))
            assert worker.events is not None
            event: Event = ray.get(next(worker.events))
        except StopIteration:
            worker.job = worker.events = None
            return []
        except RayTaskError as error:  # a bug outside the trial itself
            job, worker.job, worker.events = worker.job, None, None
            if job is None:
                raise ClusterError(f"a worker cannot start:\n{error}") from None
            return [Failed(job.number, FailureKind.CODE, str(error), worker.name)]
        except RayError as error:
            return self._lost(worker, error)
        if not isinstance(event, Reported):
            worker.job = worker.events = None
        return [event]

    def _loaded(self, worker: _Worker, name: str, problem: str | None) -> list[Event]:
        if problem is not None:
            raise ClusterError(f"worker {name} cannot load the study: {problem}")
        worker.loading, worker.name = None, name
        self._start_failures = 0
        return []

    def _lost(self, worker: _Worker, error: RayError) -> list[Event]:
        """A worker is gone: forget it (the next poll starts another), and report its trial as lost."""
        self._workers.remove(worker)
        ray.kill(worker.actor)
        if worker.loading is not None:
            self._start_failures += 1
            if self._start_failures >= START_FAILURES:
                raise ClusterError(f"{START_FAILURES} workers in a row died while starting: {first_line(error)}")
        if worker.job is None:
            return []
        reason = "worker lost" if isinstance(error, RayActorError) else first_line(error)
        return [Failed(worker.job.number, FailureKind.INFRASTRUCTURE, reason, worker.name)]

    def _release(self) -> None:
        for worker in self._workers:
            ray.kill(worker.actor)
        self._workers.clear()
        self._queue.clear()


def elastic_count(spec: WorkerSpec) -> Callable[[], int]:
    """How many workers like those of `spec` the cluster could hold now."""

    def count() -> int:
        try:
            return plan_workers(ray.cluster_resources(), None, spec.gpus or None, spec.cpus, spec.device).count
        except ClusterError:
            return 0

    return count


def _cores_of_a_node() -> int:
    """Cores of the smallest node that has any: what a task may ask for and always get."""
    return int(min(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")))

