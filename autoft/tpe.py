"""Optuna's TPE with the same suggestions, which does not compute again what it knows of trials that have ended."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

Row = tuple[float, ...]


class Rows:
    """Trials as points of the search space, in Optuna's internal representation; kept from one suggestion to the next."""

    def __init__(self) -> None:
        self._space: Mapping[str, BaseDistribution] = {}
        self._rows: dict[tuple[int, int], Row | None] = {}  # (number, how many parameters it has) -> None where parameters are missing

    def columns(self, trials: Sequence[FrozenTrial], space: Mapping[str, BaseDistribution], params_of: Any) -> dict[str, NDArray[Any]]:
        """Per parameter the values of all trials that have every parameter of the space, in their order.

        Args:
            params_of: the parameters of a trial, by name.
        """
        if space != self._space:
            self._space, self._rows = dict(space), {}
        rows = [row for trial in trials if (row := self._row(trial, params_of)) is not None]
        table = np.array(rows, dtype=float).reshape(len(rows), len(space))
        return {name: np.ascontiguousarray(table[:, index]) for index, name in enumerate(space)}

    def _row(self, trial: FrozenTrial, params_of: Any) -> Row | None:
        key = (trial.number, len(trial.params))  # of a running trial, parameters may follow
        if key not in self._rows:
            params = params_of(trial)
            whole = self._space.keys() <= params.keys()
            self._rows[key] = tuple(kind.to_internal_repr(params[name]) for name, kind in self._space.items()) if whole else None
        return self._rows[key]


class FlatTPE(TPESampler):
    """Bergstra et al. 2011, as Optuna has it (Watanabe 2023, arXiv 2304.11127); made anew for every trial, with the rows of those before."""

    def __init__(self, seed: int, rows: Rows) -> None:
        super().__init__(seed=seed)
        self._known_rows = rows

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters that all finished trials have, where they are drawn jointly; the study is an `autoft.history.StudyView`."""
        if not self._is_multivariate(study):
            return {}
        space: Mapping[str, BaseDistribution] = study.search_space  # type: ignore[attr-defined]
        return {name: kind for name, kind in sorted(space.items()) if not kind.single()}

    def _get_internal_repr(self, trials: list[FrozenTrial], search_space: dict[str, BaseDistribution], study: Study) -> dict[str, NDArray[Any]]:
        return self._known_rows.columns(trials, search_space, lambda trial: self._get_params(trial, study))
