"""A server that is frozen, rather than gone, becomes an outage."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from autoft.config import Direction
from autoft.errors import StorageUnavailable
from storage import locks as locks_module
from storage import open_study, parse_storage_url
from storage import watchdog as watchdog_module
from tests.postgres_fixtures import PostgresServer

MAXIMIZE: list[Direction] = ["maximize"]


def test_a_call_to_a_frozen_server_ends(
    password_database_url: str, database: str, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog_module, "HANG_SECONDS", 1.0)
    monkeypatch.setattr(watchdog_module, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(locks_module, "_SETTLE_SECONDS", 1.0)  # its frozen session cannot be ended
    with open_study(parse_storage_url(password_database_url, "test"), "mine", directions=MAXIMIZE, create=True) as handle:
        pid = handle._lock._backend  # type: ignore[union-attr]
        assert pid is not None and Path(f"/proc/{pid}").exists()
        trial = handle.study.ask()
        os.kill(pid, signal.SIGSTOP)
        thaw = threading.Timer(20.0, os.kill, (pid, signal.SIGCONT))  # should the test fail
        thaw.start()
        began = time.monotonic()
        try:
            with pytest.raises(StorageUnavailable):
                trial.report(0.5, 1)
            assert time.monotonic() - began < 10
        finally:
            thaw.cancel()
            os.kill(pid, signal.SIGCONT)
        trial.report(0.5, 1)
        handle.study.tell(trial, 0.5)
        assert handle.study.trials[0].intermediate_values == {1: 0.5}
