"""One trial: a short fine-tune from the zero-shot weights, or several, scored on VAL_OOD."""

import math
import statistics
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
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
    run = TrialRun(workspace, hyperparameters, should_stop, confirm_steps)
    for repeat in range(workspace.config.trial.repeats):
        run.begin(repeat)
        for step in finetune(workspace, run.recipe):
            yield from run.after(step)
    return run.result()


class Stopwatch:
    """Seconds spent on something; it runs from the start."""

    def __init__(self) -> None:
        self._spent, self._since = 0.0, time.perf_counter()
        self._runs = True

    @property
    def seconds(self) -> float:
        """So far."""
        return self._spent + (time.perf_counter() - self._since if self._runs else 0.0)

    def pause(self) -> None:
        """Stop it until `go`."""
        self._spent, self._runs = self.seconds, False

    def go(self) -> None:
        """Let it run again; nothing happens if it does."""
        self._spent, self._since, self._runs = self.seconds, time.perf_counter(), True

    def add(self, seconds: float) -> None:
        """Count what was spent elsewhere."""
        self._spent += seconds


@dataclass(frozen=True)
class _End:
    """Scores at the end of one fine-tune: the first objective's with its interval, and all of them by name."""

    score: Score
    values: Mapping[str, float]


class TrialRun:
    """A trial seen from its steps, whoever computes them: what it reports, what it scored and what it has cost.

    recipe: of the repeat that `begin` has begun.
    watch: what the trial's seconds are read from.

    Args: as of `run_trial`.
    """

    recipe: Recipe

    def __init__(
        self, workspace: Workspace, hyperparameters: Hyperparameters, should_stop: Callable[[], bool], confirm_steps: int | None = None
    ) -> None:
        config = workspace.config
        trial = config.trial if confirm_steps is None else config.trial.model_copy(update={"steps": confirm_steps})
        self._workspace, self._should_stop, self._repeats = workspace, should_stop, config.trial.repeats
        self._first = trial_recipe(trial, hyperparameters, len(workspace.train))
        self._reports = frozenset(report_steps(config)) if confirm_steps is None else frozenset()
        self._ends: list[_End] = []
        self._losses: list[Tensor] = []
        self.watch, self._samples, self._split = Stopwatch(), 0, WHOLE

    def begin(self, repeat: int) -> None:
        """Set `recipe` to that of a repeat, counted from 0."""
        hp = self._first.hyperparameters
        self.recipe = replace(self._first, hyperparameters=replace(hp, seed=repeat_seed(hp.seed, repeat)))
        self._losses = []

    def looks_at(self, step: int) -> bool:
        """Whether `after` that step scores the model."""
        return step == self.recipe.steps or (self._repeats == 1 and step in self._reports)

    def after(self, step: Step) -> Iterator[Report]:
        """Take note of a step of `recipe`; yields what there is to report. The workspace's model is the trial's where `looks_at` says so.

        Raises:
            TrialDiverged, TrialStopped: see `run_trial`.
        """
        self._losses.append(step.loss)
        self._split |= step.split
        self._samples += self.recipe.batch_size if step.number else 0  # step 0: nothing trains
        if step.number == self.recipe.steps:
            self._ends.append(self._finite(lambda: self._end(step)))
            yield from self._last_reports()
            return
        if self.looks_at(step.number):
            score = self._finite(lambda: self._score(step))
            self._losses.clear()
            yield Report(step.number, score)
        if self._should_stop():
            raise TrialStopped(self._samples, self.watch.seconds)

    def result(self) -> TrialResult:
        """The trial's result over its repeats."""
        ends = self._ends
        return TrialResult(
            score=_mean(end.score.value for end in ends),
            ci_low=_mean(end.score.ci_low for end in ends),
            ci_high=_mean(end.score.ci_high for end in ends),
            values={name: _mean(end.values[name] for end in ends) for name in ends[0].values},
            repeats=tuple(end.score.value for end in ends),
            steps=self._first.steps,
            samples=self._samples,
            seconds=self.watch.seconds,
            batch_split=self._split.parts,
            batch_split_exact=self._split.exact,
        )

    def _last_reports(self) -> Iterator[Report]:
        """What is reported at the end of a fine-tune."""
        done = len(self._ends)
        if self._repeats == 1 and self.recipe.steps in self._reports:
            yield Report(self.recipe.steps, self._ends[-1].score.value)
        elif self._repeats > 1 and done in self._reports:
            last = self._workspace.config.search.pruner == "wilcoxon"
            yield Report(done, self._ends[-1].score.value if last else _mean(end.score.value for end in self._ends))

    def _score(self, step: Step) -> float:
        check_finite(self._losses, step.number)
        with as_scored(self._workspace, self.recipe.hyperparameters, step):
            return self._workspace.score(self._workspace.config.search.objectives[0])

    def _end(self, step: Step) -> _End:
        check_finite(self._losses, self.recipe.steps)
        workspace = self._workspace
        first, *others = workspace.config.search.objectives
        images = workspace.images(first)
        groups = None if images.groups is None else images.groups.cpu()
        with as_scored(workspace, self.recipe.hyperparameters, step):
            logits = workspace.logits(first).cpu()
            score = score_predictions(workspace.config.metric, logits, images.labels_cpu, groups, images.set.class_count)
            return _End(score, {first: score.value, **{name: workspace.score(name) for name in others}})

    def _finite(self, score: Callable[[], T]) -> T:
        try:
            return score()
        except (Diverged, NonFiniteScore) as error:
            raise TrialDiverged(str(error), self._samples, self.watch.seconds) from None


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)
