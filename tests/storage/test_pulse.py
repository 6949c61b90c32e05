"""Signs of life, wishes, outages and successors, seen by the owner's pulse; and an owner that went silent is waited for, then deposed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import optuna
import pytest

from autoft.config import Direction
from autoft.errors import StorageUnavailable, StudyLocked, StudyNotFound
from autoft.lifeline import Wish
from storage import StorageURL, ask, list_studies, open_study, parse_storage_url
from storage import locks as locks_module
from storage import pulse as pulse_module
from tests.postgres_fixtures import PostgresServer
from tests.storage.conftest import Child, eventually

MAXIMIZE: list[Direction] = ["maximize"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse_module, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(pulse_module, "BEAT_SECONDS", 0.2)


def summary(url: StorageURL, name: str = "mine"):  # type: ignore[no-untyped-def]
    return next(found for found in list_studies(url) if found.name == name)


def test_an_owner_beats_and_a_gone_one_is_remembered(either_url: StorageURL) -> None:
    with open_study(either_url, "mine", directions=MAXIMIZE, create=True):
        first = summary(either_url).last_sign_of_life
        assert abs(first.timestamp() - time.time()) < 60, "the database's clock, which is ours here"
        assert eventually(lambda: summary(either_url).last_sign_of_life > first)
    last = summary(either_url).last_sign_of_life
    time.sleep(0.5)
    assert summary(either_url).last_sign_of_life == last
    assert summary(either_url).locked_by is None


def test_wishes_reach_the_owner_and_only_a_pause_outlives_it(either_url: StorageURL) -> None:
    with open_study(either_url, "mine", directions=MAXIMIZE, create=True) as handle:
        assert handle.lifeline.wish() == Wish.RUN
        for wish in (Wish.PAUSE, Wish.RUN, Wish.STOP, Wish.CANCEL):
            ask(either_url, "mine", wish)
            assert eventually(lambda wish=wish: handle.lifeline.wish() == wish), wish
        asked = summary(either_url).asked
        assert asked is not None and asked.wish == Wish.CANCEL and "@" in asked.by
    with open_study(either_url, "mine", directions=MAXIMIZE, create=False) as handle:
        assert handle.lifeline.wish() == Wish.RUN, "whoever launches it wants it to run"
        ask(either_url, "mine", Wish.PAUSE)
    with open_study(either_url, "mine", directions=MAXIMIZE, create=False) as handle:
        assert handle.lifeline.wish() == Wish.PAUSE
    with pytest.raises(StudyNotFound, match="mine"):
        ask(either_url, "mien", Wish.PAUSE)


def test_an_outage_is_noticed_and_its_end_too(password_database_url: str, postgres_server: PostgresServer) -> None:
    url = parse_storage_url(password_database_url, "test")
    with open_study(url, "mine", directions=MAXIMIZE, create=True) as handle:
        trial = handle.study.ask()
        postgres_server.stop("immediate")
        try:
            assert eventually(lambda: not handle.lifeline.reachable())
            for _ in range(3):
                with pytest.raises(StorageUnavailable):
                    trial.report(0.5, 1)
        finally:
            postgres_server.start()
        assert eventually(handle.lifeline.reachable)
        trial.report(0.5, 1)
        handle.study.tell(trial, 0.5)
        assert [(t.state.name, t.intermediate_values) for t in handle.study.trials] == [("COMPLETE", {1: 0.5})]
        handle.lifeline.check_owner()


def test_a_deleted_study_has_no_owner(either_url: StorageURL) -> None:
    with open_study(either_url, "mine", directions=MAXIMIZE, create=True) as handle:
        handle.study._storage.delete_study(handle.study._study_id)

        def deposed() -> bool:
            try:
                handle.lifeline.check_owner()
            except StudyLocked as error:
                return "deleted" in str(error)
            return False

        assert eventually(deposed)


def _own(text: str) -> None:
    """In a child: own the study with a trial, and once it was deposed try to write; raises what that raises."""
    handle = open_study(parse_storage_url(text, "test"), "mine", directions=MAXIMIZE, create=True)
    trial = handle.study.ask()
    while not _deposed(handle):
        time.sleep(0.05)
    handle.study.tell(trial, 1.0)


def _owner(child: Callable[..., Child], url: StorageURL) -> Child:
    owner = child(_own, url.sqlalchemy.render_as_string(hide_password=False))
    assert eventually(lambda: any(found.n_running == 1 for found in list_studies(url)))
    return owner


def _deposed(handle) -> bool:  # type: ignore[no-untyped-def]
    try:
        handle.lifeline.check_owner()
    except StudyLocked:
        return True
    return False


def test_a_silent_owner_is_waited_for_then_deposed_and_never_writes_again(
    url: StorageURL, monkeypatch: pytest.MonkeyPatch, child: Callable[..., Child], caplog: pytest.LogCaptureFixture
) -> None:
    """A coordinator that hangs (a suspended machine, a partition the server has not noticed) keeps its session and its lock."""
    owner = _owner(child, url)
    with pytest.raises(StudyLocked, match=f"process {owner.pid} "):
        open_study(url, "mine", directions=MAXIMIZE, create=False)  # it lives: refused at once
    monkeypatch.setattr(locks_module, "STALE_SECONDS", 1.0)
    monkeypatch.setattr(locks_module, "TAKEOVER_SECONDS", 2.5)
    os.kill(owner.pid, signal.SIGSTOP)
    monkeypatch.setattr(locks_module.Holder, "is_gone", lambda self: False)  # as seen from another machine
    time.sleep(1.5)
    with open_study(url, "mine", directions=MAXIMIZE, create=False) as handle:
        assert "silent for" in caplog.text
        os.kill(owner.pid, signal.SIGCONT)
        assert owner.result().startswith("StudyLocked: study 'mine'")
        assert [trial.state for trial in handle.study.get_trials()] == [optuna.trial.TrialState.RUNNING]


def test_a_silent_owner_that_speaks_again_keeps_the_study(
    url: StorageURL, monkeypatch: pytest.MonkeyPatch, child: Callable[..., Child]
) -> None:
    monkeypatch.setattr(locks_module, "STALE_SECONDS", 1.0)
    monkeypatch.setattr(locks_module, "TAKEOVER_SECONDS", 30.0)
    owner = _owner(child, url)
    os.kill(owner.pid, signal.SIGSTOP)
    time.sleep(1.5)
    seen: list[object] = []

    def wake(*_: object) -> None:
        seen.append(1)
        os.kill(owner.pid, signal.SIGCONT)

    monkeypatch.setattr(locks_module.logger, "warning", wake)
    with pytest.raises(StudyLocked, match=f"process {owner.pid} "):
        open_study(url, "mine", directions=MAXIMIZE, create=False)
    assert seen, "it waited"
