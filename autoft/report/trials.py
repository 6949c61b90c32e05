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
_LAYER_LR, _LAYER_WEIGHT_DECAY = "layer_lr/", "layer_weight_decay/"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One line of trials.csv. What a table of an older version lacks is None or empty.

    name: of an enqueued configuration. score: on VAL_OOD, with its 95 % interval. val_id: the second objective.
    repeat_sd: standard deviation over the repeats of this trial.
    """

    number: int
    state: State
    score: float | None
    duration_seconds: float | None
    failure_kind: str
    worker: str
    lr: float | None
    weight_decay: float | None
    seed: str
    name: str = ""
    ci_low: float | None = None
    ci_high: float | None = None
    val_id: float | None = None
    repeat_sd: float | None = None
    layer_lr: Mapping[str, float] = field(default_factory=dict)
    layer_weight_decay: Mapping[str, float] = field(default_factory=dict)
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    reports: Mapping[int, float] = field(default_factory=dict)

    @property
    def last_score(self) -> float | None:
        """The score, or the last report of a trial that was stopped before it had one."""
        if self.score is None and self.state == "pruned" and self.reports:
            return self.reports[max(self.reports)]
        return self.score

    @property
    def interval(self) -> tuple[float, float] | None:
        """(low, high) of the score, or None where there is no score or an end is unknown."""
        if self.score is None or self.ci_low is None or self.ci_high is None:
            return None
        return self.ci_low, self.ci_high


def read_trials(path: Path) -> list[Trial]:
    """Every trial by number; none if the file does not exist.

    Raises:
        AutoFTError: the file has no such columns, or a line that is not a trial.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        return sorted((_trial(line) for line in lines), key=lambda trial: trial.number)
    except FileNotFoundError:
        return []
    except (OSError, KeyError, ValueError, TypeError, AttributeError, csv.Error) as error:  # AttributeError: a line that ends early
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
    reports = {int(step): value for step, value in _under(line, _REPORT).items()}
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
        name=line.get("name") or "",
        ci_low=_number(line.get("ci_low")),
        ci_high=_number(line.get("ci_high")),
        val_id=_number(line.get("val_id")),
        repeat_sd=_number(line.get("repeat_sd")),
        layer_lr=_under(line, _LAYER_LR),
        layer_weight_decay=_under(line, _LAYER_WEIGHT_DECAY),
        loss_weights=_under(line, _LOSS_WEIGHT),
        reports=dict(sorted(reports.items())),
    )


def _under(line: Mapping[str, str], prefix: str) -> dict[str, float]:
    """The finite numbers of the columns that start with a prefix, by the rest of their names."""
    cells = {name.removeprefix(prefix): _number(cell) for name, cell in line.items() if name and name.startswith(prefix)}
    return {name: value for name, value in cells.items() if value is not None}


def _number(text: str | None) -> float | None:
    """A finite number, or None for an empty cell, `nan` and infinities."""
    value = float(text) if text and text.strip().lower() not in ("none", "null") else math.nan
    return value if math.isfinite(value) else None
