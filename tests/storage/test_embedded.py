"""The embedded Postgres: shared by processes that start, finish and die in any order."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from autoft.errors import StorageError
from storage import embedded, embedded_url, leave_embedded, list_studies, open_study
from storage.locks import exclusive
from tests.postgres_fixtures import fast_folder
from tests.storage.conftest import eventually, python

# Joins, says so, works when told to, and ends when its input does.
USER = """
import sys
from pathlib import Path
import optuna
from storage import embedded_url, open_study
optuna.logging.set_verbosity(optuna.logging.WARNING)
url = embedded_url(Path(sys.argv[1]))
print("joined", flush=True)
for line in sys.stdin:
    with open_study(url, line.strip(), directions=["maximize"], create=True) as handle:
        handle.study.tell(handle.study.ask(), 0.5)
    print("told", flush=True)
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A data folder; whatever server a test leaves behind is ended."""
    with fast_folder() as folder:
        yield folder
        for used in [one for one in embedded._users if one.is_relative_to(folder)]:
            leave_embedded(used)
        if server := _server(folder):  # of processes that were killed
            server.kill()
            server.wait(10)


def _server(home: Path) -> psutil.Process | None:
    try:
        return psutil.Process(int((home / "postgres" / "postmaster.pid").read_text().split()[0]))
    except (FileNotFoundError, psutil.NoSuchProcess):
        return None


def _said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _work(process: subprocess.Popen[str], study: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{study}\n")
    process.stdin.flush()
    assert _said(process) == "told"


def _finish(process: subprocess.Popen[str]) -> None:
    said, _ = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, "")


def test_several_at_once_on_a_fresh_folder_and_the_last_one_stops_it(home: Path) -> None:
    users = [python(USER, str(home)) for _ in range(4)]
    assert [_said(user) for user in users] == ["joined"] * 4
    server = _server(home)
    assert server is not None
    _work(users[0], "first")
    for number in range(3):
        _finish(users[number])
        assert server.is_running()
        _work(users[number + 1], f"study-{number}")
    _finish(users[3])
    assert _server(home) is None
    assert eventually(lambda: not server.is_running())


def test_killed_users_leave_it_usable_and_stoppable(home: Path) -> None:
    first, second = python(USER, str(home)), python(USER, str(home))
    assert (_said(first), _said(second)) == ("joined", "joined")
    _work(second, "kept")
    for user in (first, second):
        user.kill()
        user.communicate()
    server = _server(home)
    assert server is not None
    assert [study.name for study in list_studies(embedded_url(home))] == ["kept"]  # the next one joins the same server
    assert _server(home) == server
    leave_embedded(home)
    assert _server(home) is None


def test_a_killed_server_is_started_again(home: Path) -> None:
    with open_study(embedded_url(home), "kept", directions=["maximize"], create=True) as handle:
        handle.study.tell(handle.study.ask(), 0.5)
    server = _server(home)
    assert server is not None
    server.kill()
    server.wait(10)
    assert (home / "postgres" / "postmaster.pid").exists()
    assert list_studies(embedded_url(home))[0].best_value == 0.5


def test_a_leftover_pid_file_that_names_a_living_process_does_no_harm(home: Path) -> None:
    """As after a reboot, when the server's old process id belongs to somebody else."""
    embedded_url(home)
    leave_embedded(home)
    fake = home / "postgres" / "postmaster.pid"
    other = subprocess.Popen(["sleep", "60"])
    fake.write_text(f"{other.pid}\n{home / 'postgres'}\n1\n5432\n{home / 'postgres'}\n\n1 1\nready\n")
    assert list_studies(embedded_url(home)) == []
    other.kill()
    other.wait()


def test_an_interrupted_first_start_is_begun_anew(home: Path) -> None:
    process = python(USER, str(home))
    assert eventually(lambda: bool(list(home.glob("new-*/global"))), 60)
    process.kill()  # initdb itself goes on, and must not be in the way of the next one
    process.communicate()
    assert not (home / "postgres").exists()
    assert list_studies(embedded_url(home)) == []
    assert list(home.glob("new-*")) == []


def test_ctrl_c_in_the_terminal_does_not_reach_it(home: Path) -> None:
    launcher = python(USER, str(home), start_new_session=True)
    assert _said(launcher) == "joined"
    server = _server(home)
    assert server is not None
    family = [server, *server.children()]
    assert launcher.pid not in {os.getsid(one.pid) for one in family} | {os.getpgid(one.pid) for one in family}
    url = embedded_url(home)  # a second user, who must not notice
    os.killpg(launcher.pid, signal.SIGINT)
    launcher.communicate()
    assert server.is_running()
    assert list_studies(url) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts it as another user")
def test_a_private_folder_above_it_is_opened_for_passing_only(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    home.chmod(0o700)
    assert list_studies(embedded_url(home / "data")) == []
    assert stat.S_IMODE(home.stat().st_mode) == 0o701
    assert "letting other users pass through" in caplog.text


def test_it_is_private(home: Path) -> None:
    url = embedded_url(home)
    server = _server(home)
    assert server is not None
    sockets = Path(str(url.sqlalchemy.query["host"]))
    assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    assert stat.S_IMODE(next(sockets.glob(".s.PGSQL.*[0-9]")).stat().st_mode) == 0o700
    assert not [one for one in server.net_connections() if one.family != 1]  # AF_UNIX only
    assert server.uids().effective != 0
    assert url.sqlalchemy.password is None
    assert "autoft" in url.safe


def test_nothing_of_our_environment_reaches_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "9f2c41")
    embedded_url(home)
    server = _server(home)
    assert server is not None
    assert "9f2c41" not in str(server.environ()) + str(server.cmdline())


def test_a_long_or_odd_path_gets_a_private_socket_folder(home: Path) -> None:
    odd = home / ("a, folder: it's odd " + "x" * 60)
    url = embedded_url(odd)
    sockets = Path(str(url.sqlalchemy.query["host"]))
    try:
        assert sockets != odd / "postgres"
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
        assert list_studies(url) == []
    finally:
        leave_embedded(odd)
        sockets.rmdir()


def test_autoft_home_names_the_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOFT_HOME", str(home / "mine"))
    embedded_url()
    assert (home / "mine" / "postgres" / "PG_VERSION").exists()


def test_a_server_on_another_host_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home folder shared over the network: server.lock is held, but nobody answers here."""
    embedded_url(home)
    leave_embedded(home)
    (home / "host").write_text("node-17")
    monkeypatch.setattr(embedded, "_START_SECONDS", 1)
    with exclusive(home / "server.lock"), pytest.raises(StorageError, match="running on host node-17"):
        embedded_url(home)


def test_a_folder_that_cannot_be_used_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    began = time.monotonic()
    with pytest.raises(StorageError, match="AUTOFT_STORAGE_URL") as caught:
        embedded_url(tmp_path / "file" / "home")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 5
