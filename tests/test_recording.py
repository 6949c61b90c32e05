"""What a command's run leaves in the records and in --artifacts; and that neither ever brings a run down that can go on."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autoft.artifacts import MANIFEST, ArtifactStore
from autoft.cli import recording
from autoft.cli.main import main
from autoft.cli.recording import Recorder
from autoft.errors import ArtifactError, Interrupted, StorageError, StorageUnavailable, TrialCodeError
from storage import StorageURL, parse_storage_url
from storage.records import RecordsDenied, RunRecord, list_runs
from tests.studies import write_study

SUMMARY = {
    "evaluations": [{"model": "final", "seed": 0, "dataset": "d", "split": "test_id", "metric": "accuracy", "value": 0.5, "ci_low": None, "ci_high": None, "n": 9}],
    "final": {"hyperparameters": {"lr": 0.1}},
    "cost": {"search_samples": 10, "final_samples": 5, "search_seconds": 1.0, "final_seconds": 0.5, "search_over_final": 2.0},
}


@pytest.fixture
def url(database_url: str) -> StorageURL:
    return parse_storage_url(database_url, "test")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "tiny"
    (folder / "checkpoints" / "final").mkdir(parents=True)
    (folder / "checkpoints" / "final" / "head.safetensors").write_bytes(b"head")
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    return folder


def recorder(url: StorageURL, run_dir: Path, store: str | None = None, events: list[Any] | None = None) -> Recorder:
    inputs: Any = SimpleNamespace(config=SimpleNamespace(study="tiny", metric="accuracy"), fingerprint="f" * 16)
    observe = ([] if events is None else events).append
    return Recorder(url, inputs, run_dir, None if store is None else ArtifactStore(store), observe, kind="launch", method="autoft", seed=3)


def only(url: StorageURL) -> RunRecord:
    (found,) = list_runs(url)
    return found


def test_a_run_from_its_begin_to_its_end(url: StorageURL, run_dir: Path) -> None:
    record = recorder(url, run_dir)
    with record.running():
        begun = only(url)
        assert (begun.state, begun.ended, begun.evaluations, begun.folder.endswith(f":{run_dir}")) == ("running", None, (), True)
    record.complete(SUMMARY)
    done = only(url)
    assert (done.state, done.failure, done.seed, record.exit_code) == ("complete", None, 3, 0)
    assert done.ended is not None and done.ended > done.started == begun.started
    assert done.hyperparameters == {"lr": 0.1} and done.cost is not None and (done.cost["samples"], done.cost["seconds"]) == (15, 1.5)
    assert done.evaluations is not None and done.evaluations[0].value == 0.5
    assert done.checkpoints is not None and [(each.name, each.bytes, len(each.sha256)) for each in done.checkpoints] == [("final", 4, 64)]
    recorder(url, run_dir).complete(SUMMARY)
    assert only(url) == done, "a run that is complete already is recorded as it was"


@pytest.mark.parametrize(
    ("error", "state", "failure"),
    [
        (Interrupted("stopped at trial 3"), "interrupted", "stopped at trial 3"),
        (KeyboardInterrupt(), "interrupted", "stopped"),
        (TrialCodeError("trial 2: KeyError"), "failed", "trial 2: KeyError"),
        (RuntimeError("password=S3cret"), "failed", "RuntimeError"),
        (OSError(28, "No space left on device", "/secret/place"), "failed", "OSError: No space left on device"),
    ],
)
def test_how_a_run_can_end(error: BaseException, state: str, failure: str, url: StorageURL, run_dir: Path) -> None:
    with pytest.raises(type(error)), recorder(url, run_dir).running():
        raise error
    assert (only(url).state, only(url).failure) == (state, failure) and only(url).ended is not None
    with recorder(url, run_dir).running():
        assert (only(url).state, only(url).failure, only(url).ended) == ("running", None, None)


AWAY = StorageUnavailable("database d: connection refused")


def test_a_database_that_is_away_when_a_run_begins_is_an_error(run_dir: Path) -> None:
    away = parse_storage_url("postgresql://tuner@127.0.0.1:1/none", "test")
    with pytest.raises(StorageUnavailable), recorder(away, run_dir).running():
        pytest.fail("nothing was begun")


def test_a_database_that_is_away_for_a_moment_when_a_run_ends(url: StorageURL, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, answers = recording.record_run, iter([AWAY, AWAY])

    def record_run(*given: Any) -> None:
        if (error := next(answers, None)) is not None:
            raise error
        real(*given)

    monkeypatch.setattr(recording, "record_run", record_run)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    recorder(url, run_dir).complete(SUMMARY)
    assert only(url).state == "complete"


@pytest.mark.parametrize("error", [AWAY, StorageError("database d: refused"), KeyError("a bug")])
def test_what_cannot_be_recorded_at_the_end_is_a_warning(
    error: Exception, url: StorageURL, run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def record_run(*given: Any) -> None:
        raise error

    record = recorder(url, run_dir)
    with record.running():
        monkeypatch.setattr(recording, "record_run", record_run)
        monkeypatch.setattr(recording, "PATIENCE_SECONDS", 0.0)
    with caplog.at_level(logging.WARNING):
        record.complete(SUMMARY)
    assert "run the same command again to record it" in caplog.text and record.exit_code == 0 and only(url).state == "running"
    monkeypatch.undo()
    recorder(url, run_dir).complete(SUMMARY)
    assert only(url).state == "complete"


def test_a_user_who_may_not_record_runs_all_the_same(
    url: StorageURL, run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def record_run(*given: Any) -> None:
        raise RecordsDenied("permission denied; CREATE SCHEMA ...")

    monkeypatch.setattr(recording, "record_run", record_run)
    record = recorder(url, run_dir)
    with record.running():
        pass
    record.complete(SUMMARY)
    assert caplog.text.count("not recorded") == 1 and "CREATE SCHEMA" in caplog.text


def test_a_copy_is_recorded_and_a_failed_one_is_said(
    url: StorageURL, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store, events = str(tmp_path / "store"), list[Any]()
    with monkeypatch.context() as patch:

        def fails(*given: Any) -> None:
            raise ArtifactError(f"{store}: head.safetensors was not copied: the network is gone")

        patch.setattr(ArtifactStore, "_put", fails)
        record = recorder(url, run_dir, store, events)
        record.complete(SUMMARY)
    assert record.exit_code == 7 and events == [] and "the network is gone" in caplog.text and "Run the same command again" in caplog.text
    assert (only(url).state, only(url).artifacts) == ("complete", None) and (run_dir / "summary.json").is_file()
    record = recorder(url, run_dir, store, events)
    record.complete(SUMMARY)
    assert record.exit_code == 0 and [(event["event"], event["sent"]) for event in events] == [("copied", 2)]
    done = only(url)
    assert done.artifacts == f"{store}/tiny" and done.checkpoints is not None and done.checkpoints[0].location == f"{store}/tiny/checkpoints/final"
    with recorder(url, run_dir).running():
        assert only(url).artifacts == done.artifacts, "the copy is still there"


@pytest.fixture
def study(tmp_path: Path, tiny_vit: Path, monkeypatch: pytest.MonkeyPatch, database_url: str) -> Path:
    monkeypatch.setenv("AUTOFT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return write_study(tmp_path, tiny_vit)


IN_PROCESS = ["--executor", "in-process", "--threads-per-worker", "1"]


def test_a_launch_and_a_finetune_leave_their_records_and_copies(
    study: Path, tmp_path: Path, database_url: str, url: StorageURL, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def autoft(*arguments: str) -> int:
        monkeypatch.setenv("AUTOFT_STORAGE_URL", database_url)
        return main(arguments)

    assert autoft("launch", str(study), "--artifacts", "store", *IN_PROCESS) == 0
    assert autoft("finetune", str(study), "--hyperparameters", "flyp", "--threads", "1") == 0
    launched, tuned = list_runs(url)
    assert (launched.kind, launched.state, tuned.kind, tuned.method, tuned.state) == ("launch", "complete", "finetune", "flyp", "complete")
    summary = json.loads(Path("runs/tiny/summary.json").read_text())
    assert launched.fingerprint == tuned.fingerprint == summary["fingerprint"] and launched.versions == summary["versions"]
    assert launched.evaluations is not None and len(launched.evaluations) == len(summary["evaluations"])
    assert launched.hyperparameters == summary["final"]["hyperparameters"] and launched.artifacts == str(Path("store/tiny").absolute())
    manifest = json.loads(Path("store/tiny", MANIFEST).read_text())
    assert {"summary.json", "report.html", "checkpoints/final/open_clip_model.safetensors"} <= set(manifest["files"])
    assert ArtifactStore("store").verify("tiny") == []
    capsys.readouterr()
    assert autoft("launch", str(study), "--artifacts", "store", "--json", *IN_PROCESS) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["sent"] for event in events if event["event"] == "copied"] == [0] and list_runs(url)[0].id == launched.id


def test_a_store_without_its_driver_is_refused_before_anything_is_made(study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("AUTOFT_STORAGE_URL", "postgresql://tuner@127.0.0.1:1/none")  # not even looked at
    for command in (["launch", str(study)], ["finetune", str(study), "--hyperparameters", "flyp"], ["compare", str(study)]):
        assert main([*command, "--artifacts", "s3://KEY:SeCrEt@bucket/x?token=tOkEn"]) == 2
        err = capsys.readouterr().err
        assert "--artifacts s3://bucket/x: s3:// needs the package s3fs" in err and "SeCrEt" not in err and "tOkEn" not in err
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_comparison_leaves_a_record_for_each_training(
    study: Path, database_url: str, url: StorageURL, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        monkeypatch.setenv("AUTOFT_STORAGE_URL", database_url)
        assert main(["compare", str(study), "--methods", "zero_shot,finetune", "--seeds", "2", "--evaluations", "2", "--artifacts", "store", *IN_PROCESS]) == 0
    found = {(run.kind, run.method, run.seed): run for run in list_runs(url)}
    assert set(found) == {("compare", "all", 3), ("training", "zero_shot", None), ("training", "finetune", 0), ("training", "finetune", 1)}
    assert all(run.state == "complete" and run.artifacts == str(Path("store/tiny-compare").absolute()) for run in found.values())
    assert found["training", "finetune", 1].evaluations and found["training", "finetune", 1].hyperparameters
    assert "copied 0 files" in capsys.readouterr().err
