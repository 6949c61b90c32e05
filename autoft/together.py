"""Several trials in lock step on one device, each with the result it would have alone; see `autoft.vectorized`.

    one program's step for all -> each trial in turn: score and report where it is due, end if it is told to -> the next step for the rest
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from autoft.batch_split import is_out_of_memory
from autoft.finetune import Step, trial_recipe
from autoft.search_space import Hyperparameters
from autoft.trial import Report, TrialResult, TrialRun, run_trial
from autoft.vectorized import Stack, program, why_alone
from autoft.workspace import Workspace

logger = logging.getLogger(__name__)

T = TypeVar("T")
Outcome = Report | TrialResult | Exception

_ALONE = "trials that cannot share a program"  # in `Workspace.cached`: why, by program


@dataclass(frozen=True)
class Wanted:
    """A trial to run: the arguments of `run_trial`."""

    hyperparameters: Hyperparameters
    should_stop: Callable[[], bool] = lambda: False
    confirm_steps: int | None = None


class _CannotShare(RuntimeError):
    """The model has something in it that cannot be mapped over trials, or their program does not fit the memory."""


def program_of(workspace: Workspace, wanted: Wanted) -> object | None:
    """What trials must have in common to run together, to be compared; None: this one runs alone.

    It does where a method is in use that is not among AutoFT's own (see `why_alone`), where batches have been split because they did not fit
    the memory, and where an earlier attempt to run such trials together has failed.
    """
    trial = workspace.config.trial
    if wanted.confirm_steps is not None:
        trial = trial.model_copy(update={"steps": wanted.confirm_steps})
    if why_alone(wanted.hyperparameters) is not None or workspace.batch_split > 1:
        return None
    key = (program(trial_recipe(trial, wanted.hyperparameters, len(workspace.train))), wanted.confirm_steps is None)
    return None if key in workspace.cached.get(_ALONE, {}) else key


def run_trials_together(workspace: Workspace, trials: Sequence[Wanted]) -> Iterator[tuple[int, Outcome]]:
    """Run trials, several as one program where they share one (`program_of`), else one after the other.

    Yields, with each trial's index, its reports as they come, and then how it ended: its result, or what `run_trial` would have raised. An
    exception of one trial ends that one alone. The seconds of a trial are its share of what was computed for all, and its own scoring.
    """
    groups: dict[object, list[int]] = {}
    for index, wanted in enumerate(trials):
        key = program_of(workspace, wanted)
        groups.setdefault(("alone", index) if key is None else key, []).append(index)
    for key, members in groups.items():
        group = [trials[index] for index in members]
        for position, outcome in _alone(workspace, group) if len(group) == 1 else _shared(workspace, key, group):
            yield members[position], outcome


def _alone(workspace: Workspace, trials: Sequence[Wanted]) -> Iterator[tuple[int, Outcome]]:
    """One after the other."""
    for index, wanted in enumerate(trials):
        trial = run_trial(workspace, wanted.hyperparameters, wanted.should_stop, wanted.confirm_steps)
        while True:
            try:
                outcome: Outcome = next(trial)
            except StopIteration as end:
                outcome = end.value
            except Exception as error:
                yield index, error  # within the block, after which nothing here holds what the error's traceback holds
                break
            yield index, outcome
            if not isinstance(outcome, Report):
                break


def _shared(workspace: Workspace, key: object, trials: Sequence[Wanted]) -> Iterator[tuple[int, Outcome]]:
    """As one program; what cannot be done so is done from the start one by one, and reports what it has not reported yet."""
    left = dict(enumerate(trials))
    reported = dict.fromkeys(left, 0)
    try:
        for index, outcome in _Group(workspace, trials).run():
            if isinstance(outcome, Report):
                reported[index] = outcome.step
            else:
                del left[index]
            yield index, outcome
        return
    except _CannotShare as error:
        logger.warning("%d trials run one by one: %s", len(left), error)
        workspace.cached.setdefault(_ALONE, {})[key] = str(error)
    members = list(left)
    for position, outcome in _alone(workspace, [left[index] for index in members]):
        index = members[position]
        if not isinstance(outcome, Report) or outcome.step > reported[index]:
            yield index, outcome


class _Group:
    """Trials that share a program."""

    def __init__(self, workspace: Workspace, trials: Sequence[Wanted]) -> None:
        self._workspace = workspace
        self._runs = {
            index: TrialRun(workspace, wanted.hyperparameters, wanted.should_stop, wanted.confirm_steps) for index, wanted in enumerate(trials)
        }
        for run in self._runs.values():
            run.watch.pause()

    def run(self) -> Iterator[tuple[int, Outcome]]:
        """All of them to their ends."""
        for repeat in range(self._workspace.config.trial.repeats):
            for run in self._runs.values():
                run.begin(repeat)
            if self._runs:
                yield from self._repeat()
        for index, run in self._runs.items():
            yield index, run.result()

    def _repeat(self) -> Iterator[tuple[int, Outcome]]:
        """One fine-tune of each; those that end before their time leave `_runs`."""
        recipes = [run.recipe for run in self._runs.values()]
        with self._shared_time():
            stack = _attempt(lambda: Stack(self._workspace, recipes))
        for number in range(1, recipes[0].steps + 1):
            with self._shared_time():
                losses = _attempt(stack.step)
                if next(iter(self._runs.values())).looks_at(number):
                    _attempt(lambda: wait(self._workspace))  # so that the first trial to be scored does not pay for all
            before = list(self._runs)
            for position, index in enumerate(before):
                yield from self._after(stack, position, index, number, losses)
            staying = [position for position, index in enumerate(before) if index in self._runs]
            if not staying:
                return
            if len(staying) < len(before):
                stack.keep(staying)

    def _after(self, stack: Stack, position: int, index: int, number: int, losses: Tensor) -> Iterator[tuple[int, Outcome]]:
        """What one trial has to say after a step."""
        run = self._runs[index]
        reports = run.after(Step(number, losses[position], {}, stack.optimizer(position)))
        while True:
            run.watch.go()
            try:
                if run.looks_at(number):
                    stack.load_into(self._workspace.model, position)
                report = next(reports, None)
            except Exception as error:
                del self._runs[index]
                yield index, error
                return
            run.watch.pause()
            if report is None:
                return
            yield index, report

    @contextmanager
    def _shared_time(self) -> Iterator[None]:
        """What passes within the block is paid for in equal parts."""
        started = time.perf_counter()
        yield
        seconds = (time.perf_counter() - started) / len(self._runs)
        for run in self._runs.values():
            run.watch.add(seconds)


def _attempt(compute: Callable[[], T]) -> T:
    """Raises _CannotShare whatever goes wrong: what is to blame on a trial happens again when it runs alone, and is told as its end."""
    try:
        return compute()
    except Exception as error:
        message = "their program does not fit the memory" if is_out_of_memory(error) else first_line(error)
    raise _CannotShare(message)  # not within the block: the error holds the program's memory


def first_line(error: Exception) -> str:
    """What an error says, shortened to one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def wait(workspace: Workspace) -> None:
    """Wait until a GPU has done what it was given."""
    if workspace.device.type == "cuda":
        torch.cuda.synchronize(workspace.device)
