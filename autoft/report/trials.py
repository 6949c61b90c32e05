"""trials.csv, read back."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from autoft.errors import AutoFTError

State = Literal["complete", "pruned", "failed", "other"]
_STATES: Mapping[str, State] = {"complete": "complete", "pruned": "pruned", "fail": "failed", "failed": "failed"}
_LOSS_WEIGHT = "loss_weight/"
_REPORT = "report/"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One line of trials.csv."""

    number: int
    state: State
    score: float | None
    duration_seconds: float | None
    failure_kind: str
    worker: str
    lr: float | None
    weight_decay: float | None
    seed: str
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    reports: Mapping[int, float] = field(default_factory=dict)

    @property
    def last_score(self) -> float | None:
        """The score, or the last report of a trial that was stopped before it had one."""
        if self.score is None and self.state == "pruned" and self.reports:
            return self.reports[max(self.reports)]
        return self.score


def read_trials(path: Path) -> list[Trial]:
    """Every trial by number; none if the file does not exist.

    Raises:
        AutoFTError: the file has no such columns, or a line that is not a trial.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
    except FileNotFoundError:
        return []
    try:
        return sorted((_trial(line) for line in lines), key=lambda trial: trial.number)
    except (KeyError, ValueError, TypeError) as error:
        raise AutoFTError(f"{path} is not a table of trials: {error!r}") from None


def best_so_far(trials: Sequence[Trial], direction: str) -> list[tuple[int, float]]:
    """(number, best score of a complete trial up to it) for every trial from the first complete one on."""
    better = max if direction == "maximize" else min
    line: list[tuple[int, float]] = []
    for trial in trials:
        if trial.state == "complete" and trial.score is not None:
            line.append((trial.number, better(trial.score, line[-1][1]) if line else trial.score))
        elif line:
            line.append((trial.number, line[-1][1]))
    return line


def top_trials(trials: Sequence[Trial], direction: str, count: int) -> list[Trial]:
    """The best complete trials, best first."""
    scored = [trial for trial in trials if trial.state == "complete" and trial.score is not None]
    return sorted(scored, key=lambda trial: trial.score or 0.0, reverse=direction == "maximize")[:count]


def _trial(line: Mapping[str, str]) -> Trial:
    weights = {name.removeprefix(_LOSS_WEIGHT): _number(line[name]) for name in line if name.startswith(_LOSS_WEIGHT)}
    reports = {int(name.removeprefix(_REPORT)): _number(line[name]) for name in line if name.startswith(_REPORT)}
    return Trial(
        number=int(line["number"]),
        state=_STATES.get(line["state"].rpartition(".")[2].lower(), "other"),
        score=_number(line["score"]),
        duration_seconds=_number(line.get("duration_seconds")),
        failure_kind=line.get("failure_kind") or "",
        worker=line.get("worker") or "",
        lr=_number(line.get("lr")),
        weight_decay=_number(line.get("weight_decay")),
        seed=line.get("seed") or "",
        loss_weights={name: value for name, value in weights.items() if value is not None},
        reports={step: value for step, value in sorted(reports.items()) if value is not None},
    )


def _number(text: str | None) -> float | None:
    """A finite number, or None for an empty cell, `nan` and infinities."""
    value = float(text) if text and text.strip().lower() not in ("none", "null") else math.nan
    return value if math.isfinite(value) else None
