"""What the trials of a study must look like, whatever happened to it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from optuna.trial import FrozenTrial, TrialState

from autoft.config import load_config
from autoft.search_space import sample_hyperparameters
from autoft.trial import run_trial, trial_splits
from autoft.workspace import Workspace, configure_torch
from storage import load_study_readonly, parse_storage_url
from tests.chaos.database import Database
from tests.chaos.diary import Diary

TOLERANCE = 1e-6


def trials_of(database: Database, study: str) -> list[FrozenTrial]:
    """The trials of a study, by number."""
    return list(load_study_readonly(parse_storage_url(database.socket_url(), "chaos"), study).get_trials(deepcopy=False))


def outcome(trials: list[FrozenTrial]) -> list[tuple[int, str, dict[str, Any], float | None]]:
    """What must not depend on who ran a study and what died meanwhile."""
    return [(trial.number, trial.state.name, trial.params, trial.value) for trial in trials]


def check_trials(diary: Diary, trials: list[FrozenTrial], wanted: int, journal: Path | None) -> None:
    """The promises that hold for every sampler and pruner."""
    states = Counter(trial.state.name for trial in trials)
    finished = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    diary.figures["states"] = dict(states)
    diary.check(f"exactly {wanted} trials are finished", len(finished) == wanted, dict(states))
    diary.check("none is left RUNNING or WAITING", not states["RUNNING"] + states["WAITING"], dict(states))
    diary.check("numbers are 0, 1, 2, ... without a gap", [trial.number for trial in trials] == list(range(len(trials))))
    doubles = [count for count in Counter(json.dumps(trial.params, sort_keys=True) for trial in trials).values() if count > 1]
    diary.check("no parameters occur twice", not doubles, {"trials with parameters of another": sum(doubles)})
    unnamed = [trial.number for trial in failed if "failure_kind" not in trial.user_attrs]
    diary.check("every failed trial has its failure_kind", not unnamed, unnamed or {"failed": len(failed)})
    if journal is None:
        return
    lines = Counter(json.loads(line)["number"] for line in journal.read_text().splitlines())
    wrong = {number: lines[number] for trial in trials if lines[number := trial.number] != 1}
    diary.check("the journal has each trial's end once", not wrong and len(lines) == len(trials), wrong)


def check_same(diary: Diary, trials: list[FrozenTrial], reference: list[FrozenTrial]) -> None:
    """With the random sampler: the very same trials as a run nothing happened to."""
    different = [one[0] for one, other in zip(outcome(trials), outcome(reference), strict=False) if one != other]
    same = len(trials) == len(reference) and not different
    diary.check("number, state, parameters and score of every trial equal the undisturbed run's", same, {"different": different, "compared": len(reference)})


def check_reproduced(diary: Diary, trials: list[FrozenTrial], study_file: Path, cache: Path) -> None:
    """With any sampler: every complete score comes out again when the stored parameters are run alone."""
    config = load_config(study_file)
    configure_torch(1)
    workspace = Workspace.load(config, "cpu", cache, trial_splits(config))
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    worst, wrong = 0.0, []
    for trial in complete:
        run = run_trial(workspace, sample_hyperparameters(trial, config.search_space))
        try:
            while True:
                next(run)
        except StopIteration as end:
            assert trial.value is not None
            distance = abs(end.value.score - trial.value)
            worst = max(worst, distance)
            if not distance <= TOLERANCE:
                wrong.append(trial.number)
    torch.set_flush_denormal(False)
    diary.figures |= {"scores_reproduced": len(complete) - len(wrong), "largest_difference": worst}
    diary.check(f"every complete score is reproduced alone to {TOLERANCE:g}", bool(complete) and not wrong, {"wrong": wrong, "complete": len(complete), "largest difference": worst})
