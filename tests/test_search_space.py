"""The search space: published ranges, and replay through the function that samples."""

import math

import optuna
import pytest

from autoft.config import SEARCHED_TERMS, SearchSpaceConfig
from autoft.losses import LOSS_TERMS
from autoft.search_space import Hyperparameters, sample_hyperparameters

SPACE = SearchSpaceConfig(base_lr=1e-4)


def study_of(n: int, space: SearchSpaceConfig = SPACE) -> tuple[optuna.Study, list[Hyperparameters]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = []
    for number in range(n):
        trial = study.ask()
        drawn.append(sample_hyperparameters(trial, space))
        study.tell(trial, float(number))
    return study, drawn


def test_the_paper_space_has_the_published_ranges() -> None:
    """Cho et al. 2024 as released: weights log-uniform [1e-4, 10], lr within a factor 100, weight decay [0, 1], seed 0..100."""
    study, _ = study_of(1)
    found = study.trials[0].distributions
    assert len(found) == 11
    assert (found["lr"].low, found["lr"].high, found["lr"].log) == (pytest.approx(1e-6), pytest.approx(1e-2), True)
    assert (found["weight_decay"].low, found["weight_decay"].high, found["weight_decay"].log) == (0.0, 1.0, False)
    assert (found["seed"].low, found["seed"].high) == (0, 100)
    for term in set(SEARCHED_TERMS) - {"cross_entropy"}:
        weight = found[f"loss_weight/{term}"]
        assert (weight.low, weight.high, weight.log) == (1e-4, 10.0, True)


def test_every_searched_term_has_a_loss_and_every_loss_is_searched_or_the_reference() -> None:
    assert {*SEARCHED_TERMS, "cross_entropy"} == set(LOSS_TERMS)


def test_draws_cover_the_range_evenly_in_log_space() -> None:
    _, drawn = study_of(400)
    logs = [math.log10(hp.loss_weights["hinge"]) for hp in drawn]
    assert -4 <= min(logs) < -3.8
    assert 0.8 < max(logs) <= 1
    assert abs(sum(log < -1.5 for log in logs) / 400 - 0.5) < 0.1


def test_defect_3_the_reference_weight_is_one_and_is_no_parameter() -> None:
    study, drawn = study_of(3)
    assert all(hp.loss_weights["cross_entropy"] == 1.0 for hp in drawn)
    assert not any("cross_entropy" in name for name in study.trials[0].params)


def test_a_finished_trial_replays_exactly_what_it_ran_with() -> None:
    study, drawn = study_of(20)
    for trial, hyperparameters in zip(study.trials, drawn, strict=True):
        assert sample_hyperparameters(trial, SPACE) == hyperparameters
        assert sample_hyperparameters(trial, SPACE).digest() == hyperparameters.digest()


def test_a_subset_of_terms_leaves_the_others_out() -> None:
    space = SearchSpaceConfig(base_lr=1e-4, terms=("hinge",))
    _, drawn = study_of(1, space)
    assert set(drawn[0].loss_weights) == {"cross_entropy", "hinge"}


def test_the_digest_sees_the_last_bit_and_survives_json() -> None:
    hp = Hyperparameters(lr=0.1, weight_decay=0.2, loss_weights={"cross_entropy": 1.0}, seed=1)
    near = Hyperparameters(lr=math.nextafter(0.1, 1), weight_decay=0.2, loss_weights={"cross_entropy": 1.0}, seed=1)
    assert hp.digest() != near.digest()
    assert Hyperparameters.from_dict(hp.to_dict()).digest() == hp.digest()
