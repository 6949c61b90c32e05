"""The Ray actors: a warm worker that runs trials, and one that runs the stages after the search."""

import os
import queue
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from autoft.config import StudyConfig

PROGRESS_SECONDS = 10.0  # between two reports of a node that decodes images


@dataclass(frozen=True)
class Place:
    """Where a worker runs."""

    name: str  # HOST:PID
    node: str  # the node's id


@dataclass(frozen=True)
class Loaded:
    """What came of loading.

    failure, message: its kind and what went wrong, if something did.
    together: how many trials the worker runs as one program.
    measured: seconds of a trial's step by how many ran together, and why no more were measured; None: nothing was.
    """

    failure: Any | None = None
    message: str = ""
    together: int = 1
    measured: dict[str, Any] | None = None


@dataclass(frozen=True)
class Said:
    """An event of a trial; with the last one, why the worker is to be replaced, if it is."""

    event: Any
    replace: str | None = None


@ray.remote(max_restarts=0, max_task_retries=0, max_concurrency=2)
class TrialWorker:
    """Loads model and data once, then runs trials, one after the other or some together. A second thread hears `prune` meanwhile.

    together: how many trials it will be given at once; None: it measures how many are fastest.
    """

    def __init__(self, config: StudyConfig, device: str, threads: int, cache_dir: Path, together: int | None = 1) -> None:
        self._config, self._device, self._threads, self._cache_dir, self._together = config, device, threads, cache_dir, together
        self._pruned: set[int] = set()
        self._name = f"{ray.util.get_node_ip_address()}:{os.getpid()}"

    def place(self) -> Place:
        """Answered as soon as the cluster has found room for the worker."""
        return Place(self._name, ray.get_runtime_context().get_node_id())

    def load(self) -> Loaded:
        """Load everything."""
        from autoft.executor import classify_failure, describe_failure
        from autoft.pacing import paced
        from autoft.trial import trial_splits
        from autoft.workspace import Workspace, configure_torch
        from workers.device_memory import DeviceMemory, settle

        try:
            configure_torch(self._threads)
            _limit_cache()
            progress = paced(_log_decoding, PROGRESS_SECONDS)
            self._workspace = Workspace.load(self._config, self._device, self._cache_dir, trial_splits(self._config), progress)
            loaded = self._measured() if self._together is None else Loaded(together=self._together)
        except Exception as error:
            return Loaded(classify_failure(error), describe_failure(error))
        self._memory = DeviceMemory(lambda: settle(self._workspace.device))
        return loaded

    def _measured(self) -> Loaded:
        """How many trials of the study run fastest together here."""
        from autoft.pace import measure, typical

        pace = measure(self._workspace, typical(self._config.search_space))
        return Loaded(together=pace.trials, measured={"seconds": pace.seconds, "reason": pace.reason})

    def run(self, jobs: Any) -> Iterator[Said]:
        """Run trials, several as one program where they can share one; yields the executor's events, the last one when their memory has been given back."""
        from autoft.executor import Reported, events_together
        from autoft.workspace import configure_torch

        configure_torch(self._threads)  # this is another thread than `load`'s
        ends: list[Any] = []
        for event in events_together(self._workspace, jobs, lambda number: number in self._pruned, self._name):
            if isinstance(event, Reported):
                yield Said(event)
                continue
            ends.append(event)
            if len(ends) < len(jobs):
                yield Said(event)
            # the last is not yielded at once: an error's traceback holds the trial's tensors until the loop is over
        yield Said(ends[-1], self._after(ends))

    def prune(self, number: int) -> None:
        """Stop trial `number` at its next step."""
        self._pruned.add(number)

    def _after(self, ends: list[Any]) -> str | None:
        """Why the worker is to be replaced after trials that ended so, or None."""
        from autoft.executor import Failed, FailureKind

        if any(isinstance(end, Failed) and end.kind == FailureKind.INFRASTRUCTURE for end in ends):
            return "its device failed"  # every later call on a CUDA context that has seen an error fails as well
        try:
            return self._memory.after_trial()
        except RuntimeError as error:  # a CUDA error may show itself late
            return f"its device failed: {error}"


@ray.remote(max_restarts=0, max_task_retries=0, max_concurrency=2)
class StageWorker:
    """Runs the stages after the search and hands their events out as they come."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._kept: tuple[Any, Any] | None = None  # the last request's study and workspace

    def stop(self) -> None:
        """End after the current step; what is done stays done."""
        self._stop.set()

    def sees(self, path: Path) -> bool:
        """Whether this node sees a file of the coordinator's."""
        return path.is_file()

    def run(self, request: Any, device: str, threads: int, cache_dir: Path) -> Iterator[dict[str, Any]]:
        """Run the stages; yields their events. Raises what they raise."""
        events: queue.Queue[dict[str, Any] | BaseException | None] = queue.Queue()
        thread = threading.Thread(target=self._work, args=(request, device, threads, cache_dir, events), daemon=True)
        thread.start()
        while (event := events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event

    def _work(self, request: Any, device: str, threads: int, cache_dir: Path, events: Any) -> None:
        from autoft.errors import AutoFTError
        from autoft.pacing import paced
        from autoft.stages import load_workspace, run_stages
        from autoft.workspace import configure_torch

        def decoding(field: str, done: int, of: int) -> None:
            events.put({"event": "decoding", "field": field, "done": done, "of": of, "node": ray.util.get_node_ip_address()})

        configure_torch(threads)
        try:
            _limit_cache()
            if self._kept is None or self._kept[0] != request.config:
                self._kept = None  # before the next one is loaded
                self._kept = (request.config, load_workspace(request.config, device, cache_dir, paced(decoding, PROGRESS_SECONDS)))
            run_stages(request, self._kept[1], events.put, self._stop.is_set)
        except Exception as error:
            known = isinstance(error, AutoFTError | OSError)  # what others raise may not survive the way back
            events.put(error.with_traceback(None) if known else RuntimeError("".join(traceback.format_exception(error))))
        events.put(None)


def _limit_cache() -> None:
    """AUTOFT_CACHE_BYTES as Ray was started with on this node: each has a disk of its own. Raises ConfigError."""
    from autoft.data.room import limit_cache, read_size

    limit = os.environ.get("AUTOFT_CACHE_BYTES", "").strip()
    limit_cache(read_size(limit, "AUTOFT_CACHE_BYTES") if limit else None)


def _log_decoding(field: str, done: int, of: int) -> None:
    """A line in this worker's log on its node."""
    print(f"decoding {field} on this node: {done:,} of {of:,} images", file=sys.stderr, flush=True)  # noqa: T201
