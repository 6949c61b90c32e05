"""Our tables are what the migrations make, can be taken back and made again, and nothing half-made is left behind."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from autoft.errors import StorageError
from storage import StorageURL, parse_storage_url
from storage.records import check, downgrade, init_records, list_runs, record_run, upgrade
from storage.records import schema as schema_module
from storage.records.names import VERSION_TABLE, place_of
from storage.records.schema import RecordsDenied, configuration, needed_revision
from storage.records.tables import tables_in
from storage.tables import engine_of, prepare_tables
from tests.postgres_fixtures import ROLE, PostgresServer
from tests.storage.conftest import Child
from tests.storage.runs import a_run

OURS = {"runs", "evaluations", "checkpoints"}


@pytest.fixture(params=["postgres", "sqlite"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> StorageURL:
    """A database with nothing in it."""
    text = request.getfixturevalue("empty_database_url") if request.param == "postgres" else f"sqlite:///{tmp_path}/studies.db"
    return parse_storage_url(text, "test")


def tables_of(url: StorageURL, schema: str | None = None) -> set[str]:
    with engine_of(url) as engine:
        return set(sqlalchemy.inspect(engine).get_table_names(schema=schema))


def our_tables(url: StorageURL) -> set[str]:
    place = place_of(url)
    return {name.removeprefix(place.prefix) for name in tables_of(url, place.schema) if name.startswith(place.prefix) and name != VERSION_TABLE}


def test_the_models_are_what_the_migrations_make(empty_url: StorageURL) -> None:
    init_records(empty_url)
    with engine_of(empty_url) as engine, engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={**configuration(connection), "compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, tables_in(place_of(empty_url)).metadata) == []
        # What that comparison leaves out: names of constraints, and what a row's end does to others.
        inspector, place = sqlalchemy.inspect(connection), place_of(empty_url)
        for table in tables_in(place).metadata.sorted_tables:
            reflected = [key["options"].get("ondelete") for key in inspector.get_foreign_keys(table.name, schema=place.schema)]
            assert reflected == [key.ondelete for key in table.foreign_keys]
            assert [check["name"] for check in inspector.get_check_constraints(table.name, schema=place.schema)] == [
                str(found.name) for found in table.constraints if isinstance(found, sqlalchemy.CheckConstraint)
            ]


def test_down_and_up_again(empty_url: StorageURL) -> None:
    assert upgrade(empty_url) == (None, needed_revision())
    record_run(empty_url, a_run())
    downgrade(empty_url)
    assert our_tables(empty_url) == set() and list_runs(empty_url) == ()
    assert upgrade(empty_url) == (None, needed_revision())
    assert our_tables(empty_url) == OURS and list_runs(empty_url) == ()
    assert upgrade(empty_url) == (needed_revision(), needed_revision())


def test_optunas_tables_stay_what_they_were(either_url: StorageURL) -> None:
    prepare_tables(either_url)
    before = tables_of(either_url)
    init_records(either_url)
    place = place_of(either_url)
    assert tables_of(either_url) - before == ({f"autoft_{name}" for name in OURS} | {VERSION_TABLE} if place.schema is None else set())
    downgrade(either_url)
    assert before <= tables_of(either_url)
    assert check(either_url).optuna.found == check(either_url).optuna.needed


def test_a_database_that_is_newer_is_refused(empty_url: StorageURL) -> None:
    init_records(empty_url)
    place = place_of(empty_url)
    table = VERSION_TABLE if place.schema is None else f"{place.schema}.{VERSION_TABLE}"
    with engine_of(empty_url) as engine, engine.begin() as connection:
        connection.execute(sqlalchemy.text(f"UPDATE {table} SET version_num = '9999'"))
    for use in (init_records, upgrade, downgrade, list_runs, lambda url: record_run(url, a_run())):
        with pytest.raises(StorageError, match=r"revision 9999, which autoft \S+ does not know: a newer autoft made them"):
            use(empty_url)
    state = check(empty_url)
    assert not state.usable and any("newer autoft" in problem for problem in state.problems)


def test_a_database_that_is_older_asks_for_an_upgrade(empty_url: StorageURL, monkeypatch: pytest.MonkeyPatch) -> None:
    init_records(empty_url)
    monkeypatch.setattr(schema_module, "needed_revision", lambda: "0002")
    for use in (init_records, list_runs):
        with pytest.raises(StorageError, match=r"revision 0001, .* needs 0002; .*autoft db upgrade"):
            use(empty_url)


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third table cannot be made."""
    from alembic import op

    make = op.create_table

    def create_table(name: str, *columns: object, **options: object) -> object:
        if name.endswith("checkpoints"):
            raise sqlalchemy.exc.OperationalError("CREATE TABLE", {}, Exception("disk full"))
        return make(name, *columns, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(op, "create_table", create_table)


@pytest.mark.usefixtures("breaking")
def test_a_migration_that_breaks_leaves_nothing(empty_url: StorageURL) -> None:
    with pytest.raises(StorageError, match="disk full"):
        init_records(empty_url)
    assert our_tables(empty_url) == set() and tables_of(empty_url) == set()


def test_eight_processes_at_once_on_an_empty_database(empty_url: StorageURL, child: Callable[..., Child]) -> None:
    together = multiprocessing.get_context("fork").Barrier(8)
    children = [child(_init_and_record, empty_url.sqlalchemy.render_as_string(hide_password=False), seed, together) for seed in range(8)]
    assert [each.result(60) for each in children] == ["ok"] * 8
    assert sorted(run.seed or 0 for run in list_runs(empty_url)) == list(range(8))
    assert check(empty_url).usable


def _init_and_record(url: str, seed: int, together: Any) -> None:
    parsed = parse_storage_url(url, "test")
    together.wait(30)
    init_records(parsed)
    prepare_tables(parsed)
    record_run(parsed, a_run(seed=seed))


def test_tables_of_others_in_our_schema_are_refused(postgres_server: PostgresServer, empty_database: str) -> None:
    for statement in ("CREATE SCHEMA autoft", "CREATE TABLE autoft.runs (run_uuid text)"):
        postgres_server.execute(statement, empty_database, user=ROLE)
    url = parse_storage_url(postgres_server.socket_url(empty_database), "test")
    for use in (init_records, upgrade, list_runs, check):
        with pytest.raises(StorageError, match=r"schema autoft already holds another program's tables \(runs\)"):
            use(url)  # type: ignore[operator]


def test_a_user_without_rights_is_told_what_to_grant(postgres_server: PostgresServer, empty_database: str) -> None:
    postgres_server.execute(f"DROP ROLE IF EXISTS guest; CREATE ROLE guest LOGIN; REVOKE CREATE ON DATABASE {empty_database} FROM PUBLIC")
    url = parse_storage_url(postgres_server.socket_url(empty_database).replace(f"{ROLE}@", "guest@"), "test")
    with pytest.raises(RecordsDenied, match=r"CREATE SCHEMA autoft AUTHORIZATION guest"):
        init_records(url)
    state = check(url)
    assert not state.can_create and not state.can_write and "may not make them" in state.problems[0]
    postgres_server.execute("CREATE SCHEMA autoft AUTHORIZATION guest; CREATE SCHEMA guest AUTHORIZATION guest", empty_database)
    prepare_tables(url)  # into the schema of that name, first of the default search path
    init_records(url)
    assert check(url).usable, "a schema made by the owner is enough"
