"""The part of a study's history that its sampler looks at, so that asking for trial ten thousand costs what trial one thousand did.

It is a function of the set of finished trials, whatever the order in which they ended and however often the study was resumed: the newest by number,
and the best. See docs/adr/0015-bounded-history.md.
"""

import math
from bisect import insort
from collections.abc import Container, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from optuna.distributions import BaseDistribution
from optuna.search_space import intersection_search_space
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

NEWEST = 500
BEST = 100  # TPE's good group is the best tenth, and at most 25: Optuna's `default_gamma`, Watanabe 2023 (arXiv 2304.11127), section 3.1
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)

Key = tuple[float, float, float, int]


@runtime_checkable
class KnowsFinished(Protocol):
    """A storage that lists finished trials in the order in which they ended, so that new ones need not be looked for."""

    def finished_trials(self, study_id: int) -> Sequence[FrozenTrial]:
        """A list that only grows."""
        ...


class History:
    """Chooses a study's newest and best finished trials.

    Args:
        newest: how many of the highest numbers are kept.
        best: how many of the best are kept, in the order in which TPE ranks them: complete trials by score, then pruned ones by how far they
            came and their score there. With several objectives it is trials that no other dominates, of those the newest.
    """

    def __init__(self, newest: int = NEWEST, best: int = BEST) -> None:
        self._newest_limit, self._best_limit = newest, best
        self._kept: list[FrozenTrial] = []
        self._forget(None)

    def view(self, study: Study) -> "StudyView":
        """The study as a sampler is to see it."""
        chosen = self.chosen(study)
        space = self._space if self._seen else intersection_search_space(chosen, include_pruned=True)
        return StudyView(study, chosen, self._newest_limit, space or {})

    def chosen(self, study: Study) -> list[FrozenTrial]:
        """The finished trials to look at, by number. Visits only what ended since the last call, where the storage tells."""
        storage = study._storage
        if isinstance(storage, KnowsFinished):
            of, ended = (id(storage), study._study_id), storage.finished_trials(study._study_id)
        else:
            of, ended = None, study._get_trials(deepcopy=False, states=FINISHED)
            if len(ended) <= self._newest_limit:
                self._forget(None)
                return ended
        if of is None or of != self._of:
            self._forget(of)
        if len(ended) > self._seen:
            for trial in ended[self._seen :]:
                if trial.state in FINISHED:
                    self._add(trial, study.directions)
                self._seen += 1
            best = [trial for _, trial in self._best] or [self._front[number] for number in sorted(self._front)[-self._best_limit :]]
            kept = {trial.number: trial for trial in (*best, *(trial for _, trial in self._newest))}
            self._kept = [kept[number] for number in sorted(kept)]
        return self._kept

    def _forget(self, of: tuple[int, int] | None) -> None:
        self._of: tuple[int, int] | None = of
        self._seen = 0
        self._space: dict[str, BaseDistribution] | None = None  # what all finished trials have in common, those that are not kept included
        self._newest: list[tuple[int, FrozenTrial]] = []
        self._best: list[tuple[Key, FrozenTrial]] = []
        self._front: dict[int, FrozenTrial] = {}
        self._kept = []

    def _add(self, trial: FrozenTrial, directions: Sequence[StudyDirection]) -> None:
        theirs = trial.distributions
        common = theirs if self._space is None else self._space
        self._space = {name: kind for name, kind in common.items() if theirs.get(name) == kind}
        insort(self._newest, (trial.number, trial), key=_first)
        del self._newest[: -self._newest_limit]
        if len(directions) == 1:
            insort(self._best, (_rank(trial, directions[0]), trial), key=_first)
            del self._best[self._best_limit :]
        elif trial.state == TrialState.COMPLETE:
            losses = _losses(trial, directions)
            others = {number: _losses(other, directions) for number, other in self._front.items()}
            if not any(_dominates(other, losses) for other in others.values()):
                self._front = {number: other for number, other in self._front.items() if not _dominates(losses, others[number])}
                self._front[trial.number] = trial


class StudyView:
    """A study whose list of trials has been replaced; everything else is the study's.

    Args:
        finished: its finished trials, by number.
        running: how many of its running trials, those with the highest numbers, are listed too.
        search_space: the parameters all its finished trials have in common.
    """

    def __init__(self, study: Study, finished: Sequence[FrozenTrial], running: int, search_space: Mapping[str, BaseDistribution]) -> None:
        self._study, self._finished, self._running_limit = study, finished, running
        self.search_space = search_space

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False) -> list[FrozenTrial]:
        trials = [trial for trial in self._finished if states is None or trial.state in states]
        if states is None or TrialState.RUNNING in states:
            trials += self._study._get_trials(deepcopy=False, states=(TrialState.RUNNING,))[-self._running_limit :]
            trials.sort(key=lambda trial: trial.number)
        return trials

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        """The trials, by number; never copies."""
        return self._get_trials(deepcopy, states)


def _first(pair: tuple[Any, FrozenTrial]) -> Any:
    return pair[0]


def _rank(trial: FrozenTrial, direction: StudyDirection) -> Key:
    """Smaller is better, as in Optuna's TPE: `_split_complete_trials_single_objective` and `_get_pruned_trial_score`; of equals the older."""
    sign = -1.0 if direction == StudyDirection.MAXIMIZE else 1.0
    if trial.state == TrialState.COMPLETE:
        return 0.0, sign * (trial.value or 0.0), 0.0, trial.number
    if not trial.intermediate_values:
        return 1.0, 1.0, 0.0, trial.number
    step, score = max(trial.intermediate_values.items())
    return 1.0, -step, math.inf if math.isnan(score) else sign * score, trial.number


def _losses(trial: FrozenTrial, directions: Sequence[StudyDirection]) -> tuple[float, ...]:
    return tuple(-value if direction == StudyDirection.MAXIMIZE else value for value, direction in zip(trial.values, directions, strict=True))


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
