"""`autoft dashboard` as a process: where its token is shown, and where not."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoft.cli.main import main
from storage import open_study, parse_storage_url
from storage.dashboard import take_token
from storage.dashboard.passwords import read_password_file
from tests.storage.conftest import ROOT
from tests.storage.dashboard_visits import TOKEN


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    text = f"sqlite:///{tmp_path}/studies.db"
    open_study(parse_storage_url(text, "test"), "kept", directions=["maximize"], create=True).close()
    return {**os.environ, "PYTHONPATH": str(ROOT), "AUTOFT_STORAGE_URL": text}


def _start(environment: dict[str, str], *arguments: str, **keywords: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "autoft.cli.main", "dashboard", "--port", "0", *arguments]
    return subprocess.Popen(command, env=environment, stdin=keywords.pop("stdin", subprocess.DEVNULL), stdout=subprocess.PIPE, **keywords)


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    ends = pty.openpty()
    yield ends
    for end in ends:
        os.close(end)


def _read_line(end: int, words: str) -> str:
    text, deadline = "", time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([end], [], [], 1)[0]:
            text += os.read(end, 4096).decode()
        if found := next((line for line in text.splitlines() if words in line), None):
            return found
    pytest.fail(f"no {words!r} in {text!r}")


def test_a_token_is_shown_in_the_terminal_and_works(environment: dict[str, str], terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    process = _start(environment, "--host", "0.0.0.0", stderr=theirs)
    try:
        line = _read_line(ours, "Ctrl-C to stop")
        found = re.search(r"http://[^/ ]+:(\d+)/\?token=([\w-]{43}) \(read-only, sign-in needed", line)
        assert found, line
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with opener.open(f"http://127.0.0.1:{found.group(1)}/?token={found.group(2)}", timeout=30):
            pass
        with opener.open(f"http://127.0.0.1:{found.group(1)}/api/studies", timeout=30) as answer:
            assert b'"kept"' in answer.read()
        for name in ("cmdline", "environ"):
            assert found.group(2) not in Path(f"/proc/{process.pid}/{name}").read_text()
    finally:
        process.kill()
        process.communicate()


def test_where_there_is_only_a_log_no_token_is_made(environment: dict[str, str]) -> None:
    process = _start(environment, "--host", "0.0.0.0", stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert b"AUTOFT_DASHBOARD_TOKEN_FILE" in errors and b"token=" not in errors


def test_a_given_token_leaves_the_environment(environment: dict[str, str]) -> None:
    process = _start({**environment, "AUTOFT_DASHBOARD_TOKEN": TOKEN}, "--host", "0.0.0.0", "--access-log", stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        line = process.stderr.readline().decode()
        found = re.search(r"http://[^/ ]+:(\d+) \(", line)
        assert found, line
        assert TOKEN not in Path(f"/proc/{process.pid}/environ").read_text()
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with opener.open(f"http://127.0.0.1:{found.group(1)}/?token={TOKEN}", timeout=30) as answer:
            assert answer.status == 200
    finally:
        process.kill()
        _, errors = process.communicate()
    assert TOKEN.encode() not in errors and b"GET / 303" in errors


def test_a_password_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ((), ("--password-file", str(tmp_path / "passwords"))):
        monkeypatch.setattr(sys, "stdin", io.StringIO("correct horse\n"))
        assert main(["dashboard", "--make-password", "ann", *arguments]) == 0
        said = capsys.readouterr()
        assert "horse" not in said.out + said.err
        if not arguments:
            assert said.out.startswith("ann:$scrypt$ln=15,r=8,p=1$")
    assert list(read_password_file(tmp_path / "passwords")) == ["ann"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("short\n"))
    assert main(["dashboard", "--make-password", "ann"]) == 2
    assert "at least 8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--trust-proxy-header", "X-Forwarded-User"), "needs --proxy"),
        (("--proxy", "everybody"), "--proxy: 'everybody'"),
        (("--password-file", "/nowhere/passwords"), "cannot read"),
        (("--artifacts", "/nowhere"), "is not a folder"),
        (("--allowed-host", "http://x"), "--allowed-host"),
        (("--make-password", "a:b"), "1 to 64 of"),
    ],
)
def test_a_wrong_flag_is_one_line(
    arguments: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("correct horse\n"))
    assert main(["dashboard", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_both_ways_to_give_a_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("AUTOFT_DASHBOARD_TOKEN", TOKEN)
    monkeypatch.setenv("AUTOFT_DASHBOARD_TOKEN_FILE", str(tmp_path / "token"))
    assert main(["dashboard"]) == 2
    assert "both" in capsys.readouterr().err
    assert main(["dashboard"]) == 2  # the variable is gone, the file is not there
    assert "AUTOFT_DASHBOARD_TOKEN_FILE: cannot read" in capsys.readouterr().err
    (tmp_path / "token").write_text(TOKEN + "\n")
    assert take_token() == TOKEN
