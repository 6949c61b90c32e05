"""Knobs of a search space: drawn where their condition holds, replayed, enqueued, refused where they are not possible."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from autoft.config import METHOD_NAMES, Knob, SearchSpaceConfig, load_config
from autoft.enqueue import enqueue
from autoft.errors import ConfigError
from autoft.finetune import finetune, training_state, trial_recipe
from autoft.methods import METHODS, Setting, method_hyperparameters
from autoft.models import read_state
from autoft.models.delta import load_delta
from autoft.models.state import copy_state
from autoft.report.trials import read_trials
from autoft.search_space import Hyperparameters, sample_hyperparameters
from autoft.trial import run_trial
from autoft.workspace import Workspace
from tests.runs import load_workspace, one_thread, stages
from tests.studies import write_study
from tests.test_pipeline import Place, run

EXTENDED = SearchSpaceConfig(preset="extended", base_lr=1e-3)
SETTING = Setting(SearchSpaceConfig(base_lr=1e-3), entries=1000, seed=3)


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    with one_thread():
        yield


def draws(space: SearchSpaceConfig, count: int) -> list[optuna.trial.FrozenTrial]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(count):
        trial = study.ask()
        sample_hyperparameters(trial, space)
        study.tell(trial, 0.0)
    return study.trials


def test_a_conditional_knob_is_drawn_exactly_where_its_condition_holds() -> None:
    trials = draws(EXTENDED, 60)
    seen = set()
    for trial in trials:
        constraint = trial.params["constraint"]
        seen.add(constraint)
        assert ("strength/ftp" in trial.params) == (constraint == "ftp") and ("strength/spd" in trial.params) == (constraint == "spd")
        assert ("density" in trial.params) == (constraint == "saft")
        for term in ("ldifs", "car_ft", "lipsum", "feature_mixup", "focal_contrastive"):
            assert (f"loss_weight/{term}" in trial.params) == trial.params[f"use/{term}"]
    assert seen == {"none", "ftp", "spd", "saft"}


def test_what_was_drawn_is_what_runs_and_a_finished_trial_replays_it() -> None:
    for trial in draws(EXTENDED, 20):
        hp = sample_hyperparameters(trial, EXTENDED)
        assert (hp.constraint, hp.alpha, hp.momentum, hp.schedule) == tuple(trial.params[k] for k in ("constraint", "alpha", "momentum", "schedule"))
        assert ("ldifs" in hp.loss_weights) == trial.params["use/ldifs"]
        if hp.constraint in ("ftp", "spd"):
            assert hp.strength == trial.params[f"strength/{hp.constraint}"]
        assert Hyperparameters.from_dict(hp.to_dict()) == hp


def test_a_space_without_knobs_gives_hyperparameters_as_before() -> None:
    """Digests of earlier studies stay: nothing new is in the dictionary of a configuration that uses nothing new."""
    hp = sample_hyperparameters(draws(SearchSpaceConfig(base_lr=1e-3), 1)[0], SearchSpaceConfig(base_lr=1e-3))
    assert set(hp.to_dict()) == {"lr", "weight_decay", "loss_weights", "seed"}


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_a_method_enqueued_in_the_extended_space_runs_as_it_is(name: Any) -> None:
    study = optuna.create_study()
    hp = method_hyperparameters(name, SETTING)
    enqueue(study, EXTENDED, {name: hp}, limit=1)
    trial = study.ask()
    assert sample_hyperparameters(trial, EXTENDED) == hp
    study.tell(trial, 0.0)
    params = study.trials[0].params
    assert params["use/ldifs"] == ("ldifs" in hp.loss_weights)
    assert params["constraint"] == (hp.constraint if hp.constraint != "tpgm" else "none")


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"densty": Knob(low=0.1, high=1)}, "knobs.densty: no such knob"),
        ({"density": Knob(low=0.1, high=2)}, "knobs.density: 2.0 is not above 0 and at most 1"),
        ({"constraint": Knob(choices=("ftp", "fpt"))}, "knobs.constraint needs choices out of none, ftp, tpgm, spd, saft; got 'fpt'"),
        ({"loss_weight/lpsum": Knob(low=0.1, high=1)}, "no loss term 'lpsum'"),
        ({"density": Knob(low=0.1, high=1, when={"constraint": "saft"})}, "is never so"),
        ({"constraint": Knob(choices=("ftp",)), "density": Knob(low=0.1, high=1, when={"constraint": "saft"})}, "is never so"),
    ],
)
def test_impossible_knobs_are_refused_by_name(knobs: dict[str, Knob], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchSpaceConfig(base_lr=1e-3, knobs=knobs)


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"densty": 0.1}, "fixed.densty: no such hyperparameter"),
        ({"density": 2}, "fixed.density: 2 is not above 0 and at most 1"),
        ({"density": "much"}, "fixed.density: 'much' is not above 0"),
        ({"constraint": "fpt"}, "fixed.constraint must be one of none, ftp, tpgm, spd, saft; got 'fpt'"),
        ({"mask_batches": 2.5}, "fixed.mask_batches needs choices, whole numbers"),
        ({"loss_weights": {"ldif": 1.0}}, "fixed.loss_weights.ldif: there is no loss term"),
        ({"loss_weights": {"ldifs": -1.0}}, "fixed.loss_weights.ldifs: -1.0 is not a number of at least 0"),
    ],
)
def test_impossible_fixed_values_are_refused_by_name(fixed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchSpaceConfig(base_lr=1e-3, fixed=fixed)


def test_whole_numbers_stay_whole() -> None:
    space = SearchSpaceConfig(base_lr=1e-3, fixed={"constraint": "saft", "mask_batches": 3}, knobs={"mask_batches": {"choices": [2, 4]}})
    hp = sample_hyperparameters(draws(space, 1)[0], space)
    assert hp.mask_batches in (2, 4) and isinstance(hp.mask_batches, int)


@pytest.mark.parametrize("values", [{"low": 1.0, "high": 0.5}, {"low": 0.0, "high": 1.0, "log": True}, {"low": 0.0, "choices": ("a",)}, {}])
def test_a_knob_is_a_range_or_choices(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="knob"):
        Knob(**values)


def test_a_study_file_with_a_wrong_knob_is_refused(tmp_path: Path, tiny_vit: Path) -> None:
    with pytest.raises(ConfigError, match=r"search_space.*knobs\.strenght"):
        load_config(write_study(tmp_path, tiny_vit, search_space__knobs={"strenght": {"low": 0, "high": 1}}))


@pytest.fixture(scope="module", params=["tiny_vit", "tiny_convnet"])
def workspace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return load_workspace(tmp_path_factory.mktemp(request.param), request.getfixturevalue(request.param), final__batch_size=12)


RUN = [name for name in METHOD_NAMES if name != "drm" and not name.startswith("published/")]


@pytest.mark.parametrize("name", RUN)
def test_every_method_runs_as_a_trial_and_twice_gives_the_same(name: Any, workspace: Workspace) -> None:
    hp = method_hyperparameters(name, Setting(workspace.config.search_space, 1000, 3))
    scores = []
    for _ in range(2):
        trial = run_trial(workspace, hp)
        while True:
            try:
                next(trial)
            except StopIteration as end:
                scores.append(end.value)
                break
    assert scores[0].score == scores[1].score and 0 <= scores[0].score <= 1
    assert scores[0].steps == (0 if METHODS[name].tunes_lr is False else workspace.config.trial.steps)


VARIED: tuple[dict[str, Any], ...] = ({"averaging": "beta"}, {"optimizer": "sgd", "momentum": 0.5}, {"layer_decay": 0.7, "schedule": "linear"})
RESUMED = [(name, {}) for name in RUN if name != "linear_probe"]
RESUMED += [(name, changes) for name in ("finetune", "ftp", "spd", "tpgm") for changes in VARIED] + [("saft", VARIED[0]), ("saft", VARIED[2])]
RESUMED += [("saft", {"mask_reduction": "sum_of_abs", "mask_batches": 2}), ("ftp", {"mu_reference_lr": None, "strength": 0.3})]


@pytest.mark.parametrize(("name", "changes"), RESUMED)
def test_resumed_is_uninterrupted(name: Any, changes: dict[str, Any], workspace: Workspace) -> None:
    """The weights, and what is averaged, after six steps are the same to the bit with a stop after the third."""
    hp = replace(method_hyperparameters(name, Setting(workspace.config.search_space, 1000, 3)), **changes)
    recipe = replace(trial_recipe(workspace.config.trial, hp, len(workspace.train)), steps=6)
    stored: dict[str, Any] = {}
    for step in finetune(workspace, recipe):
        if step.number == 3:
            stored = copy.deepcopy(training_state(workspace, step))
    expected = {key: tensor.clone() for key, tensor in workspace.model.state_dict().items()}
    average = None if step.average is None else {key: tensor.clone() for key, tensor in step.average.items()}
    copy_state(workspace.model, workspace.zero_shot.tensors)
    *_, step = finetune(workspace, recipe, resume=stored)
    found = workspace.model.state_dict()
    assert all(found[key].equal(tensor) for key, tensor in expected.items())
    assert (average is None) == (step.average is None)
    assert average is None or all(step.average[key].equal(tensor) for key, tensor in average.items())  # type: ignore[index]


def test_an_extended_study_runs_from_the_search_to_the_report(tmp_path: Path, tiny_vit: Path) -> None:
    place = Place(tmp_path, tiny_vit)
    inputs = place.inputs(search_space={"preset": "extended", "base_lr": 1e-3}, search__n_trials=5, search__enqueue=["finetune", "ftp"])
    found = run(place, inputs, report=True)
    best = found.summary["search"]["best_trial"]["hyperparameters"]
    assert Hyperparameters.from_dict(best).loss_weights["cross_entropy"] == 1.0
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    trials = read_trials(tmp_path / "run" / "trials.csv")
    assert len(trials) == 5


def test_saft_with_another_optimizer_is_refused(workspace: Workspace) -> None:
    hp = replace(method_hyperparameters("saft", SETTING), optimizer="sgd")
    with pytest.raises(ConfigError, match="optimizer = 'sgd' is not possible with constraint saft"):
        next(finetune(workspace, trial_recipe(workspace.config.trial, hp, len(workspace.train))))


def test_a_saft_checkpoint_has_a_delta_that_restores_it_and_is_small(tmp_path: Path, tiny_vit: Path) -> None:
    config = load_config(write_study(tmp_path, tiny_vit))
    hp = replace(method_hyperparameters("saft", Setting(config.search_space, 1000, 3)), density=0.01)
    stages(config, tmp_path, hp)
    folder = tmp_path / "run" / "checkpoints" / "final"
    zero_shot = load_workspace(tmp_path, tiny_vit).zero_shot.tensors
    restored, saved = load_delta(folder / "delta.safetensors", zero_shot), read_state(folder, torch.device("cpu"))
    assert all(restored[name].equal(tensor) for name, tensor in saved.items())
    changed = sum(int((saved[name] != tensor).sum()) for name, tensor in zero_shot.items())
    trained = sum(tensor.numel() for name, tensor in zero_shot.items() if name.startswith(("clip.visual.", "head.")))
    assert 0 < changed <= 0.01 * trained
    assert (folder / "delta.safetensors").stat().st_size < 0.25 * (folder / "open_clip_model.safetensors").stat().st_size
