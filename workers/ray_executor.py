"""Trials on Ray actors: one warm actor a worker, replaced when it dies, when its device fails, when its time is up."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from autoft.config import StudyConfig
from autoft.errors import ClusterError, TrialCodeError
from autoft.executor import Emit, Event, Failed, FailureKind, Job, Reported, classify_failure, timed_out, trial_limit
from autoft.stages import StageRequest
from workers.actor import Loaded, Place, Said, TrialWorker
from workers.capacity import Node, cluster_nodes, room
from workers.cluster import WorkerSpec, first_line
from workers.distributed import run_shared_stages
from workers.stage_pool import StagePool, StageRoom
from workers.waiting import Observe, Waiting
from workers.watch import Watch

logger = logging.getLogger(__name__)

START_FAILURES = 15  # workers in a row that die before they are ready; a machine that goes down kills several
LOAD_SECONDS = 2 * 3600.0  # a node that sees a large data set for the first time decodes all of it


@dataclass(eq=False)
class _Worker:
    """An actor and what it is doing: waiting for room, loading, idle or running trials."""

    actor: Any
    placing: Any | None  # the reference of its `place` call, until the cluster has found room
    loading: Any | None  # the reference of its `load` call, until that has ended
    name: str = ""
    node: str = ""
    together: int = 1  # trials it runs as one program; known when it has loaded
    jobs: dict[int, Job] = field(default_factory=dict)  # of the running trials, by number
    limit: float = math.inf  # seconds they may take
    events: Any | None = None  # the stream of the running trials
    since: float = field(default_factory=time.monotonic)  # when it began what it is doing

    @property
    def waiting_for(self) -> Any | None:
        """What to wait on for this worker's next word."""
        return next((word for word in (self.placing, self.loading, self.events) if word is not None), None)

    @property
    def ready(self) -> bool:
        return self.loading is None

    @property
    def idle(self) -> bool:
        return self.ready and self.events is None


class RayExecutor:
    """One actor per worker of a `WorkerSpec`, on the connected cluster.

    Args:
        grow: called every few seconds for the number of workers there should be, more or fewer; None keeps the number of `spec`.
        trial_timeout_seconds: a trial that takes longer loses its worker and is `Failed` as a timeout; a confirmation run may take as much
            longer as it has more steps. None: no limit.
        observe: takes the event "waiting", which says why no worker is ready, and "trials_together", which says what was measured.
        final: the workers that share the stages after the search; None: one alone runs them.
        final_sharded: whether those share the model's weights out among them.
        trials_together: how many trials a worker runs as one program, where they can share one; None: as many as are fastest on its device,
            which it measures when it has loaded.
    """

    def __init__(
        self,
        config: StudyConfig,
        spec: WorkerSpec,
        cache_dir: Path,
        should_stop: Callable[[], bool],
        grow: Callable[[], int] | None = None,
        trial_timeout_seconds: float | None = None,
        observe: Observe = lambda event: None,
        final: WorkerSpec | None = None,
        trials_together: int | None = 1,
        final_sharded: bool = False,
    ) -> None:
        self._config, self._spec, self._cache_dir, self._should_stop, self._grow = config, spec, cache_dir, should_stop, grow
        self._timeout, self._final, self._final_sharded = trial_timeout_seconds, final, final_sharded
        self._together, self._observe = trials_together, observe
        self._workers: list[_Worker] = []
        self._queue: list[Job] = []
        self._start_failures = 0
        self._target = spec.count
        self._nodes: list[Node] = []
        self._leaving: frozenset[str] = frozenset()  # of the nodes
        self._watch = Watch(lambda: (cluster_nodes(), None if grow is None else grow()))
        self._waiting = Waiting(spec, lambda: self._nodes, observe, time.monotonic())

    @property
    def slots(self) -> int:
        """Trials that the workers that are ready run at once."""
        return sum(worker.together for worker in self._workers if worker.ready)

    @property
    def ahead(self) -> int:
        """As many as a worker starts at once, and more where many trials may end while one is asked for."""
        return max((worker.together for worker in self._workers if worker.ready), default=1) + self.slots // 16

    def submit(self, job: Job) -> None:
        """Give a trial to an idle worker, or queue it until there is one, and as many as it runs together."""
        self._queue.append(job)
        self._assign()

    def prune(self, number: int) -> None:
        """Stop a running trial at its next step."""
        for worker in self._workers:
            if number in worker.jobs:
                worker.actor.prune.remote(number)

    def poll(self, timeout_seconds: float) -> list[Event]:
        """What the workers said since the last call. Who waits has nothing more to submit: a worker then starts with fewer than it could run.

        Raises:
            ClusterError: workers cannot start, or the cluster's head is gone.
        """
        now = time.monotonic()
        self._look(now)
        self._keep_workers(now)
        events = self._overdue(now)
        if timeout_seconds > 0:
            self._assign(fewer=True)
        by_reference = {worker.waiting_for: worker for worker in self._workers if worker.waiting_for is not None}
        if by_reference:
            ready = _all_ready(list(by_reference), 0.0 if events else timeout_seconds)
            events += [event for reference in ready for event in self._hear(by_reference[reference])]
        elif not events:
            time.sleep(timeout_seconds)
        self._assign()
        return events

    def run_stages(self, request: StageRequest, emit: Emit) -> None:
        """Run the stages on one actor with all cores or a whole GPU of a node, or on several workers; tried again if one is lost."""
        self._release()
        if self._final is not None:
            run_shared_stages(request, self._final, self._cache_dir, self._should_stop, emit, self._final_sharded)
            return
        gpus, cores = (min(1.0, self._spec.gpus * self._spec.count), self._spec.cpus) if self._spec.gpus else (0.0, _cores_of_a_node(self._spec.cpus))
        pool = StagePool(StageRoom(cpus=cores, gpus=gpus, device=self._spec.device), self._cache_dir, self._should_stop, lambda: 1)
        for _, error in pool.run([request], emit):
            if error is not None:
                raise error

    def run_all_stages(self, requests: Sequence[StageRequest], emit: Emit) -> Iterator[tuple[int, TrialCodeError | None]]:
        """Run many requests, as many at once as there were workers for trials, and more if the cluster grows."""
        self._release()
        stage_room = StageRoom(cpus=self._spec.cpus, gpus=self._spec.gpus, device=self._spec.device)
        return StagePool(stage_room, self._cache_dir, self._should_stop, self._grow or (lambda: self._spec.count)).run(requests, emit)

    def forget(self) -> None:
        """Kill the actors with what they run; the next poll starts others."""
        self._release()

    def close(self) -> None:
        """Kill the actors; their trials stay RUNNING in the study."""
        self._release()

    def _look(self, now: float) -> None:
        """See whether the cluster has grown or shrunk, and which nodes are about to leave it."""
        news = self._watch.news(now)
        if news is None:
            return
        self._nodes, target = news
        self._leaving = frozenset(node.id for node in self._nodes if node.leaving)
        if target is not None:
            self._target = max(1, target)  # one that waits for room is what makes an autoscaler bring a node

    def _keep_workers(self, now: float) -> None:
        """Start workers that are missing: at first, after a loss, or because the cluster has grown. End those that are too many."""
        for worker in [worker for worker in self._workers if worker.node in self._leaving and not worker.jobs]:
            self._retire(worker, "its node is about to leave the cluster")
        staying = [worker for worker in self._workers if worker.node not in self._leaving]
        surplus = max(0, len(staying) - self._target)
        for worker in [worker for worker in staying if worker.placing is not None][:surplus]:
            self._retire(worker, "the cluster has no room for it any more")
        for _ in range(self._target - len(staying)):
            self._hire()
        ready = sum(worker.ready for worker in self._workers)
        unplaced = sum(worker.placing is not None for worker in self._workers)
        self._waiting.note(now, ready, len(self._workers) - ready - unplaced, unplaced)

    def _hire(self) -> None:
        actor = TrialWorker.options(num_cpus=self._spec.cpus, num_gpus=self._spec.gpus).remote(  # type: ignore[attr-defined]
            self._config, self._spec.device, self._spec.cpus, self._cache_dir, self._together
        )
        self._workers.append(_Worker(actor, placing=actor.place.remote(), loading=actor.load.remote()))

    def _retire(self, worker: _Worker, reason: str) -> None:
        """End a worker; the next poll starts another one if there should be."""
        logger.info("worker %s ends: %s", worker.name, reason)
        self._workers.remove(worker)
        ray.kill(worker.actor)

    def _overdue(self, now: float) -> list[Event]:
        """End what has taken too long."""
        events: list[Event] = []
        for worker in list(self._workers):
            seconds = now - worker.since
            if worker.jobs and seconds > worker.limit:
                self._retire(worker, "its trial took too long")
                events += [timed_out(number, worker.limit, worker.name, seconds) for number in worker.jobs]
            elif worker.placing is None and worker.loading is not None and seconds > LOAD_SECONDS:
                self._retire(worker, "it took too long to load")
                self._count_start_failure(f"worker {worker.name} had not loaded model and data after {LOAD_SECONDS:g} s")
        return events

    def _assign(self, fewer: bool = False) -> None:
        """Start trials on idle workers, each with as many as it runs together, or with `fewer` where there are no more."""
        for worker in self._workers:
            if worker.idle and worker.node not in self._leaving and len(self._queue) >= (1 if fewer else worker.together):
                jobs, self._queue = self._queue[: worker.together], self._queue[worker.together :]
                worker.jobs, worker.since = {job.number: job for job in jobs}, time.monotonic()
                worker.limit = sum(trial_limit(self._timeout, job, self._config) for job in jobs)
                worker.events = worker.actor.run.options(num_returns="streaming").remote(jobs)

    def _hear(self, worker: _Worker) -> list[Event]:
        try:
            if worker.placing is not None:
                return self._placed(worker, ray.get(worker.placing))
            if worker.loading is not None:
                return self._loaded(worker, ray.get(worker.loading))
            assert worker.events is not None
            said: Said = ray.get(next(worker.events))
        except StopIteration:  # before all its trials had ended
            return self._lost(worker, ClusterError("it ended without a word"))
        except RayTaskError as error:  # outside the trial itself
            return self._broken(worker, error)
        except RayError as error:
            return self._lost(worker, error)
        if not isinstance(said.event, Reported):
            del worker.jobs[said.event.number]
            worker.events = worker.events if worker.jobs else None
        if said.replace is not None:
            logger.warning("worker %s is replaced: %s", worker.name, said.replace)
            self._retire(worker, said.replace)
        return [said.event]

    def _placed(self, worker: _Worker, place: Place) -> list[Event]:
        worker.placing, worker.name, worker.node, worker.since = None, place.name, place.node, time.monotonic()
        return []

    def _loaded(self, worker: _Worker, loaded: Loaded) -> list[Event]:
        if loaded.failure is None:
            worker.loading, worker.together, self._start_failures = None, loaded.together, 0
            if loaded.measured is not None:
                self._observe({"event": "trials_together", "worker": worker.name, "count": loaded.together, **loaded.measured})
        elif loaded.failure == FailureKind.INFRASTRUCTURE:
            self._retire(worker, loaded.message)
            self._count_start_failure(f"worker {worker.name}: {loaded.message.strip().splitlines()[-1]}")
        else:
            raise ClusterError(f"worker {worker.name} cannot load the study: {loaded.message}")
        return []

    def _broken(self, worker: _Worker, error: RayTaskError) -> list[Event]:
        """A worker's own code failed; it is not used again."""
        self._retire(worker, first_line(error))
        if not worker.jobs:
            raise ClusterError(f"a worker cannot start:\n{error}") from None
        return [Failed(number, classify_failure(error.cause), str(error), worker.name) for number in worker.jobs]

    def _lost(self, worker: _Worker, error: RayError | ClusterError) -> list[Event]:
        """A worker is gone: forget it (the next poll starts another), and report its trials as lost."""
        self._retire(worker, first_line(error))
        reason = "worker lost" if isinstance(error, RayActorError) else first_line(error)
        if worker.loading is not None and not self._has_left(worker.node):
            self._count_start_failure(first_line(error))
        return [Failed(number, FailureKind.INFRASTRUCTURE, reason, worker.name) for number in worker.jobs]

    def _has_left(self, node: str) -> bool:
        """Whether a node is gone: no fault of the workers on it. Of a worker that had no node yet, nobody knows."""
        return bool(node) and all(other.id != node for other in cluster_nodes())

    def _count_start_failure(self, message: str) -> None:
        self._start_failures += 1
        logger.warning("a worker could not start (%d of %d in a row): %s", self._start_failures, START_FAILURES, message)
        if self._start_failures >= START_FAILURES:
            raise ClusterError(f"{START_FAILURES} workers in a row died while starting: {message}")

    def _release(self) -> None:
        for worker in self._workers:
            ray.kill(worker.actor)
        self._workers.clear()
        self._queue.clear()


def _all_ready(references: list[Any], timeout_seconds: float) -> list[Any]:
    """Wait for one, and take along the others that are there."""
    ready, others = ray.wait(references, num_returns=1, timeout=timeout_seconds)
    if ready and others:
        ready += ray.wait(others, num_returns=len(others), timeout=0)[0]
    return list(ready)


def elastic_count(spec: WorkerSpec) -> Callable[[], int]:
    """How many workers like those of `spec` the cluster's nodes hold, now."""
    return lambda: room(cluster_nodes(), spec)


def _cores_of_a_node(otherwise: int) -> int:
    """Cores of the smallest node that has any: what a task may ask for and always get. `otherwise`: where no node has, at the moment."""
    return int(min((node.cpus for node in cluster_nodes() if node.cpus and not node.leaving), default=otherwise))
