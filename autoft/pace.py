"""How many trials to run together on the device at hand: measured, not guessed.

A few real steps of one trial by itself are timed against as many of 2, 4, 8 ... trials as one program; what is fastest for a trial's step is
taken, if it is faster by enough to be no accident.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from autoft.config import SearchSpaceConfig
from autoft.finetune import Recipe, finetune, trial_recipe
from autoft.search_space import Hyperparameters
from autoft.together import Wanted, first_line, program_of, wait
from autoft.vectorized import Stack
from autoft.workspace import Workspace

logger = logging.getLogger(__name__)

# Ours, all of them. More trials at once than the last candidate would leave the sampler with little to learn from before it is asked again.
CANDIDATES = (2, 4, 8)
PAYS = 0.9  # of the seconds alone: what one program has to stay below
WARM_UP, TIMED = 1, 4  # steps; the shortest of the latter counts, for what else the machine does only makes them longer
# By how much the losses of the timed steps may differ from those alone, as a share of them: bf16 has three digits.
SAME = 0.02


@dataclass(frozen=True)
class Pace:
    """What was measured.

    trials: how many to run together; 1: one by one.
    seconds: of a step for one trial, by how many trials ran together.
    reason: why no more were measured, or None.
    """

    trials: int
    seconds: dict[int, float]
    reason: str | None = None

    def __str__(self) -> str:
        timed = ", ".join(f"{count}: {1000 * seconds:.1f} ms" for count, seconds in self.seconds.items())
        return f"{self.trials} at once" + (f" (a trial's step with so many at once: {timed})" if timed else "") + (f"; {self.reason}" if self.reason else "")


def measure(workspace: Workspace, hyperparameters: Hyperparameters, candidates: Sequence[int] = CANDIDATES) -> Pace:
    """Time trials like these alone and together, the fewest first, until more at once are no faster.

    The answer is 1 where they cannot share a program, where it does not fit the memory, and where its losses are not those of trials alone.
    """
    if program_of(workspace, Wanted(hyperparameters)) is None:
        return Pace(1, {}, "such trials cannot share a program")
    recipe = replace(trial_recipe(workspace.config.trial, hyperparameters, len(workspace.train)), steps=WARM_UP + TIMED)
    try:
        seconds, expected = _by_itself(workspace, recipe)
    except Exception as error:  # the trials will say it better, if they meet it too
        return Pace(1, {}, f"nothing could be measured: {first_line(error)}")
    found = {1: seconds}
    reason = None
    for count in candidates:
        try:
            seconds, losses = _together(workspace, recipe, count)
        except Exception as error:  # what cannot be mapped or does not fit, in whatever words
            reason = f"{count} cannot run as one program: {first_line(error)}"
            break
        if not all(math.isclose(loss, alone, rel_tol=SAME) for loss, alone in zip(losses, expected, strict=True)):
            reason = f"{count} as one program have other losses than alone"
            break
        found[count] = seconds / count
        if found[count] > min(found.values()):
            break
    best = min(found, key=lambda count: found[count])
    pace = Pace(best if found[best] <= PAYS * found[1] else 1, found, reason)
    logger.info("trials on %s: %s", workspace.device, pace)
    return pace


def typical(space: SearchSpaceConfig) -> Hyperparameters:
    """Hyperparameters as the search will draw them, in the middle of the space: what has to be known to measure is which terms are in use."""
    terms: dict[str, float] = {space.reference: 1.0}
    for term in space.searched_terms:
        terms[term] = math.prod(space.loss_weights.get(term, space.loss_weight)) ** 0.5
    layers = space.layers if space.layerwise else ()
    hp = Hyperparameters(
        lr=space.base_lr,
        weight_decay=space.base_weight_decay,
        loss_weights=terms,
        seed=0,
        layer_lr=dict.fromkeys(layers, space.base_lr),
        layer_weight_decay=dict.fromkeys(layers, space.base_weight_decay),
    )
    return replace(hp, **space.fixed)


def _by_itself(workspace: Workspace, recipe: Recipe) -> tuple[float, list[float]]:
    """Seconds a step of one trial, and its losses."""
    steps = finetune(workspace, recipe)
    return _timed(workspace, lambda: next(steps).loss)


def _together(workspace: Workspace, recipe: Recipe, count: int) -> tuple[float, list[float]]:
    """Seconds a step of so many trials that differ by their seeds, and the losses of the first one."""
    hp = recipe.hyperparameters
    stack = Stack(workspace, [replace(recipe, hyperparameters=replace(hp, seed=hp.seed + index)) for index in range(count)])
    return _timed(workspace, lambda: stack.step()[0])


def _timed(workspace: Workspace, step: Callable[[], Tensor]) -> tuple[float, list[float]]:
    """Seconds of the shortest timed step, and the losses of all."""
    seconds, losses = [], []
    for _ in range(WARM_UP + TIMED):
        started = time.perf_counter()
        losses.append(step())
        wait(workspace)
        seconds.append(time.perf_counter() - started)
    return min(seconds[WARM_UP:]), [float(loss) for loss in losses]
