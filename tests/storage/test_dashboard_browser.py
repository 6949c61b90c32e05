"""The guarded dashboard in a real browser: ordinary use shows everything, and what other pages and stored text try comes to nothing."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna_dashboard
import pytest
from optuna.artifacts import FileSystemArtifactStore, upload_artifact

from autoft.cli.publish import publish
from autoft.config import load_config
from storage import StorageURL, list_studies, open_study, parse_storage_url
from storage.dashboard.passwords import hash_password
from tests.browser_fixtures import Browser
from tests.report.factory import make_summary
from tests.storage.dashboard_visits import TOKEN, Site, serving
from tests.studies import write_study

pytestmark = [pytest.mark.browser]

SCRIPT = "<script>window.pwned=1</script><img src=x onerror=window.pwned=1>"


@pytest.fixture
def url(tmp_path: Path) -> StorageURL:
    return parse_storage_url(f"sqlite:///{tmp_path}/studies.db", "test")


def _published(url: StorageURL, tmp_path: Path, classes: tuple[str, ...] = ("dog", "cat"), study: str = "pacs") -> None:
    config = load_config(write_study(tmp_path, tmp_path / "model", study=study))
    with open_study(url, study, directions=["maximize"], create=True) as handle:
        for score in (0.4, 0.6, 0.5):
            trial = handle.study.ask()
            trial.suggest_float("lr", 1e-5, 1e-1, log=True)
            trial.suggest_float("weight_decay", 0, 1)
            trial.set_user_attr("run", {"seconds": 60.0})
            trial.set_user_attr("message", SCRIPT)
            handle.study.tell(trial, score)
        summary = make_summary(study=study)
        summary["evaluations"] = [row | {"dataset": f"{row['dataset']} {SCRIPT} www.evil.example a@evil.example"} for row in summary["evaluations"]]
        assert publish(handle.study, config, summary, "complete", classes)


def _text(browser: Browser, *words: str) -> str:
    """The page's text once all `words` are in it."""
    deadline = time.monotonic() + 60
    text = ""
    while time.monotonic() < deadline:
        text = browser.js("document.body.innerText")
        if all(word.lower() in text.lower() for word in words):
            return text
        time.sleep(0.2)
    pytest.fail(f"the page does not show {words}; it shows {text[:1500]!r}")


def _complaints(browser: Browser) -> list[str]:
    return [line for line in browser.console() if line.startswith("SEVERE") or "Content Security Policy" in line]


@contextmanager
def _elsewhere(page: str) -> Iterator[str]:
    """A web page of somebody else, at an origin of its own; on this machine, so that the browser calls it the same site."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def test_ordinary_use_after_signing_in(url: StorageURL, tmp_path: Path, browser: Browser) -> None:
    """The list, a study's graphs, our note and our figures, its trials, the note's editor; nothing the policy has to stop."""
    _published(url, tmp_path)
    with serving(url, "0.0.0.0") as site:
        browser.open(f"{site.origin}/?token={site.token}")
        _text(browser, "pacs")
        assert browser.js("location.href").startswith(f"{site.origin}/dashboard") and "token" not in browser.js("location.href")
        assert browser.js("document.cookie") == ""
        browser.driver.get(f"{site.origin}/dashboard/studies/1")
        text = _text(browser, "Hyperparameter Importance", "Score over the cost of the search", "WiSE-FT: score over alpha", "Out of distribution against")
        assert "NOW LOADING" not in text
        browser.driver.get(f"{site.origin}/dashboard/studies/1/note")
        text = _text(browser, "pacs: complete", "3 of", "Results (accuracy)", "AutoFT + WiSE-FT", "alpha 0.7")
        assert browser.js("document.querySelectorAll('table').length") >= 2
        browser.driver.get(f"{site.origin}/dashboard/studies/1/analytics")
        _text(browser, "Contour", "Slice")
        _until(browser, "document.querySelectorAll('.main-svg').length >= 3")
        browser.driver.get(f"{site.origin}/dashboard/studies/1/trials?numbers=1")
        _text(browser, "weight_decay")
        assert not _complaints(browser)
        assert all(request.startswith((site.origin, "data:", "blob:", "about:")) for request in browser.requests())


def test_text_in_names_and_notes_stays_text(url: StorageURL, tmp_path: Path, browser: Browser) -> None:
    _published(url, tmp_path, classes=(SCRIPT, "[click](http://evil.example)", "www.evil.example", "| --- |", "$x$", "`</code>`"))
    with open_study(url, SCRIPT, directions=["maximize"], create=True) as handle:
        handle.study.tell(handle.study.ask(), 1.0)
        optuna_dashboard.save_note(handle.study, f"foreign note {SCRIPT} [x](javascript:window.pwned=1) <iframe srcdoc='{SCRIPT}'></iframe>")
    with serving(url) as site:
        browser.open(f"{site.origin}/dashboard")
        _text(browser, "pacs", SCRIPT)
        browser.driver.get(f"{site.origin}/dashboard/studies/1/note")
        text = _text(browser, "pacs: complete", "window.pwned", "[click](http", "| --- |", "$x$")
        assert "&#" not in text
        assert browser.js("document.querySelectorAll('[href*=evil],[src*=evil],iframe,img[src=x]').length") == 0
        browser.driver.get(f"{site.origin}/dashboard/studies/1")
        _text(browser, "Out of distribution against")
        browser.driver.get(f"{site.origin}/dashboard/studies/2/note")
        _text(browser, "foreign note")
        assert browser.js("document.querySelectorAll('[href^=javascript],iframe,img[src=x]').length") == 0
        browser.driver.get(f"{site.origin}/dashboard/studies/1/trials?numbers=1")
        _text(browser, "window.pwned")
        assert browser.js("typeof window.pwned") == "undefined"
        assert not _complaints(browser)


def test_an_uploaded_page_does_not_run(url: StorageURL, tmp_path: Path, browser: Browser) -> None:
    folder = tmp_path / "artifacts"
    folder.mkdir()
    (tmp_path / "page.html").write_text("<script>document.title='ran'</script>")
    (tmp_path / "code.js").write_text("window.pwned=1")
    store = FileSystemArtifactStore(folder)
    with open_study(url, "kept", directions=["maximize"], create=True) as handle:
        page = upload_artifact(artifact_store=store, file_path=str(tmp_path / "page.html"), study_or_trial=handle.study, mimetype="text/html")
        code = upload_artifact(artifact_store=store, file_path=str(tmp_path / "code.js"), study_or_trial=handle.study, mimetype="text/javascript")
    with serving(url, artifacts=folder) as site:
        browser.open(f"{site.origin}/dashboard")
        _text(browser, "kept")
        browser.run("Browser.setDownloadBehavior", behavior="deny")
        browser.js(f"void(location.href='/artifacts/1/{page}')")
        browser.js("void document.head.appendChild(Object.assign(document.createElement('script'), "
                   f"{{src: '/artifacts/1/{code}', onerror: () => window.refused = 1, onload: () => window.ran = 1}}))")  # fmt: skip
        _until(browser, "window.refused || window.ran")
        assert (browser.js("window.refused"), browser.js("typeof window.pwned"), browser.js("document.title")) == (1, "undefined", "Optuna Dashboard")
        assert browser.js("location.pathname") == "/dashboard"


def test_a_page_elsewhere_reads_and_writes_nothing(url: StorageURL, browser: Browser) -> None:
    """With a session's cookie in the browser, edits allowed, and an origin that the browser counts as the same site."""
    open_study(url, "kept", directions=["maximize"], create=True).close()
    with serving(url, token=TOKEN, allow_edit=True) as site:
        attack = f"""<iframe id="frame" src="{site.origin}/dashboard"></iframe>
            <form id="form" method="post" target="hole" enctype="text/plain" action="{site.origin}/api/studies"><input name='{{"study_name":"mine","directions":["maximize"],"x":"' value='"}}'></form>
            <iframe name="hole"></iframe><script>
            const got = [], go = {{credentials: 'include'}}, note = (name) => [(a) => got.push(name + ' ' + (a.type || a)), () => got.push(name + ' refused')];
            const site = '{site.origin}/api/studies';
            Promise.allSettled([
              fetch(site, go).then(a => a.text()).then(...note('read')),
              fetch(site + '/1', {{...go, method: 'DELETE'}}).then(...note('delete')),
              fetch(site + '/1/rename', {{...go, method: 'POST', headers: {{'Content-Type': 'application/json'}}, body: '{{"study_name":"mine"}}'}}).then(...note('json')),
              fetch(site, {{...go, mode: 'no-cors', method: 'POST', body: '{{"study_name":"mine","directions":["maximize"]}}'}}).then(...note('blind')),
            ]).then(() => {{ document.getElementById('form').submit(); setTimeout(() => document.title = got.sort().join(', '), 500); }});
            </script>"""
        browser.open(f"{site.origin}/?token={TOKEN}")
        _text(browser, "kept")
        with _elsewhere(attack) as evil:
            browser.driver.get(evil)
            _until(browser, "document.title")
            assert browser.js("document.title") in (
                "blind opaque, delete refused, json refused, read refused",  # what a blind write did, only the database knows
                "blind refused, delete refused, json refused, read refused",
            )
            with pytest.raises(Exception, match=r"cross-origin|Blocked"):
                browser.js("document.getElementById('frame').contentWindow.document.body.innerText")
            assert any("X-Frame-Options" in line or "frame-ancestors" in line for line in browser.console())
    assert [study.name for study in list_studies(url)] == ["kept"]


def test_signing_in_with_the_form(url: StorageURL, browser: Browser) -> None:
    open_study(url, "kept", directions=["maximize"], create=True).close()
    with serving(url, users={"ann": hash_password("correct horse")}) as site:
        browser.open(f"{site.origin}/dashboard/studies/1")
        _text(browser, "Password")
        assert "kept" not in browser.js("document.documentElement.outerHTML")
        _fill(browser, "ann", "wrong horse")
        _text(browser, "not right")
        _fill(browser, "ann", "correct horse")
        _text(browser, "kept")
        assert browser.js("location.pathname") == "/dashboard/studies/1"
        browser.driver.get(f"{site.origin}/sign-out")
        _text(browser, "Signed out")
        browser.driver.get(f"{site.origin}/dashboard")
        _text(browser, "Password")
        assert not [line for line in browser.console() if "Content Security Policy" in line]


def test_a_link_from_elsewhere_signs_in(url: StorageURL, browser: Browser) -> None:
    """A strict cookie is not sent on a redirect that another site began, so a page of ours stands in between."""
    open_study(url, "kept", directions=["maximize"], create=True).close()
    with serving(url, token=TOKEN) as site:
        with _elsewhere(f'<a id="link" href="http://localhost:{site.port}/?token={TOKEN}">x</a>') as page:
            browser.open(page)
            browser.js("document.getElementById('link').click()")
            _text(browser, "kept")
        assert browser.js("location.href").startswith(f"http://localhost:{site.port}/dashboard")


def test_a_visitor_edits_where_that_is_allowed(url: StorageURL, browser: Browser) -> None:
    open_study(url, "kept", directions=["maximize"], create=True).close()
    with serving(url, allow_edit=True) as site:
        assert _write_note(browser, site) == 204
    with serving(url) as site:
        assert _write_note(browser, site) == 403


def _write_note(browser: Browser, site: Site) -> int:
    browser.open(f"{site.origin}/dashboard")
    _text(browser, "kept")
    script = (
        "const done = arguments[0]; fetch('/api/studies/1/note', {method: 'PUT', headers: {'Content-Type': 'application/json'}, "
        "body: JSON.stringify({version: 1, body: 'mine'})}).then(answer => done(answer.status))"
    )
    return int(browser.driver.execute_async_script(script))


def _fill(browser: Browser, user: str, password: str) -> None:
    from selenium.webdriver.common.by import By

    browser.driver.find_element(By.NAME, "user").send_keys(user)
    browser.driver.find_element(By.NAME, "password").send_keys(password)
    browser.driver.find_element(By.TAG_NAME, "button").click()


def _until(browser: Browser, expression: str) -> None:
    deadline = time.monotonic() + 30
    while not browser.js(expression):
        assert time.monotonic() < deadline, expression
        time.sleep(0.1)
