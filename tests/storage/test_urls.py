"""Storage URLs: what is accepted, what they connect as, and that the secret part is never shown."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoft.errors import StorageError
from storage import StorageURL, parse_storage_url

SECRET = "S3cr%7Bet-9f2c41"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2", "postgresql+psycopg", "postgresql+asyncpg", "PostgreSQL"])
def test_every_postgres_scheme_means_psycopg2(scheme: str) -> None:
    url = parse_storage_url(f" {scheme}://ann:{SECRET}@db.example:5433/studies?sslmode=require\n", "test")
    assert url.sqlalchemy.drivername == "postgresql+psycopg2"
    assert url.sqlalchemy.password == "S3cr{et-9f2c41"
    assert (url.sqlalchemy.username, url.sqlalchemy.host, url.sqlalchemy.port, url.sqlalchemy.database) == ("ann", "db.example", 5433, "studies")
    assert url.sqlalchemy.query == {"sslmode": "require"}
    assert url.is_postgres
    assert not url.is_sqlite


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
def test_a_percent_encoded_password_is_decoded_exactly(password: str) -> None:
    url = parse_storage_url(f"postgresql://ann:{quote(password, safe='')}@h/d", "test")
    assert url.sqlalchemy.password == password


@pytest.mark.parametrize("text", [f"postgresql://ann:{SECRET}@h/d", f"postgresql://ann@h/d?password={SECRET}", f"postgresql://ann:{SECRET}@/d?host=/s&passfile={SECRET}"])
def test_people_see_no_password(text: str) -> None:
    url = parse_storage_url(text, "test")
    for shown in (str(url), repr(url), f"{url}", url.safe, repr({"url": url})):
        assert "9f2c41" not in shown
        assert "ann" in shown


def test_a_url_is_not_pickled() -> None:
    url = parse_storage_url(f"postgresql://ann:{SECRET}@h/d", "test")
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(url)
    with pytest.raises(TypeError, match="not pickled"):
        copy.deepcopy(url)


@pytest.mark.parametrize(
    "text",
    [
        "mysql://ann:s3cret@h/d",
        "ann:s3cret@h/d",
        "s3cret",
        "",
        "postgresql:/ann:s3cret@h/d",
        "postgresql://ann:s3cret:more@ss@h/d",
        "postgresql://ann:p@s3cret@h/d",
        "postgresql://ann:5/x@s3cret/y@h/d",
        "postgresql://h:s3cret/d",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite://host/file.db",
        "sqlite:///file:s3cret?mode=ro&uri=true",
    ],
)
def test_other_texts_are_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(StorageError) as caught:
        parse_storage_url(text, "AUTOFT_STORAGE_URL")
    message = str(caught.value)
    assert message.startswith("AUTOFT_STORAGE_URL: ")
    assert "s3cret" not in message
    assert "\n" not in message
    assert caught.value.__cause__ is None


def test_sqlite_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    relative, absolute = parse_storage_url("sqlite:///a/b.db", "test"), parse_storage_url(f"sqlite:///{tmp_path}/a/b.db", "test")
    assert relative.is_sqlite
    assert relative.path == absolute.path == tmp_path / "a" / "b.db"
    assert str(absolute) == f"sqlite:///{tmp_path}/a/b.db"


def test_equal_urls_are_equal() -> None:
    def parse(text: str) -> StorageURL:
        return parse_storage_url(text, "test")

    assert parse("postgres://h/d") == parse("postgresql+psycopg://h/d") != parse("postgres://h/e")
