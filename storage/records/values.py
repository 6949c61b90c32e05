"""What is recorded of a run: plain values, in and out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

RunState = Literal["running", "complete", "failed", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord:
    """One metric of one model on one data set of `n` examples; the interval is 95 %."""

    model: str
    seed: int | None
    dataset: str
    split: str
    metric: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """A folder of weights. sha256: `autoft.file_hashes.content_hash`; location: a path on the run's host, or a URL without credentials."""

    name: str
    sha256: str
    bytes: int
    location: str


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run. Study, kind, method, seed and fingerprint say which one it is: recording them again is recording the same run.

    Attributes:
        kind: what made it: launch, finetune, compare (a comparison as a whole), training (one of a comparison's).
        fingerprint: of the data, the weights and the search space; see `autoft.fingerprint`.
        started, ended: with a time zone. Of a run that is recorded again the first start stays.
        metric, hyperparameters, cost, artifacts, evaluations, checkpoints: None leaves what is recorded; cost has `samples` and `seconds` where they are known.
        folder: HOST:PATH of the run folder. artifacts: where it was copied to, without credentials.
        failure: why it failed or was interrupted.
        id: in the database; of a record that was read.
    """

    study: str
    kind: str
    method: str
    seed: int | None
    fingerprint: str
    state: RunState
    started: datetime
    ended: datetime | None = None
    metric: str | None = None
    hyperparameters: Mapping[str, Any] | None = None
    cost: Mapping[str, Any] | None = None
    code_version: str = ""
    versions: Mapping[str, str]
    folder: str
    artifacts: str | None = None
    failure: str | None = None
    evaluations: tuple[EvaluationRecord, ...] | None = None
    checkpoints: tuple[CheckpointRecord, ...] | None = None
    id: int | None = None

    def key(self, namespace: str) -> str:
        """64 hex digits: which run this is, of a study in that schema."""
        identity = [namespace, self.study, self.kind, self.method, self.seed, self.fingerprint]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()
