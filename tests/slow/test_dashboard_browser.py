"""The stock optuna-dashboard in a real browser, while a study's trials run."""

import json
import re
import signal
import time
from pathlib import Path

import pytest

from tests.browser_fixtures import Browser
from tests.slow.conftest import Home
from tests.studies import write_study

pytestmark = [pytest.mark.browser]


def test_parameters_and_intermediate_values_show_while_trials_run(home: Home, tiny_vit: Path, browser: Browser, tmp_path: Path) -> None:
    changes = {"search__n_trials": 100_000, "search__pruner": "median", "trial__steps": 40, "trial__reports": 4}
    study = write_study(tmp_path, tiny_vit, study="live", **changes)
    run = home.start("launch", study, "--runs", home.runs, "--executor", "in-process", "--threads-per-worker", "1")
    server = home.start("dashboard", "--port", "0")
    try:
        assert server.stderr is not None
        url = re.search(r"http://[^ ]+", server.stderr.readline())
        assert url is not None
        _wait_for_trials(home, 8)
        browser.open(f"{url.group().rstrip('/')}/dashboard/studies/1")
        text = _page_text(browser, "Intermediate values", "Hyperparameter")
        assert "live" in text
        before = json.loads(home.autoft("status", "live", "--json").stdout)
        assert before["state"] == "running", before
        browser.driver.get(f"{url.group().rstrip('/')}/dashboard/studies/1/trials?numbers=0")
        text = _page_text(browser, "loss_weight/hinge", "Intermediate")
        assert "weight_decay" in text
        assert not [line for line in browser.console() if line.startswith("SEVERE")]
        assert run.poll() is None, "the study is still running"
    finally:
        for process in (run, server):
            process.send_signal(signal.SIGTERM)
        for process in (run, server):
            process.communicate(timeout=60)


def _wait_for_trials(home: Home, wanted: int) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        shown = json.loads(home.autoft("list", "--json").stdout)
        if shown and shown[0]["n_complete"] + shown[0]["n_pruned"] >= wanted:
            return
        time.sleep(1)
    pytest.fail(f"no {wanted} trials within 90 s")


def _page_text(browser: Browser, *words: str) -> str:
    """The page's text once all `words` are in it."""
    deadline = time.monotonic() + 40
    text = ""
    while time.monotonic() < deadline:
        text = browser.js("document.body.innerText")
        if all(word in text for word in words):
            return text
        time.sleep(0.5)
    pytest.fail(f"the dashboard does not show {words}; it shows {text[:1500]!r}")
