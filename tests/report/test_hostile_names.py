"""Names that are programs, in a real browser: nothing of them runs, loads or leaves the page, in the report and in a comparison."""

from pathlib import Path
from typing import Any

import pytest

from autoft.comparison.page import write_comparison
from autoft.comparison.records import Comparison
from autoft.report import write_report
from tests.browser_fixtures import Browser

from .factory import confirmed, evaluation, make_summary, make_trials, write_run

pytestmark = pytest.mark.browser

# Each says so in the page's title, or asks for an address, if it runs.
HOSTILE = (
    "<script>document.title = 'ran'</script>",
    "\"><img src=x onerror=\"document.title = 'ran'\">",
    "'><svg onload=\"document.title = 'ran'\">",
    "javascript:document.title='ran'",
    "</title></style></svg><script>document.title = 'ran'</script>",
    "]]><script>document.title = 'ran'</script><!--",
    "<iframe srcdoc=\"<script>parent.document.title = 'ran'</script>\">",
    "<style>@import 'http://192.0.2.1/x.css'; body { background: url(http://192.0.2.1/x.png) }</style>",
    "\" onmouseover=\"document.title = 'ran'\" style=\"position: fixed; inset: 0\" x=\"",
    "<base href=http://192.0.2.1/><form action=http://192.0.2.1/><meta http-equiv=refresh content='0;url=http://192.0.2.1/'>",
    "{{ 7 * 7 }}{% for x in range(9) %}x{% endfor %}",
    "\u202e<b>turned</b>\u2066",
)


def hostile_summary(text: str, trials: list[dict[str, Any]]) -> dict[str, Any]:
    """A summary with the text wherever a user's words may be."""
    summary = confirmed(make_summary(study=text), trials)
    lost = {text: {"n": 1, "images": [{"image": text, "reason": text}]}}
    summary |= {"notes": [text], "fingerprint": text, "versions": {text: text}}
    summary["description"] = {"model": text, "data": {text: 3}, "n_classes": 7, "skipped": lost}
    summary["evaluations"] += [evaluation(text, "photo", "test_id", 0.9, 167), evaluation("final", text, "test_ood", 0.5, 167)]
    summary["search"] |= {"sampler": text, "pruner": text}
    summary["search"]["enqueued"][1]["name"] = text
    summary["search"]["transfer"] = [{"study": text, "n_trials": 2}]
    summary["leakage"] = leakage(text)
    return summary


def leakage(text: str) -> dict[str, Any]:
    """A pair of sets of that name, with copies."""
    duplicate = {"first": 0, "second": 1, "first_hash": text, "second_hash": text, "distance": 0}
    pair = {
        "first": "val_ood", "second": text, "first_field": "data.val_ood", "second_field": text, "first_size": 9, "second_size": 9, "first_exact": 1,
        "second_exact": 1, "first_near": 1, "second_near": 1, "first_ignored": 0, "second_ignored": 0, "allowed": True, "exact": [duplicate], "near": [duplicate],
    }  # fmt: skip
    return {"pairs": [pair], "near_duplicates": 2, "perceptual_hash": text}


def hostile_comparison(text: str) -> Comparison:
    """A comparison with the text wherever a user's words may be."""
    rows = [
        {"dataset": name, "split": split, "metric": "accuracy", "value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 50}
        for name, split in (("a", "test_id"), (text, "test_ood"))
    ]
    methods = [{"name": name, "source": text, "knobs": {text: text}, "chosen": {text: text}} for name in ("finetune", text)]
    runs = [{"method": name, "seed": seed, "evaluations": rows} for name in ("finetune", text) for seed in (0, 1, 2)]
    runs.append({"method": text, "seed": 3, "evaluations": [], "error": text})
    return Comparison.from_dict(
        {
            "version": 1, "study": text, "metric": "accuracy", "direction": "maximize", "model": text, "n_classes": 3, "data": {text: 3}, "versions": {text: text},
            "hardware": text, "budget": {"evaluations": 1, "steps": 1, "rule": text}, "methods": methods, "runs": runs, "notes": [text],
        }
    )  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_nothing_of_a_name_runs_in_a_report(browser: Browser, tmp_path: Path, text: str) -> None:
    trials = [trial | {"failure_kind": text, "worker": text} for trial in make_trials()]
    run = write_run(tmp_path, hostile_summary(text, trials), trials)
    write_report(run)
    check(browser, run / "report.html", text)


@pytest.mark.parametrize("text", HOSTILE[:6], ids=range(6))
def test_nothing_of_a_name_runs_in_a_comparison(browser: Browser, tmp_path: Path, text: str) -> None:
    check(browser, write_comparison(hostile_comparison(text), tmp_path / "comparison.html"), text)


def check(browser: Browser, page: Path, text: str) -> None:
    """The text is there to be read, its elements are not, and the page asks for nothing."""
    browser.open(page.as_uri())
    browser.js("document.querySelectorAll('details').forEach(item => item.open = true)")
    browser.js("document.querySelectorAll('main *').forEach(item => item.dispatchEvent(new MouseEvent('mouseover', {bubbles: true})))")
    assert browser.js("document.title") != "ran"
    assert browser.requests() == [page.as_uri()]
    assert browser.console() == []
    assert browser.js("document.querySelectorAll('script, iframe, form, base, img, object, embed, a[href^=javascript]').length") == 0
    assert browser.js("[...document.querySelectorAll('*')].filter(item => item.getAttributeNames().some(name => name.startsWith('on'))).length") == 0
    assert browser.js("document.querySelectorAll('style').length") == 1
    assert browser.js("document.body.textContent.replace(/\\s+/g, ' ')").count(" ".join(text.split())) >= 3


def test_it_would_be_noticed(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(f"<html><head><title>x</title></head><body>{HOSTILE[0]}{HOSTILE[1]}</body></html>", encoding="utf-8")
    browser.open(page.as_uri())
    assert browser.js("document.title") == "ran"
