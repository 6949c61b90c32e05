"""The stages after the search on several workers that share every batch: Ray Train's TorchTrainer around `autoft.stages.run_stages`.

Ray Train starts the processes, joins them by gloo or NCCL, and after a loss starts as many as there is room for; each start goes on from
the training state in the run folder, so nothing is told to Ray Train but whether a process has ended. Events come back through an actor.
"""

import shutil
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from autoft.errors import AutoFTError, ClusterError, Interrupted
from autoft.executor import Emit
from autoft.stages import StageRequest
from workers.capacity import Node, plan_on_nodes
from workers.cluster import WorkerSpec, first_line

LOSSES = 20  # of processes, until the run is given up; as often as a trial is retried
POLL_SECONDS = 0.2
STOP_SECONDS = 60.0  # what the processes are given to write their state
END_SECONDS = 10.0  # what Ray Train is given to put things away
RESIZE_SECONDS = 600.0  # between two looks at whether more workers would fit; taking them in starts all again from the last state


def plan_final(
    nodes: Sequence[Node], workers: int | None, gpus_per_worker: float | None, threads: int | None, device: str, sharded: bool = False
) -> WorkerSpec | None:
    """The workers that share the final fine-tune; None: one alone, with a GPU or all cores of a node.

    Args:
        workers: how many; None: one per GPU, on CPUs one.
        gpus_per_worker, threads, device: as for trials; but where workers have GPUs, each gets a whole one, since all wait for the slowest.
        sharded: whether the weights are to be shared out too, which takes several workers.

    Raises:
        ClusterError: the workers asked for do not fit the nodes, or one alone has nobody to share weights with.
    """
    found = _plan(nodes, workers, gpus_per_worker, threads, device)
    if sharded and found is None:
        raise ClusterError(
            f"--final-sharded shares weights out among workers, and {'--final-workers 1' if workers == 1 else 'without --final-workers'} there is one; "
            "valid is --final-workers N with N of at least 2, and room for them on the nodes"
        )
    return found


def _plan(nodes: Sequence[Node], workers: int | None, gpus_per_worker: float | None, threads: int | None, device: str) -> WorkerSpec | None:
    if workers == 1:
        return None
    try:
        spec = plan_on_nodes(nodes, workers, 1.0 if gpus_per_worker else gpus_per_worker, threads, device)
    except ClusterError as error:
        if workers is None:
            return None
        raise ClusterError(f"--final-workers {workers}: {error}") from None
    return spec if spec.count > 1 and (workers is not None or spec.gpus) else None


def run_shared_stages(
    request: StageRequest, spec: WorkerSpec, cache_dir: Path, should_stop: Callable[[], bool], emit: Emit, sharded: bool = False
) -> None:
    """Run the stages on `spec.count` workers, each with the cores and the GPU of `spec`; on fewer after a loss.

    Args:
        sharded: whether they share the weights out among them; one that is left alone holds all of them.

    Raises:
        Interrupted: `should_stop()` said so.
        ClusterError: the processes were lost `LOSSES` times, or the run folder is not visible where they run.
        Exception: whatever the stages raise.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    relay = _Relay.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    trainer = _Trainer.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    work = {"request": request, "device": spec.device, "threads": spec.cpus, "cache_dir": cache_dir, "relay": relay, "sharded": sharded}
    ended = trainer.fit.remote(work, spec)
    deadline = None
    try:
        while True:
            done, _ = ray.wait([ended], timeout=POLL_SECONDS)
            events, outcome = ray.get(relay.hear.remote())
            for event in events:
                emit(event)
            if outcome is not None:
                ray.wait([ended], timeout=END_SECONDS)
            if isinstance(outcome, Exception):
                raise outcome
            if outcome is not None:
                return
            if done:
                raise _failure(ended)
            if deadline is None and should_stop():
                deadline = time.monotonic() + STOP_SECONDS
                relay.stop.remote()
            if deadline is not None and time.monotonic() > deadline:
                raise Interrupted("stopped after the search")
    finally:
        ray.kill(trainer)  # and with it what it has started
        ray.kill(relay)
        shutil.rmtree(_records(request), ignore_errors=True)


def _records(request: StageRequest) -> Path:
    """Where Ray Train keeps records of its own; they say nothing that outlives a run."""
    return request.run_dir / "training" / "ray-train"


def _failure(ended: Any) -> Exception:
    """Why Ray Train has given up."""
    try:
        ray.get(ended)
    except RayError as error:
        return ClusterError(f"the final stages were given up: {first_line(error.cause if hasattr(error, 'cause') else error)}")
    return ClusterError("the final stages ended without a word")


@ray.remote(num_cpus=0)
class _Relay:
    """Passes events from the first process to the coordinator, and the wish to stop the other way."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._outcome: Any = None
        self._stopping = False

    def say(self, event: dict[str, Any]) -> None:
        self._events.append(event)

    def end(self, outcome: Any) -> None:
        """What the stages came to: True, or what they raised; the first word counts."""
        self._outcome = outcome if self._outcome is None else self._outcome

    def hear(self) -> tuple[list[dict[str, Any]], Any]:
        """The events since the last call, and the outcome if there is one."""
        outcome, events = self._outcome, self._events
        self._events = self._events[len(events) :]
        return events, outcome

    def stop(self) -> None:
        self._stopping = True

    def stopping(self) -> bool:
        return self._stopping


@ray.remote(num_cpus=0, max_restarts=0)
class _Trainer:
    """Where Ray Train is called: a process of its own, since its `fit` takes the signals of the process that calls it."""

    def fit(self, work: dict[str, Any], spec: WorkerSpec) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        elastic = (1, spec.count) if spec.count > 1 else 1
        TorchTrainer(
            _train,
            train_loop_config=work,
            scaling_config=ScalingConfig(
                num_workers=elastic,
                use_gpu=spec.gpus > 0,
                resources_per_worker={"CPU": spec.cpus} | ({"GPU": spec.gpus} if spec.gpus else {}),
                elastic_resize_monitor_interval_s=RESIZE_SECONDS,
            ),
            run_config=RunConfig(
                name="final", storage_path=str(_records(work["request"])), failure_config=FailureConfig(max_failures=LOSSES)
            ),
        ).fit()


def _train(work: dict[str, Any]) -> None:
    """One process: everything up to the stages' end."""
    import ray.train

    relay, first = work["relay"], ray.train.get_context().get_world_rank() == 0
    outcome: Any = True
    try:
        _run_stages(work, first)
    except Exception as error:
        if _is_loss(error):
            raise  # Ray Train starts the processes that are left again
        known = isinstance(error, AutoFTError | OSError)  # what others raise may not survive the way back
        outcome = error.with_traceback(None) if known else RuntimeError("".join(traceback.format_exception(error)))
    if first or not (outcome is True or isinstance(outcome, Interrupted)):  # those come to all, and the first one may still be writing
        ray.get(relay.end.remote(outcome))


def _run_stages(work: dict[str, Any], first: bool) -> None:
    import ray.train
    from ray.train.torch import get_device

    from autoft.collective import ALONE
    from autoft.distributed import TorchCollective
    from autoft.models.shards import shard_towers
    from autoft.stages import load_workspace, run_stages
    from autoft.workspace import configure_torch

    request, relay = work["request"], work["relay"]
    if not (request.run_dir / "study.yaml").is_file():
        raise ClusterError(f"the run folder {request.run_dir} is not visible on the worker's node; choose a shared one with --runs")
    configure_torch(work["threads"])
    device = "cpu" if work["device"] == "cpu" else str(get_device())
    size = ray.train.get_context().get_world_size()
    sharded = work["sharded"] and size > 1
    workspace = load_workspace(request.config, device, work["cache_dir"], arrange=shard_towers if sharded else None)
    workspace.collective = TorchCollective() if size > 1 else ALONE
    stop = threading.Event()
    if first:
        relay.say.remote({"event": "final_workers", "count": size, "sharded": sharded})
        threading.Thread(target=_watch, args=(relay, stop), daemon=True).start()
    run_stages(request, workspace, lambda event: relay.say.remote(event), stop.is_set)


def _watch(relay: Any, stop: threading.Event) -> None:
    """Hear whether to stop; a coordinator that is gone does not want anything more either."""
    while not stop.wait(0.5):
        try:
            if ray.get(relay.stopping.remote()):
                stop.set()
        except RayError:
            stop.set()


def _is_loss(error: Exception) -> bool:
    """Whether another process or a device was lost, rather than something being wrong here."""
    from torch import distributed

    from autoft.executor import FailureKind, classify_failure

    told = isinstance(error, distributed.DistError) or "gloo" in str(error) or "by peer" in str(error)
    return isinstance(error, RuntimeError) and (told or classify_failure(error) == FailureKind.INFRASTRUCTURE)
