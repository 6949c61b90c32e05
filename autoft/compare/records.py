"""Pieces of a comparison's work, and the records they leave: one for each method and seed, so that none depends on what else was compared."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoft import __version__
from autoft.compare.plan import FINETUNE, SOUP, WISE_FT, ZERO_SHOT
from autoft.config import section_hash
from autoft.errors import TrialCodeError
from autoft.files import read_json, write_json
from autoft.pipeline import Inputs, package_versions
from autoft.stages import StageRequest, stage_result


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One piece of work for a worker: a training with one seed, and what is made of it without further training.

    methods: the names of the comparison it answers.
    """

    name: str
    methods: tuple[str, ...]
    seed: int | None
    request: StageRequest


class Records:
    """The folder `cells`: METHOD-SEED.json for each run, with the key of what it was computed from.

    keep: whether the weights of every run stay beside them; a run whose weights are wanted and gone is no longer done.
    """

    def __init__(self, inputs: Inputs, folder: Path, keep: bool) -> None:
        self._inputs, self._folder, self._keep = inputs, folder, keep

    def run(self, cell: Cell, method: str) -> dict[str, Any] | None:
        """What a run has left, if it was the same run; None if it is to be done."""
        record = read_json(self._path(cell, method))
        if not isinstance(record, dict) or record.get("key") != self._key(cell, method):
            return None
        run = dict(record["run"])
        return None if self._keep and "error" not in run and not cell.request.run_dir.is_dir() else run

    def is_done(self, cell: Cell) -> bool:
        """Whether every run of a cell has its record. Then weights that nobody wants are removed, should they still be there."""
        done = all(self.run(cell, method) is not None for method in cell.methods)
        if done:
            self._drop_weights(cell)
        return done

    def write(self, cell: Cell, error: TrialCodeError | None) -> None:
        """Write the records of a cell that has ended, and let its weights go unless they are wanted."""
        versions = package_versions()
        for method in cell.methods:
            failed = {"method": method, "seed": cell.seed, "error": str(error)}
            run = _run(cell, method) if error is None else failed
            write_json(self._path(cell, method), {"key": self._key(cell, method), "versions": versions, "run": run})
        self._drop_weights(cell)

    def versions(self, cells: Sequence[Cell]) -> list[dict[str, str]]:
        """The different package versions the runs were made with."""
        found = [(read_json(self._path(cell, method)) or {}).get("versions", {}) for cell in cells for method in cell.methods]
        return [versions for index, versions in enumerate(found) if versions and versions not in found[:index]]

    def _path(self, cell: Cell, method: str) -> Path:
        return self._folder / (f"{method}.json" if cell.seed is None else f"{method}-{cell.seed}.json")

    def _drop_weights(self, cell: Cell) -> None:
        if not self._keep and cell.request.run_dir.is_dir():
            shutil.rmtree(cell.request.run_dir)

    def _key(self, cell: Cell, method: str) -> str:
        """Everything a run's result depends on; of packages this one's version alone."""
        config, data, request = self._inputs.config, self._inputs.data, cell.request
        content = [data.val_id.content_hash, *((name, str(split), images.content_hash) for name, (split, images) in sorted(data.tests.items()))]
        trained: Mapping[str, Any] = {**request.methods, **((request.soup_with or {}) if method == SOUP else {})}
        sections = [config.final.model_dump(), config.evaluate.model_dump()]
        sections += [config.wise_ft.model_dump()] if method == WISE_FT and config.wise_ft is not None else []
        digests = {name: hp.digest() for name, hp in trained.items()}
        return section_hash([self._inputs.fingerprint, method, digests, sections, content, __version__])


def _run(cell: Cell, method: str) -> dict[str, Any]:
    """A method's run out of a cell's stage records."""
    folder = cell.request.run_dir
    parts = [record for name in _parts(cell, method) if (record := stage_result(folder, name)) is not None]
    evaluated = stage_result(folder, f"evaluate-{method}")
    assert evaluated is not None
    peaks = [record["peak_memory_bytes"] for record in parts if record.get("peak_memory_bytes") is not None]
    wanted = ("dataset", "split", "metric", "value", "ci_low", "ci_high", "n")
    return {
        "method": method,
        "seed": cell.seed,
        "evaluations": [{name: row[name] for name in wanted} for row in evaluated["evaluations"]],
        "val_id": evaluated["val_id"],
        "val_ood": evaluated["val_ood"],
        "train_seconds": sum(record["seconds"] for record in parts),
        "peak_memory_bytes": max(peaks) if peaks else None,
        "peak_memory_kind": next((record["peak_memory_kind"] for record in parts if record.get("peak_memory_bytes") is not None), None),
        "steps": sum(record.get("steps", 0) for record in parts),
    }


def _parts(cell: Cell, method: str) -> Iterator[str]:
    """The stages whose work a method's model took."""
    if method == ZERO_SHOT:
        return
    yield FINETUNE if method in (WISE_FT, SOUP) else method
    if method == SOUP:
        yield from cell.request.soup_with or {}
    if method in (WISE_FT, SOUP):
        yield method
