"""A recorded run to test with."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from storage.records import CheckpointRecord, EvaluationRecord, RunRecord

BEGUN = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def a_run(**changes: Any) -> RunRecord:
    """A complete run with two evaluations and a checkpoint."""
    values: dict[str, Any] = {
        "study": "tiny",
        "kind": "launch",
        "method": "autoft",
        "seed": 0,
        "fingerprint": "0123456789abcdef",
        "state": "complete",
        "started": BEGUN,
        "ended": BEGUN.replace(hour=13),
        "metric": "accuracy",
        "hyperparameters": {"lr": 1e-3, "loss_weights": {"cross_entropy": 1.0}},
        "cost": {"samples": 100, "seconds": 2.5},
        "code_version": "0.1",
        "versions": {"torch": "2.6"},
        "folder": "here:/runs/tiny",
        "evaluations": (evaluation(), evaluation(dataset="shifted", split="test_ood", value=0.5)),
        "checkpoints": (CheckpointRecord(name="final", sha256="0" * 64, bytes=10, location="here:/runs/tiny/checkpoints/final"),),
    }
    return RunRecord(**{**values, **changes})


def evaluation(**changes: Any) -> EvaluationRecord:
    """An evaluation of the final model."""
    values = {"model": "final", "seed": None, "dataset": "plain", "split": "test_id", "metric": "accuracy", "value": 0.75, "ci_low": 0.7, "ci_high": 0.8, "n": 200}
    return EvaluationRecord(**{**values, **changes})
