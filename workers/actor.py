"""The Ray actors: a warm worker that runs trials, and one that runs the stages after the search."""

import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from autoft.config import StudyConfig


@ray.remote(max_restarts=0, max_task_retries=0, max_concurrency=2)
class TrialWorker:
    """Loads model and data once, then runs trials one after the other. A second thread hears `prune` meanwhile."""

    def __init__(self, config: StudyConfig, device: str, threads: int, cache_dir: Path) -> None:
        self._config, self._device, self._threads, self._cache_dir = config, device, threads, cache_dir
        self._pruned: set[int] = set()
        self._name = f"{ray.util.get_node_ip_address()}:{os.getpid()}"

    def load(self) -> tuple[str, str | None]:
        """Load everything; the worker's name, and what went wrong if something did."""
        from autoft.executor import describe_failure
        from autoft.trial import trial_splits
        from autoft.workspace import Workspace, configure_torch

        configure_torch(self._threads)
        try:
            self._workspace = Workspace.load(self._config, self._device, self._cache_dir, trial_splits(self._config))
        except Exception as error:
            return self._name, describe_failure(error)
        return self._name, None

    def run(self, job: Any) -> Iterator[Any]:
        """Run one trial; yields the executor's events."""
        from autoft.executor import trial_events
        from autoft.workspace import configure_torch

        configure_torch(self._threads)  # this is another thread than `load`'s
        yield from trial_events(self._workspace, job, lambda: job.number in self._pruned, self._name)

    def prune(self, number: int) -> None:
        """Stop trial `number` at its next step."""
        self._pruned.add(number)


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
        from autoft.stages import load_workspace, run_stages
        from autoft.workspace import configure_torch

        configure_torch(threads)
        try:
            if self._kept is None or self._kept[0] != request.config:
                self._kept = None  # before the next one is loaded
                self._kept = (request.config, load_workspace(request.config, device, cache_dir))
            run_stages(request, self._kept[1], events.put, self._stop.is_set)
        except Exception as error:
            events.put(error.with_traceback(None) if isinstance(error, AutoFTError) else error)
        events.put(None)
