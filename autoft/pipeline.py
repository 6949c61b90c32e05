"""From a study file to a run folder: search, final fine-tune, WiSE-FT, evaluation, report. Every part resumes where it stopped."""

import contextlib
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch
from optuna.study import Study
from optuna.trial import FrozenTrial

from autoft.config import StudyConfig, dump_config, section_hash
from autoft.confirm import Confirmation, Confirming, read_confirmation
from autoft.core_features import check_terms_available, read_descriptions
from autoft.data import StudyData, load_study_data, resolve_classes
from autoft.data.leakage import LeakageReport, check_leakage, describe_leakage
from autoft.enqueue import enqueue
from autoft.errors import AutoFTError, Interrupted, StorageError, StorageUnavailable, StudyLocked
from autoft.executor import Executor
from autoft.files import read_json, write_json, write_text
from autoft.fingerprint import check_fingerprint, fingerprint, fingerprint_sections
from autoft.journal import Journal
from autoft.ledger import FINISHED_STATES, RUN_ATTRIBUTE, count_finished, study_id
from autoft.lifeline import ALWAYS_THERE, Lifeline, Outage, Wish, wants_end
from autoft.losses import needs_text
from autoft.methods import Setting, method_hyperparameters, slug
from autoft.models import ClipClassifier, LoadedModel, load_model, state_digest
from autoft.optim import TEXT, layer_names
from autoft.report import write_report
from autoft.search import Coordinator
from autoft.search_space import Hyperparameters
from autoft.stages import StageRequest, all_splits, load_workspace, run_stages, stage_result, trained_methods
from autoft.trials_table import search_summary, trial_seconds, write_trials

VERSIONED = ("autoft", "torch", "open_clip_torch", "timm", "optuna", "ray", "sqlalchemy", "numpy")
CONFIG_ATTRIBUTE = "autoft:config"
STATE_ATTRIBUTE = "autoft:state"  # running, paused, complete or failed, as the last owner left it
REASON_ATTRIBUTE = "autoft:reason"  # why it is paused or failed
HOLD_SECONDS = 0.5
Observe = Callable[[dict[str, Any]], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Inputs:
    """A study's validated inputs: every image set decoded and hashed, the model loaded once."""

    config: StudyConfig
    data: StudyData
    loaded: LoadedModel
    sections: Mapping[str, Any]
    entries: int  # weights a fine-tune of image tower and head trains
    leakage: LeakageReport

    @property
    def fingerprint(self) -> str:
        """The study's identity, 16 hex digits."""
        return fingerprint(self.sections)


def prepare(
    config: StudyConfig,
    cache_dir: Path,
    decoding: Callable[[str, int, int], None] | None = None,
    comparing: Callable[[str, int, int], None] | None = None,
    loaded: LoadedModel | None = None,
) -> Inputs:
    """Load and check everything a study needs before any work starts.

    Args:
        decoding, comparing: called with (field, images done, images in all) while images are decoded, and hashed for the leakage check.
        loaded: the study's model, if it is at hand.

    Raises:
        DataError, ModelError, ConfigError: naming what is wrong with which field.
    """
    loaded = loaded or load_model(config.model)
    pixels = loaded.preprocess
    described = config.data.descriptions is not None  # classes are looked up before images are decoded for such a study only
    descriptions = read_descriptions(config.data, resolve_classes(config.data), loaded.tokenizer) if described else None
    data = load_study_data(
        config.data, pixels.size, pixels.interpolation, pixels.resize_mode, cache_dir, splits=all_splits(config), progress=decoding
    )
    model = _classifier(loaded, len(data.classes))
    config = with_layers(config, loaded, len(data.classes))
    sections = fingerprint_sections(config, state_digest(loaded.clip.state_dict()), data, descriptions)
    text = {f"clip.{name}" for name, _ in loaded.clip.named_parameters() if not name.startswith("visual.")}
    entries = sum(parameter.numel() for name, parameter in model.named_parameters() if name not in text)
    leakage = check_leakage(data, config.data, cache_dir, comparing)
    return Inputs(config, data, loaded, sections, entries, leakage)


def with_layers(config: StudyConfig, loaded: LoadedModel, classes: int) -> StudyConfig:
    """A layerwise study with the names of the model's layers, if they are not given; any other as it is."""
    if not config.search_space.layerwise or config.search_space.layers:
        return config
    with_text = needs_text((config.search_space.reference, *config.search_space.terms))
    layers = tuple(layer for layer in layer_names(_classifier(loaded, classes)) if with_text or layer != TEXT)
    return config.model_copy(update={"search_space": config.search_space.model_copy(update={"layers": layers})})


def _classifier(loaded: LoadedModel, classes: int) -> ClipClassifier:
    """The model with a head of the right shape, to see what weights it has."""
    return ClipClassifier(loaded.clip, torch.nn.Linear(loaded.open_clip_config["model_cfg"]["embed_dim"], classes))


def is_complete(inputs: Inputs, study: Study, run_dir: Path) -> bool:
    """Whether a run folder already holds everything this study file asks for."""
    summary = read_json(run_dir / "summary.json")
    if not isinstance(summary, dict) or summary.get("state") != "complete":
        return False
    if count_finished(study) < inputs.config.search.n_trials or not (run_dir / "report.html").is_file():
        return False
    confirmation = read_confirmation(study, inputs.config, run_dir, inputs.fingerprint)
    return confirmation is not None and bool(summary.get("run_key") == _run_key(inputs, confirmation.winner.hyperparameters))


def enqueued_configurations(inputs: Inputs) -> dict[str, Hyperparameters]:
    """The named configurations of `search.enqueue`, in order."""
    setting = Setting(inputs.config.search_space, inputs.entries, inputs.config.search.seed)
    return {name: method_hyperparameters(name, setting) for name in inputs.config.search.enqueue}


def run_pipeline(
    inputs: Inputs,
    study: Study,
    make_executor: Callable[[], Executor],
    run_dir: Path,
    observe: Observe,
    should_stop: Callable[[], bool],
    warm_start: Mapping[str, Hyperparameters] | None = None,
    lifeline: Lifeline = ALWAYS_THERE,
) -> dict[str, Any]:
    """Run a study from wherever it stands to its report; returns the summary.

    Args:
        warm_start: configurations of earlier studies to try first, by name; see `autoft.enqueue.best_of_study`.

    Raises:
        StudyConflict: the study or the run folder belongs to other inputs.
        StudyLocked: another process has taken the study over.
        Interrupted: `should_stop()` said so, or somebody wished the study to end; calling again goes on from there.
        TrialCodeError, ClusterError: trials cannot be run.
        StorageError: the database was away for too long.
    """
    outage = Outage(lifeline, observe)
    pipeline = _Pipeline(inputs, study, run_dir, observe, should_stop, lifeline, outage)
    try:
        return pipeline.run(make_executor, warm_start or {})
    except Interrupted as error:
        lifeline.check_owner()  # which may be what ended it
        if wants_end(lifeline) and not should_stop():
            error = Interrupted(str(error), 0)
        pipeline.note_state("paused", str(error))
        raise error from None
    except StudyLocked:
        raise
    except AutoFTError as error:
        pipeline.note_state("failed", str(error).splitlines()[0])
        raise
    except OSError as error:
        pipeline.note_state("failed", str(error))
        raise


@dataclass
class _Pipeline:
    """One run of a study."""

    inputs: Inputs
    study: Study
    run_dir: Path
    observe: Observe
    should_stop: Callable[[], bool]
    lifeline: Lifeline
    outage: Outage
    returns: int = 0  # of the database, the last time we looked

    def run(self, make_executor: Callable[[], Executor], warm_start: Mapping[str, Hyperparameters]) -> dict[str, Any]:
        """Search, confirm, train in full, evaluate, report."""
        inputs, config, study, run_dir = self.inputs, self.inputs.config, self.study, self.run_dir
        enqueued = {**enqueued_configurations(inputs), **warm_start}
        for hyperparameters in enqueued.values():
            check_terms_available(config, hyperparameters)
        journal = self._safely(lambda: self._begin(enqueued))
        executor = make_executor()
        try:
            Coordinator(config, study, executor, journal, self.observe, self.should_stop, self.lifeline, self.outage).run()
            self._safely(lambda: write_trials(study, run_dir / "trials.csv", config.search.objectives))
            self._hold()
            confirming = self._safely(lambda: Confirming(study, config, run_dir, inputs.fingerprint))
            confirmation = confirming.run(executor, self.observe, self._ends, self._is_paused)
            methods = trained_methods(config, confirmation.winner.hyperparameters, inputs.entries)
            self._hold()
            executor.run_stages(stage_request(inputs, run_dir, methods), self._observe_stage)
        finally:
            executor.close()
        summary = self._safely(lambda: summarize(inputs, study, run_dir, confirmation))
        write_json(run_dir / "summary.json", summary)
        self.observe({"event": "stage_started", "stage": "report"})
        write_report(run_dir)
        self._safely(lambda: study.set_user_attr(STATE_ATTRIBUTE, "complete"))
        return summary

    def note_state(self, state: str, reason: str) -> None:
        """Leave word of why the run ends; if the database is away, `autoft status` says that it ended without one."""
        if self.outage.is_on:
            return
        with contextlib.suppress(StorageError):
            self.study.set_user_attr(REASON_ATTRIBUTE, reason)
            self.study.set_user_attr(STATE_ATTRIBUTE, state)

    def _begin(self, enqueued: Mapping[str, Hyperparameters]) -> Journal:
        """Check study and run folder, note what runs, and queue what is tried first; may be done twice."""
        config, study = self.inputs.config, self.study
        check_fingerprint(study, self.inputs.sections)
        journal = Journal(self.run_dir / "journal.jsonl", study_id(study))
        write_inputs(self.inputs, self.run_dir)
        self.observe({"event": "leakage", "warnings": describe_leakage(self.inputs.leakage)})
        study.set_user_attr(CONFIG_ATTRIBUTE, config.model_dump(mode="json"))
        study.set_user_attr(STATE_ATTRIBUTE, "running")
        enqueue(study, config.search_space, enqueued, config.search.n_trials)
        return journal

    def _observe_stage(self, event: dict[str, Any]) -> None:
        """Pass a stage's event on. After an outage one word to the database takes the study's lock again, hours before anything is told."""
        if self.lifeline.returns() != self.returns and self.outage.may_try():
            try:
                self.study._storage.get_study_user_attrs(self.study._study_id)
            except StorageUnavailable as error:
                self.outage.began(error)
            else:
                self.outage.ended()
                self.returns = self.lifeline.returns()
        self.observe(event)

    def _safely(self, action: Callable[[], T]) -> T:
        return self.outage.patiently(action, self._ends)

    def _ends(self) -> bool:
        return self.should_stop() or wants_end(self.lifeline)

    def _is_paused(self) -> bool:
        return self.lifeline.wish() == Wish.PAUSE

    def _hold(self) -> None:
        """Wait between two parts of a run while it is paused."""
        if self._is_paused():
            self.observe({"event": "paused", "study": self.inputs.config.study})
            while self._is_paused() and not self.should_stop():
                self.lifeline.check_owner()
                time.sleep(HOLD_SECONDS)
            self.observe({"event": "resumed", "study": self.inputs.config.study})
        self.lifeline.check_owner()
        if self._ends():
            raise Interrupted("stopped between two parts of the run")


def run_finetune(
    inputs: Inputs,
    name: str,
    hyperparameters: Hyperparameters,
    run_dir: Path,
    device: str,
    cache_dir: Path,
    observe: Observe,
    should_stop: Callable[[], bool],
) -> dict[str, Any]:
    """One full fine-tune with given hyperparameters, WiSE-FT and evaluation in this process, without a search; returns the summary.

    Raises:
        Interrupted: `should_stop()` said so; calling again goes on from there.
        TrialCodeError: the fine-tune diverged.
    """
    check_terms_available(inputs.config, hyperparameters)
    methods = {"final": hyperparameters}
    run_dir.mkdir(parents=True, exist_ok=True)
    write_inputs(inputs, run_dir)
    observe({"event": "leakage", "warnings": describe_leakage(inputs.leakage)})
    run_stages(stage_request(inputs, run_dir, methods), load_workspace(inputs.config, device, cache_dir), observe, should_stop)
    final = stage_result(run_dir, "final") or {}
    summary = {
        **summary_of_stages(inputs, run_dir, methods),
        "method": name,
        "cost": {"final_samples": final["samples"], "final_seconds": final["seconds"], "search_samples": 0, "search_seconds": 0.0, "search_over_final": 0.0},
    }
    write_json(run_dir / "summary.json", summary)
    return summary


def write_inputs(inputs: Inputs, run_dir: Path) -> None:
    """The resolved study file, and which examples of a set were drawn, by dotted field name, as indices in the set's own order."""
    write_text(run_dir / "study.yaml", dump_config(inputs.config))
    write_json(run_dir / "data_indices.json", {field: list(map(int, indices)) for field, indices in inputs.data.drawn.items()})


def stage_request(inputs: Inputs, run_dir: Path, methods: Mapping[str, Hyperparameters]) -> StageRequest:
    """What the stages after the search are run with."""
    return StageRequest(
        config=inputs.config, run_dir=run_dir.resolve(), methods=methods, fingerprint=inputs.fingerprint, versions=package_versions()
    )


def summarize(inputs: Inputs, study: Study, run_dir: Path, confirmation: Confirmation) -> dict[str, Any]:
    """The content of summary.json, from the study, its confirmation and the stages' records."""
    best = confirmation.winner.hyperparameters
    methods = trained_methods(inputs.config, best, inputs.entries)
    return {
        **summary_of_stages(inputs, run_dir, methods),
        "run_key": _run_key(inputs, best),
        "search": search_summary(inputs.config, study, confirmation, run_dir),
        "cost": _cost(inputs, study.get_trials(deepcopy=False), run_dir, confirmation),
        "notes": _notes(inputs),
    }


def summary_of_stages(inputs: Inputs, run_dir: Path, methods: Mapping[str, Hyperparameters]) -> dict[str, Any]:
    """What summary.json says of a run whether or not it had a search."""
    config = inputs.config
    final = stage_result(run_dir, "final") or {}
    wise_ft = stage_result(run_dir, "wise_ft") if config.wise_ft is not None else None
    models = ["zero_shot", *methods, *(["wise_ft"] if wise_ft else [])]
    return {
        "study": config.study,
        "state": "complete",
        "metric": config.metric,
        "direction": config.direction,
        "versions": package_versions(),
        "fingerprint": inputs.fingerprint,
        "description": _describe(inputs),
        "leakage": inputs.leakage.to_dict(),
        "final": {name: final.get(name) for name in ("hyperparameters", "epochs", "best_epoch", "steps")},
        **({"wise_ft": {name: wise_ft[name] for name in ("alpha", "select_on", "curve")}} if wise_ft else {}),
        "evaluations": [row for model in models for row in (stage_result(run_dir, f"evaluate-{model}") or {}).get("evaluations", [])],
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


def _cost(inputs: Inputs, trials: list[FrozenTrial], run_dir: Path, confirmation: Confirmation) -> dict[str, Any]:
    """Training examples and worker seconds spent on searching, and on the final fine-tune it is for."""
    config = inputs.config
    runs = [trial.user_attrs.get(RUN_ATTRIBUTE, {}) for trial in trials]
    scored = sum(len(trial.intermediate_values) or config.trial.repeats for trial in trials if trial.state in FINISHED_STATES)
    final = stage_result(run_dir, "final") or {"samples": 0, "seconds": 0.0}
    baselines = [stage_result(run_dir, slug(name)) or {} for name in config.evaluate.baselines]
    search_samples = sum(run.get("samples", 0) for run in runs)
    return {
        "search_samples": search_samples,
        "search_eval_samples": scored * sum(len(getattr(inputs.data, name)) for name in config.search.objectives),
        "confirm_samples": int(confirmation.total("samples")),
        "final_samples": final["samples"],
        "baseline_samples": sum(record.get("samples", 0) for record in baselines),
        "search_seconds": sum(trial_seconds(trial) or 0.0 for trial in trials),
        "confirm_seconds": confirmation.total("seconds"),
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
        **({"skipped": skipped} if (skipped := data.skipped()) else {}),
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
