"""A study's note and figures in optuna-dashboard: what is shown, that it is escaped, and what it costs to keep it up to date."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import optuna
import optuna_dashboard
import pytest
import sqlalchemy
from optuna.trial import TrialState, create_trial
from sqlalchemy import event

from autoft.cli.publish import publish
from autoft.config import StudyConfig, load_config
from autoft.errors import StudyLocked
from autoft.report.dashboard import MOST_POINTS, dashboard_figures, dashboard_note, escape_markdown
from autoft.search_space import FIXED_ATTRIBUTE
from storage import StorageURL, open_study, parse_storage_url
from storage.notes import update_dashboard
from tests.report.factory import make_summary
from tests.storage.dashboard_visits import serving
from tests.studies import write_study


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    folder = tmp_path_factory.mktemp("study")
    return load_config(write_study(folder, folder / "model", study="pacs", search__n_trials=50))


def _trials(count: int) -> list[optuna.trial.FrozenTrial]:
    trials = [create_trial(value=0.5 + 0.1 * (number % 7), user_attrs={"run": {"seconds": 30.0}}) for number in range(count)]
    for number, trial in enumerate(trials):
        trial.number = number
    return trials


def test_the_note_says_where_a_study_stands(config: StudyConfig) -> None:
    waiting = dashboard_note(config, None, [], "created")
    assert "## pacs: created" in waiting and "0 of 50 trials finished." in waiting and "Results" not in waiting
    lost = create_trial(state=TrialState.FAIL)
    note = dashboard_note(config, make_summary(study="pacs"), [*_trials(8), lost], "complete", ("dog", "cat"))
    for words in ("8 of 50 trials finished (1 failed). Best VAL&#95;OOD".replace("&#95;", "_"), "**110.0 %** (trial 6)", "2&#58; dog, cat", "AutoFT &#43; WiSE", "alpha 0.7"):
        assert words in note, note
    assert dashboard_note(config, make_summary(study="pacs"), [*_trials(8), lost], "complete", ("dog", "cat")) == note


@pytest.mark.parametrize("text", ["<script>", "a|b", "`x`", "[a](b)", "![a](b)", "$x$", "a\n# b", "&lt;", "https://evil.example", "*_~^=-+#>{}\\"])
def test_no_sign_of_a_name_is_markup(text: str) -> None:
    escaped = escape_markdown(text)
    assert not set(escaped.replace("&#", "").replace(";", "")) & set("<>|`[]()!$\n*_~^=-+#{}\\&/:")


def test_names_are_cut_and_do_not_turn_writing_around() -> None:
    assert escape_markdown("a\u202eb\x00c\x1bd") == "abcd"
    assert len(escape_markdown("x" * 1000)) == 120
    assert "www." not in escape_markdown("www.evil.example").replace("&#46;", ".") and "a@e" not in escape_markdown("a@e.x").replace("&#64;", "@")
    assert escape_markdown("Hütte 3") == "Hütte 3"


def test_figures_are_small_and_strict_json(config: StudyConfig) -> None:
    trials = _trials(1000)
    trials[5].values = [float("inf")]
    trials[0].set_user_attr(FIXED_ATTRIBUTE, {"name": "<b>x</b>", "hyperparameters": {}})
    figures = dashboard_figures(config, make_summary(), trials)
    assert set(figures) == {"autoft-cost", "autoft-alpha", "autoft-id-ood"}
    text = json.dumps(figures, allow_nan=False)
    assert len(text) < 25_000
    assert "<b>" not in text and "&lt;b&gt;x" in text
    dots, best = figures["autoft-cost"]["data"]
    assert len(dots["x"]) == MOST_POINTS and dots["x"][-1] == round(1000 * 30 / 3600, 4)
    assert best["y"] == sorted(best["y"])
    assert dashboard_figures(config, None, []) == {}


def test_an_unchanged_study_costs_no_write(config: StudyConfig, either_url: StorageURL) -> None:
    with open_study(either_url, "pacs", directions=["maximize"], create=True) as handle:
        for _ in range(4):
            handle.study.tell(handle.study.ask(), 0.5)
        assert publish(handle.study, config, None, "running")
        assert not publish(handle.study, config, None, "running")
        assert publish(handle.study, config, None, "paused")
        note = optuna_dashboard.get_note(handle.study)
        assert "pacs: running" not in note and note.count("pacs&#58; paused".replace("&#58;", ":")) == 1
        assert publish(handle.study, config, make_summary(study="pacs"), "complete")
    with serving(either_url) as site:
        detail = site.ask("/api/studies/1").json
        assert {figure["id"] for figure in detail["plotly_graph_objects"]} == {"autoft-cost", "autoft-alpha", "autoft-id-ood"}
        for figure in detail["plotly_graph_objects"]:
            assert json.loads(figure["graph_object"])["data"]
        assert "pacs: complete" in detail["note"]["body"]


def test_what_a_person_wrote_into_the_note_stays(url: StorageURL) -> None:
    with open_study(url, "pacs", directions=["maximize"], create=True) as handle:
        optuna_dashboard.save_note(handle.study, "my own words")
        update_dashboard(handle.study, "first \\1", {})
        optuna_dashboard.save_note(handle.study, optuna_dashboard.get_note(handle.study) + "\nand more of them")
        update_dashboard(handle.study, "second", {})
        note = optuna_dashboard.get_note(handle.study)
    assert note.startswith("my own words") and note.endswith("and more of them") and "second" in note and "first" not in note


def test_a_note_that_gets_shorter_leaves_nothing_behind(url: StorageURL) -> None:
    with open_study(url, "pacs", directions=["maximize"], create=True) as handle:
        for size in (9000, 100, 5000):
            update_dashboard(handle.study, "é" * size, {"a": {"data": [{"x": ["y" * size]}], "layout": {}}})
            assert optuna_dashboard.get_note(handle.study).count("é") == size
            attributes = handle.study._storage.get_study_system_attrs(handle.study._study_id)
            stored = optuna_dashboard._custom_plot_data.get_plotly_graph_objects(attributes)
            assert json.loads(stored["a"])["data"][0]["x"] == ["y" * size]
        with pytest.raises(ValueError, match="too large"):
            update_dashboard(handle.study, "x" * 60_000, {})
        with pytest.raises(ValueError):
            update_dashboard(handle.study, "x", {"a": {"data": ["x" * 200_000]}})


def test_keeping_it_up_to_date_is_cheap(config: StudyConfig, url: StorageURL) -> None:
    """Of 200 trials: the statements after one more trial, with everything else as it was."""
    statements: list[str] = []
    with open_study(url, "pacs", directions=["maximize"], create=True) as handle:
        handle.study.add_trials(_trials(200))
        publish(handle.study, config, make_summary(study="pacs"), "running")
        event.listen(handle._database.engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
        for number in range(2):
            handle.study.add_trial(create_trial(value=0.7 + 0.01 * number, user_attrs={"run": {"seconds": 30.0}}))
            statements.clear()
            assert publish(handle.study, config, make_summary(study="pacs"), "running")
            assert len(statements) <= 60
        statements.clear()
        assert not publish(handle.study, config, make_summary(study="pacs"), "running")
        assert len(statements) <= 6


def test_nothing_wrong_with_a_note_ends_a_run(config: StudyConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study(direction="maximize")
    assert publish(study, config, None, "running")
    caplog.set_level(logging.WARNING, "autoft")
    assert publish(study, config, {"evaluations": [{"metric": "accuracy"}]}, "running") is False
    assert "could not be made: KeyError" in caplog.text

    def locked(*_: object) -> None:
        raise StudyLocked("another process owns the study")

    monkeypatch.setattr(study._storage, "get_study_system_attrs", locked)
    with pytest.raises(StudyLocked):
        publish(study, config, None, "paused")


def test_a_database_that_is_away_is_not_waited_for(config: StudyConfig, tmp_path: Path) -> None:
    url = parse_storage_url(f"sqlite:///{tmp_path}/studies.db", "test")
    with open_study(url, "pacs", directions=["maximize"], create=True) as handle:
        event.listen(handle._database.engine, "before_cursor_execute", _fail)
        assert publish(handle.study, config, None, "running") is False
        event.remove(handle._database.engine, "before_cursor_execute", _fail)
        assert publish(handle.study, config, None, "running") is True


def _fail(*_: object) -> None:
    import sqlite3

    raise sqlalchemy.exc.OperationalError("SELECT", {}, sqlite3.OperationalError("disk I/O error"))
