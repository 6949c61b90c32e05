"""The journal: every trial's end, on disk before it is told to the database, so that no result is lost with the database."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from autoft.errors import DataError, StudyConflict
from autoft.files import disk_errors


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One trial's end. `digest` identifies the hyperparameters, `reports` are (step, score), `values` all objectives' scores in order."""

    study_id: str
    number: int
    digest: str
    state: Literal["complete", "pruned", "failed"]
    score: float | None
    reports: tuple[tuple[int, float], ...]
    details: dict[str, Any]
    values: tuple[float, ...] = ()


class Journal:
    """`journal.jsonl` of one study. Every line is flushed to disk before `append` returns."""

    def __init__(self, path: Path, study_id: str) -> None:
        self._path, self.study_id = path, study_id
        path.parent.mkdir(parents=True, exist_ok=True)
        self._cut_torn_line()

    def append(self, entry: Entry) -> None:
        """Write one line. Raises OSError if it cannot be made durable."""
        with disk_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(entry), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def entries(self) -> Iterator[Entry]:
        """Every entry, oldest first.

        Raises:
            StudyConflict: the journal is another study's, for instance one of the same name that was deleted.
            DataError: a line is damaged; only the last may be torn, and that is cut off.
        """
        if not self._path.exists():
            return
        for number, line in enumerate(self._path.read_bytes().split(b"\n")[:-1], 1):
            try:
                entry = _entry(line)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise DataError(
                    f"{self._path} line {number} is damaged: {type(error).__name__}: {str(error)[:200]}. What it says is in the database too if it "
                    "was told; take the line out, or move the file away, and trials that were not told run again"
                ) from None
            if entry.study_id != self.study_id:
                raise StudyConflict(
                    f"{self._path} belongs to another study of the same name (id {entry.study_id}, this one is {self.study_id}); "
                    "move the run folder away or choose another --runs"
                )
            yield entry

    def _cut_torn_line(self) -> None:
        """Drop a last line that a crash left incomplete; its trial is run again."""
        if not self._path.exists():
            return
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            with self._path.open("r+b") as file:
                file.truncate(len(whole))


def _entry(line: bytes) -> Entry:
    """Read a line. Raises ValueError and what else damaged JSON leads to."""
    values: dict[str, Any] = json.loads(line)
    reports = tuple((step, score) for step, score in values["reports"])
    entry = Entry(**(values | {"reports": reports, "values": tuple(values.get("values", ()))}))
    scores = [*(score for _, score in reports), *entry.values, *([] if entry.score is None else [entry.score])]
    counts = [entry.number, *(step for step, _ in reports)]
    if not all(type(score) in (int, float) and math.isfinite(score) for score in scores):
        raise ValueError("a score is no finite number")
    if not all(type(count) is int and 0 <= count < 1 << 62 for count in counts):
        raise ValueError("a trial's number or a step is no whole number")
    if entry.state not in ("complete", "pruned", "failed") or not isinstance(entry.details, dict):
        raise ValueError(f"state {str(entry.state)[:40]!r} or the details are not those of a trial's end")
    if not isinstance(entry.study_id, str) or not isinstance(entry.digest, str):
        raise ValueError("study_id and digest are no texts")
    return entry
