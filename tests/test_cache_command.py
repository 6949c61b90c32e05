"""`autoft cache`, what `autoft plan` says of images, and how decoding is shown."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import autoft.pacing as pacing_module
from autoft.cli.main import main
from autoft.cli.progress import JsonView, PlainView
from autoft.config import load_config
from autoft.data import load_study_data
from autoft.data.room import limit_cache
from autoft.pacing import paced
from tests.studies import write_study


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("AUTOFT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("AUTOFT_CACHE_BYTES", raising=False)
    yield tmp_path / "cache"
    limit_cache(None)


@pytest.fixture
def study(tmp_path: Path, tiny_vit: Path) -> Path:
    return write_study(tmp_path, tiny_vit)


def said(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    return code, *capsys.readouterr()


def test_cache_lists_and_clears(cache: Path, study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOFT_CACHE_BYTES", "1GB")
    assert json.loads(said(capsys, "cache", "--json")[1]) == {"folder": str(cache), "bytes": 0, "limit_bytes": 10**9, "entries": []}
    assert not cache.exists()
    data = load_study_data(load_config(study).data, 16, "bicubic", "shortest", cache, splits=["train", "val_ood"])
    listed = json.loads(said(capsys, "cache", "list", "--json")[1])
    assert sorted((entry["field"], entry["images"], entry["kind"], entry["in_use"]) for entry in listed["entries"]) == [
        ("data.train", 48, "images", True), ("data.val_ood", 24, "images", True)
    ]  # fmt: skip
    assert listed["bytes"] == sum(entry["nbytes"] for entry in listed["entries"]) >= 48 * 20 * 20 * 3 + 24 * 16 * 16 * 3
    text = said(capsys, "cache")[1]
    assert "data.val_ood" in text and "of 953.7 MiB" in text
    kept = json.loads(said(capsys, "cache", "clear", "--json")[1])
    assert kept["removed"] == [] and len(kept["entries"]) == 2
    del data
    code, text, _ = said(capsys, "cache", "clear")
    assert code == 0 and "removed 2 entries" in text
    assert json.loads(said(capsys, "cache", "--json")[1])["entries"] == []


def test_a_limit_that_is_no_size_is_refused(cache: Path, study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOFT_CACHE_BYTES", "lots")
    for command in (["cache"], ["plan", study]):
        code, out, err = said(capsys, *command)
        assert code == 2 and out == "" and "AUTOFT_CACHE_BYTES = 'lots'" in err and "20GB" in err


def test_plan_decodes_nothing_and_says_where_images_come_from(
    cache: Path, study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("autoft.data.study.load_decoded", None)
        code, out, _ = said(capsys, "plan", study, "--json")
        facts = json.loads(out)
        assert code == 0 and facts["ready"] and facts["fingerprint"] is None and facts["leakage"] is None
        assert facts["undecoded"] == ["train", "val_id", "val_ood", "a", "b"]
        assert {row["how"] for row in facts["data"]} == {"decoded"}
        assert [row["bytes"] for row in facts["data"]] == [48 * 1200, 24 * 768, 24 * 768, 30 * 768, 30 * 768]
        assert facts["search"]["trials"]["n_trials"] == 6 and facts["budget"]["search_samples"] == 6 * 4 * 12
        assert not cache.exists()
        monkeypatch.setenv("AUTOFT_CACHE_BYTES", "70000")
        facts = json.loads(said(capsys, "plan", study, "--json")[1])
        assert {row["set"]: row["how"] for row in facts["data"]} == {
            "train": "streamed", "val_id": "decoded", "val_ood": "decoded", "a": "streamed", "b": "streamed"
        }  # fmt: skip
        text = said(capsys, "plan", study)[1]
        assert "train is streamed: decoded it takes 56.2 KiB, more than what other sets leave of the image cache" in text
        assert "not decoded yet: train" in text
    code, out, err = said(capsys, "plan", study, "--decode", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["undecoded"] == [] and facts["fingerprint"] and facts["leakage"]
    assert {row["set"]: row["how"] for row in facts["data"]} == {
        "train": "streamed", "val_id": "cached", "val_ood": "cached", "a": "streamed", "b": "streamed"
    }  # fmt: skip
    assert "decoded 48 images of data.train" in err
    monkeypatch.delenv("AUTOFT_CACHE_BYTES")
    whole = json.loads(said(capsys, "plan", study, "--decode", "--json")[1])
    assert whole["fingerprint"] == facts["fingerprint"], "a study is the same whether its images are kept or streamed"


def test_reports_are_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(pacing_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    seen: list[tuple[str, int, int]] = []
    told = paced(lambda *report: seen.append(report), 10.0)
    for second, report in enumerate([("a", 1, 9), ("a", 2, 9), ("b", 1, 1), ("a", 3, 9), ("a", 4, 9), ("a", 9, 9)]):
        clock.now = 100.0 + 6 * second
        told(*report)
    assert seen == [("b", 1, 1), ("a", 3, 9), ("a", 9, 9)]


def test_decoding_is_shown_while_it_goes_on(study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(pacing_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    for view in (JsonView(), PlainView(load_config(study))):
        for done in (10, 20, 30):
            view.decoding("data.train", done, 30)
            clock.now += 60
    out, err = capsys.readouterr()
    events = [{key: value for key, value in json.loads(line).items() if key != "time"} for line in out.splitlines()]
    assert events == [{"event": "decoding", "field": "data.train", "done": 20, "of": 30}, {"event": "decoded", "field": "data.train", "images": 30}]
    assert err.splitlines() == ["decoding data.train: 20 of 30 images", "decoded 30 images of data.train"]
    PlainView(load_config(study))({"event": "decoding", "field": "data.train", "done": 20, "of": 30, "node": "10.0.0.2"})
    assert "decoding data.train on 10.0.0.2: 20 of 30 images" in capsys.readouterr().err
