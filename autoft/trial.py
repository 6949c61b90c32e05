"""One trial: a short fine-tune from the zero-shot weights, scored on VAL_OOD."""

import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass

from torch import Tensor

from autoft.config import StudyConfig
from autoft.evaluate import NonFiniteScore
from autoft.finetune import Diverged, check_finite, finetune, trial_recipe
from autoft.search_space import Hyperparameters
from autoft.workspace import Workspace


@dataclass(frozen=True)
class Report:
    """An intermediate score on VAL_OOD, in the study's direction, after `step` steps."""

    step: int
    score: float


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """How a trial ended: its score on VAL_OOD and what it cost."""

    score: float
    steps: int
    samples: int
    seconds: float


class TrialStopped(Exception):
    """The trial was told to stop before its end; says what it had cost by then."""

    def __init__(self, samples: int, seconds: float) -> None:
        super().__init__(samples, seconds)
        self.samples, self.seconds = samples, seconds


class TrialDiverged(Diverged):
    """The loss or a score of a trial is not finite; says what it had cost by then."""

    def __init__(self, message: str, samples: int, seconds: float) -> None:
        super().__init__(message)
        self.samples, self.seconds = samples, seconds


def report_steps(config: StudyConfig) -> list[int]:
    """After which steps a trial is scored; the last is its end. One score only where no pruner looks at the others."""
    steps, reports = config.trial.steps, config.trial.reports if config.search.pruner != "none" else 1
    return sorted({math.ceil(steps * k / reports) for k in range(1, reports + 1)})


def run_trial(
    workspace: Workspace, hyperparameters: Hyperparameters, should_stop: Callable[[], bool] = lambda: False
) -> Generator[Report, None, TrialResult]:
    """Fine-tune for `trial.steps` steps and score on VAL_OOD under the evaluation transform.

    Yields a `Report` at each of `report_steps`, the last one included, and returns the `TrialResult`.

    Raises:
        TrialDiverged: the loss or a score is not finite.
        TrialStopped: `should_stop()` said so; asked between steps.
    """
    config, started = workspace.config, time.perf_counter()
    recipe = trial_recipe(config.trial, hyperparameters, len(workspace.train))
    scored = set(report_steps(config))
    losses: list[Tensor] = []
    score = math.nan
    for step in finetune(workspace, recipe):
        losses.append(step.loss)
        if step.number in scored:
            try:
                check_finite(losses, step.number)
                score = workspace.score("val_ood")
            except (Diverged, NonFiniteScore) as error:
                raise TrialDiverged(str(error), step.number * recipe.batch_size, time.perf_counter() - started) from None
            losses.clear()
            yield Report(step.number, score)
        if step.number < recipe.steps and should_stop():
            raise TrialStopped(step.number * recipe.batch_size, time.perf_counter() - started)
    return TrialResult(score=score, steps=recipe.steps, samples=recipe.samples, seconds=time.perf_counter() - started)
