"""A study has one owner at a time, and a coordinator that lost it cannot write."""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import psycopg2
import pytest
import sqlalchemy.exc
from optuna.trial import TrialState

from autoft.config import Direction
from autoft.errors import StorageError, StudyConflict, StudyLocked, StudyNotFound
from storage import StorageURL, StudyHandle, list_studies, load_study_readonly, open_study, parse_storage_url, storage_errors
from storage.locks import Holder
from tests.postgres_fixtures import PostgresServer
from tests.storage.conftest import Child, eventually

MAXIMIZE: list[Direction] = ["maximize"]
StartChild = Callable[..., Child]


def _open(text: str, name: str) -> StudyHandle:
    return open_study(parse_storage_url(text, "test"), name, directions=MAXIMIZE, create=True)


def _text(url: StorageURL) -> str:
    return url.sqlalchemy.render_as_string(hide_password=False)


def _backend(postgres_server: PostgresServer, database: str) -> int:
    """The server process of the one connection that holds an advisory lock in a database."""
    rows = postgres_server.execute(
        "SELECT l.pid FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
        f"WHERE locktype = 'advisory' AND d.datname = '{database}'"
    )
    ((pid,),) = rows
    assert isinstance(pid, int)
    return pid


def test_a_study_is_made_once_and_reopened(either_url: StorageURL) -> None:
    with open_study(either_url, "one", directions=MAXIMIZE, create=True) as handle:
        assert handle.created
        handle.study.set_user_attr("fingerprint", "abc")
        handle.study.tell(handle.study.ask(), 0.25)
    with open_study(either_url, "one", directions=MAXIMIZE, create=False) as handle:
        assert not handle.created
        assert handle.study.user_attrs == {"fingerprint": "abc"}
        assert handle.study.best_value == 0.25
        assert handle.storage is handle.study._storage


def test_a_waiting_running_trial_is_seen_by_the_next_owner(either_url: StorageURL) -> None:
    with open_study(either_url, "one", directions=MAXIMIZE, create=True) as handle:
        handle.study.ask().suggest_float("lr", 0, 1)
    with open_study(either_url, "one", directions=MAXIMIZE, create=False) as handle:
        (trial,) = handle.study.get_trials()
        assert trial.state == TrialState.RUNNING
        assert set(trial.params) == {"lr"}


def test_other_directions_are_a_conflict(either_url: StorageURL) -> None:
    open_study(either_url, "one", directions=MAXIMIZE, create=True).close()
    with pytest.raises(StudyConflict, match="direction maximize, not minimize"):
        open_study(either_url, "one", directions=["minimize"], create=True)
    open_study(either_url, "one", directions=MAXIMIZE, create=False).close()  # the refusal kept no lock


def test_a_missing_study_is_named_with_its_neighbours(either_url: StorageURL) -> None:
    open_study(either_url, "digits-tiny", directions=MAXIMIZE, create=True).close()
    for look in (lambda name: open_study(either_url, name, directions=MAXIMIZE, create=False), lambda name: load_study_readonly(either_url, name)):
        with pytest.raises(StudyNotFound, match=r"no study 'digits-tinny'.*did you mean digits-tiny\?"):
            look("digits-tinny")
        with pytest.raises(StudyNotFound, match="there are 1: digits-tiny"):
            look("zzz")


def test_the_second_process_is_told_who_runs_the_study(either_url: StorageURL, child: StartChild) -> None:
    holder = child(_open, _text(either_url), "mine")
    assert holder.result() == "ok"
    began = time.monotonic()
    with pytest.raises(StudyLocked, match=rf"study 'mine' is run by process {holder.pid} on host .* since 20\d\d-") as caught:
        open_study(either_url, "mine", directions=MAXIMIZE, create=True)
    assert time.monotonic() - began < 2, "a lock that is held is reported at once"
    assert "\n" not in str(caught.value)
    open_study(either_url, "another", directions=MAXIMIZE, create=True).close()
    holder.finish()
    open_study(either_url, "mine", directions=MAXIMIZE, create=True).close()


def test_the_same_process_cannot_own_a_study_twice(either_url: StorageURL) -> None:
    with open_study(either_url, "mine", directions=MAXIMIZE, create=True) as handle:
        with pytest.raises(StudyLocked, match=rf"process {os.getpid()} on host"):
            open_study(either_url, "mine", directions=MAXIMIZE, create=True)
        handle.study.tell(handle.study.ask(), 1.0)  # the owner is unharmed
    handle.close()  # closing twice is nothing


def test_killing_the_holder_frees_the_study(either_url: StorageURL, child: StartChild) -> None:
    holder = child(_open, _text(either_url), "mine")
    assert holder.result() == "ok"
    holder.kill()
    open_study(either_url, "mine", directions=MAXIMIZE, create=True).close()


def test_a_holder_that_is_gone_is_known() -> None:
    here = socket.gethostname()[:40]
    zombie = subprocess.Popen(["true"])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)

    def gone(host: str | None, pid: int | None) -> bool:
        return Holder(host, pid, None, "", None).is_gone()

    assert gone(here, zombie.pid)
    zombie.wait()
    assert gone(here, zombie.pid)
    assert not gone(here, os.getpid())
    assert not gone(here, 1)
    assert not gone("elsewhere", zombie.pid)
    assert not gone(None, None)


def test_the_lock_of_a_dead_process_is_waited_for(either_url: StorageURL, child: StartChild) -> None:
    """A killed coordinator's last children may keep its descriptors open for a moment."""
    holder = child(_open_with_a_child_that_lingers, _text(either_url))
    assert holder.result() == "ok"
    holder.kill()
    began = time.monotonic()
    open_study(either_url, "mine", directions=MAXIMIZE, create=True).close()
    assert time.monotonic() - began > 0.5


def _open_with_a_child_that_lingers(text: str) -> StudyHandle:
    handle = _open(text, "mine")
    if os.fork() == 0:
        time.sleep(2)
        os._exit(0)
    return handle


def test_eight_processes_start_at_once_on_an_empty_database(empty_database_url: str, tmp_path: Path, child: StartChild) -> None:
    for text in (empty_database_url, f"sqlite:///{tmp_path}/empty.db"):
        barrier = multiprocessing.get_context("fork").Barrier(8)

        def start(number: int, text: str = text, barrier: object = barrier) -> StudyHandle:
            barrier.wait(20)  # type: ignore[attr-defined]
            return _open(text, f"study-{number}")

        children = [child(start, number) for number in range(8)]
        assert [one.result(60) for one in children] == ["ok"] * 8
        assert len(list_studies(parse_storage_url(text, "test"))) == 8
        for one in children:
            one.finish()


def test_of_eight_processes_one_gets_the_study(either_url: StorageURL, child: StartChild) -> None:
    barrier = multiprocessing.get_context("fork").Barrier(8)

    def start(text: str) -> StudyHandle:
        barrier.wait(20)
        return _open(text, "wanted")

    answers = sorted(one.result(60) for one in [child(start, _text(either_url)) for _ in range(8)])
    assert answers[-1] == "ok"
    assert all(answer.startswith("StudyLocked: study 'wanted' is run by") for answer in answers[:-1])


def test_studies_of_one_name_in_two_schemas_do_not_meet(empty_database_url: str) -> None:
    first = parse_storage_url(f"{empty_database_url}&options=-csearch_path%3Dfirst", "test")
    second = parse_storage_url(f"{empty_database_url}&options=-csearch_path%3Dsecond", "test")
    with (
        open_study(first, "same", directions=MAXIMIZE, create=True) as one,
        open_study(second, "same", directions=MAXIMIZE, create=True) as two,
    ):
        assert one.created
        assert two.created
    assert [study.name for study in list_studies(first)] == ["same"]
    assert list_studies(parse_storage_url(empty_database_url, "test")) == []  # nothing in the default schema


def test_the_owner_survives_a_broken_connection(url: StorageURL, database: str, postgres_server: PostgresServer) -> None:
    with open_study(url, "mine", directions=MAXIMIZE, create=True) as handle:
        trial = handle.study.ask()
        before = _backend(postgres_server, database)
        postgres_server.execute(f"SELECT pg_terminate_backend({before})")
        handle.study.tell(trial, 0.5)
        assert _backend(postgres_server, database) != before  # a new connection, and it holds the lock
    assert list_studies(url)[0].locked_by is None


def test_the_owner_takes_over_from_its_own_lost_session(
    url: StorageURL, database: str, postgres_server: PostgresServer
) -> None:
    """The network is cut: the server still believes in the old session when the client comes back."""
    with open_study(url, "mine", directions=MAXIMIZE, create=True) as handle:
        before = _backend(postgres_server, database)
        lost = handle._lock._connection  # type: ignore[union-attr]
        replacement = os.open("/dev/null", os.O_RDWR)
        kept_open = os.dup(lost.fileno())  # so that the server sees no end of the stream
        os.dup2(replacement, lost.fileno())
        handle.study.tell(handle.study.ask(), 0.5)
        assert _backend(postgres_server, database) != before
        os.close(kept_open)
        os.close(replacement)


def test_a_replaced_owner_cannot_write(url: StorageURL, database: str, postgres_server: PostgresServer, child: StartChild) -> None:
    handle = open_study(url, "mine", directions=MAXIMIZE, create=True)
    trial = handle.study.ask()
    handle.lifeline.stop()
    postgres_server.execute("UPDATE study_system_attributes SET value_json = '1.0' WHERE key = 'autoft:beat'", database)  # silent for years
    waiting = child(_open_when_free, _text(url))
    eventually(lambda: bool(postgres_server.execute(f"SELECT pg_terminate_backend({_backend(postgres_server, database)})")))
    assert waiting.result() == "ok"
    for _ in range(2):
        with pytest.raises(StudyLocked, match=rf"process {waiting.pid} on host"), storage_errors(url):
            handle.study.tell(trial, 0.5)
    waiting.finish()
    with pytest.raises(StudyLocked, match=rf"process {waiting.pid} on host"), storage_errors(url):
        handle.study.tell(trial, 0.5)  # free again, but another process owned it in between
    assert load_study_readonly(url, "mine").trials[0].state == TrialState.RUNNING
    handle.close()


def test_an_owner_that_lives_keeps_the_study_though_its_session_was_lost(url: StorageURL, database: str, postgres_server: PostgresServer, child: StartChild) -> None:
    """Its lock is free until it writes again, which in a long fine-tune may take hours."""
    with open_study(url, "mine", directions=MAXIMIZE, create=True) as handle:
        assert postgres_server.execute(f"SELECT pg_terminate_backend({_backend(postgres_server, database)})")
        other = child(_open, _text(url), "mine")
        assert other.result().startswith(f"StudyLocked: study 'mine' is run by process {os.getpid()} on host")
        assert handle.study.ask().number == 0
    assert child(_open, _text(url), "mine").result() == "ok", "it has left"


def _open_when_free(text: str) -> StudyHandle:
    while True:
        try:
            return _open(text, "mine")
        except StudyLocked:
            time.sleep(0.005)


def test_a_study_deleted_under_its_owner_is_reported(url: StorageURL, database: str, postgres_server: PostgresServer) -> None:
    handle = open_study(url, "mine", directions=MAXIMIZE, create=True)
    backend = _backend(postgres_server, database)
    optuna.delete_study(study_name="mine", storage=_text(url))
    postgres_server.execute(f"SELECT pg_terminate_backend({backend})")
    with pytest.raises(StudyNotFound, match="was deleted"), storage_errors(url):
        handle.study.ask()
    handle.close()


def test_an_outage_is_a_storage_error_and_ends(
    url: StorageURL, postgres_server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    with open_study(url, "mine", directions=MAXIMIZE, create=True) as handle:
        trial = handle.study.ask()
        postgres_server.stop("immediate")
        with pytest.raises(StorageError, match=r"connection to server .* failed"), storage_errors(url):
            handle.study.tell(trial, 0.5)
        postgres_server.start()
        handle.study.tell(trial, 0.5)
    assert load_study_readonly(url, "mine").best_value == 0.5
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_the_writer_holds_one_connection_whatever_optuna_does(url: StorageURL, database: str, postgres_server: PostgresServer) -> None:
    def work() -> None:
        for number in range(4):
            trial = handle.study.ask()
            trial.suggest_float("lr", 1e-5, 1e-1, log=True)
            trial.report(0.1, 1)
            trial.should_prune()
            handle.study.tell(trial, float(number))
            assert len(handle.study.get_trials()) > number

    with open_study(url, "mine", directions=MAXIMIZE, create=True) as handle:
        handle.study.sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=2)
        handle.study.pruner = optuna.pruners.HyperbandPruner(max_resource=4)
        handle.study.enqueue_trial({"lr": 1e-3})
        with ThreadPoolExecutor(3) as threads:
            for done in [threads.submit(work) for _ in range(3)]:
                done.result()
        assert handle.study.best_value == 3.0
        rows = postgres_server.execute(f"SELECT application_name FROM pg_stat_activity WHERE datname = '{database}'")
        assert len(rows) == 2, "one writes, one beats"
        assert all(str(row[0]).startswith("autoft:") and str(row[0]).endswith(f":{os.getpid()}") for row in rows)


def test_keep_alives_are_set_on_both_ends(password_database_url: str, database: str, postgres_server: PostgresServer) -> None:
    with open_study(parse_storage_url(password_database_url, "test"), "mine", directions=MAXIMIZE, create=True) as handle:
        connection = handle._lock._connection  # type: ignore[union-attr]
        with connection.cursor() as cursor:
            for setting, value in {"tcp_keepalives_idle": "10", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "3"}.items():
                cursor.execute(f"SHOW {setting}")
                assert cursor.fetchone() == (value,)
        assert connection.get_dsn_parameters()["keepalives_idle"] == "10"


def test_a_password_with_a_brace_works_and_is_kept_nowhere(password_database_url: str, database: str, postgres_server: PostgresServer) -> None:
    url = parse_storage_url(password_database_url, "test")
    with open_study(url, "braces", directions=MAXIMIZE, create=True) as handle:
        handle.study.tell(handle.study.ask(), 0.5)
        for thing in (handle, handle.study, handle._database.url, handle._database.engine.url, url):
            assert "9f2c41" not in repr(thing) + str(thing)
        dump = postgres_server.execute(
            "SELECT string_agg(t::text, ' ') FROM (SELECT value_json AS t FROM study_system_attributes) AS rows", database=database
        )
        assert "9f2c41" not in str(dump)
        assert "9f2c41" not in Path("/proc/self/cmdline").read_text()
    assert load_study_readonly(url, "braces").best_value == 0.5
    assert [study.name for study in list_studies(url)] == ["braces"]


def test_a_reader_cannot_write_and_takes_no_lock(either_url: StorageURL) -> None:
    with open_study(either_url, "mine", directions=MAXIMIZE, create=True) as handle:
        study = load_study_readonly(either_url, "mine")
        with pytest.raises(StorageError, match=r"read-?only"), storage_errors(either_url):
            study.set_user_attr("key", "value")
        handle.study.tell(handle.study.ask(), 0.5)
        assert study.best_value == 0.5


def test_a_journal_left_by_a_killed_sqlite_writer_does_not_stop_readers(tmp_path: Path, child: StartChild) -> None:
    url = parse_storage_url(f"sqlite:///{tmp_path}/studies.db", "test")
    open_study(url, "mine", directions=MAXIMIZE, create=True).close()
    writer = child(_leave_a_transaction_open, url.path)
    assert writer.result() == "ok"
    writer.kill()
    assert url.path.with_name("studies.db-journal").exists()
    assert [study.name for study in list_studies(url)] == ["mine"]


def _leave_a_transaction_open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA cache_size = 1")  # so that pages are written before the commit
    connection.execute("BEGIN")
    connection.execute("CREATE TABLE junk (text)")
    connection.executemany("INSERT INTO junk VALUES (?)", [("x" * 1000,) for _ in range(200)])
    connection.execute("DELETE FROM studies")
    return connection


@pytest.mark.parametrize("error", [psycopg2.OperationalError("x"), sqlalchemy.exc.TimeoutError("x"), optuna.exceptions.StorageInternalError("x")])
def test_foreign_errors_become_ours(error: Exception) -> None:
    with pytest.raises(StorageError, match="database: x"), storage_errors():
        raise error


def test_errors_of_ours_and_bugs_pass_unchanged() -> None:
    for error in (StudyLocked("held"), KeyError("bug"), ValueError("bug")):
        with pytest.raises(type(error)) as caught, storage_errors():
            raise error
        assert caught.value is error
