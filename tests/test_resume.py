"""A run that is killed or stopped at any moment goes on, and ends with what an undisturbed run ends with."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage import embedded, leave_embedded
from tests.launching import Launch, environment, is_alive, outcome, results, trials_of
from tests.postgres_fixtures import PostgresServer, fast_folder
from tests.studies import write_study

THREADS = ("--threads-per-worker", "1", "--device", "cpu", "--json")
IN_PROCESS = ("--executor", "in-process", *THREADS)
ON_RAY = ("--workers", "2", "--set", "final.epochs=2", *THREADS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_vit: Path) -> Path:
    """A folder with a study file: 5 trials of about half a second, and a final fine-tune of two seconds."""
    folder = tmp_path_factory.mktemp("resume")
    write_study(folder, tiny_vit, search__n_trials=5, trial__steps=20, final__epochs=20)
    return folder


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with fast_folder() as home:
        yield home
        if home in embedded._users:
            leave_embedded(home)


@pytest.fixture
def env(home: Path) -> dict[str, str]:
    return environment(home)


@pytest.fixture(scope="module")
def undisturbed(folder: Path, home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """(outcome of the trials, summary) of a run that nothing happened to."""
    os.environ.setdefault("AUTOFT_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "image-cache"))
    launch(folder, environment(home), "undisturbed", *IN_PROCESS).finish()
    return found(folder, home, "undisturbed")


def launch(folder: Path, env: dict[str, str], study: str, *flags: str) -> Launch:
    return Launch("launch", "tiny.yaml", "--set", f"study={study}", *flags, env=env, cwd=folder)


def found(folder: Path, home: Path, study: str) -> tuple[Any, Any]:
    from storage import embedded_url

    return outcome(trials_of(embedded_url(home).sqlalchemy.render_as_string(), study)), results(folder / "runs" / study)


@pytest.mark.slow
def test_disturbed_in_every_way(folder: Path, home: Path, env: dict[str, str], undisturbed: tuple[Any, Any]) -> None:
    """SIGKILL during the search and the final fine-tune and between stages; SIGTERM; and two signals, the second of which ends it at once."""
    run = launch(folder, env, "disturbed", *IN_PROCESS)
    run.wait_for("trial_started", trial=1)
    run.kill()
    run = launch(folder, env, "disturbed", *IN_PROCESS)
    run.wait_for("trial_ended", trial=2)
    run.process.send_signal(signal.SIGTERM)
    run.finish(143)
    assert "stopped with 3 of 5 trials finished\nNothing is lost. Go on with: autoft launch tiny.yaml --set study=disturbed" in run.stderr
    run = launch(folder, env, "disturbed", *IN_PROCESS)
    run.wait_for("epoch_ended", epoch=7)
    run.kill()
    run = launch(folder, env, "disturbed", *IN_PROCESS)
    run.wait_for("epoch_ended", epoch=12)
    run.process.send_signal(signal.SIGINT)
    time.sleep(0.01)
    run.process.send_signal(signal.SIGINT)
    run.finish(130)
    assert next(event["epoch"] for event in run.events if event["event"] == "epoch_ended") >= 7
    run = launch(folder, env, "disturbed", *IN_PROCESS)
    run.wait_for("stage_ended", stage="final")
    run.kill()
    last = launch(folder, env, "disturbed", *IN_PROCESS).finish()
    assert found(folder, home, "disturbed") == undisturbed
    assert not [event for event in last.events if event["event"] in ("trial_started", "epoch_ended")]  # what is done is not done again
    assert not list((folder / "runs" / "disturbed").rglob("*.partial"))


@pytest.mark.slow
def test_disturbed_on_ray(folder: Path, home: Path, env: dict[str, str], undisturbed: tuple[Any, Any]) -> None:
    """Before the search, during it by Ctrl-C, which a terminal sends to the whole process group, and by SIGKILL; Ray ends each time."""
    run = launch(folder, env, "ray", *ON_RAY)
    run.wait_for("connecting")
    time.sleep(0.5)
    run.process.send_signal(signal.SIGTERM)
    run.finish(143)
    assert "Nothing is lost. Go on with: autoft launch tiny.yaml" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (folder / "runs" / "ray").exists()

    run = launch(folder, env, "ray", *ON_RAY)
    worker = run.wait_for("trial_ended")["worker"]
    os.kill(int(worker.rpartition(":")[2]), signal.SIGKILL)
    lost = run.wait_for("trial_retried")["trial"]
    time.sleep(0.5)  # in which Ray would print its own account of it
    family, began = run.family(), time.monotonic()
    os.killpg(run.process.pid, signal.SIGINT)
    run.finish(130)
    assert time.monotonic() - began < 10
    assert not [process.cmdline() for process in family if is_alive(process)]
    assert all(json.loads(line)["event"] for line in run.stdout.splitlines())
    warning, _, notice, stopped, again = run.stderr.splitlines()
    assert warning == f"WARNING: trial {lost} failed (infrastructure): worker lost"
    assert notice == "stopping after the current step; once more to stop at once"
    assert stopped.startswith("autoft launch: stopped with ")
    assert again == "Nothing is lost. Go on with: autoft launch tiny.yaml --set study=ray " + " ".join(ON_RAY)

    run = launch(folder, env, "ray", *ON_RAY)
    assert run.wait_for("trial_started")["adopted"]
    run.wait_for("trial_ended")
    run.kill()
    run = launch(folder, env, "ray", *ON_RAY).finish()
    trials, summary = found(folder, home, "ray")
    assert trials == undisturbed[0]
    searched = [{name: value for name, value in one["search"].items() if name != "horizon"} for one in (summary, undisturbed[1])]
    assert searched[0] == searched[1]  # the horizon compares with the final fine-tune, whose threads differ
    assert summary["fingerprint"] == undisturbed[1]["fingerprint"]
    assert run.stderr == ""


@pytest.mark.slow  # tests/storage shows the same of the lock alone
def test_one_owner_a_study_and_two_studies_at_once(folder: Path, tmp_path: Path) -> None:
    with fast_folder() as fresh:  # both find no database, and no server
        env = environment(fresh)
        quick = ("--set", "final.epochs=1", "--set", "trial.steps=300")
        pair = [launch(folder, env, name, *quick, *IN_PROCESS) for name in ("one", "two")]
        pair[0].wait_for("trial_started", trial=0)
        Launch("pause", "one", env=env, cwd=folder).finish()  # so that it is still there when the second one asks
        second = launch(folder, env, "one", *quick, *IN_PROCESS).finish(5)
        Launch("resume", "one", env=env, cwd=folder).finish()
        assert f"study 'one' is run by process {pair[0].process.pid} on host" in second.stderr
        for run in pair:
            run.finish()
        again = launch(folder, env, "one", *quick, *THREADS).finish()
        assert [event["event"] for event in again.events] == ["preparing", "already_complete", "done"]  # and no Ray
        assert not (fresh / "postgres" / "postmaster.pid").exists()  # the last one to leave has stopped the server


@pytest.mark.slow
def test_the_database_is_lost(folder: Path, postgres_server: PostgresServer, empty_database: str, tmp_path: Path, undisturbed: tuple[Any, Any]) -> None:
    """The server is killed during the search, twice: the run goes on without it, and ends as if nothing had happened."""
    env = environment(tmp_path, AUTOFT_STORAGE_URL=postgres_server.password_url(empty_database))
    run = launch(folder, env, "outage", *IN_PROCESS)
    for trial in (1, 3):
        run.wait_for("trial_started", trial=trial)
        postgres_server.stop("immediate")
        try:
            run.wait_for("outage_began")
        finally:
            postgres_server.start()
        run.wait_for("outage_ended")
    run.finish()
    assert "the database is away" in run.stderr and "Traceback" not in run.stderr and "S3cr" not in run.stderr
    trials = trials_of(postgres_server.socket_url(empty_database), "outage")
    assert (outcome(trials), results(folder / "runs" / "outage")) == undisturbed

