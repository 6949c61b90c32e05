"""One trial: a short fine-tune from the zero-shot weights, or several, scored on VAL_OOD."""

import math
import statistics
import time
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor

from autoft.batch_split import WHOLE
from autoft.config import StudyConfig
from autoft.evaluate import NonFiniteScore, Score, score_predictions
from autoft.finetune import Diverged, Recipe, Step, check_finite, finetune, trial_recipe
from autoft.scoring import as_scored
from autoft.search_space import Hyperparameters
from autoft.workspace import Workspace

T = TypeVar("T")


@dataclass(frozen=True)
class Report:
    """An intermediate score on VAL_OOD, in the study's direction, after `step` steps."""

    step: int
    score: float


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """How a trial ended: its scores and what it cost.

    score: on the first of `search.objectives`; the mean over `trial.repeats` fine-tunes.
    ci_low, ci_high: the score's 95 % interval over drawing other validation examples (see `score_predictions`), mean over repeats.
    values: the score on each objective, by name.
    repeats: each fine-tune's own score.
    batch_split: parts that batches were computed in because they did not fit the memory; 1: none was split.
    batch_split_exact: whether that changed nothing but rounding.
    """

    score: float
    ci_low: float
    ci_high: float
    values: Mapping[str, float]
    repeats: tuple[float, ...]
    steps: int
    samples: int
    seconds: float
    batch_split: int = 1
    batch_split_exact: bool = True


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
    """When a trial reports a score: after which steps, or with repeats after which of them. The last is its end.

    One score only where no pruner looks at the others.
    """
    pruning = config.search.pruner != "none"
    if config.trial.repeats > 1:
        return list(range(1, config.trial.repeats + 1)) if pruning else [config.trial.repeats]
    steps, reports = config.trial.steps, config.trial.reports if pruning else 1
    return sorted({math.ceil(steps * k / reports) for k in range(1, reports + 1)})


def trial_splits(config: StudyConfig) -> list[str]:
    """The sets a worker needs to run trials."""
    return ["train", *config.search.objectives]


def repeat_seed(seed: int, repeat: int) -> int:
    """The seed of a trial's repeat; the first repeat has the trial's own."""
    return seed + 1_000_003 * repeat


def run_trial(
    workspace: Workspace,
    hyperparameters: Hyperparameters,
    should_stop: Callable[[], bool] = lambda: False,
    confirm_steps: int | None = None,
) -> Generator[Report, None, TrialResult]:
    """Fine-tune for `trial.steps` steps and score on the validation sets of `search.objectives`, under the evaluation transform.

    With `trial.repeats`, that many times with different seeds; the score is the mean. Yields a `Report` at each of `report_steps`, the
    last one included, and returns the `TrialResult`. What is reported after a repeat is the mean so far, or for the Wilcoxon pruner,
    which compares trials repeat by repeat, that repeat's score.

    Args:
        confirm_steps: a confirmation run of that many steps: it yields nothing.

    Raises:
        TrialDiverged: the loss or a score is not finite.
        TrialStopped: `should_stop()` said so; asked between steps.
        torch.OutOfMemoryError: splitting batches was not enough; see `finetune`.
    """
    config = workspace.config
    trial = config.trial if confirm_steps is None else config.trial.model_copy(update={"steps": confirm_steps})
    run = _Run(workspace, trial_recipe(trial, hyperparameters, len(workspace.train)), should_stop)
    reports = set(report_steps(config)) if confirm_steps is None else set()
    ends: list[_End] = []
    for repeat in range(config.trial.repeats):
        ends.append((yield from run.once(repeat, reports if config.trial.repeats == 1 else set())))
        score = ends[-1].score.value if config.search.pruner == "wilcoxon" else _mean(end.score.value for end in ends)
        if config.trial.repeats > 1 and repeat + 1 in reports:
            yield Report(repeat + 1, score)
    return run.result(ends)


@dataclass(frozen=True)
class _End:
    """Scores at the end of one fine-tune: the first objective's with its interval, and all of them by name."""

    score: Score
    values: Mapping[str, float]


class _Run:
    """The fine-tunes of one trial, and what they have cost so far."""

    def __init__(self, workspace: Workspace, recipe: Recipe, should_stop: Callable[[], bool]) -> None:
        self._workspace, self._recipe, self._should_stop = workspace, recipe, should_stop
        self._started, self._samples, self._split = time.perf_counter(), 0, WHOLE

    def once(self, repeat: int, reports: Collection[int]) -> Generator[Report, None, _End]:
        """One fine-tune; yields a report after each of the given steps."""
        hp = self._recipe.hyperparameters
        recipe = replace(self._recipe, hyperparameters=replace(hp, seed=repeat_seed(hp.seed, repeat)))
        losses: list[Tensor] = []
        for step in finetune(self._workspace, recipe):
            losses.append(step.loss)
            self._split |= step.split
            self._samples += recipe.batch_size if step.number else 0  # step 0: nothing trains
            if step.number == recipe.steps:
                break
            if step.number in reports:
                score = self._finite(lambda step=step: self._score(losses, step))  # type: ignore[misc]
                losses.clear()
                yield Report(step.number, score)
            if self._should_stop():
                raise TrialStopped(self._samples, self._seconds())
        end = self._finite(lambda: self._end(losses, step))
        if recipe.steps in reports:
            yield Report(recipe.steps, end.score.value)
        return end

    def result(self, ends: Sequence[_End]) -> TrialResult:
        """The trial's result over its repeats."""
        return TrialResult(
            score=_mean(end.score.value for end in ends),
            ci_low=_mean(end.score.ci_low for end in ends),
            ci_high=_mean(end.score.ci_high for end in ends),
            values={name: _mean(end.values[name] for end in ends) for name in ends[0].values},
            repeats=tuple(end.score.value for end in ends),
            steps=self._recipe.steps,
            samples=self._samples,
            seconds=self._seconds(),
            batch_split=self._split.parts,
            batch_split_exact=self._split.exact,
        )

    def _score(self, losses: list[Tensor], step: Step) -> float:
        check_finite(losses, step.number)
        with as_scored(self._workspace, self._recipe.hyperparameters, step):
            return self._workspace.score(self._workspace.config.search.objectives[0])

    def _end(self, losses: list[Tensor], step: Step) -> _End:
        check_finite(losses, self._recipe.steps)
        workspace = self._workspace
        first, *others = workspace.config.search.objectives
        images = workspace.images(first)
        groups = None if images.groups is None else images.groups.cpu()
        with as_scored(workspace, self._recipe.hyperparameters, step):
            logits = workspace.logits(first).cpu()
            score = score_predictions(workspace.config.metric, logits, images.labels_cpu, groups, images.set.class_count)
            return _End(score, {first: score.value, **{name: workspace.score(name) for name in others}})

    def _finite(self, score: Callable[[], T]) -> T:
        try:
            return score()
        except (Diverged, NonFiniteScore) as error:
            raise TrialDiverged(str(error), self._samples, self._seconds()) from None

    def _seconds(self) -> float:
        return time.perf_counter() - self._started


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)
