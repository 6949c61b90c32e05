"""`autoft runs`: the recorded runs."""

import argparse
import json
from dataclasses import asdict
from datetime import datetime
from typing import Any

from rich import box
from rich.table import Table

from autoft.cli.progress import stdout_console
from autoft.cli.runtime import storage_url
from storage.records import RunRecord, list_runs

_BEST_FIRST = ("wise_ft", "final")  # what a run with several models is for


def runs(args: argparse.Namespace) -> int:
    """Every recorded run, or those of one study."""
    found = list_runs(storage_url(), args.name)
    if args.json:
        print(json.dumps([{**asdict(run), **averages(run)} for run in found], indent=1, default=_moment))
        return 0
    if not found:
        print("no recorded runs yet" if args.name is None else f"no recorded runs of study {args.name!r}")
        return 0
    table = Table("study", "kind", "method", "seed", "state", "id", "ood", "seconds", "samples", "started", "where", box=box.SIMPLE_HEAD)
    for run in found:
        cost, scores = run.cost or {}, averages(run)
        cells = (run.study, run.kind, run.method, run.seed, run.state, *(_score(run, scores[name]) for name in ("id", "ood")))
        where = run.artifacts or run.folder
        table.add_row(*map(_text, (*cells, cost.get("seconds"), cost.get("samples"), run.started.isoformat(" ", "minutes")[:16], where)))
    stdout_console().print(table)
    return 0


def averages(run: RunRecord) -> dict[str, float | None]:
    """The mean of the study's metric over its test sets, in and out of distribution, of the model the run is for."""
    rows = [row for row in run.evaluations or () if row.metric == run.metric and row.value is not None]
    models = {row.model for row in rows}
    model = next((name for name in (*_BEST_FIRST, run.method) if name in models), None)
    found: dict[str, float | None] = {}
    for name in ("id", "ood"):
        values = [row.value for row in rows if row.model == model and row.split == f"test_{name}" and row.value is not None]
        found[name] = sum(values) / len(values) if values else None
    return found


def _score(run: RunRecord, value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value:.4f}" if run.metric == "cross_entropy" else f"{100 * value:.1f} %"


def _moment(value: Any) -> str:
    assert isinstance(value, datetime)
    return value.isoformat(timespec="seconds")


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
