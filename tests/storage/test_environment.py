"""The URL leaves the environment: neither this process's /proc/PID/environ nor any child shows it afterwards."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from autoft.errors import StorageError
from storage import take_storage_url
from tests.storage.conftest import python

SECRET = "S3cr%7Bet-9f2c41"
URL = f"postgresql://ann:{SECRET}@h/d"
VARIABLES = ("AUTOFT_STORAGE_URL", "AUTOFT_STORAGE_URL_FILE", "PGPASSWORD")

TAKE = """
import json, os, subprocess, sys
from storage import take_storage_url
url = take_storage_url()
child = subprocess.run(["cat", "/proc/self/environ"], capture_output=True, text=True).stdout
own = open("/proc/self/environ").read()
print(json.dumps({"password": url.sqlalchemy.password, "own": own, "child": child, "os": dict(os.environ)}), flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("given", "password"),
    [({"AUTOFT_STORAGE_URL": URL}, "S3cr{et-9f2c41"), ({"AUTOFT_STORAGE_URL": "postgresql://ann@h/d", "PGPASSWORD": "9f2c41"}, "9f2c41")],
)
def test_no_process_shows_the_secret_afterwards(given: dict[str, str], password: str) -> None:
    process = python(TAKE, env={**given, "AUTOFT_WITNESS": "here"})
    assert process.stdout is not None
    said = json.loads(process.stdout.readline())
    outside = Path(f"/proc/{process.pid}/environ").read_text()
    process.communicate()
    assert said["password"] == password
    for shown in (outside, said["own"], said["child"], json.dumps(said["os"])):
        assert "9f2c41" not in shown
        assert "AUTOFT_WITNESS" in shown  # the rest of the environment is as it was


def test_the_block_is_read_by_an_ordinary_process() -> None:
    """The check above can fail: without taking the URL, the block does show it."""
    process = python("print(open('/proc/self/environ').read())", env={"AUTOFT_STORAGE_URL": URL})
    assert "9f2c41" in process.communicate()[0]


def test_nothing_given_means_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOFT_STORAGE_URL", "")
    assert take_storage_url() is None


def test_a_file_holds_the_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "url").write_text(f"{URL}\n")
    monkeypatch.setenv("AUTOFT_STORAGE_URL_FILE", str(tmp_path / "url"))
    monkeypatch.setenv("PGPASSWORD", "other")
    url = take_storage_url()
    assert url is not None
    assert url.sqlalchemy.password == "S3cr{et-9f2c41"
    assert "PGPASSWORD" not in os.environ


@pytest.mark.parametrize("content", [None, "", " \n", f"{URL}\n{URL}\n", f"oops {SECRET}", f"mysql://{SECRET}@h/d", b"\xff\xfe"])
def test_a_bad_file_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | bytes | None) -> None:
    if content is not None:
        (tmp_path / "url").write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setenv("AUTOFT_STORAGE_URL_FILE", str(tmp_path / "url"))
    with pytest.raises(StorageError, match="AUTOFT_STORAGE_URL_FILE") as caught:
        take_storage_url()
    assert "9f2c41" not in str(caught.value)


def test_both_is_an_error_and_still_scrubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOFT_STORAGE_URL", URL)
    monkeypatch.setenv("AUTOFT_STORAGE_URL_FILE", str(tmp_path / "url"))
    with pytest.raises(StorageError, match="both"):
        take_storage_url()
    assert "AUTOFT_STORAGE_URL" not in os.environ
