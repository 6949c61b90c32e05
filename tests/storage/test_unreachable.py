"""A database that cannot be used: one clear line, soon, and never the password."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from autoft.errors import StorageError
from storage import StorageURL, list_studies, load_study_readonly, open_study, parse_storage_url
from storage.dashboard import make_dashboard_server
from tests.postgres_fixtures import PASSWORD, PostgresServer, free_port

USES: dict[str, Callable[[StorageURL], object]] = {
    "open_study": lambda url: open_study(url, "mine", directions=["maximize"], create=True),
    "resume": lambda url: open_study(url, "mine", directions=["maximize"], create=False),
    "list_studies": list_studies,
    "load_study_readonly": lambda url: load_study_readonly(url, "mine"),
    "dashboard": lambda url: make_dashboard_server(url, port=0),
}


@pytest.fixture(params=USES)
def use(request: pytest.FixtureRequest) -> Callable[[StorageURL], object]:
    return USES[request.param]


def _message(use: Callable[[StorageURL], object], text: str) -> str:
    with pytest.raises(StorageError) as caught:
        use(parse_storage_url(text, "test"))
    message = str(caught.value)
    assert "\n" not in message
    assert "9f2c41" not in message
    assert caught.value.exit_code == 3
    return message


def test_nobody_listens(use: Callable[[StorageURL], object]) -> None:
    port = free_port()
    message = _message(use, f"postgresql://ann:9f2c41@127.0.0.1:{port}/studies")
    assert f"ann:***@127.0.0.1:{port}/studies" in message
    assert "Connection refused" in message


def test_a_silent_host_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        message = _message(list_studies, f"postgresql://ann:9f2c41@127.0.0.1:{silent.getsockname()[1]}/studies?connect_timeout=3")
    assert "timeout expired" in message
    assert time.monotonic() - began < 5


def test_the_usual_limit_is_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    from storage import connections

    assert connections._connect_arguments(parse_storage_url("postgresql://h/d", "test"))["connect_timeout"] == 10


def test_a_wrong_password(postgres_server: PostgresServer, database: str, use: Callable[[StorageURL], object]) -> None:
    message = _message(use, postgres_server.password_url(database).replace("S3cr", "wrong"))
    assert "password authentication failed" in message


def test_a_missing_database(postgres_server: PostgresServer, use: Callable[[StorageURL], object]) -> None:
    assert 'database "nowhere" does not exist' in _message(use, postgres_server.password_url("nowhere"))


def test_an_unknown_option(use: Callable[[StorageURL], object]) -> None:
    assert "prepare_threshold" in _message(use, "postgresql://ann:9f2c41@127.0.0.1/studies?prepare_threshold=0")


def test_a_password_a_driver_repeats_is_masked() -> None:
    """As libpq does for a value it cannot parse."""
    from storage import storage_errors

    url = parse_storage_url("postgresql://ann:S3cr%7Bet-9f2c41@h/d", "test")
    import psycopg2

    for secret in (PASSWORD, "S3cr%7Bet-9f2c41"):
        with pytest.raises(StorageError) as caught, storage_errors(url):
            raise psycopg2.OperationalError(f"bad value {secret}\n in line 1")
        assert str(caught.value).endswith("bad value *** in line 1")


def test_sqlite_in_a_missing_folder(tmp_path: Path) -> None:
    message = _message(USES["open_study"], f"sqlite:///{tmp_path}/missing/studies.db")
    assert "No such file or directory" in message


def test_a_file_that_is_no_database(tmp_path: Path, use: Callable[[StorageURL], object]) -> None:
    (tmp_path / "notes.txt").write_text("not a database, but long enough to look like a page of one" * 10)
    assert "not a database" in _message(use, f"sqlite:///{tmp_path}/notes.txt")
