"""What is decided about workers, nodes, tokens and jobs, without a cluster."""

import argparse
import logging
import os
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from autoft.cli.jobs import job_command, job_environment
from autoft.cli.main import main
from autoft.cli.parser import build_parser
from autoft.cli.worker import offered
from autoft.config import StudyConfig, load_config
from autoft.errors import ClusterError, ConfigError
from autoft.executor import Failed, FailureKind, Finished, InProcessExecutor, Job, Stopped, classify_failure, trial_limit
from autoft.search_space import Hyperparameters
from tests.studies import write_study
from workers import waiting, watch
from workers.capacity import Node, plan_on_nodes, room, shortage
from workers.cluster import WorkerSpec
from workers.device_memory import GROWING_TRIALS, SLACK_BYTES, DeviceMemory, settle
from workers.node import NodeOffer, node_environment, start_command
from workers.tokens import use_token

MIB = 1024**2


def node(address: str, cpus: float, gpus: float = 0.0, leaving: bool = False) -> Node:
    return Node(id=address, address=address, cpus=cpus, gpus=gpus, leaving=leaving)


def spec(cpus: int = 1, gpus: float = 0.0, count: int = 1) -> WorkerSpec:
    return WorkerSpec(count=count, device="cuda" if gpus else "cpu", cpus=cpus, gpus=gpus)


@pytest.mark.parametrize(
    ("nodes", "worker", "expected"),
    [
        ([node("a", 3), node("b", 3)], spec(cpus=2), 2),  # not 3: a worker lies on one node
        ([node("a", 8, 2), node("b", 8)], spec(cpus=2, gpus=1), 2),
        ([node("a", 8, 2)], spec(cpus=2, gpus=0.4), 4),
        ([node("a", 8, 2)], spec(cpus=4, gpus=0.4), 2),
        ([node("a", 8, 1)], spec(cpus=1, gpus=2), 0),
        ([node("a", 4), node("b", 4, leaving=True)], spec(), 4),
        ([], spec(), 0),
    ],
)
def test_how_many_workers_nodes_hold(nodes: list[Node], worker: WorkerSpec, expected: int) -> None:
    assert room(nodes, worker) == expected


@pytest.mark.parametrize(
    ("nodes", "flags", "expected"),
    [
        ([node("a", 5), node("b", 1)], (2, None, None, "auto"), spec(cpus=2, count=2)),
        ([node("a", 3), node("b", 3)], (None, None, 2, "auto"), spec(cpus=2, count=2)),
        ([node("a", 4, 2), node("b", 64, 2)], (None, None, None, "auto"), spec(cpus=2, gpus=1, count=4)),
        ([node("a", 0, 2), node("b", 8, 1)], (None, None, None, "auto"), spec(cpus=1, gpus=1, count=1)),
    ],
)
def test_a_plan_fits_the_nodes(nodes: list[Node], flags: Any, expected: WorkerSpec) -> None:
    assert plan_on_nodes(nodes, *flags) == expected


def test_a_plan_that_fits_no_node_says_what_there_is() -> None:
    with pytest.raises(ClusterError) as caught:
        plan_on_nodes([node("10.0.0.2", 2), node("10.0.0.1", 4)], 2, None, 3, "auto")
    assert str(caught.value) == (
        "there is room for 1 of 2 workers: each needs 3 CPUs; the cluster has 6 CPUs on 2 nodes (10.0.0.1: 4 CPUs; 10.0.0.2: 2 CPUs)"
    )


def test_a_shortage_in_words() -> None:
    assert shortage([], spec(2, 1)) == "each needs 2 CPUs and 1 GPU; the cluster has no node that offers any"
    assert shortage([node("a", 4, 1), node("b", 1, leaving=True)], spec(1, 0.5)) == (
        "each needs 1 CPU and 0.5 GPU; the cluster has 4 CPUs and 1 GPU on 1 node (a: 4 CPUs and 1 GPU), and 1 node about to leave"
    )
    assert "and 4 more" in shortage([node(str(i), 1) for i in range(12)], spec())


def test_waiting_is_reported_every_minute_and_only_then(caplog: pytest.LogCaptureFixture) -> None:
    events: list[dict[str, Any]] = []
    told = waiting.Waiting(spec(2), lambda: [node("a", 1)], events.append, now=0.0)
    for second in range(181):
        told.note(float(second), ready=0, loading=0, unplaced=1)
    assert [event["seconds"] for event in events] == [60, 120, 180]
    assert events[0]["message"] == "no worker has been ready for 60 s: each needs 2 CPUs; the cluster has 1 CPU on 1 node (a: 1 CPU)"
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [event["message"] for event in events]
    told.note(181.0, ready=1, loading=0, unplaced=0)
    told.note(240.0, ready=0, loading=1, unplaced=0)
    assert len(events) == 3
    told.note(241.0, ready=0, loading=1, unplaced=0)
    assert events[-1]["message"].startswith("no worker has been ready for 60 s: 1 worker loading model and data; each needs")


def test_a_study_that_goes_on_with_fewer_workers_says_so_once_each_time() -> None:
    events: list[dict[str, Any]] = []
    told = waiting.Waiting(spec(2), lambda: [node("a", 2)], events.append, now=0.0)
    for second in range(200):
        told.note(float(second), ready=1, loading=0, unplaced=1)
    assert [event["message"].partition(":")[0] for event in events] == ["1 of 2 workers found room in the cluster, the study goes on with 1"]
    told.note(200.0, ready=2, loading=0, unplaced=0)
    for second in range(201, 262):
        told.note(float(second), ready=1, loading=0, unplaced=1)
    assert len(events) == 2


def test_a_cluster_is_asked_without_waiting_and_one_that_is_silent_ends_the_run(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[int] = []
    answer = threading.Event()

    def look() -> str:
        asked.append(1)
        answer.wait(60)
        return "seen"

    watched = watch.Watch(look)
    start = time.monotonic()
    assert watched.news(start) is None and not asked
    assert watched.news(start + 5) is None
    assert watched.news(start + 44) is None and len(asked) == 1
    with pytest.raises(ClusterError, match="the head of the Ray cluster has not answered for 41 s"):
        watched.news(start + 46)
    assert "has not answered" in caplog.text
    answer.set()
    while (news := watched.news(start + 45)) is None:
        pass
    assert news == "seen"


def memory_says(left: list[int | None]) -> list[str | None]:
    values = iter(left)
    memory = DeviceMemory(lambda: next(values))
    return [memory.after_trial() for _ in left]


def test_a_worker_whose_device_memory_keeps_growing_is_replaced() -> None:
    step = SLACK_BYTES // GROWING_TRIALS + MIB
    growing = memory_says([100 * MIB + step * trial for trial in range(GROWING_TRIALS + 1)])
    assert growing[:-1] == [None] * GROWING_TRIALS
    assert growing[-1] == f"its device memory grew by {step * GROWING_TRIALS / MIB:.0f} MiB over {GROWING_TRIALS} trials"


def test_memory_that_settles_or_cannot_be_measured_is_no_leak() -> None:
    big = 10 * SLACK_BYTES
    assert set(memory_says([0, big, 2 * big, 3 * big, 4 * big, 4 * big, 4 * big, 5 * big])) == {None}  # caches, filled at their first use
    assert set(memory_says([MIB + trial for trial in range(20)])) == {None}
    assert set(memory_says([None] * 20)) == {None}
    assert settle(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), FailureKind.INFRASTRUCTURE),
        (RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later"), FailureKind.INFRASTRUCTURE),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), FailureKind.INFRASTRUCTURE),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"), FailureKind.INFRASTRUCTURE),
        (RuntimeError("NCCL error in: ProcessGroupNCCL.cpp, unhandled cuda error"), FailureKind.INFRASTRUCTURE),
        (RuntimeError("No CUDA GPUs are available"), FailureKind.INFRASTRUCTURE),
        (RuntimeError("CUDA error: out of memory"), FailureKind.OUT_OF_MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), FailureKind.OUT_OF_MEMORY),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), FailureKind.CODE),
        (RuntimeError("Expected all tensors to be on the same device, but found cuda:0 and cpu"), FailureKind.CODE),
        (ValueError("CUDA error: not what torch raises"), FailureKind.CODE),
    ],
)
def test_what_an_exception_of_a_device_means(error: Exception, kind: FailureKind) -> None:
    assert classify_failure(error) == kind


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_vit: Path) -> StudyConfig:
    return load_config(write_study(tmp_path_factory.mktemp("rules"), tiny_vit, search__n_trials=2, trial__steps=20))


def test_a_confirmation_run_may_take_longer(config: StudyConfig) -> None:
    values = Hyperparameters(lr=1e-3, weight_decay=0.1, loss_weights={"cross_entropy": 1.0}, seed=1)
    assert trial_limit(None, Job(1, values), config) == float("inf")
    assert trial_limit(30.0, Job(1, values), config) == 30.0
    assert trial_limit(30.0, Job(-1, values, 100), config) == 150.0
    assert trial_limit(30.0, Job(-1, values, 5), config) == 30.0


@pytest.mark.parametrize(("limit", "expected"), [(1e-6, Failed), (600.0, Finished)])
def test_a_time_limit_in_this_process(config: StudyConfig, tmp_path: Path, limit: float, expected: type) -> None:
    executor = InProcessExecutor(config, device="cpu", threads=1, cache_dir=tmp_path, should_stop=lambda: False, trial_timeout_seconds=limit)
    executor.submit(Job(1, Hyperparameters(lr=1e-3, weight_decay=0.1, loss_weights={"cross_entropy": 1.0}, seed=1)))
    while not isinstance(event := executor.poll(0.1)[0], Failed | Finished | Stopped):
        pass
    assert isinstance(event, expected)
    if isinstance(event, Failed):
        assert (event.kind, event.message) == (FailureKind.TIMEOUT, "not done after 1e-06 s (--trial-timeout)")
        assert event.samples == 12


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that it is put back, whatever is set in the test
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_head_makes_its_token_readable_by_its_owner_only(no_token: Path) -> None:
    assert use_token(None, make=False) is None
    assert "RAY_AUTH_MODE" not in os.environ
    file = no_token / ".ray" / "auth_token"
    assert use_token(None, make=True) == str(file)
    assert len(file.read_text()) == 64 and stat.S_IMODE(file.stat().st_mode) == 0o600
    first = file.read_text()
    assert use_token(None, make=True) == str(file) and file.read_text() == first
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_a_given_token_file_is_used_and_never_shown(no_token: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    with pytest.raises(ClusterError, match=r"--token-file .*: there is no such file; copy the token file of the cluster's head there"):
        use_token(no_token / "missing", make=False)
    (no_token / "empty").write_text("\n")
    with pytest.raises(ClusterError, match="cannot be used: it is empty"):
        use_token(no_token / "empty", make=False)
    file = no_token / "token"
    file.write_text("s3cret")
    assert use_token(file, make=False) == str(file)
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(file) and "RAY_AUTH_TOKEN" not in os.environ
    command = " ".join(start_command(NodeOffer(cpus=1, gpus=0, address="h:1")) + start_command(NodeOffer(cpus=1, gpus=0)))
    assert "s3cret" not in command + caplog.text


def test_a_token_and_a_cluster_told_to_ask_for_none_contradict_each_other(no_token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert use_token(None, make=True) is None
    assert not (no_token / ".ray").exists()
    with pytest.raises(ClusterError, match="RAY_AUTH_MODE=disabled contradict"):
        use_token(no_token / "token", make=True)


def test_a_node_gets_no_secrets_of_the_database() -> None:
    given = {"AUTOFT_STORAGE_URL": "x", "AUTOFT_STORAGE_URL_FILE": "x", "PGPASSWORD": "x", "OPENAI_API_KEY": "x", "PATH": "/bin", "RAY_AUTH_TOKEN_PATH": "t"}
    assert node_environment(given, 7.0) == {"PATH": "/bin", "RAY_AUTH_TOKEN_PATH": "t", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "7"}


def test_gpus_that_torch_does_not_see_are_not_offered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("autoft.cli.worker._NVIDIA", tmp_path / "none")
    assert offered(None, None) == (len(os.sched_getaffinity(0)), 0)
    assert offered(0, 0) == (0, 0)
    with pytest.raises(ClusterError, match="--gpus 2: torch sees 0 GPUs on this machine; torch finds no driver"):
        offered(None, 2)
    (tmp_path / "gpus" / "0000:01:00.0").mkdir(parents=True)
    monkeypatch.setattr("autoft.cli.worker._NVIDIA", tmp_path / "gpus")
    with pytest.raises(ClusterError, match=r"this machine has 1 GPU and torch sees none: .* To offer CPU cores only: --gpus 0"):
        offered(None, None)
    assert offered(4, 0) == (4, 0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--address HOST:PORT (or RAY_ADDRESS) says which cluster to join; --head starts one"),
        (["--head", "--address", "h:1"], "--head starts a cluster and --address h:1 joins one"),
        (["--head", "--job-server", "8265"], "--job-server 8265: valid is HOST:PORT"),
    ],
)
def test_flags_of_a_worker_that_make_no_sense(flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert main(["worker", *flags]) == 2
    assert message in capsys.readouterr().err


def test_nothing_listens_where_a_worker_is_to_join(no_token: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["worker", "--address", "127.0.0.1:1", "--gpus", "0"]) == 4
    assert "no Ray cluster answers at --address = 127.0.0.1:1" in capsys.readouterr().err


def launch_arguments(*flags: str) -> argparse.Namespace:
    return build_parser().parse_args(["launch", "study.yaml", *flags])


def test_a_detached_launch_is_the_same_launch() -> None:
    """Every flag travels, those that will be added as well; paths become absolute."""
    flags = ["--set", "search.n_trials=3", "--set", "trial.steps=7", "--runs", "here", "--executor", "ray", "--workers", "2", "--gpus-per-worker", "0.5"]
    flags += ["--threads-per-worker", "3", "--trials-per-worker", "auto", "--device", "cpu", "--trial-timeout", "90", "--final-workers", "2", "--final-sharded", "--artifacts", "file:///a", "--json"]
    there = build_parser().parse_args(job_command(launch_arguments("--detach", *flags))[3:])
    here = launch_arguments("--detach", *flags)
    untouched = [name for name, value in vars(here).items() if value == vars(launch_arguments())[name] and name not in ("command", "study", "executor")]
    assert untouched == [], "a new flag of launch: name it in autoft/cli/jobs.py and above"
    assert vars(there) == {**vars(here), "detach": False, "study": Path.cwd() / "study.yaml", "runs": Path.cwd() / "here"}


def test_only_the_path_of_the_databases_secret_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AUTOFT_HOME", "AUTOFT_CACHE_DIR", "AUTOFT_STORAGE_URL", "AUTOFT_STORAGE_URL_FILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="the embedded database belongs to this machine; put the URL of a Postgres server in a file"):
        job_environment()
    monkeypatch.setenv("AUTOFT_STORAGE_URL", "postgresql://u:pw@h/d")
    with pytest.raises(ConfigError, match="AUTOFT_STORAGE_URL holds a password that must not travel") as caught:
        job_environment()
    assert "pw@" not in str(caught.value)
    monkeypatch.delenv("AUTOFT_STORAGE_URL")
    monkeypatch.setenv("AUTOFT_STORAGE_URL_FILE", "secrets/url")
    monkeypatch.setenv("PGPASSWORD", "pw")
    assert job_environment() == {"AUTOFT_STORAGE_URL_FILE": str(Path.cwd() / "secrets" / "url")}


def test_a_launch_cannot_be_detached_without_a_cluster(
    tmp_path: Path, tiny_vit: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert main(["launch", str(write_study(tmp_path, tiny_vit)), "--detach"]) == 2
    assert "--detach hands the study to a Ray cluster: set RAY_ADDRESS" in capsys.readouterr().err
