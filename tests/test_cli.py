"""The command line: what it checks before anything starts, and what its commands say about a study, during a run and after it."""

import io
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from autoft.cli import progress
from autoft.cli.main import main
from autoft.config import load_config
from storage import open_study, parse_storage_url
from tests.launching import ROOT, Launch, environment
from tests.postgres_fixtures import PostgresServer
from tests.studies import TINY_VIT, write_model, write_study

IN_PROCESS = ("--executor", "in-process", "--threads-per-worker", "1", "--device", "cpu")
ESCAPE = "\x1b"


@dataclass
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def autoft(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run a command in this process; `url` is where studies are."""

    def run(*arguments: object, url: str | None = None) -> Said:
        if url is not None:
            monkeypatch.setenv("AUTOFT_STORAGE_URL", url)
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(str(end.code))
        return Said(code, *capsys.readouterr())

    return run


@dataclass(frozen=True)
class Finished:
    """A study that was run to its end."""

    study: Path
    runs: Path
    url: str
    out: str
    err: str

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.runs / "tiny" / "summary.json").read_text())
        return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_vit: Path, postgres_server: PostgresServer) -> Iterator[Finished]:
    """One run of `launch --json` that many tests look at."""
    folder = tmp_path_factory.mktemp("finished")
    database = postgres_server.create_database()
    url = postgres_server.socket_url(database)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOFT_STORAGE_URL", url)
        patch.setenv("AUTOFT_CACHE_DIR", str(folder / "cache"))
        patch.setattr(sys, "stdout", io.StringIO())
        patch.setattr(sys, "stderr", io.StringIO())
        study = write_study(folder, tiny_vit)
        assert main(["launch", str(study), "--runs", str(folder / "runs"), "--json", *IN_PROCESS]) == 0
        out, err = sys.stdout.getvalue(), sys.stderr.getvalue()  # type: ignore[attr-defined]
    yield Finished(study, folder / "runs", url, out, err)
    postgres_server.drop_database(database)


# --- before anything starts -------------------------------------------------------------------------------------------------------


def images(folder: Path, **classes: int) -> dict[str, str]:
    """A folder data set with so many plain images a class."""
    for number, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(np.full((16, 16, 3), 40 * number + index, dtype=np.uint8)).save(folder / name / f"{index}.png")
    return {"layout": "folder", "path": str(folder)}


def no_such_folder(folder: Path) -> dict[str, Any]:
    return {"data__val_ood": {"layout": "folder", "path": str(folder / "nowhere")}}


def empty_folder(folder: Path) -> dict[str, Any]:
    (folder / "empty").mkdir()
    return {"data__train": {"layout": "folder", "path": str(folder / "empty")}}


def unknown_class(folder: Path) -> dict[str, Any]:
    known = {f"data__{split}": images(folder / split, red=2, green=2) for split in ("train", "val_id")}
    return {**known, "data__val_ood": images(folder / "ood", red=2, yellow=2), "data__test_id": {}, "data__test_ood": {}, "data__classnames": None}


def corrupt_image(folder: Path) -> dict[str, Any]:
    known = {f"data__{split}": images(folder / split, red=2, green=2) for split in ("train", "val_id", "val_ood")}
    (folder / "val_ood" / "green" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing that makes sense")
    return {**known, "data__test_id": {}, "data__test_ood": {}, "data__classnames": None}


def weights_that_do_not_fit(folder: Path) -> dict[str, Any]:
    model = write_model(folder / "wide", TINY_VIT)
    document = json.loads((model / "open_clip_config.json").read_text())
    document["model_cfg"]["vision_cfg"]["width"] = 48
    (model / "open_clip_config.json").write_text(json.dumps(document))
    return {"model__name": f"local-dir:{model}"}


BAD_STUDIES: list[tuple[Callable[[Path], dict[str, Any]], list[str]]] = [
    (no_such_folder, ["data.val_ood", "nowhere"]),
    (empty_folder, ["data.train", "empty"]),
    (unknown_class, ["data.val_ood", "yellow"]),
    (corrupt_image, ["data.val_ood", "green/1.png"]),
    (weights_that_do_not_fit, ["local-dir:", "wide"]),
    (lambda folder: {"search__n_trial": 3}, ["search.n_trial", "did you mean n_trials?"]),
    (lambda folder: {"trial__steps": "many"}, ["trial.steps = 'many'", "integer"]),
    (lambda folder: {"model__name": "ViT-Z-99"}, ["model.name", "ViT-Z-99"]),
]


@pytest.mark.parametrize(("change", "expected"), BAD_STUDIES)
def test_a_wrong_study_is_refused_before_anything_starts(
    change: Callable[[Path], dict[str, Any]],
    expected: list[str],
    autoft: Callable[..., Said],
    tmp_path: Path,
    tiny_vit: Path,
    postgres_server: PostgresServer,
    empty_database: str,
) -> None:
    study = write_study(tmp_path, tiny_vit, **change(tmp_path))
    for command in (["launch", study, "--runs", tmp_path / "runs"], ["plan", study, "--decode"]):
        said = autoft(*command, url=postgres_server.socket_url(empty_database))
        assert_refused(said, 2, expected, tmp_path / "runs")
    assert postgres_server.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", empty_database) == [(0,)]


def assert_refused(said: Said, code: int, expected: list[str], runs: Path) -> None:
    """One message with these words, on stderr and as the last thing there, and nothing made."""
    assert said.code == code, said
    assert said.out == ""
    message = said.err[said.err.index("autoft ") :] if not said.err.startswith("usage:") else said.err
    assert all(words in message for words in expected), message
    assert "Traceback" not in said.err
    assert len(said.err.splitlines()) < 14, said.err
    assert not runs.exists()


NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
BAD_FLAGS: list[Any] = [
    (["--set", "search.n_trials"], 2, ["--set takes SECTION.FIELD=VALUE"]),
    (["--set", "search.trials=3"], 2, ["search.trials", "n_trials"]),
    (["--set", "trial.steps=[1"], 2, ["--set trial.steps", "not valid YAML"]),
    (["--worker-count", "3"], 2, ["unrecognized arguments: --worker-count"]),
    (["--workers", "0"], 2, ["--workers", "at least 1"]),
    (["--gpus-per-worker", "-1"], 2, ["--gpus-per-worker", "at least 0"]),
    (["--gpus-per-worker", "1.5"], 2, ["--gpus-per-worker", "a share of one GPU or a whole number of them, got 1.5"]),
    (["--device", "tpu"], 2, ["--device", "cuda"]),
    (["--executor", "in-process", "--workers", "2"], 4, ["--workers 2 needs --executor ray"]),
    (["--trials-per-worker", "many"], 2, ["--trials-per-worker", "must be auto or a whole number of at least 1, got 'many'"]),
    (["--runs", "/dev/null/runs"], 2, ["--runs /dev/null/runs", "not a folder"]),
    pytest.param(["--gpus-per-worker", "1"], 4, ["--gpus-per-worker 1 asks for a GPU, and this machine has none"], marks=NO_GPU),
    pytest.param(["--device", "cuda"], 4, ["--device cuda asks for a GPU, and this machine has none"], marks=NO_GPU),
    pytest.param(["--device", "cuda", "--executor", "in-process"], 2, ["asks for a GPU"], marks=NO_GPU),
]


@pytest.mark.parametrize(("flags", "code", "expected"), BAD_FLAGS)
def test_a_wrong_flag_is_refused_before_anything_starts(
    flags: list[str], code: int, expected: list[str], autoft: Callable[..., Said], tmp_path: Path, tiny_vit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = autoft("launch", write_study(tmp_path, tiny_vit), *flags, url="postgresql://nobody@127.0.0.1:1/none")  # not even asked
    assert_refused(said, code, expected, tmp_path / "runs")


def test_a_cluster_that_is_not_there_is_reported_in_seconds(
    autoft: Callable[..., Said], tmp_path: Path, tiny_vit: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.cluster.CONNECT_SECONDS", 0.5)
    study = write_study(tmp_path, tiny_vit)
    with socket.socket() as silent, socket.socket() as closed:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        closed.bind(("127.0.0.1", 0))
        for address, expected in (
            (f"127.0.0.1:{silent.getsockname()[1]}", "no Ray cluster answers at RAY_ADDRESS = 127.0.0.1:"),
            (f"127.0.0.1:{closed.getsockname()[1]}", "no Ray cluster answers at RAY_ADDRESS = 127.0.0.1:"),
            ("ray://head:10001", "valid are HOST:PORT"),
        ):
            monkeypatch.setenv("RAY_ADDRESS", address)
            began = time.monotonic()
            said = autoft("launch", study, "--runs", tmp_path / "runs", url=database_url)
            assert_refused(said, 4, [expected], tmp_path / "runs")
            assert time.monotonic() - began < 8
    assert autoft("list", "--json", url=database_url).json == []


def test_something_else_at_the_address_of_the_cluster(
    autoft: Callable[..., Said], tmp_path: Path, tiny_vit: Path, database_url: str, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{postgres_server.port}")
    said = autoft("launch", write_study(tmp_path, tiny_vit), "--runs", tmp_path / "runs", url=database_url)
    assert_refused(said, 4, ["RAY_ADDRESS = 127.0.0.1:"], tmp_path / "runs")


def test_no_such_study(autoft: Callable[..., Said], finished: Finished) -> None:
    for command in ("show", "status"):
        said = autoft(command, "tyni", url=finished.url)
        assert (said.code, said.out) == (3, "")
        assert "no study 'tyni'" in said.err and "did you mean tiny?" in said.err


def test_a_study_of_that_name_made_from_other_inputs(autoft: Callable[..., Said], finished: Finished, tmp_path: Path) -> None:
    before = (finished.runs / "tiny" / "summary.json").read_bytes()
    changes = ("--set", "trial.steps=5", "--set", "search_space.base_lr=0.002")
    said = autoft("launch", finished.study, *changes, "--runs", tmp_path / "runs", *IN_PROCESS, url=finished.url)
    assert_refused(said, 5, ["trial.steps: 4 there, 5 here", "search_space.base_lr: 0.001 there, 0.002 here", "--set study=NAME"], tmp_path / "runs")
    assert (finished.runs / "tiny" / "summary.json").read_bytes() == before


def test_a_study_that_somebody_runs(autoft: Callable[..., Said], finished: Finished) -> None:
    with open_study(parse_storage_url(finished.url, "test"), "tiny", directions=["maximize"], create=False):
        said = autoft("launch", finished.study, "--runs", finished.runs, *IN_PROCESS, url=finished.url)
        assert said.code == 5
        assert "study 'tiny' is run by process" in said.err
        status = autoft("status", "tiny", "--json", url=finished.url).json
        assert status["state"] == "running"
        assert status["owner"].startswith("process ")


# --- what commands say --------------------------------------------------------------------------------------------------------------


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    program = "import sys\nfrom autoft.cli.main import main\ntry:\n    main(['--help'])\nfinally:\n    print(sorted(sys.modules), file=sys.stderr)"
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert time.monotonic() - began < 0.5 or sys.gettrace()
    assert "exit codes:" in done.stdout and "launch" in done.stdout
    assert not {"torch", "ray", "optuna", "numpy", "rich", "sqlalchemy", "matplotlib"} & set(re.findall(r"'(\w+)'", done.stderr))


def test_json_is_json_and_nothing_else(finished: Finished) -> None:
    events = [json.loads(line) for line in finished.out.splitlines()]
    assert all(isinstance(event, dict) and event["time"] > 1e9 for event in events)
    assert finished.err == ""
    names = [event["event"] for event in events]
    assert names[0] == "preparing" and names[-1] == "done"
    assert names.count("trial_ended") == 6
    assert Path(events[-1]["report"]).is_file() and Path(events[-1]["summary"]).is_file()


def test_a_complete_study_is_left_alone(autoft: Callable[..., Said], finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.cluster.cluster", None)  # Ray is not started
    before = {path: path.stat().st_mtime_ns for path in finished.runs.rglob("*")}
    said = autoft("launch", finished.study, "--runs", finished.runs, url=finished.url)
    assert said.code == 0
    assert said.err.splitlines()[-1] == "study tiny is complete already; nothing to do"
    assert "Zero-shot" in said.out and "report.html" in said.out
    assert ESCAPE not in said.err + said.out
    assert {path: path.stat().st_mtime_ns for path in finished.runs.rglob("*")} == before


def test_plain_lines(autoft: Callable[..., Said], finished: Finished, tmp_path: Path) -> None:
    """More trials of a finished study: what was known is said, and every line stands alone."""
    runs = tmp_path / "runs"
    shutil.copytree(finished.runs, runs)
    said = autoft("launch", finished.study, "--set", "study=plain", "--set", "search.n_trials=2", "--runs", runs, *IN_PROCESS, url=finished.url)
    assert said.code == 0 and ESCAPE not in said.err + said.out
    said = autoft("launch", finished.study, "--set", "study=plain", "--set", "search.n_trials=3", "--runs", runs, *IN_PROCESS, url=finished.url)
    assert said.code == 0
    lines = said.err.splitlines()
    assert lines[1:3] == ["going on with 2 of 3 trials done, best 100.0 %", "1 worker on cpu, 1 thread each"]
    assert re.fullmatch(r"trial 2: 66\.7 % \(3 of 3 done, best 100\.0 %, \d+\.\d s\)", lines[3])
    assert lines[-1] == "writing the report ..."


def test_list_show_status(autoft: Callable[..., Said], finished: Finished) -> None:
    best = finished.summary["search"]["best_trial"]
    listed = {study["study"]: study for study in autoft("list", "--json", url=finished.url).json}
    status = autoft("status", "tiny", "--json", url=finished.url).json
    assert listed["tiny"] == status
    assert (status["state"], status["finished"], status["n_running"], status["owner"]) == ("complete", "6 of 6", 0, None)
    shown = autoft("show", "tiny", "--json", url=finished.url).json
    assert shown["best_trial"]["number"] == best["number"] and shown["best_trial"]["score"] == best["score"]
    assert shown["best_trial"]["parameters"]["lr"] == best["hyperparameters"]["lr"]
    assert [trial["number"] for trial in shown["trials"]] == list(range(6))
    for command in (["list"], ["status", "tiny"], ["show", "tiny"]):
        said = autoft(*command, url=finished.url)
        assert said.code == 0 and said.err == ""
        assert "tiny" in said.out and "complete" in said.out and "6 of 6" in said.out
        assert ESCAPE not in said.out and "…" not in said.out
    assert "loss_weight/l2_init" in said.out


def test_an_empty_database(autoft: Callable[..., Said], postgres_server: PostgresServer, empty_database: str) -> None:
    url = postgres_server.socket_url(empty_database)
    assert autoft("list", "--json", url=url).json == []
    assert "no studies yet" in autoft("list", url=url).out


def test_plan_trains_nothing_and_knows_the_cost(autoft: Callable[..., Said], finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoft.finetune.finetune", None)
    facts = autoft("plan", finished.study, "--decode", "--json").json
    cost = finished.summary["cost"]
    assert facts["budget"]["search_samples"] == cost["search_samples"]
    assert facts["budget"]["search_scored_images"] == cost["search_eval_samples"]
    assert facts["budget"]["final_samples"] == cost["final_samples"]
    assert facts["budget"]["search_over_final"] == cost["search_over_final"]
    assert facts["fingerprint"] == finished.summary["fingerprint"]
    assert [row["images"] for row in facts["data"]] == [48, 24, 24, 30, 30]
    said = autoft("plan", finished.study)
    assert "ready; nothing was trained" in said.out and said.out.count("read from the image cache") == 5
    assert ESCAPE not in said.out + said.err and "…" not in said.out


def test_init_writes_a_valid_file_once(autoft: Callable[..., Said], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    assert autoft("init", path).code == 0
    assert load_config(path).search.n_trials == 100
    path.write_text("kept")
    said = autoft("init", path)
    assert (said.code, said.out) == (2, "")
    assert "exists already" in said.err
    assert path.read_text() == "kept"


@pytest.mark.parametrize("method", ["final", "wise_ft"])
def test_evaluate_finds_what_the_summary_says(method: str, autoft: Callable[..., Said], finished: Finished) -> None:
    checkpoint = finished.runs / "tiny" / "checkpoints" / method
    rows = autoft("evaluate", checkpoint, finished.study, "--sets", "a,b", "--json", "--device", "cpu").json["evaluations"]
    expected = [row for row in finished.summary["evaluations"] if row["model"] == method]
    assert [{**row, "model": method, "seed": 0} for row in rows] == [{**row, "seed": 0} for row in expected]
    said = autoft("evaluate", checkpoint, finished.study, "--sets", "a,c")
    assert said.code == 2 and "--sets c" in said.err and "val_ood" in said.err


def test_evaluate_takes_the_zero_shot_model(autoft: Callable[..., Said], finished: Finished, tiny_vit: Path) -> None:
    rows = autoft("evaluate", tiny_vit, finished.study, "--sets", "a,b", "--json", "--device", "cpu").json["evaluations"]
    expected = [row for row in finished.summary["evaluations"] if row["model"] == "zero_shot"]
    assert [row["value"] for row in rows] == [row["value"] for row in expected]


def test_evaluate_refuses_what_does_not_fit(autoft: Callable[..., Said], finished: Finished, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", {**TINY_VIT, "embed_dim": 24})
    for checkpoint, words in ((other, "another architecture"), (tmp_path / "nowhere", "no checkpoint"), (tmp_path, str(tmp_path))):
        said = autoft("evaluate", checkpoint, finished.study)
        assert said.code == 2 and words in said.err and "Traceback" not in said.err


def test_predict_agrees_with_evaluate(autoft: Callable[..., Said], finished: Finished, tmp_path: Path) -> None:
    checkpoint = finished.runs / "tiny" / "checkpoints" / "final"
    arrays = np.load(finished.study.parent / "data" / "test_b.npz")
    paths = [tmp_path / f"{number}.png" for number in range(len(arrays["images"]))]
    for path, image in zip(paths, arrays["images"], strict=True):
        Image.fromarray(image).save(path)
    said = autoft("predict", checkpoint, *paths, "--json", "--device", "cpu")
    predictions = [json.loads(line) for line in said.out.splitlines()]
    assert all(sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5) for row in predictions)
    names = ["red", "green", "blue"]
    right = [row["prediction"] == names[label] for row, label in zip(predictions, arrays["labels"], strict=True)]
    (row,) = [
        row for row in finished.summary["evaluations"] if (row["model"], row["dataset"], row["metric"]) == ("final", "b", "accuracy")
    ]
    assert np.mean(right) == pytest.approx(row["value"])
    table = autoft("predict", checkpoint, paths[0], "--device", "cpu").out.splitlines()
    assert table[0] == "image,prediction,red,green,blue"
    assert len(table) == 2


def test_predict_names_an_image_it_cannot_read(autoft: Callable[..., Said], finished: Finished, tmp_path: Path) -> None:
    checkpoint = finished.runs / "tiny" / "checkpoints" / "final"
    good, broken = tmp_path / "good.png", tmp_path / "broken.png"
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(good)
    broken.write_bytes(b"no image")
    for image, words in ((broken, "broken.png"), (tmp_path / "missing.png", "no image at")):
        said = autoft("predict", checkpoint, good, image)
        assert said.code == 2 and words in said.err and "Traceback" not in said.err
    assert autoft("predict", tmp_path / "nowhere", good).code == 2


# --- while a study runs -----------------------------------------------------------------------------------------------------------


def test_a_running_study_from_outside(
    autoft: Callable[..., Said], tmp_path: Path, tiny_vit: Path, postgres_server: PostgresServer, empty_database: str
) -> None:
    """`status`, `list`, and the programming interface of a stock optuna-dashboard, in the middle of a search."""
    from storage.dashboard import make_dashboard_server

    url = postgres_server.socket_url(empty_database)
    write_study(tmp_path, tiny_vit, trial__steps=60, search__n_trials=30, search__pruner="median", final__epochs=1)
    run = Launch("launch", "tiny.yaml", *IN_PROCESS, "--json", env=environment(tmp_path, AUTOFT_STORAGE_URL=url), cwd=tmp_path)
    run.wait_for("trial_ended", trial=1)
    run.wait_for("trial_reported", trial=2)
    status = autoft("status", "tiny", "--json", url=url).json
    assert status["state"] == "running" and status["n_running"] == 1
    assert status["owner"].startswith(f"process {run.process.pid} on host")
    assert "running" in autoft("list", url=url).out
    with make_dashboard_server(parse_storage_url(url, "test"), port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        listed = fetch(f"{server.url}/api/studies")
        assert [study["study_name"] for study in listed["study_summaries"]] == ["tiny"]
        trials = fetch(f"{server.url}/api/studies/{listed['study_summaries'][0]['study_id']}?after=0")["trials"]
        server.shutdown()
    assert run.process.poll() is None
    assert any(trial["state"] == "Running" for trial in trials)
    done = next(trial for trial in trials if trial["number"] == 0)
    assert {"lr", "weight_decay", "loss_weight/hinge", "seed"} <= {parameter["name"] for parameter in done["params"]}
    assert [value["step"] for value in done["intermediate_values"]] == [15, 30, 45, 60]
    run.process.terminate()
    run.finish(143)


def fetch(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


@pytest.mark.parametrize("no_color", [False, True])
def test_the_live_view(no_color: bool, finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded events of a run, shown in a terminal: one bar at a time, a line for what is done, nothing twice, no bar left behind."""
    screen = io.StringIO()
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    console = Console(file=screen, force_terminal=True, color_system="standard", width=110)
    monkeypatch.setattr(progress, "Console", lambda stderr: console)
    said: list[str] = []
    bars: list[str] = []
    with progress.LiveView(load_config(finished.study), lambda: False) as view:
        assert isinstance(view, progress.LiveView)
        monkeypatch.setattr(view, "_print", said.append)
        for line in finished.out.splitlines():
            event = json.loads(line)
            view.decoding(event["field"], event["images"], event["images"]) if event["event"] == "decoded" else view(event)
            view._progress.refresh()
            assert len(view._progress.tasks) <= 1
            bars += [f"{task.description} {task.completed:.0f}/{task.total:.0f} {task.fields['note']}" for task in view._progress.tasks]
    assert len(said) == len(set(said))
    assert "search: 6 trials, best 100.0 %" in said
    assert said[-1] == "writing the report ..."
    assert bars[0] == "trials 0/6 workers are loading model and data"
    assert "trials 6/6 best 100.0 %, 0 running" in bars
    assert not view._progress.tasks
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-7]m", screen.getvalue())) != no_color
