"""A cluster whose nodes come and go, each a real `autoft worker`; and launches that run there on their own."""

import json
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

import psutil
import pytest
from ray._private.authentication_test_utils import reset_auth_token_state

from autoft.config import StudyConfig, load_config
from autoft.executor import Finished, InProcessExecutor, Job, Reported
from autoft.search_space import Hyperparameters
from autoft.stages import StageRequest, load_workspace, run_stages, stage_result, trained_methods
from tests.launching import ROOT, outcome
from tests.ray_nodes import Worker
from tests.runs import hyperparameters
from tests.studies import write_study
from tests.test_ray import never, search, spec
from workers.capacity import cluster_nodes
from workers.cluster import WorkerSpec, cluster
from workers.distributed import run_shared_stages
from workers.ray_executor import RayExecutor, elastic_count

pytestmark = pytest.mark.slow
Event = dict[str, Any]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="nodes-", dir="/tmp") as name:  # short: Ray puts sockets below it
        yield Path(name)


@pytest.fixture(scope="module")
def head(folder: Path) -> Iterator[Worker]:
    """A head with one core. Its token, made by itself, is the only thing that opens it."""
    environment = {"AUTOFT_STORAGE_URL": "postgresql://someone:hunter2@nowhere/d"}  # as where a person has it in the shell
    worker = Worker(folder, "--head", "--cpus", 1, "--gpus", 0, "--port", 0, "--job-server", "127.0.0.1:0", "--token-file", folder / "token", **environment)
    assert worker.process.poll() is None, worker.said
    yield worker
    worker.close()


@pytest.fixture
def connected(head: Worker, folder: Path) -> Iterator[None]:
    """Ray reads mode and token once in a process, which may have met a cluster without a token before."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_AUTH_TOKEN", "RAY_ADDRESS"):
            patch.delenv(name, raising=False)
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "token"))
        reset_auth_token_state()
        with cluster(head.address):
            yield
    reset_auth_token_state()


@pytest.fixture
def join(head: Worker, folder: Path) -> Iterator[Callable[..., Worker]]:
    """Add a node."""
    joined: list[Worker] = []

    def add(cpus: int = 1, *flags: object) -> Worker:
        joined.append(Worker(folder, "--address", head.address, "--cpus", cpus, "--gpus", 0, "--token-file", folder / "token", *flags))
        assert joined[-1].process.poll() is None, joined[-1].said
        return joined[-1]

    yield add
    for worker in joined:
        worker.close()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_vit: Path) -> StudyConfig:
    return load_config(write_study(tmp_path_factory.mktemp("nodes"), tiny_vit, search__n_trials=8, trial__steps=300))


@pytest.fixture(scope="module")
def undisturbed(config: StudyConfig, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    executor = InProcessExecutor(config, device="cpu", threads=1, cache_dir=cache, should_stop=never)
    return outcome(search(config, executor, tmp_path_factory.mktemp("undisturbed"))[0].get_trials())


def eventually(condition: Callable[[], bool], seconds: float, poll: Callable[[], object] = lambda: time.sleep(0.2)) -> bool:
    deadline = time.monotonic() + seconds
    while not (true := condition()) and time.monotonic() < deadline:
        poll()
    return true


def test_a_token_guards_the_cluster_and_shows_nowhere(head: Worker, folder: Path) -> None:
    token = (folder / "token").read_text()
    other = folder / "other"
    other.write_text("0" * 64)
    other.chmod(0o600)
    for flags, message in ((["--token-file", other], "asks for another token than ours"), ([], "asks for a token, and there is none")):
        refused = Worker(folder, "--address", head.address, "--cpus", 1, "--gpus", 0, *flags)
        assert refused.wait() == 4
        assert message in refused.said
    for process in [psutil.Process(head.process.pid), *psutil.Process(head.process.pid).children(recursive=True)]:
        assert token not in " ".join(process.cmdline())
        if process.pid != head.process.pid:
            assert "hunter2" not in str(process.environ())
    assert token not in head.said


def test_a_node_that_joins_gets_a_trial_and_one_that_vanishes_loses_none(
    connected: None, join: Callable[..., Worker], config: StudyConfig, cache: Path, undisturbed: Any, tmp_path: Path
) -> None:
    """One study, started on one core: a second node joins and is taken away in the middle of a trial."""
    executor = RayExecutor(config, spec(1), cache, never, grow=elastic_count(spec(1)))
    first = {node.id for node in cluster_nodes()}
    node: list[Worker] = []
    times: dict[str, float] = {}

    def elsewhere() -> list[Any]:
        return [worker for worker in executor._workers if worker.node not in {*first, ""} and worker.jobs]

    def disturb(event: Event) -> None:
        if event["event"] == "trial_ended" and not node:
            node.append(join())
            times["joined"] = time.monotonic()
        if event["event"] == "trial_started" and "vanished" not in times and elsewhere():
            times["got a trial"] = time.monotonic()
            node[0].vanish()
            times["vanished"] = time.monotonic()

    study, events = search(config, executor, tmp_path, disturb)
    assert times["got a trial"] - times["joined"] < 30
    assert outcome(study.get_trials()) == undisturbed
    retried = [event for event in events if event["event"] == "trial_retried"]
    assert [event["message"] for event in retried] == ["worker lost"]
    ended = [event for event in events if event["event"] == "trial_ended"]
    assert sorted(event["trial"] for event in ended) == list(range(8))
    assert executor._target == 1
    assert eventually(lambda: len(cluster_nodes()) == 1, 60)


def test_a_node_told_to_end_lets_its_trial_end_and_gets_no_other(
    connected: None, join: Callable[..., Worker], config: StudyConfig, cache: Path
) -> None:
    longer = config.model_copy(update={"trial": config.trial.model_copy(update={"steps": 1500})})
    leaving = join(1, "--drain", 120)
    executor = RayExecutor(longer, spec(2), cache, never, grow=elastic_count(spec(2)))
    ends: list[Any] = []

    def poll() -> None:
        ends.extend(event for event in executor.poll(0.2) if not isinstance(event, Reported))

    assert eventually(lambda: executor.slots == 2, 120, poll)
    for number in range(4):
        executor.submit(Job(number, Hyperparameters(lr=1e-3, weight_decay=0.1, loss_weights={"cross_entropy": 1.0}, seed=number)))
    leaving.tell()
    assert eventually(lambda: leaving.process.poll() is not None, 110, poll), "only when its time was up"
    assert leaving.wait() == 0
    assert "stopped" in leaving.said
    assert eventually(lambda: len(ends) == 4, 120, poll)
    assert {type(end) for end in ends} == {Finished}
    assert sorted(end.number for end in ends) == [0, 1, 2, 3]
    assert (executor.slots, executor._target) == (1, 1)
    executor.close()


def test_a_worker_ends_with_its_cluster(folder: Path) -> None:
    """A worker whose head is gone says so, and its exit code makes a supervisor start it again."""
    flags = ["--head", "--cpus", 0, "--gpus", 0, "--port", 0, "--job-server", "127.0.0.1:0", "--token-file", folder / "token"]
    head = Worker(folder, *flags)
    quick = {"RAY_gcs_rpc_server_reconnect_timeout_s": "3"}
    worker = Worker(folder, "--address", head.address, "--cpus", 1, "--gpus", 0, "--token-file", folder / "token", **quick)
    head.vanish()
    assert worker.wait(180) == 4
    assert re.search(r"the node ended by itself; is the head at \S+ gone\?", worker.said)


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "autoft.cli.main", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_a_detached_launch_runs_on_its_own(head: Worker, folder: Path, tmp_path: Path, tiny_vit: Path, database_url: str) -> None:
    study = write_study(tmp_path, tiny_vit, search__n_trials=2, trial__steps=30)
    (tmp_path / "url").write_text(database_url)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AUTOFT_STORAGE", "PG"))}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"), "RAY_ADDRESS": head.address}
    environment = {**kept, **token, "HOME": str(folder), "PYTHONPATH": str(ROOT), "AUTOFT_STORAGE_URL_FILE": str(tmp_path / "url"), "PWD": str(tmp_path)}
    name = load_config(study).study
    unknown = run("logs", name, **environment)
    assert (unknown.returncode, f"knows no detached launch of study '{name}'" in unknown.stderr) == (4, True)
    launch = ["launch", study, "--detach", "--runs", tmp_path / "runs", "--device", "cpu", "--threads-per-worker", "1"]
    detached = run(*launch, **environment)
    assert detached.returncode == 0, detached.stderr
    assert f"study {name} is job autoft-{name}-1 of the cluster" in detached.stdout
    again = run(*launch, **environment)
    assert again.returncode == 5
    assert f"study '{name}' is run by " in again.stderr
    followed = run("logs", name, "--follow", **environment)
    assert followed.returncode == 0, followed.stdout + followed.stderr
    assert "trial 1:" in followed.stdout
    assert json.loads((tmp_path / "runs" / name / "summary.json").read_text())["state"] == "complete"
    whole = run("logs", name, **environment)
    assert whole.returncode == 0 and "Report:" in whole.stdout
    wrong = tmp_path / "wrong"
    wrong.write_text("0" * 64)
    refused = run("logs", name, **{**environment, "RAY_AUTH_TOKEN_PATH": str(wrong)})
    assert refused.returncode == 4 and "asks for another token than ours" in refused.stderr
    broken = run(*launch, "--set", "data.train.images=missing.npz", **environment)
    assert f"job autoft-{name}-2" in broken.stdout, broken.stderr
    ended = run("logs", name, "--follow", **environment)
    assert ended.returncode == 2
    assert f"job autoft-{name}-2 ended as FAILED" in ended.stderr


def test_ctrl_c_stops_a_head(folder: Path) -> None:
    flags = ["--head", "--cpus", 0, "--gpus", 0, "--port", 0, "--job-server", "127.0.0.1:0", "--token-file", folder / "token"]
    head = Worker(folder, *flags)
    children = psutil.Process(head.process.pid).children(recursive=True)
    head.tell(signal.SIGINT)
    assert head.wait() == 0
    assert not [process for process in psutil.wait_procs(children, timeout=20)[1] if process.status() != psutil.STATUS_ZOMBIE]


# --- the final fine-tune on several nodes


def test_a_fine_tune_on_two_nodes_goes_on_with_one_when_the_other_vanishes(
    connected: None, join: Callable[..., Worker], cache: Path, tmp_path: Path, tiny_vit: Path
) -> None:
    """In the middle of the fine-tune. It goes on from the last state on disk, and its curve is an undisturbed one's."""
    config = load_config(write_study(tmp_path, tiny_vit, final__epochs=10, final__batch_size=11, wise_ft=None))
    methods = trained_methods(config, hyperparameters(lr=1e-4, weights={"cross_entropy": 1.0, "contrastive": 0.5, "l2_init": 1.0}), entries=1000)
    request = StageRequest(config=config, run_dir=tmp_path / "lost", methods=methods, fingerprint="f" * 16, versions={})
    request.run_dir.mkdir()
    (request.run_dir / "study.yaml").write_text("study: tiny\n")
    other = join(1)
    assert eventually(lambda: len(cluster_nodes()) == 2, 60)
    events: list[Event] = []

    def emit(event: Event) -> None:
        events.append(event)
        if event["event"] == "epoch_ended" and event["epoch"] == 2 and other.process.poll() is None:
            other.vanish()

    run_shared_stages(request, WorkerSpec(count=2, device="cpu", cpus=1, gpus=0.0), cache, never, emit)
    assert [event["count"] for event in events if event["event"] == "final_workers"] == [2, 1]
    alone = replace(request, run_dir=tmp_path / "alone")
    run_stages(alone, load_workspace(config, "cpu", cache), lambda event: None, never)
    curves = [[(epoch["train_loss"], epoch["val_id"]) for epoch in (stage_result(run.run_dir, "final") or {})["epochs"]] for run in (request, alone)]
    assert [value for epoch in curves[0] for value in epoch] == pytest.approx([value for epoch in curves[1] for value in epoch], abs=2e-3)
    assert list((request.run_dir / "training").iterdir()) == []
