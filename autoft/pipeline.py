"""From a study file to a run folder: search, final fine-tune, WiSE-FT, evaluation, report. Every part resumes where it stopped."""

import csv
import datetime
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autoft.config import StudyConfig, dump_config, section_hash
from autoft.data import StudyData, load_study_data
from autoft.executor import Executor
from autoft.files import read_json, replace_text_stream, write_json, write_text
from autoft.fingerprint import check_fingerprint, fingerprint, fingerprint_sections
from autoft.journal import Journal
from autoft.models import LoadedModel, load_model, state_digest
from autoft.report import write_report
from autoft.search import FAILURE_ATTRIBUTE, RUN_ATTRIBUTE, Coordinator, best_trial, count_finished, study_id
from autoft.search_space import Hyperparameters
from autoft.stages import StageRequest, all_splits, stage_result, trained_methods

VERSIONED = ("autoft", "torch", "open_clip_torch", "timm", "optuna", "ray", "sqlalchemy", "numpy")
CONFIG_ATTRIBUTE = "autoft:config"
STATE_ATTRIBUTE = "autoft:state"
Observe = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Inputs:
    """A study's validated inputs: every image set decoded and hashed, the model loaded once."""

    config: StudyConfig
    data: StudyData
    loaded: LoadedModel
    sections: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """The study's identity, 16 hex digits."""
        return fingerprint(self.sections)


def prepare(config: StudyConfig, cache_dir: Path, progress: Callable[[str, int, int], None] | None = None) -> Inputs:
    """Load and check everything a study needs before any work starts.

    Raises:
        DataError, ModelError, ConfigError: naming what is wrong with which field.
    """
    loaded = load_model(config.model)
    pixels = loaded.preprocess
    data = load_study_data(
        config.data, pixels.size, pixels.interpolation, pixels.resize_mode, cache_dir, splits=all_splits(config), progress=progress
    )
    return Inputs(config, data, loaded, fingerprint_sections(config, state_digest(loaded.clip.state_dict()), data))


def is_complete(inputs: Inputs, study: Study, run_dir: Path) -> bool:
    """Whether a run folder already holds everything this study file asks for."""
    summary = read_json(run_dir / "summary.json")
    if not isinstance(summary, dict) or summary.get("state") != "complete":
        return False
    if count_finished(study) < inputs.config.search.n_trials or not (run_dir / "report.html").is_file():
        return False
    _, hyperparameters = best_trial(study, inputs.config)
    return bool(summary.get("run_key") == _run_key(inputs, hyperparameters))


def run_pipeline(
    inputs: Inputs,
    study: Study,
    make_executor: Callable[[], Executor],
    run_dir: Path,
    observe: Observe,
    should_stop: Callable[[], bool],
) -> dict[str, Any]:
    """Run a study from wherever it stands to its report; returns the summary.

    Raises:
        StudyConflict: the study or the run folder belongs to other inputs.
        Interrupted: `should_stop()` said so; calling again goes on from there.
        TrialCodeError, ClusterError: trials cannot be run.
    """
    config = inputs.config
    check_fingerprint(study, inputs.sections)
    journal = Journal(run_dir / "journal.jsonl", study_id(study))
    write_text(run_dir / "study.yaml", dump_config(config))
    study.set_user_attr(CONFIG_ATTRIBUTE, config.model_dump(mode="json"))
    study.set_user_attr(STATE_ATTRIBUTE, "stopped")  # what it is if this process is killed
    executor = make_executor()
    try:
        Coordinator(config, study, executor, journal, observe, should_stop).run()
        write_trials(study, run_dir / "trials.csv")
        _, best = best_trial(study, config)
        request = StageRequest(
            config=config, run_dir=run_dir.resolve(), best=best, fingerprint=inputs.fingerprint, versions=package_versions()
        )
        executor.run_stages(request, observe)
    finally:
        executor.close()
    summary = summarize(inputs, study, run_dir)
    write_json(run_dir / "summary.json", summary)
    observe({"event": "stage_started", "stage": "report"})
    write_report(run_dir)
    study.set_user_attr(STATE_ATTRIBUTE, "complete")
    return summary


def summarize(inputs: Inputs, study: Study, run_dir: Path) -> dict[str, Any]:
    """The content of summary.json, from the study and the stages' records."""
    config = inputs.config
    trial, best = best_trial(study, config)
    final = stage_result(run_dir, "final") or {}
    wise_ft = stage_result(run_dir, "wise_ft") if config.wise_ft is not None else None
    methods = ["zero_shot", *trained_methods(config, best), *(["wise_ft"] if wise_ft else [])]
    evaluations = [row for method in methods for row in (stage_result(run_dir, f"evaluate-{method}") or {}).get("evaluations", [])]
    trials = study.get_trials(deepcopy=False)
    return {
        "study": config.study,
        "state": "complete",
        "metric": config.metric,
        "direction": config.direction,
        "versions": package_versions(),
        "fingerprint": inputs.fingerprint,
        "run_key": _run_key(inputs, best),
        "description": _describe(inputs),
        "search": {
            "n_complete": _count(trials, TrialState.COMPLETE),
            "n_pruned": _count(trials, TrialState.PRUNED),
            "n_failed": _count(trials, TrialState.FAIL),
            "best_trial": {"number": trial.number, "score": trial.value, "hyperparameters": best.to_dict()},
            **{name: getattr(config.search, name) for name in ("n_trials", "sampler", "pruner", "seed")},
            "steps": config.trial.steps,
            "batch_size": config.trial.batch_size,
        },
        "final": {name: final.get(name) for name in ("hyperparameters", "epochs", "best_epoch", "steps")},
        **({"wise_ft": {name: wise_ft[name] for name in ("alpha", "select_on", "curve")}} if wise_ft else {}),
        "evaluations": evaluations,
        "cost": _cost(inputs, trials, run_dir),
        "notes": _notes(inputs),
    }


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_trials(study: Study, path: Path) -> None:
    """The study's trials as a table: state, score, cost, parameters, intermediate scores."""
    trials = study.get_trials(deepcopy=False)
    parameters = sorted({name for trial in trials for name in trial.params})
    steps = sorted({step for trial in trials for step in trial.intermediate_values})
    columns = ["number", "state", "score", "duration_seconds", "started_at", "finished_at", "worker", "failure_kind"]
    with replace_text_stream(path) as file:
        table = csv.writer(file)
        table.writerow([*columns, *parameters, *(f"report/{step}" for step in steps)])
        for trial in trials:
            table.writerow([*_trial_row(trial), *(trial.params.get(name) for name in parameters), *(trial.intermediate_values.get(s) for s in steps)])


def _trial_row(trial: FrozenTrial) -> list[Any]:
    run = trial.user_attrs.get(RUN_ATTRIBUTE, {})
    score = trial.value if trial.state == TrialState.COMPLETE else None
    failure = trial.user_attrs.get(FAILURE_ATTRIBUTE)
    return [trial.number, trial.state.name, score, _seconds(trial), _iso(trial.datetime_start), _iso(trial.datetime_complete), run.get("worker"), failure]


def _seconds(trial: FrozenTrial) -> float | None:
    """Worker time of a trial; the time between ask and tell where the worker did not say."""
    seconds: float | None = trial.user_attrs.get(RUN_ATTRIBUTE, {}).get("seconds")
    if seconds is None and trial.duration is not None:
        seconds = trial.duration.total_seconds()
    return seconds


def _iso(moment: datetime.datetime | None) -> str | None:
    return moment.isoformat(timespec="milliseconds") if moment is not None else None


def _count(trials: Iterable[FrozenTrial], state: TrialState) -> int:
    return sum(trial.state == state for trial in trials)


def _cost(inputs: Inputs, trials: list[FrozenTrial], run_dir: Path) -> dict[str, Any]:
    """Training examples and worker seconds spent on searching, and on the final fine-tune it is for."""
    runs = [trial.user_attrs.get(RUN_ATTRIBUTE, {}) for trial in trials]
    reports = sum(len(trial.intermediate_values) for trial in trials)
    final = stage_result(run_dir, "final") or {"samples": 0, "seconds": 0.0}
    baselines = [stage_result(run_dir, name) or {} for name in inputs.config.evaluate.baselines]
    search_samples = sum(run.get("samples", 0) for run in runs)
    return {
        "search_samples": search_samples,
        "search_eval_samples": reports * len(inputs.data.val_ood),
        "final_samples": final["samples"],
        "baseline_samples": sum(record.get("samples", 0) for record in baselines),
        "search_seconds": sum(_seconds(trial) or 0.0 for trial in trials),
        "final_seconds": final["seconds"],
        "search_over_final": search_samples / final["samples"] if final["samples"] else 0.0,
        "workers": len({run["worker"] for run in runs if "worker" in run}),
    }


def _describe(inputs: Inputs) -> dict[str, Any]:
    data = inputs.data
    sizes = {"train": len(data.train), "val_id": len(data.val_id), "val_ood": len(data.val_ood)}
    sizes |= {name: len(images) for name, (_, images) in data.tests.items()}
    model = inputs.config.model
    name = Path(model.name).name if model.name.startswith("local-dir:") else model.name
    return {
        "model": name if model.pretrained is None else f"{name} ({Path(model.pretrained).name})",
        "n_classes": len(data.classes.names),
        "data": sizes,
    }


def _notes(inputs: Inputs) -> list[str]:
    config, notes = inputs.config, []
    if config.final.lr == "base":
        notes.append("The final fine-tune used search_space.base_lr instead of the searched rate, as the authors' released code did.")
    if len(inputs.data.val_ood) < 500:
        notes.append(f"VAL_OOD has {len(inputs.data.val_ood)} images: the best trial's score is the largest of many noisy ones and optimistic.")
    return notes


def _run_key(inputs: Inputs, best: Hyperparameters) -> str:
    config, data = inputs.config, inputs.data
    content = [data.val_id.content_hash, *((name, str(split), images.content_hash) for name, (split, images) in sorted(data.tests.items()))]
    sections = [config.final.model_dump(), config.wise_ft and config.wise_ft.model_dump(), config.evaluate.model_dump()]
    return section_hash([inputs.fingerprint, best.digest(), sections, content])
