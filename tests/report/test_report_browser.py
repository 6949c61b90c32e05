"""report.html in a real browser: silent, offline, no wider than the screen, and with the figures of summary.json."""

import json
from pathlib import Path
from typing import Any

import pytest

from autoft.report import write_report
from tests.browser_fixtures import Browser

from .factory import ACCURACY, confirmed, evaluation, make_summary, make_trials, write_run

pytestmark = pytest.mark.browser
FIGURES = "[...document.querySelectorAll('[data-dataset]')].map(cell => ({...cell.dataset, shown: cell.innerText}))"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a long name, a confirmation, many test sets, two metrics, and a model and a configuration whose names are markup."""
    trials = make_trials()
    summary = confirmed(make_summary(study="a-long-study-name." * 5), trials)
    extra = [evaluation(m, f"corruption_{i}", "test_ood", v[2] + i / 20, 1000) for i in range(5) for m, v in ACCURACY.items()]
    extra += [evaluation(m, "photo", "test_id", v[0], 167, "macro_f1") for m, v in ACCURACY.items()]
    summary["evaluations"] += [*extra, evaluation("<b>bold</b><script>throw 1</script>", "photo", "test_id", 0.9, 167)]
    summary["search"]["enqueued"][1]["name"] = "<script>throw 2</script>" * 3
    folder = write_run(tmp_path_factory.mktemp("run"), summary, trials)
    write_report(folder)
    return folder


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_page_is_silent_offline_and_fits(browser: Browser, run: Path, width: int, dark: bool) -> None:
    address = (run / "report.html").as_uri()
    browser.open(address, width=width, dark=dark)
    browser.js("document.querySelectorAll('details').forEach(item => item.open = true)")
    assert browser.console() == []
    assert browser.requests() == [address]
    assert browser.js("window.innerWidth") == width
    assert browser.js("document.documentElement.scrollWidth") <= width
    # Nothing sticks out of the page except inside a box that scrolls.
    sticking = """[...document.querySelectorAll('main *')].filter(item => !item.closest('.scroll, pre, svg')
        && item.getBoundingClientRect().right > window.innerWidth + 0.5).map(item => item.outerHTML.slice(0, 80))"""
    assert browser.js(sticking) == []
    paper = browser.js("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") is not dark


def test_figures_are_those_of_the_summary(browser: Browser, run: Path) -> None:
    browser.open((run / "report.html").as_uri())
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    keys = ("model", "dataset", "split", "metric")
    shown = {tuple(cell[key] for key in keys): cell for cell in browser.js(FIGURES)}
    assert len(shown) == len(summary["evaluations"])
    for item in summary["evaluations"]:
        cell = shown[tuple(item[key] for key in keys)]
        numbers = [float(cell["value"]), float(cell["ciLow"]), float(cell["ciHigh"]), int(cell["n"])]
        assert numbers == [item["value"], item["ci_low"], item["ci_high"], item["n"]]
        if cell["shown"]:  # closed details are not rendered
            assert cell["shown"].startswith(f"{100 * item['value']:.1f} %")


def test_figures_are_drawn_in_the_colours_of_the_page(browser: Browser, run: Path) -> None:
    colours = set()
    for dark in (False, True):
        browser.open((run / "report.html").as_uri(), dark=dark)
        assert browser.js("document.querySelectorAll('figure svg').length") == 12
        sizes = browser.js("[...document.querySelectorAll('figure svg')].map(svg => svg.getBoundingClientRect().height)")
        assert min(sizes) > 60
        colours.add(browser.js("getComputedStyle(document.querySelector('figure svg text')).fill"))
        family = browser.js("getComputedStyle(document.querySelector('figure svg text')).fontFamily")
        assert family == browser.js("getComputedStyle(document.body).fontFamily")
    assert len(colours) == 2


def test_the_browser_would_notice(browser: Browser, tmp_path: Path) -> None:
    """The checks above can fail: a page that logs, fetches and overflows is seen to do so."""
    page = tmp_path / "bad.html"
    page.write_text("<script>console.error('x')</script><img src='missing.png'><div style='width:3000px'>wide</div>", encoding="utf-8")
    browser.open(page.as_uri(), width=400)
    assert any("x" in line for line in browser.console())
    assert len(browser.requests()) == 2
    assert browser.js("document.documentElement.scrollWidth") > 400
