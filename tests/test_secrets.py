"""A database password reaches the one connection that needs it, and nothing else: no log, table, file, command line or environment."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest

from tests.launching import Launch, environment
from tests.postgres_fixtures import PASSWORD, PostgresServer
from tests.studies import write_study

FORMS = (PASSWORD, quote(PASSWORD, safe=""), quote(PASSWORD, safe="").lower())
FLAGS = ("--workers", "1", "--threads-per-worker", "1", "--device", "cpu", "--json")
IN_PROCESS = ("--executor", "in-process", "--threads-per-worker", "1", "--json")


class Watch:
    """Reads command line and environment of a launch's processes, again and again, while it runs."""

    def __init__(self, run: Launch) -> None:
        self._run = run
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.leaks: list[str] = []
        self.seen: set[str] = set()
        self._thread.start()

    def _sample(self) -> None:
        while self._run.process.poll() is None:
            prepared = any(event["event"] == "preparing" for event in self._run.events)
            for process in self._run.family():
                if process.pid == self._run.process.pid and not prepared:
                    continue  # it was handed the password in its environment, and has not come to take it yet
                with contextlib.suppress(OSError, psutil.Error):  # it has ended meanwhile
                    self.seen.add(process.name())
                    found = [Path(f"/proc/{process.pid}/{file}").read_text(errors="replace") for file in ("cmdline", "environ")]
                    self.leaks += [process.name() for content in found if leaks_in(content)]
            time.sleep(0.2)

    def finish(self) -> None:
        self._thread.join(10)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """For Ray's own files: its sockets need a short path."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.parametrize(("variable", "flags"), [pytest.param("AUTOFT_STORAGE_URL", FLAGS, marks=pytest.mark.slow), ("AUTOFT_STORAGE_URL_FILE", IN_PROCESS)])
def test_the_password_goes_nowhere(
    variable: str, flags: tuple[str, ...], tmp_path: Path, short_folder: Path, tiny_vit: Path, postgres_server: PostgresServer, empty_database: str
) -> None:
    url = postgres_server.password_url(empty_database)
    assert "S3cr%7Bet-9f2c41" in url
    assert postgres_server.execute("SHOW password_encryption") == [("scram-sha-256",)]
    secret = tmp_path / "secret"
    secret.write_text(url + "\n")
    work = tmp_path / "work"
    work.mkdir()
    write_study(work, tiny_vit, search__n_trials=2, final__epochs=1, wise_ft__alphas=[1.0])
    env = environment(tmp_path / "home", RAY_TMPDIR=str(short_folder), **{variable: url if variable == "AUTOFT_STORAGE_URL" else str(secret)})
    run = Launch("launch", "tiny.yaml", *flags, env=env, cwd=work)
    watch = Watch(run)
    run.finish()
    watch.finish()

    assert not watch.leaks
    if flags is FLAGS:
        assert {"raylet", "gcs_server"} <= watch.seen
        assert any(name.startswith("ray::TrialWorke") for name in watch.seen)
    assert run.events[0]["storage"] == f"postgresql://tuner:***@127.0.0.1:{postgres_server.port}/{empty_database}"
    assert leaks_in(run.stdout + run.stderr) == []
    files = [path for folder in (work, short_folder, Path(env["AUTOFT_CACHE_DIR"])) for path in folder.rglob("*") if path.is_file()]
    if flags is FLAGS:
        assert any(path.name.startswith("worker-") for path in files)  # Ray's session logs are among them
    assert [path for path in files if leaks_in(path.read_bytes().decode(errors="replace"))] == []
    rows = tables(postgres_server, empty_database)
    assert "tiny" in rows
    assert leaks_in(rows) == []


def leaks_in(text: str) -> list[str]:
    return [form for form in FORMS if form in text]


def tables(server: PostgresServer, database: str) -> str:
    """Every row of every table of a database, as text."""
    names = server.execute("SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')", database)
    assert len(names) > 5
    return "\n".join(str(row) for (name,) in names for row in server.execute(f"SELECT t::text FROM {name} t", database))


@pytest.mark.parametrize("broken", ["port", "database", "password"])
def test_an_error_of_the_database_does_not_show_it(
    broken: str, tmp_path: Path, tiny_vit: Path, postgres_server: PostgresServer, empty_database: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from autoft.cli.main import main

    url = postgres_server.password_url(empty_database)
    changed = {"port": url.replace(str(postgres_server.port), "1"), "database": url + "x", "password": url.replace("41@", "42@")}[broken]
    monkeypatch.setenv("AUTOFT_STORAGE_URL", changed)
    assert main(["launch", str(write_study(tmp_path, tiny_vit)), "--runs", str(tmp_path / "runs")]) == 3
    said = "".join(capfd.readouterr())
    assert "postgresql://tuner:***@127.0.0.1" in said
    assert "Traceback" not in said
    assert leaks_in(said.replace(changed, "")) == [] and "9f2c4" not in said
    assert not (tmp_path / "runs").exists()
