"""Runs in the database: written whole or not at all, updated and never doubled, beside whatever else is there."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy

from autoft.errors import StorageError, StorageUnavailable, StudyLocked
from storage import StorageURL, list_studies, open_study, parse_storage_url
from storage.records import CheckpointRecord, check, init_records, list_runs, record_run
from storage.records.names import place_of
from storage.records.tables import tables_in
from storage.tables import engine_of, prepare_tables
from tests.postgres_fixtures import ROLE, PostgresServer
from tests.storage.runs import BEGUN, a_run, evaluation


def only_run(url: StorageURL) -> object:
    (found,) = list_runs(url)
    return replace(found, id=None)


def counts(url: StorageURL) -> list[int]:
    tables = tables_in(place_of(url))
    with engine_of(url) as engine, engine.connect() as connection:
        each = (tables.runs, tables.evaluations, tables.checkpoints)
        return [connection.scalar(sqlalchemy.select(sqlalchemy.func.count()).select_from(table)) or 0 for table in each]


def test_what_is_recorded_is_read_back(either_url: StorageURL) -> None:
    record_run(either_url, a_run())
    assert only_run(either_url) == a_run()
    assert list_runs(either_url, "tiny") == list_runs(either_url) and list_runs(either_url, "other") == ()


def test_the_same_run_again_updates_it(either_url: StorageURL) -> None:
    running = a_run(state="running", ended=None, cost=None, hyperparameters=None, evaluations=None, checkpoints=None)
    record_run(either_url, running)
    record_run(either_url, a_run())
    assert only_run(either_url) == a_run() and counts(either_url) == [1, 2, 1]
    later = BEGUN + timedelta(days=1)
    record_run(either_url, replace(running, started=later))
    resumed = only_run(either_url)
    assert resumed == a_run(state="running", ended=None), "the first start and what was found stay while it runs again"
    record_run(either_url, a_run(started=later, ended=later, evaluations=(evaluation(value=0.9),), checkpoints=()))
    assert only_run(either_url) == a_run(ended=later, evaluations=(evaluation(value=0.9),), checkpoints=())
    record_run(either_url, a_run(ended=later + timedelta(days=9), evaluations=None, checkpoints=None))
    assert only_run(either_url) == a_run(ended=later, evaluations=(evaluation(value=0.9),), checkpoints=()), "it ended once"
    assert counts(either_url) == [1, 1, 0]


def test_other_seeds_methods_and_data_are_other_runs(either_url: StorageURL) -> None:
    changes: list[dict[str, object]] = [{}, {"seed": 1}, {"seed": None}, {"method": "flyp"}, {"kind": "finetune"}, {"fingerprint": "f" * 16}, {"study": "b"}]
    record_run(either_url, *(a_run(**change) for change in changes))
    record_run(either_url, *(a_run(**change) for change in changes))
    assert counts(either_url) == [7, 14, 7] and len(list_runs(either_url, "tiny")) == 6


def test_all_or_nothing(either_url: StorageURL) -> None:
    record_run(either_url, a_run())
    wrong = a_run(seed=2, checkpoints=(CheckpointRecord(name="final", sha256=None, bytes=1, location="x"),))  # type: ignore[arg-type]
    with pytest.raises(StorageError):
        record_run(either_url, a_run(evaluations=()), wrong)
    assert only_run(either_url) == a_run() and counts(either_url) == [1, 2, 1]


def test_a_run_takes_its_rows_with_it(either_url: StorageURL) -> None:
    record_run(either_url, a_run())
    with engine_of(either_url) as engine, engine.begin() as connection:
        if either_url.is_sqlite:
            connection.exec_driver_sql("PRAGMA foreign_keys = ON")
        connection.execute(sqlalchemy.delete(tables_in(place_of(either_url)).runs))
    assert counts(either_url) == [0, 0, 0]


@pytest.mark.parametrize("table", ["evaluations", "checkpoints", "runs"])
def test_the_database_itself_refuses_doubles(table: str, either_url: StorageURL) -> None:
    record_run(either_url, a_run(evaluations=(evaluation(seed=1),)))
    target = getattr(tables_in(place_of(either_url)), table)
    with engine_of(either_url) as engine, engine.begin() as connection:
        row = dict(connection.execute(sqlalchemy.select(target)).mappings().one())
        with pytest.raises(sqlalchemy.exc.IntegrityError), connection.begin_nested():
            connection.execute(sqlalchemy.insert(target), [{**row, "id": 99}])


def test_what_no_database_can_keep(either_url: StorageURL) -> None:
    """NUL, half a character (a file name that is no UTF-8), numbers that are none; and what looks like SQL."""
    nasty = "'; DROP TABLE runs; --"
    numbers = {"a": float("nan"), "b": [float("inf"), 1.0]}
    run = a_run(method=nasty, failure="a\0b", folder="here:/\udcff", cost=numbers, evaluations=(evaluation(value=float("nan"), dataset=nasty),))
    record_run(either_url, run)
    (found,) = list_runs(either_url)
    assert found.failure == "ab" and found.folder == "here:/?" and found.method == nasty
    assert found.cost == {"a": None, "b": [None, 1.0]}
    assert found.evaluations is not None and found.evaluations[0].value is None and found.evaluations[0].dataset == nasty


def test_reading_makes_nothing(postgres_server: PostgresServer, empty_database: str, tmp_path: Path) -> None:
    postgres = parse_storage_url(postgres_server.socket_url(empty_database), "test")
    sqlite = parse_storage_url(f"sqlite:///{tmp_path}/none.db", "test")
    for url in (postgres, sqlite):
        assert list_runs(url) == ()
        state = check(url)
        assert (state.optuna.found, state.records.found, state.can_create, state.can_write, state.usable) == (None, None, True, False, False)
    assert postgres_server.execute("SELECT nspname FROM pg_namespace WHERE nspname = 'autoft'", empty_database) == []
    assert list(tmp_path.iterdir()) == []


def _schemas(postgres_server: PostgresServer, database: str) -> set[str]:
    rows = postgres_server.execute("SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname !~ '^pg_|^information'", database)
    return {str(name) for (name,) in rows}


def test_beside_mlflow(postgres_server: PostgresServer, empty_database: str) -> None:
    """Its tables, and its `alembic_version`, are in the default schema; it has a table `runs` too."""
    for statement in (
        "CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)",
        "INSERT INTO alembic_version VALUES ('0584bdc529eb')",
        "CREATE TABLE runs (run_uuid varchar(32) PRIMARY KEY)",
        "INSERT INTO runs VALUES ('of mlflow')",
    ):
        postgres_server.execute(statement, empty_database, user=ROLE)
    url = parse_storage_url(f"{postgres_server.password_url(empty_database)}?options=-csearch_path%3Doptuna", "test")
    prepare_tables(url)
    record_run(url, a_run())
    assert only_run(url) == a_run() and check(url).usable
    tables = _schemas(postgres_server, empty_database)
    assert {"autoft.runs", "autoft.evaluations", "autoft.checkpoints", "autoft.autoft_alembic_version"} == {name for name in tables if name.startswith("autoft.")}
    assert {name for name in tables if name.startswith("public.")} == {"public.alembic_version", "public.runs"}
    assert postgres_server.execute("SELECT version_num FROM public.alembic_version", empty_database) == [("0584bdc529eb",)]
    assert postgres_server.execute("SELECT run_uuid FROM public.runs", empty_database) == [("of mlflow",)]
    with open_study(url, "mine", directions=["maximize"], create=True) as handle:
        handle.study.tell(handle.study.ask(), 0.5)


def test_studies_of_one_name_in_two_schemas_are_two_studies(postgres_server: PostgresServer, empty_database: str) -> None:
    text = postgres_server.password_url(empty_database)
    urls = [parse_storage_url(f"{text}?options=-csearch_path%3D{schema}", "test") for schema in ("one", "two")]
    for number, url in enumerate(urls):
        record_run(url, a_run(failure=f"in {number}"))
    prepare_tables(urls[0])  # now the schema exists: that changes nothing
    record_run(urls[0], a_run(failure="in 0"))
    assert [[run.failure for run in list_runs(url)] for url in urls] == [["in 0"], ["in 1"]]


def test_a_search_path_that_names_our_schema(postgres_server: PostgresServer, empty_database: str) -> None:
    """Optuna's tables then stand beside ours, each with its own version table."""
    url = parse_storage_url(f"{postgres_server.password_url(empty_database)}?options=-csearch_path%3Dautoft", "test")
    prepare_tables(url)
    record_run(url, a_run())
    assert only_run(url) == a_run() and check(url).usable
    assert {"autoft.alembic_version", "autoft.autoft_alembic_version", "autoft.studies", "autoft.runs"} <= _schemas(postgres_server, empty_database)


def test_a_user_who_may_only_read(postgres_server: PostgresServer, database: str) -> None:
    url = parse_storage_url(postgres_server.socket_url(database), "test")
    record_run(url, a_run())
    postgres_server.execute("DROP ROLE IF EXISTS reader")
    postgres_server.execute("CREATE ROLE reader LOGIN")
    for statement in ("GRANT USAGE ON SCHEMA autoft, public TO reader", "GRANT SELECT ON ALL TABLES IN SCHEMA autoft, public TO reader"):
        postgres_server.execute(statement, database)
    reader = parse_storage_url(postgres_server.socket_url(database).replace(f"{ROLE}@", "reader@"), "test")
    assert only_run(reader) == a_run()
    state = check(reader)
    assert not state.can_write and not state.usable and "may not write" in state.problems[0]
    with pytest.raises(StorageError, match=r"permission denied for table runs.*GRANT ALL ON ALL TABLES IN SCHEMA autoft TO reader"):
        record_run(reader, a_run(seed=5))


def test_a_database_that_is_away_may_come_back() -> None:
    url = parse_storage_url("postgresql://tuner:s3cret@127.0.0.1:1/none", "test")
    for use in (init_records, list_runs, check):
        with pytest.raises(StorageUnavailable) as caught:
            use(url)  # type: ignore[operator]
        assert "s3cret" not in str(caught.value)


def test_a_role_named_like_our_schema(postgres_server: PostgresServer, empty_database: str) -> None:
    """On the default search_path such a role finds our schema before Optuna's tables: once it is made, a study would have two locks."""
    postgres_server.execute("CREATE ROLE autoft LOGIN")
    postgres_server.execute(f"GRANT ALL ON DATABASE {empty_database} TO autoft")
    postgres_server.execute("GRANT ALL ON SCHEMA public TO autoft", empty_database)
    try:
        url = parse_storage_url(f"postgresql://autoft@/{empty_database}?host={postgres_server.data}&port={postgres_server.port}", "test")
        with open_study(url, "mine", directions=["maximize"], create=True):
            init_records(url)
            assert [study.locked_by is not None for study in list_studies(url)] == [True]
            with pytest.raises(StudyLocked):
                open_study(url, "mine", directions=["maximize"], create=True)
        with open_study(url, "mine", directions=["maximize"], create=True) as handle:
            assert not handle.created
    finally:
        postgres_server.drop_database(empty_database)
        postgres_server.execute("DROP ROLE autoft")
