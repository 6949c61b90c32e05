"""What a person is told who gets a method, a knob or a hyperparameters file wrong: one line, the field, the value, what would be valid."""

import json
from pathlib import Path
from typing import Any

import pytest

from autoft.cli.main import main
from tests.studies import write_study

GOOD = {"lr": 1e-3, "weight_decay": 0.1, "loss_weights": {"cross_entropy": 1.0}}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_vit: Path) -> Path:
    return write_study(tmp_path_factory.mktemp("messages"), tiny_vit)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({**GOOD, "strenght": 1}, "unknown field strenght; did you mean strength?"),
        ({**GOOD, "constraint": "fpt"}, "constraint = 'fpt': input should be 'none', 'ftp', 'tpgm', 'spd' or 'saft'"),
        ({**GOOD, "lr": float("nan")}, "lr = nan: input should be a finite number"),
        ({**GOOD, "loss_weights": {"cross_entropi": 1}}, "loss_weights.cross_entropi: there is no such term; did you mean cross_entropy?"),
        ({**GOOD, "loss_weights": {"ldifs": -1}}, "loss_weights.ldifs = -1: input should be greater than or equal to 0"),
        ({**GOOD, "constraint": "saft", "optimizer": "sgd"}, "optimizer sgd and constraint saft cannot go together"),
        ({"weight_decay": 0.1, "loss_weights": {"cross_entropy": 1.0}}, "lr is missing"),
        ([1], "must be a JSON object with lr, weight_decay, loss_weights"),
        ({"search": {}}, "is a summary without hyperparameters of a best trial or of a final fine-tune"),
    ],
)
def test_a_wrong_hyperparameters_file(document: Any, message: str, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "hp.json"
    file.write_text(json.dumps(document))
    assert main(["finetune", str(study), "--hyperparameters", str(file)]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and "Traceback" not in said


def test_the_summary_of_a_finetune_is_read(tmp_path: Path) -> None:
    from autoft.cli.finetune import _named_or_read

    file = tmp_path / "summary.json"
    file.write_text(json.dumps({"final": {"hyperparameters": {**GOOD, "seed": 3, "constraint": "ftp"}}}))
    name, hp = _named_or_read(str(file))
    assert name == "summary" and hp is not None and (hp.seed, hp.constraint, hp.lr) == (3, "ftp", 1e-3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--methods", ""], "--methods: there is no method ''; they are zero_shot"),
        (["--methods", "saft,fpt"], "--methods: there is no method 'fpt'"),
        (["--set", "final.lr=base"], "final.lr = 'base': a comparison trains every method at the learning rate it was tuned to"),
    ],
)
def test_a_comparison_that_cannot_be(flags: list[str], message: str, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(study), "--executor", "in-process", *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search_space.fixed.strenght=1", "search_space.fixed.strenght: no such hyperparameter"),
        ("search_space.fixed.density=0", "search_space.fixed.density: 0 is not above 0 and at most 1"),
        ("search_space.knobs={use/ldifs: {choices: [1, 2]}}", "search_space.knobs.use/ldifs needs choices out of false and true"),
        ("search_space.knobs={loss_weight/ldifs: {low: -1, high: 1}}", "search_space.knobs.loss_weight/ldifs: a loss weight is a number of at least 0"),
        ("search_space.knobs={lr: {low: 1.0e-3, high: 1.0}}", "search_space.knobs.lr is searched already"),
        ("search_space.knobs={loss_weight/hinge: {low: 1, high: 2}}", "search_space.knobs.loss_weight/hinge is searched already"),
        (
            "search_space={base_lr: 0.001, fixed: {constraint: saft}, knobs: {optimizer: {choices: [adamw, sgd]}}}",
            "optimizer sgd and constraint saft cannot go together",
        ),
        ("search.enqueue=[drm]", "search.enqueue asks for the drm term, which needs data.descriptions"),
    ],
)
def test_a_search_space_that_cannot_be(override: str, message: str, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(study), "--set", override]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


def test_a_plan_shows_knobs_and_their_conditions(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(study), "--set", "search_space.preset=extended", "--json"]) == 0
    prior = json.loads(capsys.readouterr().out)["search_space"]
    assert prior["density"] == "log-uniform [0.001, 1], where constraint is saft" and prior["constraint"] == "one of none, ftp, spd, saft"
