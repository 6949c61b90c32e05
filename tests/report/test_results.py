"""The grid, its averages, the verdict's words, the terminal table and the schema."""

import copy
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoft.errors import AutoFTError
from autoft.report.metrics import format_interval, format_value
from autoft.report.results import Score, mean_score, overlap, results
from autoft.report.schema import check_summary
from autoft.report.table import WIDTH, format_table, summary_table
from autoft.report.verdict import verdict

from .factory import evaluation, make_summary, make_trials, minimal_summary, minimized

SHARE = st.floats(0.05, 0.95)


def test_interval_of_an_average_is_the_normal_one_where_intervals_are_symmetric() -> None:
    spreads = [0.03, 0.05, 0.02]
    average = mean_score([Score(0.5, 0.5 - s, 0.5 + s, 100) for s in spreads])
    half = np.sqrt(np.sum(np.square(spreads))) / 3
    assert (average.value, average.low, average.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))


def test_interval_of_an_average_covers_the_truth() -> None:
    """Simulated: binomial sets of unequal size and rate, Wilson intervals each; the average's interval covers 95 % of the time."""
    rng = np.random.default_rng(0)
    truth, sizes, hits, runs = np.array([0.9, 0.5, 0.3]), np.array([100, 200, 300]), 0, 4000
    z = 1.959964
    for counts in rng.binomial(sizes, truth, size=(runs, 3)):
        p = counts / sizes
        centre = (p + z**2 / (2 * sizes)) / (1 + z**2 / sizes)
        half = z / (1 + z**2 / sizes) * np.sqrt(p * (1 - p) / sizes + z**2 / (4 * sizes**2))
        scores = [Score(float(v), float(c - h), float(c + h), int(n)) for v, c, h, n in zip(p, centre, half, sizes, strict=True)]
        average = mean_score(scores)
        assert average.low is not None
        assert average.high is not None
        hits += average.low <= truth.mean() <= average.high
    assert 0.94 < hits / runs < 0.965


@given(st.lists(st.tuples(SHARE, st.floats(0, 0.05), st.floats(0, 0.05)), min_size=1, max_size=6), st.randoms())
def test_average_does_not_depend_on_order_and_holds_its_interval(rows: list[tuple[float, float, float]], rng: random.Random) -> None:
    scores = [Score(v, v - a, v + b, 10) for v, a, b in rows]
    average = mean_score(scores)
    shuffled = scores.copy()
    rng.shuffle(shuffled)
    assert average == mean_score(shuffled)
    assert average.low is not None
    assert average.high is not None
    assert average.low <= average.value <= average.high
    assert average.high - average.low <= max(b + a for _, a, b in rows) * 1.5 + 1e-12  # never wider than about the widest set


def test_a_model_that_lacks_a_set_has_no_average() -> None:
    summary = make_summary()
    summary["evaluations"] = [
        item for item in summary["evaluations"] if not (item["model"] == "final" and item["dataset"] == "sketch")
    ]
    grid = results(summary)
    assert {row.model: grid.average(row, "test_ood") is None for row in grid.rows} == {
        "zero_shot": False,
        "finetune": False,
        "final": True,
        "wise_ft": False,
    }


def test_order_of_evaluations_does_not_change_the_order_of_models() -> None:
    summary = make_summary()
    expected = [row.model for row in results(summary).rows]
    summary["evaluations"].reverse()
    assert [row.model for row in results(summary).rows] == expected == ["zero_shot", "finetune", "final", "wise_ft"]


def _two_models(own: tuple[float, float, float], other: tuple[float, float, float], **keys: Any) -> dict[str, Any]:
    summary = make_summary() | keys
    metric = summary["metric"]
    summary["wise_ft"] = None
    summary["evaluations"] = [
        evaluation(model, "sketch", "test_ood", value, 100, metric) | {"ci_low": low, "ci_high": high}
        for model, (value, low, high) in (("final", own), ("zero_shot", other))
    ]
    return summary


@pytest.mark.parametrize(
    ("own", "other", "words"),
    [
        ((0.6, 0.55, 0.65), (0.5, 0.45, 0.549), "10.0 points above zero-shot, 50.0 % [45.0, 54.9]: the intervals do not overlap"),
        ((0.6, 0.55, 0.65), (0.5, 0.45, 0.56), "10.0 points above zero-shot, 50.0 % [45.0, 56.0]: the intervals overlap"),
        ((0.5, 0.45, 0.55), (0.51, 0.45, 0.56), "1.0 point below zero-shot"),
        ((0.5001, 0.45, 0.55), (0.5, 0.45, 0.55), "level with zero-shot"),
        ((0.4, 0.35, 0.44), (0.6, 0.55, 0.65), "20.0 points below zero-shot, 60.0 % [55.0, 65.0]: the intervals do not overlap"),
    ],
)
def test_verdict_words(own: tuple[float, float, float], other: tuple[float, float, float], words: str) -> None:
    said = " ".join(map(str, verdict(_two_models(own, other)))).replace("\N{NO-BREAK SPACE}", " ")
    assert words.lower() in said.lower()
    assert "better" not in said
    assert "significant" not in said


def test_verdict_respects_direction() -> None:
    summary = _two_models((0.9, 0.8, 1.0), (1.2, 1.1, 1.3), metric="cross_entropy", direction="minimize")
    assert "0.300 nats lower (better) than zero-shot" in str(verdict(summary)[0])
    summary = _two_models((1.2, 1.1, 1.3), (0.9, 0.8, 1.0), metric="cross_entropy", direction="minimize")
    assert "0.300 nats higher (worse) than zero-shot" in str(verdict(summary)[0])


def test_verdict_says_when_alpha_makes_the_checkpoint_the_zero_shot_model() -> None:
    summary = make_summary()
    summary["wise_ft"]["alpha"] = 0.0
    assert any("has the zero-shot weights" in str(statement) for statement in verdict(summary))


def test_overlap_is_symmetric_and_touching_counts() -> None:
    a, b = Score(0.5, 0.4, 0.6, 1), Score(0.65, 0.6, 0.7, 1)
    assert overlap(a, b) is overlap(b, a) is True
    assert overlap(a, Score(0.7, 0.61, 0.8, 1)) is False
    assert overlap(a, Score(0.7, None, None, 1)) is None


def test_values_read_as_their_metric_does() -> None:
    assert (format_value(0.568, "accuracy"), format_interval(0.509, 0.624, "macro_f1")) == ("56.8 %", "[50.9, 62.4]")
    assert (format_value(1.23456, "cross_entropy"), format_value(-0.00001, "accuracy")) == ("1.235", "0.0 %")
    assert format_value(float("nan"), "accuracy") == "–"
    assert format_interval(None, 1.0, "accuracy") == ""


def test_summary_table() -> None:
    header, *rows = summary_table(make_summary())
    assert header == ["model", "photo (ID, n=167)", "average OOD (2 sets)", "cartoon (OOD, n=293)", "sketch (OOD, n=393)"]
    assert [row[0] for row in rows] == ["Zero-shot", "Plain fine-tuning", "AutoFT", "AutoFT + WiSE-FT"]
    assert all(len(row) == len(header) for row in rows)
    assert rows[0][3] == "53.3 % [47.0, 58.5]"


@pytest.mark.parametrize("sets", [1, 2, 3, 5, 6, 9])
@pytest.mark.parametrize("width", [60, 80, WIDTH])
def test_table_fits_and_holds_every_figure(sets: int, width: int) -> None:
    summary = make_summary()
    summary["evaluations"] = [
        evaluation(model, f"set_{index}", "test_ood" if index else "test_id", 0.1 + 0.07 * index + 0.01 * place, 100)
        for place, model in enumerate(("zero_shot", "finetune", "final", "wise_ft"))
        for index in range(sets)
    ]
    table = format_table(summary, width)
    assert max(map(len, table.splitlines())) <= width
    assert all(f"{100 * item['value']:.1f} %" in table for item in summary["evaluations"])
    assert all(format_interval(item["ci_low"], item["ci_high"], "accuracy") in table for item in summary["evaluations"])
    if sets <= 5 and width == WIDTH:
        assert "─" in table  # a table, not the long form


def test_table_without_evaluations() -> None:
    assert format_table(minimal_summary()) == "No test set was evaluated."


def test_whole_and_minimal_summaries_fit_the_schema() -> None:
    for summary in (make_summary(), minimal_summary(), minimized(make_summary(), make_trials()), make_summary() | {"more": 1}):
        check_summary(summary)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("evaluations", 2, "ci_low"), "0.5", "evaluations.2.ci_low: '0.5' is not of type"),
        (("evaluations", 0, "split"), "ood", "evaluations.0.split: 'ood' is not one of"),
        (("wise_ft", "alpha"), 1.5, "wise_ft.alpha: 1.5 is greater than the maximum"),
        (("cost", "search_samples"), -1, "cost.search_samples: -1 is less than"),
        (("direction",), "max", "direction: 'max' is not one of"),
        (("search", "best_trial"), 3, "search.best_trial: 3 is not valid"),
    ],
)
def test_schema_names_the_field(path: tuple[str | int, ...], value: object, message: str) -> None:
    summary = copy.deepcopy(make_summary())
    place: Any = summary
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(AutoFTError) as caught:
        check_summary(summary)
    assert message in str(caught.value)


@pytest.mark.parametrize("key", ["study", "state", "versions", "fingerprint", "search", "evaluations", "cost"])
def test_schema_requires_the_contract(key: str) -> None:
    summary = make_summary()
    del summary[key]
    with pytest.raises(AutoFTError, match=f"'{key}' is a required property"):
        check_summary(summary)
