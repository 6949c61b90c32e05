"""Configurations a study tries first: they run exactly as named, are never pruned, and a search is never worse than they are."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from autoft.config import METHOD_NAMES, SEARCHED_TERMS, SearchSpaceConfig, StudyConfig, load_config
from autoft.confirm import candidates
from autoft.enqueue import best_of_study, configuration_name, enqueue, ran_with
from autoft.errors import ConfigError
from autoft.executor import Event, Job, Reported
from autoft.losses import LOSS_TERMS, TERMS
from autoft.methods import L2SP_STRENGTH, METHODS, Setting, method_hyperparameters
from autoft.samplers import SeededSampler
from autoft.search_space import nearest_parameters, sample_hyperparameters
from autoft.trial import Report, report_steps
from tests.studies import write_study
from tests.test_search import ScriptedExecutor, by_lr, finished, new_study, search

SPACE = SearchSpaceConfig(base_lr=1e-4, base_weight_decay=0.2)
SETTING = Setting(SPACE, entries=1000, seed=7)


@pytest.fixture
def make_config(tmp_path_factory: pytest.TempPathFactory, tiny_vit: Path) -> Any:
    return lambda **changes: load_config(write_study(tmp_path_factory.mktemp("study"), tiny_vit, **changes))


def named(config: StudyConfig) -> dict[str, Any]:
    return {name: method_hyperparameters(name, Setting(config.search_space, 1000, 0)) for name in config.search.enqueue}


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_every_method_weighs_known_terms_and_says_where_it_is_from(name: Any) -> None:
    hp = method_hyperparameters(name, SETTING)
    assert set(hp.loss_weights) <= set(TERMS) and METHODS[name].source
    if name.startswith("published/"):
        assert set(hp.loss_weights) == set(LOSS_TERMS) and hp.loss_weights["cross_entropy"] == 1.0
    else:
        assert (hp.lr, hp.seed) == (1e-4, 7) and hp.weight_decay in (0.2, 0.0)


def test_published_configurations_are_those_of_the_authors_release() -> None:
    """Three values each, as printed in specs of the release: autoft/hparams/*.json of github.com/cchoi1/auto-ft."""
    found = {name: method_hyperparameters(name, SETTING) for name in METHOD_NAMES if name.startswith("published/")}  # type: ignore[misc]
    values = {n: (hp.lr, hp.loss_weights["contrastive"], hp.weight_decay, hp.seed) for n, hp in found.items()}
    assert values == {
        "published/iwildcam": (1.36245e-4, 1.905656, 0.60421, 34),
        "published/fmow": (2.51972e-5, 2.95290e-3, 0.44416, 32),
        "published/imagenet": (3.02525e-6, 0.662976, 0.20938, 2),
    }


def test_l2sp_is_one_hundredth_of_the_summed_squared_distance() -> None:
    """Our l2_init averages over the weights, so its weight times the average is the strength times the sum."""
    weight = method_hyperparameters("l2sp", SETTING).loss_weights["l2_init"]
    distance = [0.5] * 1000
    assert weight * sum(d * d for d in distance) / 1000 == pytest.approx(L2SP_STRENGTH * sum(d * d for d in distance))


@pytest.mark.parametrize("name", METHOD_NAMES)
@pytest.mark.parametrize("preset", ["paper", "official", "contrastive_reference"])
def test_an_enqueued_trial_runs_with_exactly_the_methods_hyperparameters_and_the_sampler_sees_a_point_of_the_space(name: Any, preset: Any) -> None:
    space = SearchSpaceConfig(base_lr=1e-4, preset=preset)
    hp = method_hyperparameters(name, SETTING)
    study = optuna.create_study()
    enqueue(study, space, {name: hp}, limit=5)
    trial = study.ask()
    assert sample_hyperparameters(trial, space) == hp
    study.tell(trial, 1.0)
    frozen = study.trials[0]
    assert sample_hyperparameters(frozen, space) == hp and configuration_name(frozen) == name
    assert all(distribution._contains(distribution.to_internal_repr(frozen.params[n])) for n, distribution in frozen.distributions.items())
    assert frozen.params == pytest.approx(nearest_parameters(hp, space))
    shown = ran_with(frozen)
    weights = {term: shown[f"loss_weight/{term}"] for term in hp.loss_weights}
    assert weights == hp.loss_weights and len(shown) == 3 + len(weights) and (shown["lr"], shown["seed"]) == (hp.lr, hp.seed)


def test_parameters_inside_the_space_are_kept_and_others_go_to_its_edge() -> None:
    inside = nearest_parameters(method_hyperparameters("published/imagenet", SETTING), SPACE)
    assert inside["loss_weight/hinge"] == 0.072455 and inside["lr"] == 3.02525e-6 and inside["seed"] == 2
    fmow = nearest_parameters(method_hyperparameters("published/fmow", SETTING), SPACE)
    assert fmow["loss_weight/l1_zero"] == 1e-4  # 2.6e-5 was published, below the released prior
    plain = nearest_parameters(method_hyperparameters("finetune", SETTING), SPACE)
    assert {plain[f"loss_weight/{term}"] for term in SEARCHED_TERMS if term != "cross_entropy"} == {1e-4}


def test_enqueued_configurations_come_first_and_once_however_often_the_study_is_resumed(make_config: Any, tmp_path: Path) -> None:
    config = make_config(search__enqueue=["finetune", "published/fmow"], search__n_trials=5)
    study = new_study()
    for _ in range(2):
        enqueue(study, config.search_space, named(config), config.search.n_trials)
    search(config, study, ScriptedExecutor(by_lr, 2), tmp_path)
    enqueue(study, config.search_space, named(config), config.search.n_trials)
    assert [configuration_name(trial) for trial in study.trials] == ["finetune", "published/fmow", None, None, None]
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


def test_no_more_is_enqueued_than_the_study_has_trials(make_config: Any, tmp_path: Path) -> None:
    config = make_config(search__enqueue=["finetune", "flyp", "l2sp"], search__n_trials=2)
    study = new_study()
    enqueue(study, config.search_space, named(config), config.search.n_trials)
    search(config, study, ScriptedExecutor(by_lr), tmp_path)
    assert [configuration_name(trial) for trial in study.trials] == ["finetune", "flyp"]
    raised = make_config(search__enqueue=["finetune", "flyp", "l2sp"], search__n_trials=4)
    enqueue(study, raised.search_space, named(raised), 4)
    search(raised, study, ScriptedExecutor(by_lr), tmp_path)
    assert [configuration_name(trial) for trial in study.trials] == ["finetune", "flyp", "l2sp", None]


def test_drawn_trials_do_not_change_with_what_is_enqueued_before_them(make_config: Any, tmp_path: Path) -> None:
    """Trial n's draw is a function of the seed and n."""
    tables = []
    for i, names in enumerate(([], ["finetune"])):
        config = make_config(search__enqueue=names, search__n_trials=4)
        study = new_study()
        enqueue(study, config.search_space, named(config), 4)
        search(config, study, ScriptedExecutor(by_lr), tmp_path / str(i))
        tables.append([trial.params for trial in study.trials[1:]])
    assert tables[0] == tables[1]


def test_a_study_is_never_worse_than_its_enqueued_baselines_because_they_are_never_pruned(make_config: Any, tmp_path: Path) -> None:
    """A baseline with hopeless reports and the best end: any pruner would stop it."""
    config = make_config(search__enqueue=["finetune"], search__n_trials=12, search__pruner="median", trial__reports=2)

    class OneAtATime(ScriptedExecutor):
        """A report is there before the next one, as from a worker."""

        def poll(self, timeout_seconds: float) -> list[Event]:
            self.waiting = getattr(self, "waiting", []) or super().poll(timeout_seconds)
            return [self.waiting.pop(0)] if self.waiting else []

    study = new_study()
    executor = OneAtATime(by_lr)
    plain = named(config)["finetune"]

    def answer(job: Job, attempt: int) -> list[Event]:
        steps, score = report_steps(config), -float(job.number)
        if job.hyperparameters == plain:
            return [Reported(job.number, Report(steps[0], -1e6)), Reported(job.number, Report(steps[1], 100.0)), finished(job, 100.0)]
        return [Reported(job.number, Report(steps[0], score)), Reported(job.number, Report(steps[1], score)), finished(job, score)]

    executor.answer = answer
    search(make_config(search__n_trials=11, search__pruner="median", trial__reports=2), study, executor, tmp_path)
    enqueue(study, config.search_space, named(config), 12)
    search(config, study, executor, tmp_path)
    assert executor.pruned and 11 not in executor.pruned
    assert study.trials[11].state == TrialState.COMPLETE and candidates(study, config)[0].name == "finetune"


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "qmc"])
def test_every_sampler_takes_enqueued_trials_repeats_itself_and_draws_within_the_space(sampler: str, make_config: Any, tmp_path: Path) -> None:
    config = make_config(search__sampler=sampler, search__enqueue=["finetune", "flyp"], search__n_trials=14)
    tables = []
    for run in range(2):
        study = new_study()
        enqueue(study, config.search_space, named(config), 14)
        search(config, study, ScriptedExecutor(by_lr), tmp_path / str(run))
        tables.append([trial.params for trial in study.trials])
        assert isinstance(study.sampler, SeededSampler)
    assert tables[0] == tables[1]
    assert len({json.dumps(params) for params in tables[0]}) == 14
    assert all(1e-5 <= params["lr"] <= 1e-1 for params in tables[0])


def test_qmc_points_cover_the_space_more_evenly_than_independent_draws(make_config: Any, tmp_path: Path) -> None:
    """16 Sobol points hit every sixteenth of each axis once (up to the first trial, which Optuna draws independently)."""
    config = make_config(search__sampler="qmc", search__n_trials=17)
    study = new_study()
    search(config, study, ScriptedExecutor(by_lr), tmp_path)
    decays = [trial.params["weight_decay"] for trial in study.trials[1:]]
    assert len({int(16 * decay) for decay in decays}) == 16


def finish_study(config: StudyConfig, folder: Path) -> optuna.Study:
    study = new_study()
    enqueue(study, config.search_space, named(config), config.search.n_trials)
    search(config, study, ScriptedExecutor(by_lr), folder)
    return study


def test_an_earlier_studys_best_trials_come_with_their_rate_relative_to_the_base_rate(make_config: Any, tmp_path: Path) -> None:
    earlier = make_config(search__n_trials=8, search__enqueue=["finetune"])
    study = finish_study(earlier, tmp_path)
    config = make_config(search__warm_start_from=["old"], search__warm_start_trials=3, search_space__base_lr=1e-5)
    found = best_of_study("old", study, earlier.search_space, config)
    drawn = sorted((trial for trial in study.trials if configuration_name(trial) is None), key=lambda trial: -(trial.value or 0))[:3]
    assert list(found) == [f"old #{trial.number}" for trial in drawn]
    for trial, hp in zip(drawn, found.values(), strict=True):
        assert hp.lr / 1e-5 == pytest.approx(trial.params["lr"] / 1e-3)
        assert hp.loss_weights == sample_hyperparameters(trial, earlier.search_space).loss_weights


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"search_space__terms": ["hinge"]}, ["searched_terms", "hinge"]),
        ({"search_space__preset": "contrastive_reference"}, ["reference", "contrastive", "cross_entropy"]),
    ],
)
def test_an_earlier_study_with_another_space_is_refused(changes: dict[str, Any], words: list[str], make_config: Any, tmp_path: Path) -> None:
    earlier = make_config(search__n_trials=3)
    study = finish_study(earlier, tmp_path)
    with pytest.raises(ConfigError) as caught:
        best_of_study("old", study, earlier.search_space, make_config(**changes))
    assert all(word in str(caught.value) for word in ["search.warm_start_from: old", *words])


def test_an_earlier_study_without_a_trial_of_its_own_is_refused(make_config: Any, tmp_path: Path) -> None:
    earlier = make_config(search__n_trials=1, search__enqueue=["finetune"])
    study = finish_study(earlier, tmp_path)
    with pytest.raises(ConfigError, match="old has no complete trial"):
        best_of_study("old", study, earlier.search_space, make_config())


