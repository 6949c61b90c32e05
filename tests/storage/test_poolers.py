"""PgBouncer: in session mode it is as good as Postgres, in transaction mode the lock would not stay ours, so it is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from autoft.errors import StorageError, StudyLocked
from storage import list_studies, open_study, parse_storage_url
from storage.embedded import SYSTEM_USER
from tests.conftest import skip_or_fail
from tests.postgres_fixtures import PASSWORD, ROLE, PostgresServer, free_port
from tests.storage.conftest import eventually

StartPooler = Callable[[str], str]


@pytest.fixture
def pooler(postgres_server: PostgresServer, empty_database: str) -> Iterator[StartPooler]:
    """Start PgBouncer in a mode before an empty database; the URL through it."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        skip_or_fail("needs pgbouncer (Debian: apt-get install pgbouncer)")
    folder = Path(tempfile.mkdtemp(prefix="autoft-test-", dir="/tmp"))
    folder.chmod(0o755)
    started: list[subprocess.Popen[bytes]] = []

    def start(mode: str) -> str:
        port = free_port()
        (folder / "users.txt").write_text(f'"{ROLE}" "{PASSWORD}"\n')
        (folder / "pgbouncer.ini").write_text(
            f"[databases]\n* = host=127.0.0.1 port={postgres_server.port}\n[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={port}\n"
            f"auth_type=plain\nauth_file={folder}/users.txt\npool_mode={mode}\nunix_socket_dir=\n"
        )
        as_user = ["-u", SYSTEM_USER] if os.geteuid() == 0 else []
        started.append(subprocess.Popen([str(program), "-q", *as_user, str(folder / "pgbouncer.ini")], stderr=subprocess.DEVNULL))
        url = f"postgresql://{ROLE}:{quote(PASSWORD)}@127.0.0.1:{port}/{empty_database}"
        assert eventually(lambda: _answers(url))
        return url

    yield start
    for process in started:
        process.terminate()
        process.wait(10)
    shutil.rmtree(folder)


def _answers(url: str) -> bool:
    try:
        return list_studies(parse_storage_url(url, "test")) == []
    except StorageError:
        return False


def test_a_transaction_mode_pooler_is_refused(pooler: StartPooler, postgres_server: PostgresServer) -> None:
    url = parse_storage_url(pooler("transaction"), "test")
    with pytest.raises(StorageError, match="pooler in transaction mode"):
        open_study(url, "mine", directions=["maximize"], create=True)
    assert postgres_server.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]


def test_a_session_mode_pooler_works(pooler: StartPooler, postgres_server: PostgresServer, empty_database: str) -> None:
    url = parse_storage_url(pooler("session"), "test")
    with open_study(url, "mine", directions=["maximize"], create=True) as handle:
        handle.study.tell(handle.study.ask(), 0.5)
        with pytest.raises(StudyLocked):
            open_study(parse_storage_url(postgres_server.socket_url(empty_database), "test"), "mine", directions=["maximize"], create=True)
    open_study(url, "mine", directions=["maximize"], create=False).close()
