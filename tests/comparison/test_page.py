"""The page: what it holds, that it needs nothing else, and how it looks in a browser."""

from pathlib import Path

import pytest

from autoft.comparison import write_comparison
from autoft.comparison.analysis import analyse
from autoft.comparison.records import Comparison
from tests.browser_fixtures import Browser
from tests.comparison.factory import LEVELS, comparison, document, scored
from tests.report.reading import read_page


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_comparison(comparison(), tmp_path_factory.mktemp("page") / "comparison.html")


def test_every_figure_is_on_the_page_exactly(page: Path) -> None:
    found, read = analyse(comparison()), read_page(page)
    assert {item["data-method"] for item in read.find(of="ood")} == set(LEVELS)
    for entry in found.entries:
        (cell,) = read.find(method=entry.name, of="ood")
        assert entry.ood is not None and float(cell["data-value"]) == entry.ood.value
        (time,) = read.find(method=entry.name, of="train_seconds")
        assert float(time["data-value"]) == entry.train_seconds
        for column, item in (("to_finetune", entry.to_finetune), ("to_baseline", entry.to_baseline)):
            assert [float(cell["data-value"]) for cell in read.find(method=entry.name, of=column)] == ([item.mean.value] if item else [])


def test_the_page_needs_nothing_else_and_can_be_read_aloud(page: Path) -> None:
    read = read_page(page)
    assert set(read.addresses) <= {"data:,"} | {address for address in read.addresses if address.startswith("#")}
    assert "script" not in read.tags
    assert not read.unlabelled and len(read.labels) == 3
    assert len(read.ids) == len(set(read.ids))
    text = page.read_text(encoding="utf-8")
    assert text.count("<th ") == text.count("<th scope=")
    assert text.count("<caption>") == text.count("<table")


def test_autoft_is_marked_and_the_verdict_comes_first(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count('<tr class="subject">') == 4 * 2
    assert text.index('aria-label="Verdict"') < text.index("<table")


def test_texts_of_users_are_escaped(tmp_path: Path) -> None:
    bad = "<script>alert('x')</script>&"
    given = document(("finetune", "autoft"))
    given |= {"study": bad, "model": bad, "hardware": bad, "versions": {bad: bad}, "data": {bad: 1}, "notes": [bad]}
    given["methods"][0] |= {"name": bad, "source": bad, "knobs": {bad: bad}, "chosen": {bad: bad}}
    given["runs"] = [run | {"method": bad if run["method"] == "finetune" else run["method"]} for run in given["runs"]]
    for row in (row for run in given["runs"] for row in run["evaluations"] if row["dataset"] == "art"):
        row["dataset"] = bad
    given["runs"][0] |= {"evaluations": [], "error": bad}
    path = write_comparison(Comparison.from_dict(given), tmp_path / "c.html")
    assert "<script" not in path.read_text(encoding="utf-8")
    assert read_page(path).text.count(bad) >= 12


@pytest.mark.parametrize(
    "given",
    [
        scored({"finetune": [None]}),
        scored({"zero_shot": [0.5]}),
        scored({"finetune": [0.5], "autoft": [0.5]}),
        scored({"finetune": [1.0, 1.0], "autoft": [0.0, 0.0]}),
        scored({"finetune": [1.0, 1.2], "autoft": [0.9, 1.1]}, metric="cross_entropy"),
        Comparison.from_dict(document(("finetune",)) | {"runs": []}),
    ],
    ids=["only failed", "only zero-shot", "one seed", "ends of the scale", "minimised", "nothing ran"],
)
def test_sparse_comparisons_have_a_page_too(given: Comparison, tmp_path: Path) -> None:
    read_page(write_comparison(given, tmp_path / "c.html"))


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_sticks_out_of_the_window(browser: Browser, page: Path, width: int) -> None:
    browser.open(page.as_uri(), width=width)
    assert browser.js("document.documentElement.scrollWidth") <= width
    assert browser.console() == []
