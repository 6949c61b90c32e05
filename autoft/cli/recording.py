"""A command's run in the records: when it begins, how it ends, what it scored, where its weights are; and its copy in --artifacts.

A run that can go on is never brought down by its record: only a database that is away when the run begins is an error.
"""

import argparse
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autoft import __version__
from autoft.artifacts import ArtifactStore
from autoft.comparison.records import Comparison, Run
from autoft.errors import ArtifactError, AutoFTError, Interrupted, StorageUnavailable, StudyLocked
from autoft.file_hashes import FileHash, checkpoints_in, files_of, hash_files
from autoft.pipeline import Inputs, package_versions
from storage import StorageURL
from storage.records import CheckpointRecord, EvaluationRecord, RecordsDenied, RunRecord, RunState, record_run

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 15.0  # for a database that is away when a run ends
_LONGEST_FAILURE = 2000
_EVALUATION = ("model", "seed", "dataset", "split", "metric", "value", "ci_low", "ci_high", "n")


def open_artifacts(args: argparse.Namespace) -> ArtifactStore | None:
    """The store of --artifacts, tried out. Raises ConfigError, ArtifactError."""
    url: str | None = getattr(args, "artifacts", None)
    if url is None:
        return None
    store = ArtifactStore(url)
    store.check_writable()
    return store


class Recorder:
    """Records one run.

    Args:
        kind, method, seed, hyperparameters: see `RunRecord`.
        store: where the run folder is copied to when the run is complete.
        observe: called with an event when it has been.

    Raises:
        ArtifactError: another study's run is in that place.
    """

    def __init__(
        self,
        url: StorageURL,
        inputs: Inputs,
        run_dir: Path,
        store: ArtifactStore | None,
        observe: Callable[[dict[str, Any]], None],
        *,
        kind: str,
        method: str,
        seed: int | None,
        hyperparameters: Mapping[str, Any] | None = None,
    ) -> None:
        self.exit_code = 0  # of the command, once it is complete: a copy that failed is an error, the run is not
        self._url, self._run_dir, self._store, self._observe, self._records = url, run_dir, store, observe, True
        self._run = RunRecord(
            study=inputs.config.study,
            kind=kind,
            method=method,
            seed=seed,
            fingerprint=inputs.fingerprint,
            state="running",
            started=datetime.now(UTC),
            metric=inputs.config.metric,
            hyperparameters=hyperparameters,
            code_version=__version__,
            versions=package_versions(),
            folder=f"{socket.gethostname()}:{run_dir.absolute()}",
        )
        if store is not None:
            store.check_owner(run_dir.name, inputs.fingerprint)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Record that the run begins, and if the block ends with an error, that too. Raises StorageError if the database is away."""
        try:
            record_run(self._url, self._run)
        except RecordsDenied as error:
            logger.warning("this run is not recorded: %s", error)
            self._records = False
        try:
            yield
        except StudyLocked:  # the record is its new owner's to keep
            raise
        except BaseException as error:
            self._record(self._ended("interrupted" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed", _reason(error)))
            raise

    def complete(self, summary: Mapping[str, Any]) -> None:
        """Record a run's summary.json and copy the run folder to the store."""
        evaluations = tuple(EvaluationRecord(**{name: row[name] for name in _EVALUATION}) for row in summary["evaluations"])
        found = summary.get("final", {}).get("hyperparameters")
        self._complete(replace(self._ended("complete"), evaluations=evaluations, cost=_cost(summary["cost"]), hyperparameters=found))

    def complete_comparison(self, comparison: Comparison) -> None:
        """Record a comparison, and each training of it as a run of its own; copy the folder to the store."""
        whole = self._ended("complete")
        seconds = sum(run.train_seconds or 0.0 for run in comparison.runs) + sum({run.method: run.tune_seconds or 0.0 for run in comparison.runs}.values())
        trainings = [_training(whole, comparison, run) for run in comparison.runs]
        self._complete(replace(whole, cost={"seconds": seconds}, evaluations=()), *trainings)

    def _complete(self, run: RunRecord, *more: RunRecord) -> None:
        try:
            hashes = hash_files(self._run_dir, None if self._store is not None else _weights(self._run_dir))
        except OSError as error:
            logger.warning("checkpoints are not recorded: %s: %s", error.filename, error.strerror)
            hashes = {}
        self._record(replace(run, checkpoints=_checkpoints(hashes, run.folder)), *more)
        if self._store is not None and self._copy(self._store, hashes):
            where = self._store.url_of(self._run_dir.name)
            self._record(replace(run, checkpoints=_checkpoints(hashes, where), artifacts=where), *(replace(each, artifacts=where) for each in more))

    def _copy(self, store: ArtifactStore, hashes: Mapping[str, FileHash]) -> bool:
        try:
            done = store.upload(self._run_dir, self._run.fingerprint, hashes)
        except ArtifactError as error:
            logger.error("%s\nThe run is complete and whole in %s. Run the same command again to copy what is missing.", error, self._run_dir)
            self.exit_code = error.exit_code
            return False
        self._observe({"event": "copied", "url": done.url, "sent": done.sent, "kept": done.kept, "bytes": done.bytes})
        return True

    def _ended(self, state: RunState, failure: str | None = None) -> RunRecord:
        return replace(self._run, state=state, ended=datetime.now(UTC), failure=failure)

    def _record(self, *records: RunRecord) -> None:
        """Record the end; a database that is away is waited for a little, and what cannot be recorded is warned about."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._records:
            try:
                return record_run(self._url, *records)
            except StorageUnavailable as error:
                if time.monotonic() < deadline:
                    time.sleep(0.5)
                    continue
                reason = str(error)
            except AutoFTError as error:
                reason = str(error)
            except Exception as error:  # even a bug here must not cost a run its result
                reason = f"{type(error).__name__} in autoft"
            logger.warning("the end of this run is not recorded: %s; run the same command again to record it", reason)
            return None


def _training(whole: RunRecord, comparison: Comparison, run: Run) -> RunRecord:
    """One training of a comparison as a run."""
    method = comparison.method(run.method)
    rows = [EvaluationRecord(model=run.method, seed=run.seed, **{name: getattr(row, name) for name in _EVALUATION[2:]}) for row in run.evaluations]
    cost = {"seconds": run.train_seconds, "tune_seconds": run.tune_seconds, "steps": run.steps, "peak_memory_bytes": run.peak_memory_bytes}
    return replace(
        whole,
        kind="training",
        method=run.method,
        seed=run.seed,
        state="complete" if run.error is None else "failed",
        failure=run.error,
        hyperparameters=dict(method.chosen) if method is not None else None,
        cost=cost,
        evaluations=tuple(rows),
    )


def _weights(folder: Path) -> tuple[str, ...]:
    return tuple(file for file in files_of(folder) if file.endswith(".safetensors"))


def _checkpoints(hashes: Mapping[str, FileHash], where: str) -> tuple[CheckpointRecord, ...]:
    return tuple(
        CheckpointRecord(name=folder.removeprefix("checkpoints/"), sha256=found.sha256, bytes=found.bytes, location=f"{where}/{folder}")
        for folder, found in checkpoints_in(hashes).items()
    )


def _cost(cost: Mapping[str, Any]) -> dict[str, Any]:
    """A summary's cost, with everything that was trained on and every second in all beside it."""
    trained = ("search_samples", "confirm_samples", "final_samples", "baseline_samples")
    return {
        **cost,
        "samples": sum(cost.get(name) or 0 for name in trained),
        "seconds": sum(cost.get(name) or 0.0 for name in ("search_seconds", "confirm_seconds", "final_seconds")),
    }


def _reason(error: BaseException) -> str:
    """Why a run ended. Only messages of our own are repeated: they hold no secrets."""
    if isinstance(error, AutoFTError):
        return str(error)[:_LONGEST_FAILURE]
    if isinstance(error, KeyboardInterrupt):
        return "stopped"
    return f"{type(error).__name__}: {error.strerror}" if isinstance(error, OSError) else type(error).__name__
