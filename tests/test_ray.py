"""Trials and stages on a real Ray cluster of two cores, started once and joined as an existing one."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest

from autoft.cli.main import main
from autoft.config import StudyConfig, load_config
from autoft.errors import ClusterError, Interrupted
from autoft.executor import Executor, Failed, FailureKind, Finished, InProcessExecutor, Job, Reported, Stopped
from autoft.fingerprint import FINGERPRINT_ATTRIBUTE
from autoft.journal import Journal
from autoft.ledger import study_id
from autoft.pipeline import prepare, run_pipeline
from autoft.search import Coordinator
from autoft.search_space import Hyperparameters
from autoft.stages import StageRequest
from storage import list_studies, parse_storage_url
from tests.launching import outcome
from tests.studies import write_study
from workers import ray_executor, stage_pool
from workers.cluster import WorkerSpec, cluster, plan_workers
from workers.ray_executor import RayExecutor
from workers.stage_pool import StagePool, StageRoom

Event = dict[str, Any]
FLAGS = ["--threads-per-worker", "1", "--device", "cpu"]


HEAD_TRIES = 3  # a head gives up by itself where the machine is too slow for its time limits, which cannot be set


def _head(folder: str) -> tuple["subprocess.Popen[str]", str]:
    """`ray start --head`, as a person starts it, and what it said until it was there or had given up."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"RAY_USAGE_STATS_ENABLED": "0"}
    program = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port=0", "--num-cpus=2"]
    options = ["--include-dashboard=false", "--object-store-memory=80000000", f"--temp-dir={folder}", "--disable-usage-stats"]
    head = subprocess.Popen([*program, *options], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert head.stdout is not None
    said = ""
    for line in head.stdout:
        said += line
        if "--address='" in line:
            break
    return head, said


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster that was there before us."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        for _ in range(HEAD_TRIES):
            head, said = _head(folder)
            if "--address='" in said:
                break
            head.wait(60)
        assert "--address='" in said, said
        yield said.partition("--address='")[2].partition("'")[0]
        head.terminate()
        head.communicate(timeout=30)


@pytest.fixture(scope="module")
def connected(address: str) -> Iterator[None]:
    with cluster(address):
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_vit: Path) -> StudyConfig:
    return load_config(write_study(tmp_path_factory.mktemp("ray"), tiny_vit, search__n_trials=6, trial__steps=25))


@pytest.fixture(scope="module")
def in_process(config: StudyConfig, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the trials come to in this process."""
    executor = InProcessExecutor(config, device="cpu", threads=1, cache_dir=cache, should_stop=never)
    study, _ = search(config, executor, tmp_path_factory.mktemp("in-process"))
    return outcome(study.get_trials())


def never() -> bool:
    return False


def spec(count: int) -> WorkerSpec:
    return WorkerSpec(count=count, device="cpu", cpus=1, gpus=0.0)


def search(config: StudyConfig, executor: Executor, folder: Path, observe: Callable[[Event], None] = lambda event: None) -> tuple[optuna.Study, list[Event]]:
    study = optuna.create_study(direction=config.direction)
    events: list[Event] = []

    def seen(event: Event) -> None:
        events.append(event)
        observe(event)

    try:
        Coordinator(config, study, executor, Journal(folder / "journal.jsonl", study_id(study)), seen, never).run()
    finally:
        executor.close()
    return study, events


def test_more_workers_than_the_cluster_has(
    address: str, config: StudyConfig, tmp_path: Path, tiny_vit: Path, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cluster is asked before there is a study or a run folder."""
    monkeypatch.setenv("AUTOFT_STORAGE_URL", database_url)
    monkeypatch.setenv("RAY_ADDRESS", address)
    study = write_study(tmp_path, tiny_vit)
    assert main(["launch", str(study), "--runs", str(tmp_path / "runs"), "--workers", "3", *FLAGS]) == 4
    assert "3 workers with 1 thread each need 3 CPU cores; the cluster has 2" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert list_studies(parse_storage_url(database_url, "test")) == []


@pytest.mark.parametrize(
    ("have", "flags", "expected"),
    [
        ({"CPU": 8}, (None, None, None, "auto"), WorkerSpec(count=8, device="cpu", cpus=1, gpus=0.0)),
        ({"CPU": 8}, (2, None, None, "auto"), WorkerSpec(count=2, device="cpu", cpus=4, gpus=0.0)),
        ({"CPU": 8}, (None, None, 3, "cpu"), WorkerSpec(count=2, device="cpu", cpus=3, gpus=0.0)),
        ({"CPU": 32, "GPU": 4}, (None, None, None, "auto"), WorkerSpec(count=4, device="cuda", cpus=8, gpus=1.0)),
        ({"CPU": 32, "GPU": 4}, (None, 0.5, None, "cuda"), WorkerSpec(count=8, device="cuda", cpus=4, gpus=0.5)),
        ({"CPU": 32, "GPU": 4}, (None, 0.4, None, "cuda"), WorkerSpec(count=8, device="cuda", cpus=4, gpus=0.4)),
        ({"CPU": 2, "GPU": 1}, (None, 0.25, None, "auto"), WorkerSpec(count=2, device="cuda", cpus=1, gpus=0.25)),
        ({"CPU": 4, "GPU": 4}, (None, None, None, "cpu"), WorkerSpec(count=4, device="cpu", cpus=1, gpus=0.0)),
        ({"CPU": 4, "GPU": 4}, (None, 0.0, None, "auto"), WorkerSpec(count=4, device="cpu", cpus=1, gpus=0.0)),
        ({"CPU": 8}, (9, None, None, "auto"), "9 workers with 1 thread each need 9 CPU cores; the cluster has 8"),
        ({"CPU": 8}, (None, 1.0, None, "auto"), "--gpus-per-worker 1 asks for a GPU, and the cluster has none"),
        ({"CPU": 8}, (None, None, None, "cuda"), "--device cuda asks for a GPU, and the cluster has none"),
        ({"CPU": 8, "GPU": 2}, (3, None, None, "auto"), "3 workers with 1 GPU each need 3 GPUs; the cluster has 2"),
        ({"CPU": 8, "GPU": 1}, (None, 2.0, None, "auto"), "1 worker with 2 GPU each need 2 GPUs; the cluster has 1"),
        ({"CPU": 2, "GPU": 1}, (4, 0.25, None, "auto"), "4 workers with 1 thread each need 4 CPU cores; the cluster has 2"),
    ],
)
def test_how_many_workers(have: dict[str, float], flags: tuple[Any, ...], expected: WorkerSpec | str) -> None:
    if isinstance(expected, WorkerSpec):
        assert plan_workers(have, *flags) == expected
    else:
        with pytest.raises(ClusterError, match=re.escape(expected)):
            plan_workers(have, *flags)


def test_one_worker_finds_what_this_process_finds(connected: None, config: StudyConfig, cache: Path, in_process: Any, tmp_path: Path) -> None:
    study, events = search(config, RayExecutor(config, spec(1), cache, never), tmp_path)
    assert outcome(study.get_trials()) == in_process
    assert len({event["worker"] for event in events if event["event"] == "trial_ended"}) == 1


def test_two_workers_one_of_them_killed(connected: None, config: StudyConfig, cache: Path, in_process: Any, tmp_path: Path) -> None:
    """The same results from two workers, though one is killed in the middle of a trial and another one takes its place."""
    killed: list[str] = []
    executor = RayExecutor(config, spec(2), cache, never)

    def kill_once(event: Event) -> None:
        if event["event"] == "trial_started" and event["trial"] == 2:
            (worker,) = [worker for worker in executor._workers if 2 in worker.jobs]
            killed.append(worker.name)
            os.kill(int(worker.name.rpartition(":")[2]), signal.SIGKILL)

    study, events = search(config, executor, tmp_path, kill_once)
    assert outcome(study.get_trials()) == in_process
    (retried,) = [event for event in events if event["event"] == "trial_retried"]
    ended = {event["trial"]: event for event in events if event["event"] == "trial_ended"}
    assert (retried["trial"], retried["message"], ended[2]["attempts"]) == (2, "worker lost", 2)
    assert ended[2]["worker"] != killed[0]
    assert len(ended) == len(study.trials) == 6


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory, tiny_vit: Path) -> StudyConfig:
    """Trials too short for rounding to grow."""
    study = write_study(tmp_path_factory.mktemp("short"), tiny_vit, search__n_trials=8, trial__steps=4, search__sampler="random", search__pruner="none")
    return load_config(study)


@pytest.fixture(scope="module")
def alone(short: StudyConfig, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Any, float]]:
    executor = InProcessExecutor(short, device="cpu", threads=1, cache_dir=cache, should_stop=never)
    study, _ = search(short, executor, tmp_path_factory.mktemp("alone"))
    return trials_of(study)


def trials_of(study: optuna.Study) -> dict[int, tuple[Any, float]]:
    return {trial.number: (trial.params, trial.value or 0.0) for trial in study.get_trials()}


class Grouped(RayExecutor):
    """Remembers which trials each worker was given at once."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.groups: list[tuple[int, ...]] = []

    def _assign(self, fewer: bool = False) -> None:
        before = {id(worker): worker.events for worker in self._workers}
        super()._assign(fewer)
        self.groups += [tuple(worker.jobs) for worker in self._workers if worker.events is not None and worker.events is not before[id(worker)]]


def test_trials_that_share_a_program_on_ray_are_those_alone(
    connected: None, short: StudyConfig, cache: Path, alone: dict[int, tuple[Any, float]], tmp_path: Path
) -> None:
    executor = Grouped(short, spec(1), cache, never, trials_together=3)
    study, _ = search(short, executor, tmp_path)
    assert executor.groups == [(0, 1, 2), (3, 4, 5), (6, 7)]
    assert trials_of(study) == {number: (params, pytest.approx(score, abs=1e-6)) for number, (params, score) in alone.items()}


def test_a_lost_worker_loses_all_its_trials_and_each_runs_again(
    connected: None, short: StudyConfig, cache: Path, alone: dict[int, tuple[Any, float]], tmp_path: Path
) -> None:
    executor = Grouped(short, spec(1), cache, never, trials_together=4)

    def kill_once(event: Event) -> None:
        if event["event"] == "trial_started" and event["trial"] == 3:
            (worker,) = executor._workers
            os.kill(int(worker.name.rpartition(":")[2]), signal.SIGKILL)

    study, events = search(short, executor, tmp_path, kill_once)
    assert sorted(event["trial"] for event in events if event["event"] == "trial_retried") == [0, 1, 2, 3]
    assert trials_of(study) == {number: (params, pytest.approx(score, abs=1e-6)) for number, (params, score) in alone.items()}
    assert len([event for event in events if event["event"] == "trial_ended"]) == 8


def test_one_of_several_trials_is_pruned(connected: None, tmp_path: Path, tiny_vit: Path, cache: Path) -> None:
    config = load_config(write_study(tmp_path, tiny_vit, trial__steps=400, search__pruner="median"))
    executor = RayExecutor(config, spec(1), cache, never, trials_together=2)
    hyperparameters = Hyperparameters(lr=1e-3, weight_decay=0.1, loss_weights={"cross_entropy": 1.0}, seed=1)
    for number in (0, 1):
        executor.submit(Job(number, replace(hyperparameters, seed=number)))
    assert isinstance(next_event(executor), Reported)
    executor.prune(1)
    ends = {}
    while len(ends) < 2:
        event = next_event(executor)
        if not isinstance(event, Reported):
            ends[event.number] = event
    assert isinstance(ends[0], Finished)
    assert ends[0].result.steps == 400
    assert isinstance(ends[1], Stopped)
    executor.close()


def test_a_worker_measures_how_many_trials_to_run_together(connected: None, short: StudyConfig, cache: Path, tmp_path: Path) -> None:
    measured: list[Event] = []
    executor = Grouped(short, spec(1), cache, never, observe=measured.append, trials_together=None)
    study, _ = search(short, executor, tmp_path)
    (event,) = [event for event in measured if event["event"] == "trials_together"]
    assert set(event["seconds"]) >= {1, 2}
    assert len(executor.groups[0]) == event["count"]
    assert len(study.get_trials()) == 8


@pytest.mark.slow
def test_what_is_forgotten_is_not_heard_of(connected: None, tmp_path: Path, tiny_vit: Path, cache: Path) -> None:
    """Trials are known by their numbers, which every tuning study of a comparison counts from 0."""
    config = load_config(write_study(tmp_path, tiny_vit, trial__steps=60, search__pruner="none"))
    executor = RayExecutor(config, spec(2), cache, never)
    slow, other = (Hyperparameters(lr=lr, weight_decay=0.1, loss_weights={"cross_entropy": 1.0}, seed=1) for lr in (1e-3, 2e-3))
    while executor.slots < 2:
        executor.poll(0.1)
    for number in range(3):
        executor.submit(Job(number, slow))
    assert sum(bool(worker.jobs) for worker in executor._workers) == 2
    executor.forget()
    executor.submit(Job(7, other))
    assert next_event(executor).number == 7
    executor.close()


def test_a_pruned_trial_stops_early_and_a_bug_is_told_with_its_traceback(connected: None, tmp_path: Path, tiny_vit: Path, cache: Path) -> None:
    config = load_config(write_study(tmp_path, tiny_vit, trial__steps=800, search__pruner="median"))
    executor = RayExecutor(config, spec(1), cache, never)
    hyperparameters = Hyperparameters(lr=1e-3, weight_decay=0.1, loss_weights={"cross_entropy": 1.0}, seed=1)
    executor.submit(Job(3, hyperparameters))
    assert isinstance(next_event(executor), Reported)
    executor.prune(3)
    while isinstance(end := next_event(executor), Reported):
        pass
    assert isinstance(end, Stopped)
    assert end.number == 3
    assert 200 * 12 <= end.samples < 500 * 12
    executor.submit(Job(4, None))  # type: ignore[arg-type]
    bug = next_event(executor)
    assert isinstance(bug, Failed)
    assert (bug.number, bug.kind) == (4, FailureKind.CODE)
    assert "AttributeError" in bug.message
    executor.close()


def next_event(executor: Executor) -> Any:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for event in executor.poll(0.2):
            return event
    raise AssertionError("no word from the worker")


@pytest.mark.slow
def test_stages_survive_their_worker_and_stop_when_told(connected: None, config: StudyConfig, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker of the final fine-tune is killed, then the run is stopped, then gone on with: the checkpoint is the undisturbed one."""
    config = config.model_copy(update={"final": config.final.model_copy(update={"epochs": 12}), "search": config.search.model_copy(update={"n_trials": 1})})
    monkeypatch.setattr(ray_executor, "_cores_of_a_node", lambda otherwise: 1)  # threads that wait for each other are slow on a busy machine
    inputs = prepare(config, cache)
    study = optuna.create_study(direction=config.direction)
    epochs: list[int] = []
    stopping: list[bool] = []

    def run(folder: str, study: optuna.Study, observe: Callable[[Event], None] = lambda event: None, stop: Callable[[], bool] = never) -> Event:
        return run_pipeline(inputs, study, lambda: RayExecutor(config, spec(1), cache, stop), tmp_path / folder, observe, stop)

    def disturb(event: Event) -> None:
        if event["event"] == "epoch_ended":
            epochs.append(event["epoch"])
            if epochs[-1] == 3 and epochs.count(3) == 1:
                os.kill(actor_pids("StageWorker.run")[0], signal.SIGKILL)
            if epochs[-1] == 8:
                stopping.append(True)

    with pytest.raises(Interrupted):
        run("disturbed", study, disturb, lambda: bool(stopping))
    assert sorted(set(epochs)) == list(range(1, max(epochs) + 1))
    assert max(epochs) < 12
    assert len(epochs) <= max(epochs) + 2  # after the loss it went on where it was
    summary, reference = run("disturbed", study), run("undisturbed", study_like(study))
    assert summary["evaluations"] == reference["evaluations"]
    assert summary["wise_ft"] == reference["wise_ft"]
    weights = "checkpoints/final/open_clip_model.safetensors"
    assert (tmp_path / "disturbed" / weights).read_bytes() == (tmp_path / "undisturbed" / weights).read_bytes()


@pytest.mark.slow
def test_many_requests_run_side_by_side_and_one_goes_on_elsewhere_when_its_worker_is_killed(
    connected: None, config: StudyConfig, cache: Path, tmp_path: Path
) -> None:
    config = config.model_copy(update={"final": config.final.model_copy(update={"epochs": 6})})
    names = ("a", "b", "c")

    def requests(folder: str) -> list[StageRequest]:
        made = []
        for seed, name in enumerate(names):
            hp = Hyperparameters(lr=1e-3, weight_decay=0.1, loss_weights={"cross_entropy": 1.0}, seed=seed)
            run_dir = tmp_path / folder / name
            run_dir.mkdir(parents=True)
            (run_dir / "study.yaml").write_text("here")
            made.append(StageRequest(config=config, run_dir=run_dir, methods={"final": hp}, fingerprint="f" * 16, versions={}))
        return made

    killed: list[int] = []

    def disturb(event: Event) -> None:
        if event["event"] == "epoch_ended" and event["epoch"] == 2 and not killed:
            killed.append(actor_pids("StageWorker.run")[0])
            os.kill(killed[0], signal.SIGKILL)

    here, there = requests("here"), requests("there")
    executor = RayExecutor(config, spec(2), cache, never)
    assert sorted(executor.run_all_stages(there, disturb)) == [(0, None), (1, None), (2, None)] and killed
    local = InProcessExecutor(config, device="cpu", threads=1, cache_dir=cache, should_stop=never)
    assert list(local.run_all_stages(here, lambda event: None)) == [(0, None), (1, None), (2, None)]
    for one, other in zip(here, there, strict=True):
        files = [request.run_dir / "checkpoints" / "final" / "open_clip_model.safetensors" for request in (one, other)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_request_bound_to_an_actor_without_room_goes_to_one_that_is_idle() -> None:
    """A cluster that has lost a node for good cannot start the actor that was to take its place."""
    pool = StagePool(StageRoom(cpus=1, gpus=0.0, device="cpu"), Path(), never, lambda: 2)
    killed: list[Any] = []
    idle, stuck = stage_pool._Worker("idle"), stage_pool._Worker("stuck", index=7, sees="never answered")
    pool._workers = [idle, stuck]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_pool.ray, "kill", killed.append)
        pool._take_back()
    assert killed == ["stuck"] and pool._workers == [idle] and list(pool._pending) == [7]


def study_like(study: optuna.Study) -> optuna.Study:
    """A study with the same finished trials and identity."""
    other = optuna.create_study(direction=study.direction)
    other.add_trials(study.get_trials())
    other.set_user_attr(FINGERPRINT_ATTRIBUTE, study.user_attrs[FINGERPRINT_ATTRIBUTE])
    return other


def actor_pids(title: str) -> list[int]:
    """Processes of Ray that now do what the title says."""
    found = psutil.process_iter(["pid", "cmdline"])
    return [process.info["pid"] for process in found if (process.info["cmdline"] or [""])[0].startswith(f"ray::{title}")]


def test_a_worker_that_cannot_load_says_why(connected: None, config: StudyConfig, cache: Path, tmp_path: Path) -> None:
    broken = config.model_copy(update={"model": config.model.model_copy(update={"name": f"local-dir:{tmp_path}"})})
    executor = RayExecutor(broken, spec(1), cache, never)
    with pytest.raises(ClusterError, match=r"cannot load the study: .*open_clip_config\.json"):
        for _ in range(60):
            executor.poll(1.0)
    executor.close()


def test_workers_that_die_while_starting_end_the_run(connected: None, config: StudyConfig, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_executor, "START_FAILURES", 1)
    executor = RayExecutor(config, spec(1), cache, never)
    with pytest.raises(ClusterError, match=r"1 workers? in a row died while starting"):
        for _ in range(600):
            for pid in actor_pids("TrialWorker"):
                os.kill(pid, signal.SIGKILL)
            executor.poll(0.1)
    executor.close()
