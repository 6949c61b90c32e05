"""Hyperband whose decisions cost the same however long the study is."""

import math
from bisect import insort

from optuna.pruners import HyperbandPruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

_RUNG = "completed_rung_"  # Optuna's SuccessiveHalvingPruner notes a trial's score at a rung under this name and the rung's number


class IndexedHyperband(HyperbandPruner):
    """Optuna's Hyperband with the same decisions, which keeps the scores of every rung instead of collecting them from all trials each time.

    Optuna's goes through all trials of the study at every report, and computes the bracket of each. Here they are gone through once, at the first
    report, so the scores at rungs must be this process's alone to write, as they are the coordinator's.

    Li et al. 2018 (arXiv 1603.06560); a bracket prunes as in asynchronous successive halving, Li et al. 2020 (arXiv 1810.05934).
    """

    def __init__(self, min_resource: int, max_resource: int, reduction_factor: int) -> None:
        super().__init__(min_resource=min_resource, max_resource=max_resource, reduction_factor=reduction_factor)
        self._first, self._eta = min_resource, reduction_factor
        self._of: tuple[int, int] | None = None
        self._scores: dict[tuple[int, int], list[float]] = {}  # (bracket, rung) -> in rising order
        self._seen: set[tuple[int, int]] = set()  # (trial number, rung)

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether a trial's last report is outside the best 1 / reduction_factor of its bracket's trials that came as far."""
        step = trial.last_step
        if step is None:
            return False
        self._learn(study)
        bracket = self._get_bracket_id(study, trial)
        score, rung, noted = trial.intermediate_values[step], 0, trial.system_attrs
        while (known := noted.get(f"{_RUNG}{rung}")) is not None:
            self._add(bracket, rung, trial.number, known)  # noted by an earlier process, or by a call whose answer was lost
            rung += 1
        while step >= self._first * self._eta ** (bracket + rung):
            if math.isnan(score):
                return True
            study._storage.set_trial_system_attr(trial._trial_id, f"{_RUNG}{rung}", score)
            self._add(bracket, rung, trial.number, score)
            scores = self._scores[bracket, rung]
            promoted = max(len(scores) // self._eta, 1)
            if score < scores[-promoted] if study.direction == StudyDirection.MAXIMIZE else score > scores[promoted - 1]:
                return True
            rung += 1
        return False

    def _learn(self, study: Study) -> None:
        of = (id(study._storage), study._study_id)
        if of == self._of:
            return
        if not self._pruners:
            self._try_initialization(study)
        self._of, self._scores, self._seen = of, {}, set()
        for trial in study.get_trials(deepcopy=False):
            for name, score in trial.system_attrs.items():
                if name.startswith(_RUNG):
                    self._add(self._get_bracket_id(study, trial), int(name.removeprefix(_RUNG)), trial.number, score)

    def _add(self, bracket: int, rung: int, number: int, score: float) -> None:
        if (number, rung) not in self._seen:
            self._seen.add((number, rung))
            insort(self._scores.setdefault((bracket, rung), []), score)
