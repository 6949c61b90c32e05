"""The list of studies."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import optuna
import pytest
from optuna.trial import TrialState

from storage import StorageURL, StudyHandle, list_studies, open_study


def _fill(handle: StudyHandle) -> None:
    study = handle.study
    study.set_user_attr("fingerprint", "abc")
    for score in (0.25, 0.75, 0.5):
        study.tell(study.ask(), score)
    pruned = study.ask()
    pruned.report(0.1, 1)
    study.tell(pruned, state=TrialState.PRUNED)
    study.tell(study.ask(), state=TrialState.FAIL)
    study.ask()


@pytest.mark.parametrize(("direction", "best"), [("maximize", 0.75), ("minimize", 0.25)])
def test_a_summary_counts_what_the_study_has(either_url: StorageURL, direction: str, best: float) -> None:
    began = datetime.now(UTC) - timedelta(seconds=2)  # created has whole seconds
    with open_study(either_url, "b-full", directions=[direction], create=True) as handle:  # type: ignore[list-item]
        _fill(handle)
        open_study(either_url, "a-empty", directions=["maximize"], create=True).close()
        empty, full = list_studies(either_url)
        assert full.locked_by is not None
        assert full.locked_by.startswith("process ")
    assert list_studies(either_url)[1].locked_by is None
    assert (full.name, full.direction, full.best_value) == ("b-full", direction, best)
    assert (full.n_trials, full.n_complete, full.n_pruned, full.n_running, full.n_failed) == (6, 3, 1, 1, 1)
    assert full.user_attrs == {"fingerprint": "abc"}
    assert full.created is not None
    assert full.updated is not None
    assert began <= full.created <= full.updated + timedelta(seconds=1) <= datetime.now(UTC) + timedelta(seconds=2)
    assert (empty.name, empty.n_trials, empty.best_value, empty.updated, empty.locked_by) == ("a-empty", 0, None, None, None)


def test_infinite_and_foreign_studies_do_not_break_the_list(database_url: str, url: StorageURL) -> None:
    stock = optuna.create_study(study_name="stock", directions=["maximize", "minimize"], storage=database_url.replace("://", "+psycopg2://"))
    stock.tell(stock.ask(), (1.0, 2.0))
    with open_study(url, "infinite", directions=["maximize"], create=True) as handle:
        handle.study.tell(handle.study.ask(), float("inf"))
    infinite, foreign = list_studies(url)
    assert infinite.best_value == float("inf")
    assert (foreign.direction, foreign.best_value, foreign.n_complete) == ("maximize,minimize", None, 1)
    assert foreign.created is not None
    assert abs((datetime.now(UTC) - foreign.created).total_seconds()) < 60
