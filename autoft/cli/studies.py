"""`autoft list`, `autoft show` and `autoft status`: what the database knows, read without owning anything."""

import argparse
import json
from typing import Any

from optuna.study import Study, StudyDirection
from optuna.trial import TrialState
from rich import box
from rich.table import Table

from autoft.cli.progress import stdout_console
from autoft.cli.runtime import storage_url
from autoft.enqueue import configuration_name, ran_with
from autoft.ledger import FAILURE_ATTRIBUTE
from autoft.lifeline import Wish
from autoft.pipeline import CONFIG_ATTRIBUTE, REASON_ATTRIBUTE, STATE_ATTRIBUTE
from storage import StorageURL, StudySummary, list_studies, load_study_readonly


def list_(args: argparse.Namespace) -> int:
    """Every study in the database."""
    studies = [_facts(summary) for summary in list_studies(storage_url())]
    if args.json:
        print(json.dumps(studies, indent=1))
        return 0
    if not studies:
        print("no studies yet; `autoft launch FILE` makes one")
        return 0
    table = Table("study", "state", "finished", "running", "failed", "best", "owner", "created", box=box.SIMPLE_HEAD)
    for facts in studies:
        table.add_row(*(_text(facts[name]) for name in ("study", "state", "finished", "n_running", "n_failed", "best", "owner", "created")))
    stdout_console().print(table)
    return 0


def status(args: argparse.Namespace) -> int:
    """Where one study stands and who is running it."""
    facts = _find(storage_url(), args.name)
    if args.json:
        print(json.dumps(facts, indent=1))
        return 0
    for name, value in facts.items():
        print(f"{name:18} {_text(value)}")
    return 0


def show(args: argparse.Namespace) -> int:
    """One study's best configuration and its trials."""
    url = storage_url()
    facts = _find(url, args.name)
    study = load_study_readonly(url, args.name)
    trials = [_trial(trial) for trial in study.get_trials(deepcopy=False)]
    best = _best(study)
    if args.json:
        print(json.dumps({**facts, "best_trial": best, "trials": trials}, indent=1))
        return 0
    for name, value in facts.items():
        print(f"{name:18} {_text(value)}")
    if best is not None:
        named = f" ({best['name']})" if best["name"] else ""
        print(f"\nbest trial {best['number']}{named} with score {best['score']:.4f}")
        for name, value in sorted(best["parameters"].items()):
            print(f"  {name:36} {value:.6g}")
    table = Table("trial", "configuration", "state", "score", "lr", "weight_decay", "worker", "seconds", box=box.SIMPLE_HEAD)
    for trial in trials:
        run, parameters = trial["run"], trial["parameters"]
        cells = (trial["number"], trial["name"] or "searched", trial["state"], trial["score"], parameters.get("lr"), parameters.get("weight_decay"), run.get("worker"), run.get("seconds"))
        table.add_row(*(_text(cell) for cell in cells))
    stdout_console().print(table)
    return 0


def _find(url: StorageURL, name: str) -> dict[str, Any]:
    load_study_readonly(url, name)  # raises StudyNotFound, naming studies with a similar name
    return next(_facts(summary) for summary in list_studies(url) if summary.name == name)


def _facts(summary: StudySummary) -> dict[str, Any]:
    config = summary.user_attrs.get(CONFIG_ATTRIBUTE, {})
    finished = summary.n_complete + summary.n_pruned
    state, reason = _state(summary)
    return {
        "study": summary.name,
        "state": state,
        "reason": reason,
        "finished": f"{finished} of {config['search']['n_trials']}" if config else str(finished),
        "n_complete": summary.n_complete,
        "n_pruned": summary.n_pruned,
        "n_running": summary.n_running,
        "n_failed": summary.n_failed,
        "metric": config.get("metric"),
        "direction": summary.direction,
        "best": summary.best_value,
        "owner": summary.locked_by,
        "last_sign_of_life": summary.last_sign_of_life.isoformat(timespec="seconds") if summary.last_sign_of_life else None,
        "created": summary.created.isoformat(timespec="seconds") if summary.created else None,
        "updated": summary.updated.isoformat(timespec="seconds") if summary.updated else None,
    }


def _state(summary: StudySummary) -> tuple[str, str | None]:
    """One of created, running, paused, stopping, complete, failed; and why, where it is not plain."""
    asked = summary.asked
    by = f"asked by {asked.by} at {asked.at:%Y-%m-%d %H:%M} UTC" if asked else None
    if summary.locked_by is not None:
        return {None: "running", Wish.RUN: "running", Wish.PAUSE: "paused"}.get(asked.wish if asked else None, "stopping"), by
    kept = summary.user_attrs.get(STATE_ATTRIBUTE)
    if kept == "complete":
        return "complete", None
    if kept in ("failed", "paused"):
        return kept, summary.user_attrs.get(REASON_ATTRIBUTE)
    if kept == "running":
        return "paused", "its process ended without a word; the same launch command goes on"
    return ("paused", None) if summary.n_trials else ("created", None)


def _best(study: Study) -> dict[str, Any] | None:
    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE and trial.values]
    if not complete:
        return None
    sign = -1 if study.directions[0] == StudyDirection.MAXIMIZE else 1
    trial = min(complete, key=lambda trial: (sign * trial.values[0], trial.number))
    return {"number": trial.number, "name": configuration_name(trial), "score": trial.values[0], "parameters": ran_with(trial)}


def _trial(trial: Any) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state.name,
        "name": configuration_name(trial),
        "score": trial.values[0] if trial.state == TrialState.COMPLETE and trial.values else None,
        "parameters": ran_with(trial),
        "reports": {str(step): value for step, value in trial.intermediate_values.items()},
        "failure_kind": trial.user_attrs.get(FAILURE_ATTRIBUTE),
        "run": trial.user_attrs.get("run", {}),
    }


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
