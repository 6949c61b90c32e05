"""Records: the JSON round trip, and mistakes that are named."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from autoft.comparison.records import Comparison, json_rows, read_comparison, save_comparison
from autoft.errors import DataError
from autoft.report.schema import check_summary
from tests.comparison.factory import comparison, document, scored
from tests.report.factory import minimal_summary


def test_a_comparison_survives_json(tmp_path: Path) -> None:
    before = comparison()
    assert Comparison.from_dict(json.loads(json.dumps(before.to_dict()))) == before
    save_comparison(before, tmp_path / "comparison.json")
    assert read_comparison(tmp_path / "comparison.json") == before
    failed = scored({"finetune": [0.5, None], "zero_shot": [0.4]})
    assert Comparison.from_dict(failed.to_dict()) == failed


def test_a_file_that_is_none_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent or is not a JSON object"):
        read_comparison(tmp_path / "comparison.json")


def test_rows_are_those_of_a_summary() -> None:
    rows = json_rows(comparison())
    check_summary(minimal_summary() | {"evaluations": rows})
    assert len(rows) == (19 * 5 + 1) * 4 * 2
    assert set(rows[0]) == {"model", "seed", "dataset", "split", "metric", "value", "ci_low", "ci_high", "n"}
    assert (rows[0]["model"], rows[0]["seed"]) == ("zero_shot", None)


def test_rows_of_a_run_may_carry_its_own_names() -> None:
    given = document(("finetune",))
    plain = Comparison.from_dict(given)
    for run in given["runs"]:
        for row in run["evaluations"]:
            row |= {"model": "finetune", "seed": run["seed"]}
    assert Comparison.from_dict(given) == plain
    given["runs"][1]["evaluations"][2]["seed"] = 9
    with pytest.raises(DataError, match=r"runs\.1\.evaluations\.2\.seed: 9 is not that of its run, 1"):
        Comparison.from_dict(given)


def _set(path: str, value: Any) -> Any:
    def change(given: Any) -> None:
        *parents, last = path.split(".")
        for key in parents:
            given = given[int(key) if key.isdigit() else key]
        given[int(last) if last.isdigit() else last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("version", 2), r"version: 1 was expected"),
        (_set("direction", "up"), r"direction: 'up' is not one of"),
        (_set("runs.3.val_ood", "high"), r"runs\.3\.val_ood: 'high' is not of type"),
        (_set("runs.0.train_seconds", math.nan), r"runs\.0\.train_seconds: nan is not a finite number"),
        (_set("runs.0.train_seconds", -1), r"runs\.0\.train_seconds: -1 is less than"),
        (_set("runs.0.method", "flip"), r"runs\.0\.method: 'flip' is not among the methods: finetune, autoft"),
        (_set("runs.1.seed", 0), r"runs\.1\.seed: finetune with seed 0 was recorded twice"),
        (_set("runs.1.error", "diverged"), r"runs\.1\.error: 'diverged', but the run has evaluations"),
        (_set("runs.1.peak_memory_kind", "disk"), r"runs\.1\.peak_memory_kind: 'disk' is not one of"),
        (_set("methods.1.name", "finetune"), r"methods\.1\.name: 'finetune' appears twice"),
        (lambda given: given["runs"][0]["evaluations"].append(given["runs"][0]["evaluations"][0]), r"runs\.0\.evaluations\.8: photo test_id accuracy was"),
        (_set("budget", {}), r"budget: 'evaluations' is a required property"),
    ],
)
def test_mistakes_name_their_field(change: Any, message: str) -> None:
    given = document(("finetune", "autoft"))
    change(given)
    with pytest.raises(DataError, match=message):
        Comparison.from_dict(given)
