"""`autoft finetune`: one full fine-tune with given hyperparameters, WiSE-FT and evaluation, without a search."""

import argparse
import contextlib
import difflib
import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from autoft.cli.runtime import StopSignal, cache_dir, storage_url
from autoft.config import (
    ALL_TERM_NAMES,
    METHOD_NAMES,
    Averaging,
    Constraint,
    LossTermName,
    MaskReduction,
    MethodTermName,
    OptimizerName,
    ScheduleName,
    Start,
    StudyConfig,
    Trained,
    load_config,
)
from autoft.config.knobs import check_together
from autoft.errors import ConfigError
from autoft.inputs import read_text_input
from autoft.search_space import Hyperparameters

MAX_SUMMARY_BYTES = 64 << 20  # of a file of hyperparameters or a summary


class _Given(BaseModel):
    """A hyperparameters file."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    lr: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    loss_weights: dict[LossTermName | MethodTermName, Annotated[float, Field(ge=0)]] = Field(min_length=1)
    seed: int = Field(default=0, ge=0)
    layer_lr: dict[str, float] = {}
    layer_weight_decay: dict[str, float] = {}
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    optimizer: OptimizerName = "adamw"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    constraint: Constraint = "none"
    strength: float = Field(default=1.0, ge=0, le=1)
    mu: float = Field(default=1e-2, ge=0)
    mu_reference_lr: float | None = Field(default=1e-4, gt=0)
    density: float = Field(default=0.001, gt=0, le=1)
    mask_batches: int = Field(default=8, ge=1)
    mask_reduction: MaskReduction = "abs_of_sum"
    schedule: ScheduleName | None = None
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    margin: float = Field(default=0.3, ge=0)
    averaging: Averaging = "none"
    alpha: float = Field(default=1.0, ge=0, le=1)
    start: Start = "zero_shot"
    trained: Trained = "all"
    drm_beta: float = Field(default=0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        check_together(self.model_dump(), {})
        return self


def finetune(args: argparse.Namespace) -> int:
    """Fine-tune once, or go on with it."""
    config = load_config(args.study, args.set)
    name, given = _named_or_read(args.hyperparameters)
    stop = StopSignal()
    with stop.installed():
        return _finetune(config, args, stop, name, given)


def _finetune(config: StudyConfig, args: argparse.Namespace, stop: StopSignal, name: str, given: Hyperparameters | None) -> int:
    from autoft.cli.progress import is_live, make_view
    from autoft.cli.recording import Recorder, open_artifacts
    from autoft.core_features import check_terms_available
    from autoft.methods import Setting, method_hyperparameters, slug
    from autoft.pipeline import prepare, run_finetune
    from autoft.report.table import format_table
    from autoft.workspace import configure_torch

    run_dir = Path(args.runs) / f"{config.study}-{slug(name)}"
    stop.announces = args.json or not is_live()
    store = open_artifacts(args)
    with make_view(config, args.json, stop) as view, contextlib.ExitStack() as stack:
        configure_torch(args.threads)
        if given is not None:
            check_terms_available(config, given)  # before images are decoded
        url = storage_url()
        inputs = prepare(config, cache_dir(), view.decoding, view.comparing)
        setting = Setting(inputs.config.search_space, inputs.entries, config.search.seed)
        hyperparameters = given or method_hyperparameters(name, setting)  # type: ignore[arg-type]
        record = Recorder(url, inputs, run_dir, store, view, kind="finetune", method=name, seed=hyperparameters.seed, hyperparameters=hyperparameters.to_dict())
        stack.enter_context(stop.deferred())
        with record.running():
            summary = run_finetune(inputs, name, hyperparameters, run_dir, args.device, cache_dir(), view, stop)
        record.complete(summary)
        view({"event": "done", "study": config.study, "summary": str(run_dir / "summary.json")})
    if not args.json:
        print(format_table(summary))
        print(f"\nSummary: {run_dir / 'summary.json'}   Checkpoints: {run_dir / 'checkpoints'}")
    return record.exit_code


def _named_or_read(text: str) -> tuple[str, Hyperparameters | None]:
    """A built-in configuration's name, or a file's hyperparameters under the file's name."""
    if text in METHOD_NAMES:
        return text, None
    path = Path(text)
    if not path.is_file():
        raise ConfigError(f"--hyperparameters {text}: neither a file nor a built-in configuration; built in are {', '.join(METHOD_NAMES)}")
    try:
        document: Any = json.loads(read_text_input(path, MAX_SUMMARY_BYTES))
        if not isinstance(document, dict):
            raise ConfigError(f"--hyperparameters {text} must be a JSON object with lr, weight_decay, loss_weights and what else is wanted")
        if "search" in document or "final" in document:  # a run's summary.json
            chosen = document.get("search", {}).get("best_trial", {}).get("hyperparameters") or document.get("final", {}).get("hyperparameters")
            if not chosen:
                raise ConfigError(f"--hyperparameters {text} is a summary without hyperparameters of a best trial or of a final fine-tune")
            document = chosen
        return path.stem, Hyperparameters(**_Given.model_validate(document).model_dump())
    except ValidationError as error:
        raise ConfigError(f"--hyperparameters {text}: {'; '.join(dict.fromkeys(map(_mistake, error.errors())))}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"--hyperparameters {text} is not a JSON file of hyperparameters or a run's summary.json: {error}") from None


def _mistake(item: Any) -> str:
    """One thing that is wrong with a hyperparameters file: field, value, what would be valid."""
    location = [str(part) for part in item["loc"]]
    terms = ALL_TERM_NAMES
    if location[:1] == ["loss_weights"] and len(location) > 2:  # a key that is no term, told once for each kind of term
        close = difflib.get_close_matches(location[1], terms, n=1, cutoff=0.5)
        return f"loss_weights.{location[1]}: there is no such term; " + (f"did you mean {close[0]}?" if close else f"they are {', '.join(terms)}")
    field = ".".join(location)
    if item["type"] == "extra_forbidden":
        close = difflib.get_close_matches(field, _Given.model_fields, n=1, cutoff=0.5)
        return f"unknown field {field}; " + (f"did you mean {close[0]}?" if close else f"they are {', '.join(_Given.model_fields)}")
    if item["type"] == "missing":
        return f"{field} is missing"
    message = item["msg"].removeprefix("Value error, ")
    return f"{field} = {item['input']!r}: {message[0].lower()}{message[1:]}" if field else message
