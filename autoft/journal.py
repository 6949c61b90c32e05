"""The journal: every trial's end, on disk before it is told to the database, so that no result is lost with the database."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from autoft.errors import StudyConflict


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
        self._path, self._study_id = path, study_id
        path.parent.mkdir(parents=True, exist_ok=True)
        self._cut_torn_line()

    def append(self, entry: Entry) -> None:
        """Write one line. Raises OSError if it cannot be made durable."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(entry), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def entries(self) -> Iterator[Entry]:
        """Every entry, oldest first.

        Raises:
            StudyConflict: the journal is another study's, for instance one of the same name that was deleted.
        """
        if not self._path.exists():
            return
        for line in self._path.read_text(encoding="utf-8").splitlines():
            values = json.loads(line)
            reports = tuple((step, score) for step, score in values["reports"])
            entry = Entry(**(values | {"reports": reports, "values": tuple(values.get("values", ()))}))
            if entry.study_id != self._study_id:
                raise StudyConflict(
                    f"{self._path} belongs to another study of the same name (id {entry.study_id}, this one is {self._study_id}); "
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
