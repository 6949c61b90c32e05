"""A study's trials for people and for the report: trials.csv, and the search's part of summary.json."""

import csv
import datetime
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from scipy import stats

from autoft.config import StudyConfig
from autoft.confirm import Confirmation
from autoft.enqueue import configuration_name
from autoft.files import replace_text_stream
from autoft.ledger import FAILURE_ATTRIBUTE, RUN_ATTRIBUTE
from autoft.stages import stage_result

MIN_PAIRS = 3  # a rank correlation of two pairs is always 1 or -1


def write_trials(study: Study, path: Path, objectives: Sequence[str]) -> None:
    """The study's trials as a table: state, score with its interval, cost, parameters, intermediate scores."""
    trials = study.get_trials(deepcopy=False)
    parameters = sorted({name for trial in trials for name in trial.params})
    steps = sorted({step for trial in trials for step in trial.intermediate_values})
    columns = ["number", "name", "state", "score", "ci_low", "ci_high", *objectives[1:], "repeat_sd"]
    columns += ["duration_seconds", "started_at", "finished_at", "worker", "failure_kind"]
    with replace_text_stream(path) as file:
        table = csv.writer(file)
        table.writerow([*columns, *parameters, *(f"report/{step}" for step in steps)])
        for trial in trials:
            reports = (trial.intermediate_values.get(step) for step in steps)
            table.writerow([*_row(trial, len(objectives)), *(trial.params.get(name) for name in parameters), *reports])


def _row(trial: FrozenTrial, objectives: int) -> list[Any]:
    run = trial.user_attrs.get(RUN_ATTRIBUTE, {})
    values = trial.values if trial.state == TrialState.COMPLETE and trial.values else [None] * objectives
    scores = [values[0], run.get("ci_low"), run.get("ci_high"), *values[1:], run.get("repeat_sd")]
    times = [trial_seconds(trial), _iso(trial.datetime_start), _iso(trial.datetime_complete)]
    return [trial.number, configuration_name(trial), trial.state.name, *scores, *times, run.get("worker"), trial.user_attrs.get(FAILURE_ATTRIBUTE)]


def trial_seconds(trial: FrozenTrial) -> float | None:
    """Worker time of a trial; the time between ask and tell where the worker did not say."""
    seconds: float | None = trial.user_attrs.get(RUN_ATTRIBUTE, {}).get("seconds")
    if seconds is None and trial.duration is not None:
        seconds = trial.duration.total_seconds()
    return seconds


def _iso(moment: datetime.datetime | None) -> str | None:
    return moment.isoformat(timespec="milliseconds") if moment is not None else None


def search_summary(config: StudyConfig, study: Study, confirmation: Confirmation, run_dir: Path) -> dict[str, Any]:
    """What summary.json says of the search."""
    trials = study.get_trials(deepcopy=False)
    winner, objectives = confirmation.winner, config.search.objectives
    run = trials[winner.number].user_attrs.get(RUN_ATTRIBUTE, {})
    interval = {name: run.get(name) for name in ("ci_low", "ci_high")}
    space = config.search_space
    return {
        "n_complete": _count(trials, TrialState.COMPLETE),
        "n_pruned": _count(trials, TrialState.PRUNED),
        "n_failed": _count(trials, TrialState.FAIL),
        "best_trial": {
            "number": winner.number,
            "name": winner.name,
            "score": winner.score,
            **interval,
            "hyperparameters": winner.hyperparameters.to_dict(),
        },
        **{name: getattr(config.search, name) for name in ("n_trials", "sampler", "pruner", "seed")},
        "steps": config.trial.steps,
        "batch_size": config.trial.batch_size,
        "repeats": config.trial.repeats,
        "preset": space.preset,
        "reference": space.reference,
        "layerwise": space.layerwise,
        "objectives": list(objectives),
        **({"pareto": [_front(trial, objectives) for trial in study.best_trials]} if len(objectives) > 1 else {}),
        "enqueued": [_enqueued(trial) for trial in trials if configuration_name(trial) is not None],
        "confirmation": confirmation.summary(),
        "horizon": _horizon(config, trials, confirmation, run_dir),
        "transfer": [{"study": name, "n_trials": _from(trials, name)} for name in config.search.warm_start_from] or None,
    }


def _count(trials: Iterable[FrozenTrial], state: TrialState) -> int:
    return sum(trial.state == state for trial in trials)


def _from(trials: Iterable[FrozenTrial], source: str) -> int:
    return sum((configuration_name(trial) or "").startswith(f"{source} #") for trial in trials)


def _front(trial: FrozenTrial, objectives: Sequence[str]) -> dict[str, Any]:
    return {"number": trial.number, "name": configuration_name(trial), "values": dict(zip(objectives, trial.values, strict=True))}


def _enqueued(trial: FrozenTrial) -> dict[str, Any]:
    score = trial.values[0] if trial.state == TrialState.COMPLETE and trial.values else None
    return {"name": configuration_name(trial), "number": trial.number, "score": score, "state": trial.state.name.lower()}


def _horizon(config: StudyConfig, trials: Sequence[FrozenTrial], confirmation: Confirmation, run_dir: Path) -> dict[str, Any] | None:
    """Short against long: the trial's score beside that of a full fine-tune, or of a longer confirmation, of the same configuration.

    Only configurations that were run both ways; None if there are none. The correlation needs three.
    """
    steps = config.search.confirm.steps or config.trial.steps
    pairs = []
    if steps > config.trial.steps:
        for candidate in confirmation.candidates:
            mean = confirmation.mean(candidate)
            if mean is not None:
                pairs.append({"label": f"trial {candidate.number}", "short": candidate.score, "long": mean, "long_steps": steps})
    short = {name.replace("/", "-"): t.values[0] for t in trials if (name := configuration_name(t)) and t.state == TrialState.COMPLETE and t.values}
    short["final"] = confirmation.winner.score
    for method, score in short.items():
        record = stage_result(run_dir, method)
        if record is not None and (config.final.lr == "searched" or method != "final"):
            pairs.append({"label": method, "short": score, "long": record["val_ood"], "long_steps": record["steps"]})
    if not pairs:
        return None
    return {"short_steps": config.trial.steps, "pairs": pairs, "spearman": _spearman(pairs), "n": len(pairs)}


def _spearman(pairs: Sequence[dict[str, Any]]) -> float | None:
    if len(pairs) < MIN_PAIRS or any(len({pair[side] for pair in pairs}) < 2 for side in ("short", "long")):
        return None
    return float(stats.spearmanr([pair["short"] for pair in pairs], [pair["long"] for pair in pairs]).statistic)
