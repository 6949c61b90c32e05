"""The second look at the best trials: fresh seeds, shared by all candidates, kept as they end, and the winner by their mean."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoft.config import StudyConfig, load_config
from autoft.confirm import Confirmation, Confirming, candidates, pooled_deviation, read_confirmation
from autoft.errors import ClusterError, Interrupted, TrialCodeError
from autoft.executor import Event, Failed, FailureKind, Job
from tests.studies import write_study
from tests.test_search import ScriptedExecutor, by_lr, finished, new_study, search


@pytest.fixture
def make_config(tmp_path: Path, tiny_vit: Path) -> Any:
    return lambda **changes: load_config(write_study(tmp_path, tiny_vit, **{"search__confirm": {"top": 3, "repeats": 2}, **changes}))


def searched(config: StudyConfig, folder: Path) -> Any:
    study = new_study(config.direction)
    search(config, study, ScriptedExecutor(by_lr), folder)
    return study


def noisy(job: Job, attempt: int) -> list[Event]:
    """The better the seed's last digit, the better the score: seeds decide, not configurations."""
    return [finished(job, (job.hyperparameters.seed % 10) / 10)]


def again(config: StudyConfig, study: Any, executor: Any, folder: Path, stop: Any = lambda: False) -> tuple[Confirmation, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    return Confirming(study, config, folder, "f").run(executor, events.append, stop), events


def test_the_best_k_run_again_with_seeds_of_their_own_that_all_candidates_share(make_config: Any, tmp_path: Path) -> None:
    config = make_config(search__n_trials=9)
    study = searched(config, tmp_path)
    executor = ScriptedExecutor(by_lr, 2)
    found, _ = again(config, study, executor, tmp_path)
    best = sorted(study.trials, key=lambda trial: -trial.value)[:3]
    assert [candidate.number for candidate in found.candidates] == [trial.number for trial in best]
    assert len(executor.submitted) == 6 and all(job.number < 0 and job.confirm_steps == config.trial.steps for job in executor.submitted)
    seeds = [job.hyperparameters.seed for job in executor.submitted]
    assert len(set(seeds)) == 2 and not set(seeds) & {trial.params["seed"] for trial in study.trials}
    rates = {job.hyperparameters.lr for job in executor.submitted}
    assert rates == {trial.params["lr"] for trial in best}


@pytest.mark.parametrize(("metric", "sign"), [("accuracy", 1), ("cross_entropy", -1)])
def test_the_winner_has_the_best_mean_and_its_margin_is_seen_against_the_seeds_noise(make_config: Any, tmp_path: Path, metric: str, sign: int) -> None:
    """Scores are chosen by hand: the third best of the search wins."""
    config = make_config(search__n_trials=6, metric=metric)
    study = searched(config, tmp_path)
    ranked = candidates(study, config)
    scores = {ranked[0].number: [0.2, 0.4], ranked[1].number: [0.5, 0.5], ranked[2].number: [0.9, 0.7]}
    if sign < 0:
        scores = {number: [-value for value in values] for number, values in scores.items()}
    given = {number: list(values) for number, values in scores.items()}
    by_rate = {candidate.hyperparameters.lr: candidate.number for candidate in ranked}

    def answer(job: Job, attempt: int) -> list[Event]:
        return [finished(job, given[by_rate[job.hyperparameters.lr]].pop(0))]

    found, _ = again(config, study, ScriptedExecutor(answer), tmp_path)
    summary = found.summary()
    assert found.winner.number == ranked[2].number and summary is not None
    assert summary["margin"] == pytest.approx(0.3)
    deviation = math.sqrt(statistics.mean([0.02, 0.0, 0.02]))
    assert summary["noise_sd"] == pytest.approx(deviation) and summary["margin_se"] == pytest.approx(deviation)  # two repeats: sqrt(2 / 2)
    assert summary["optimism"] == pytest.approx(sign * ranked[2].score - 0.8)
    assert json.dumps(summary, allow_nan=False)


def test_pooled_deviation_is_that_of_an_analysis_of_variance() -> None:
    groups = [[1.0, 2.0, 4.0], [3.0, 3.5], [7.0]]
    residuals = np.concatenate([np.array(group) - np.mean(group) for group in groups])
    assert pooled_deviation(groups) == pytest.approx(math.sqrt((residuals**2).sum() / (6 - 3)))
    assert pooled_deviation([[1.0], []]) is None


def test_without_repeats_the_best_trial_wins_and_nothing_runs(make_config: Any, tmp_path: Path) -> None:
    config = make_config(search__n_trials=5, search__confirm={"repeats": 0})
    study = searched(config, tmp_path)
    executor = ScriptedExecutor(by_lr)
    found, events = again(config, study, executor, tmp_path)
    assert found.winner.score == max(trial.value for trial in study.trials)
    assert not executor.submitted and not events and found.summary() is None


def test_what_has_ended_is_not_run_again_and_other_candidates_are(make_config: Any, tmp_path: Path) -> None:
    config = make_config(search__n_trials=6)
    study = searched(config, tmp_path)
    budget = [3]

    def answer(job: Job, attempt: int) -> list[Event]:
        budget[0] -= 1
        return noisy(job, attempt)

    with pytest.raises(Interrupted, match="3 of 6 confirmation runs"):
        again(config, study, ScriptedExecutor(answer), tmp_path, stop=lambda: budget[0] <= 0)
    assert read_confirmation(study, config, tmp_path, "f") is None
    executor = ScriptedExecutor(noisy)
    first, _ = again(config, study, executor, tmp_path)
    assert len(executor.submitted) == 3
    undisturbed, _ = again(config, study, ScriptedExecutor(noisy), tmp_path / "other") if (tmp_path / "other").mkdir() is None else (first, [])
    assert first.summary() == undisturbed.summary()
    known = read_confirmation(study, config, tmp_path, "f")
    assert known is not None and known.summary() == first.summary()
    assert read_confirmation(study, config, tmp_path, "other inputs") is None
    wider = make_config(search__n_trials=6, search__confirm={"top": 4, "repeats": 2})
    executor = ScriptedExecutor(noisy)
    again(wider, study, executor, tmp_path)
    assert len(executor.submitted) == 2


def test_a_longer_confirmation_runs_that_many_steps_and_shorter_ones_do_not_count_for_it(make_config: Any, tmp_path: Path) -> None:
    config = make_config(search__n_trials=4, search__confirm={"top": 1, "repeats": 1})
    study = searched(config, tmp_path)
    again(config, study, ScriptedExecutor(noisy), tmp_path)
    longer = make_config(search__n_trials=4, search__confirm={"top": 1, "repeats": 1, "steps": 32})
    executor = ScriptedExecutor(noisy)
    again(longer, study, executor, tmp_path)
    assert [job.confirm_steps for job in executor.submitted] == [32]


def test_a_candidate_that_diverges_with_a_fresh_seed_cannot_win(make_config: Any, tmp_path: Path) -> None:
    config = make_config(search__n_trials=6)
    study = searched(config, tmp_path)
    best = candidates(study, config)[0]

    def answer(job: Job, attempt: int) -> list[Event]:
        if job.hyperparameters.lr == best.hyperparameters.lr:
            return [Failed(job.number, FailureKind.DIVERGED, "not finite", "w", 10, 1.0)]
        return by_lr(job, attempt)

    found, _ = again(config, study, ScriptedExecutor(answer), tmp_path)
    summary = found.summary()
    assert found.winner.number != best.number and summary is not None
    assert next(row for row in summary["candidates"] if row["number"] == best.number)["mean"] is None


def test_a_lost_run_runs_again_and_other_failures_end_the_run(make_config: Any, tmp_path: Path) -> None:
    config = make_config(search__n_trials=4, search__confirm={"top": 1, "repeats": 1})
    study = searched(config, tmp_path)

    def lost_once(job: Job, attempt: int) -> list[Event]:
        return [Failed(job.number, FailureKind.INFRASTRUCTURE, "worker lost", "w")] if attempt == 1 else by_lr(job, attempt)

    executor = ScriptedExecutor(lost_once)
    again(config, study, executor, tmp_path)
    assert len(executor.submitted) == 2
    for kind, error in ((FailureKind.CODE, TrialCodeError), (FailureKind.OUT_OF_MEMORY, ClusterError)):
        (tmp_path / "confirmation.json").unlink(missing_ok=True)
        failing = ScriptedExecutor(lambda job, attempt, kind=kind: [Failed(job.number, kind, "boom", "w")])  # type: ignore[misc]
        with pytest.raises(error, match="boom"):
            again(config, study, failing, tmp_path)
