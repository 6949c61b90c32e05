"""Models between the zero-shot and the fine-tuned one, whole: weights mixed as the study says, BatchNorm statistics made to fit."""

import functools
from collections.abc import Callable

from autoft.batch_norm import reestimate_batch_norm
from autoft.config.sections import WiseFTConfig
from autoft.fisher import diagonal_fisher
from autoft.models import copy_state, interpolate
from autoft.models.averaging import fisher_merge
from autoft.models.state import State
from autoft.workspace import Workspace


def interpolator(workspace: Workspace, zero_shot: State, fine_tuned: State, section: WiseFTConfig) -> Callable[[float], None]:
    """A function that puts the model for an alpha into `workspace.model`, in place; alpha 0 and 1 are the ends to the bit.

    With `weighting = fisher` the Fishers of both ends are computed once, when they are first needed. The same alpha gives the same model again.
    """
    mixed = _mixing(workspace, zero_shot, fine_tuned, section)

    def place(alpha: float) -> None:
        copy_state(workspace.model, mixed(alpha))
        if section.reestimate_batch_norm and alpha not in (0.0, 1.0):
            reestimate_batch_norm(workspace)

    return place


def _mixing(workspace: Workspace, zero_shot: State, fine_tuned: State, section: WiseFTConfig) -> Callable[[float], State]:
    @functools.cache
    def fishers() -> tuple[State, State]:
        return _fisher_at(workspace, zero_shot), _fisher_at(workspace, fine_tuned)

    def mixed(alpha: float) -> State:
        if section.weighting == "uniform" or alpha in (0.0, 1.0):
            return interpolate(zero_shot, fine_tuned, alpha)
        return fisher_merge(zero_shot, fine_tuned, *fishers(), alpha)

    return mixed


def _fisher_at(workspace: Workspace, state: State) -> State:
    copy_state(workspace.model, state)
    return diagonal_fisher(workspace)
