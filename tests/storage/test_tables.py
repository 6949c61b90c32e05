"""Whose tables they are: Optuna's, nobody's yet, or another program's."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
import sqlalchemy

from autoft.errors import StorageError
from storage import list_studies, load_study_readonly, open_study, parse_storage_url
from tests.postgres_fixtures import ROLE, PostgresServer

SCHEMA = "options=-csearch_path%3Doptuna"


def _tables(postgres_server: PostgresServer, database: str) -> set[str]:
    rows = postgres_server.execute("SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname !~ '^pg_|^information'", database)
    return {str(name) for (name,) in rows}


@pytest.fixture
def mlflow_database(postgres_server: PostgresServer, empty_database: str) -> str:
    """A database whose default schema is another program's, with Alembic's table."""
    for statement in (
        "CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)",
        "INSERT INTO alembic_version VALUES ('0584bdc529eb')",
        "CREATE TABLE experiments (name text)",
    ):
        postgres_server.execute(statement, empty_database, user=ROLE)
    return empty_database


def test_another_programs_schema_is_refused_with_advice(postgres_server: PostgresServer, mlflow_database: str) -> None:
    url = parse_storage_url(postgres_server.socket_url(mlflow_database), "test")
    for use in (lambda: open_study(url, "mine", directions=["maximize"], create=True), lambda: list_studies(url), lambda: load_study_readonly(url, "x")):
        with pytest.raises(StorageError, match=r"another program's tables .*0584bdc529eb.*\?options=-csearch_path%3Doptuna"):
            use()
    assert _tables(postgres_server, mlflow_database) == {"public.alembic_version", "public.experiments"}


def test_the_advice_works(postgres_server: PostgresServer, mlflow_database: str) -> None:
    url = parse_storage_url(f"{postgres_server.password_url(mlflow_database)}?{SCHEMA}", "test")
    with open_study(url, "mine", directions=["maximize"], create=True) as handle:
        handle.study.tell(handle.study.ask(), 0.5)
    assert [study.name for study in list_studies(url)] == ["mine"]
    tables = _tables(postgres_server, mlflow_database)
    assert {"optuna.studies", "optuna.alembic_version"} <= tables
    assert {name for name in tables if name.startswith("public.")} == {"public.alembic_version", "public.experiments"}
    assert postgres_server.execute("SELECT version_num FROM alembic_version", mlflow_database) == [("0584bdc529eb",)]


def test_an_unfinished_foreign_version_table_is_refused_too(postgres_server: PostgresServer, empty_database: str) -> None:
    postgres_server.execute("CREATE TABLE alembic_version (version_num varchar(32))", empty_database, user=ROLE)
    with pytest.raises(StorageError, match="another program's tables"):
        open_study(parse_storage_url(postgres_server.socket_url(empty_database), "test"), "mine", directions=["maximize"], create=True)


def test_a_foreign_sqlite_file_is_refused(tmp_path: Path) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/mlflow.db")
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE alembic_version (version_num text)"))
        connection.execute(sqlalchemy.text("INSERT INTO alembic_version VALUES ('0584bdc529eb')"))
    engine.dispose()
    with pytest.raises(StorageError, match="another program's tables"):
        open_study(parse_storage_url(f"sqlite:///{tmp_path}/mlflow.db", "test"), "mine", directions=["maximize"], create=True)


def test_a_schema_of_a_later_optuna_is_refused(postgres_server: PostgresServer, database: str) -> None:
    postgres_server.execute("UPDATE alembic_version SET version_num = 'v99.0.0.a'", database)
    url = parse_storage_url(postgres_server.socket_url(database), "test")
    with pytest.raises(StorageError, match="no longer compatible") as caught:
        open_study(url, "mine", directions=["maximize"], create=True)
    assert "\n" not in str(caught.value)


def test_a_half_made_schema_is_finished(postgres_server: PostgresServer, database: str) -> None:
    """As a process leaves it that was killed between making the tables and stamping their version."""
    postgres_server.execute("TRUNCATE alembic_version, version_info", database)
    url = parse_storage_url(postgres_server.socket_url(database), "test")
    assert list_studies(url) == []
    open_study(url, "mine", directions=["maximize"], create=True).close()
    assert [study.name for study in list_studies(url)] == ["mine"]


def test_reading_makes_nothing(postgres_server: PostgresServer, empty_database: str, tmp_path: Path) -> None:
    postgres = parse_storage_url(postgres_server.socket_url(empty_database), "test")
    sqlite = parse_storage_url(f"sqlite:///{tmp_path}/none.db", "test")
    for url in (postgres, sqlite):
        assert list_studies(url) == []
        with pytest.raises(StorageError, match="it holds none yet"):
            load_study_readonly(url, "mine")
        with pytest.raises(StorageError, match="it holds none yet"):
            open_study(url, "mine", directions=["maximize"], create=False)
    assert _tables(postgres_server, empty_database) == set()
    assert list(tmp_path.iterdir()) == []


def test_no_right_to_make_tables_is_explained(postgres_server: PostgresServer) -> None:
    """PostgreSQL 15 and later: only the owner of a database may create in its public schema."""
    name = f"{ROLE}_guest"
    postgres_server.execute(f"CREATE DATABASE {name}")  # owned by another role
    with pytest.raises(StorageError, match=r"permission denied for schema public; .*search_path"):
        open_study(parse_storage_url(postgres_server.socket_url(name), "test"), "mine", directions=["maximize"], create=True)


def test_a_stock_optuna_reads_our_studies(password_database_url: str) -> None:
    url = parse_storage_url(password_database_url, "test")
    with open_study(url, "mine", directions=["maximize"], create=True) as handle:
        trial = handle.study.ask()
        trial.suggest_float("lr", 0, 1)
        handle.study.tell(trial, 0.5)
        stock = optuna.load_study(study_name="mine", storage=password_database_url.replace("postgresql://", "postgresql+psycopg2://"))
        assert stock.best_value == 0.5
        assert set(stock.best_params) == {"lr"}
