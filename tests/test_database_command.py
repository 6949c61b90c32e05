"""`autoft db` and `autoft runs`, on real databases."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from autoft.cli.main import main
from storage import parse_storage_url
from storage.records import record_run
from tests.postgres_fixtures import PASSWORD, ROLE, PostgresServer
from tests.storage.runs import a_run, evaluation


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def autoft(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    def run(*arguments: str, url: str) -> Said:
        monkeypatch.setenv("AUTOFT_STORAGE_URL", url)
        monkeypatch.setenv("COLUMNS", "250")
        capsys.readouterr()
        return Said(main(arguments), *capsys.readouterr())

    return run


def schemas(postgres_server: PostgresServer, database: str) -> dict[str, int]:
    """Tables by schema."""
    rows = postgres_server.execute("SELECT schemaname, count(*) FROM pg_tables WHERE schemaname !~ '^pg_|^information' GROUP BY 1", database)
    return {str(name): int(str(count)) for name, count in rows}


def test_from_an_empty_database_to_a_usable_one(autoft: Callable[..., Said], postgres_server: PostgresServer, empty_database: str) -> None:
    url = postgres_server.password_url(empty_database)
    before = autoft("db", "check", url=url)
    assert before.code == 3 and schemas(postgres_server, empty_database) == {}
    assert "Optuna's tables and the tables of recorded runs are not there; run: autoft db init" in before.out
    made = autoft("db", "init", url=url)
    assert made.code == 0, made
    found = schemas(postgres_server, empty_database)
    assert found["autoft"] == 4 and found["public"] > 4
    after = autoft("db", "check", "--json", url=url)
    state = after.json
    assert after.code == 0 and state["usable"] and state["can_create"] and state["can_write"] and state["problems"] == []
    assert state["records"] == {"schema": "autoft", "found": "0001", "needed": "0001"}
    assert state["optuna"]["schema"] == "public" and state["optuna"]["found"] == state["optuna"]["needed"]
    assert state["server"].startswith("PostgreSQL ")
    assert autoft("db", "init", url=url).code == 0 and schemas(postgres_server, empty_database) == found
    assert not any(PASSWORD in said.out + said.err for said in (before, made, after))


def test_upgrade_says_from_where_to_where(autoft: Callable[..., Said], database_url: str) -> None:
    first = autoft("db", "upgrade", url=database_url)
    assert first.code == 0 and "were at revision none and are at 0001" in first.out
    again = autoft("db", "upgrade", url=database_url)
    assert again.code == 0 and "are at" not in again.out


def test_sqlite_too(autoft: Callable[..., Said], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    assert autoft("db", "check", url=url).code == 3 and list(tmp_path.iterdir()) == []
    assert autoft("db", "init", url=url).code == 0
    state = autoft("db", "check", "--json", url=url).json
    assert state["usable"] and state["records"]["schema"] is None and state["server"].startswith("SQLite 3")


def test_another_programs_database_is_refused(autoft: Callable[..., Said], postgres_server: PostgresServer, empty_database: str) -> None:
    for statement in ("CREATE TABLE alembic_version (version_num text)", "INSERT INTO alembic_version VALUES ('0584bdc529eb')"):
        postgres_server.execute(statement, empty_database, user=ROLE)
    url = postgres_server.password_url(empty_database)
    for action in ("init", "check"):
        said = autoft("db", action, url=url)
        assert said.code == 3 and "?options=-csearch_path%3Doptuna" in said.err
    assert schemas(postgres_server, empty_database) == {"public": 1}
    assert autoft("db", "init", url=f"{url}?options=-csearch_path%3Doptuna").code == 0


def test_a_newer_database_is_refused(autoft: Callable[..., Said], postgres_server: PostgresServer, database: str, database_url: str) -> None:
    autoft("db", "init", url=database_url)
    postgres_server.execute("UPDATE autoft.autoft_alembic_version SET version_num = '0042'", database)
    for action in ("init", "upgrade"):
        said = autoft("db", action, url=database_url)
        assert said.code == 3 and "a newer autoft made them; update this one" in said.err
    said = autoft("db", "check", url=database_url)
    assert said.code == 3 and "revision 0042" in said.out and "newer autoft" in said.out


def test_a_database_that_is_away(autoft: Callable[..., Said]) -> None:
    said = autoft("db", "check", url="postgresql://tuner:s3cret@127.0.0.1:1/none")
    assert said.code == 3 and "refused" in said.err and "s3cret" not in said.err


def test_runs_are_listed(autoft: Callable[..., Said], database_url: str) -> None:
    assert "no recorded runs yet" in autoft("runs", url=database_url).out
    url = parse_storage_url(database_url, "test")
    ood = [evaluation(model=model, dataset=name, split="test_ood", value=value) for model, name, value in (("final", "a", 0.1), ("wise_ft", "a", 0.5), ("wise_ft", "b", 0.7))]
    other = evaluation(model="wise_ft", dataset="a", split="test_ood", metric="f1", value=0.0)
    record_run(url, a_run(evaluations=(*ood, other)), a_run(study="second", kind="training", method="flyp", state="failed", evaluations=(), artifacts="s3://b/x"))
    said = autoft("runs", url=database_url)
    assert said.code == 0 and "60.0 %" in said.out and "s3://b/x" in said.out and "here:/runs/tiny" in said.out
    (run,) = autoft("runs", "tiny", "--json", url=database_url).json
    assert (run["study"], run["ood"], run["id"], run["cost"]["samples"], run["started"]) == ("tiny", pytest.approx(0.6), None, 100, "2026-03-01T12:00:00+00:00")
    assert "no recorded runs of study 'third'" in autoft("runs", "third", url=database_url).out
