"""Workers on a real cluster of two cores that take too long, whose device fails, or that find no room."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autoft.config import StudyConfig, load_config
from autoft.errors import ClusterError
from autoft.executor import Executor, Failed, FailureKind, Finished, Job, Reported
from autoft.search_space import Hyperparameters
from tests.studies import write_study
from tests.test_ray import address, cache, config, connected, never, next_event, spec  # noqa: F401
from workers import ray_executor, waiting, watch
from workers.cluster import WorkerSpec
from workers.ray_executor import RayExecutor

pytestmark = pytest.mark.slow
VALUES = Hyperparameters(lr=1e-3, weight_decay=0.1, loss_weights={"cross_entropy": 1.0}, seed=1)


class BreaksTheDevice:
    """Hyperparameters on which a trial fails as on a broken GPU."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def end_of(executor: Executor, job: Job) -> Any:
    executor.submit(job)
    while isinstance(event := next_event(executor), Reported):
        pass
    return event


def poll_until(executor: Executor, condition: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited for too long"
        assert executor.poll(0.2) == []


def test_a_trial_that_takes_too_long_loses_its_worker_and_the_next_one_runs(connected: None, tmp_path: Path, tiny_vit: Path, cache: Path) -> None:  # noqa: F811
    endless = load_config(write_study(tmp_path, tiny_vit, trial__steps=1_000_000, search__pruner="none"))
    executor = RayExecutor(endless, spec(1), cache, never, trial_timeout_seconds=1.5)
    late = end_of(executor, Job(3, VALUES))
    assert isinstance(late, Failed)
    assert (late.number, late.kind, late.message) == (3, FailureKind.TIMEOUT, "not done after 1.5 s (--trial-timeout)")
    assert 1.5 < late.seconds < 30
    again = end_of(executor, Job(4, VALUES))
    assert (again.number, again.kind) == (4, FailureKind.TIMEOUT)
    assert again.worker != late.worker
    executor.close()


def test_a_worker_whose_device_fails_is_replaced(connected: None, config: StudyConfig, cache: Path) -> None:  # noqa: F811
    executor = RayExecutor(config, spec(1), cache, never)
    failed = end_of(executor, Job(1, BreaksTheDevice()))  # type: ignore[arg-type]
    assert (failed.number, failed.kind) == (1, FailureKind.INFRASTRUCTURE)
    assert "illegal memory access" in failed.message
    assert executor.slots == 0
    done = end_of(executor, Job(1, VALUES))
    assert isinstance(done, Finished)
    assert done.worker != failed.worker
    executor.close()


def test_a_worker_that_never_gets_ready_is_given_up(connected: None, config: StudyConfig, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(ray_executor, "LOAD_SECONDS", -1.0)
    monkeypatch.setattr(ray_executor, "START_FAILURES", 2)
    executor = RayExecutor(config, spec(1), cache, never)
    with pytest.raises(ClusterError, match=r"2 workers in a row died while starting: worker .* had not loaded model and data after -1 s"):
        for _ in range(300):
            executor.poll(0.2)
    executor.close()


def test_workers_the_cluster_cannot_hold_are_reported_while_the_study_waits(
    connected: None, config: StudyConfig, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture  # noqa: F811
) -> None:
    monkeypatch.setattr(waiting, "WARN_SECONDS", 1.0)
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.0)
    events: list[dict[str, Any]] = []
    too_big = WorkerSpec(count=1, device="cpu", cpus=3, gpus=0.0)
    executor = RayExecutor(config, too_big, cache, never, observe=events.append)
    poll_until(executor, lambda: bool(events))
    executor.close()
    assert events[0]["event"] == "waiting"
    assert "no worker has been ready for 1 s: each needs 3 CPUs; the cluster has 2 CPUs on 1 node (" in events[0]["message"]
    assert events[0]["message"] in caplog.text


def test_a_pending_worker_is_taken_back_when_the_cluster_cannot_hold_it(connected: None, config: StudyConfig, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.0)
    wanted = [4]
    executor = RayExecutor(config, spec(4), cache, never, grow=lambda: wanted[0])
    poll_until(executor, lambda: executor.slots == 2)
    assert len(executor._workers) == 4
    wanted[0] = 0
    poll_until(executor, lambda: len(executor._workers) == 2)
    assert executor.slots == 2  # what runs is never taken away
    wanted[0] = 3
    poll_until(executor, lambda: len(executor._workers) == 3)
    executor.close()
