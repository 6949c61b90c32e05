"""The study file: YAML in, a frozen `StudyConfig` out."""

import difflib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from autoft.config.base import NO_BOOLEAN
from autoft.config.datasets import DATASET_MODELS, DatasetBase
from autoft.config.sections import StudyConfig
from autoft.config.yaml_text import MAX_BYTES, parse_yaml
from autoft.errors import ConfigError
from autoft.inputs import read_text_input, shown

MAX_MISTAKES = 20  # named in one message


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a study file.

    Args:
        path: YAML file. Relative paths inside it are taken relative to its folder.
        overrides: `section.field=value` strings; the value is read as YAML. Relative paths in them are taken relative to the
            study file too.

    Raises:
        ConfigError: naming the dotted field, the value and what would be valid.
    """
    file = Path(path)
    try:
        text = read_text_input(file, MAX_BYTES, pipes=True)
    except FileNotFoundError:
        raise ConfigError(f"no study file at {file}; `autoft init` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the study file {file}: {getattr(error, 'strerror', None) or error}") from None
    try:
        document = parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{file}: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{file} must be a mapping with the sections {', '.join(StudyConfig.model_fields)}")
    for override in overrides:
        _apply_override(document, override)
    document = {name: value for name, value in document.items() if value is not None}  # a section whose lines are all comments
    return parse_config(document, base=file.resolve().parent, source=str(file))


def parse_config(document: Mapping[str, Any], base: Path, source: str = "study") -> StudyConfig:
    """Validate a parsed study file; relative paths are taken relative to `base`. Raises ConfigError."""
    try:
        config = StudyConfig.model_validate(document)
    except ValidationError as error:
        lines = list(_explain(error, document))
        more = [f"... and {len(lines) - MAX_MISTAKES} more"] if len(lines) > MAX_MISTAKES else []
        raise ConfigError(f"{source}: " + "\n".join([*lines[:MAX_MISTAKES], *more])) from None
    return _resolve_paths(config, base)


def dump_config(config: StudyConfig) -> str:
    """The study as YAML that `load_config` reads back to an equal config (paths are absolute)."""
    return yaml.safe_dump(config.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)


def section_hash(value: Any) -> str:
    """SHA-256 of a value's canonical JSON, shortened to 16 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _apply_override(document: dict[str, Any], override: str) -> None:
    key, equals, raw = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set takes SECTION.FIELD=VALUE, got {override!r}")
    try:
        value = parse_yaml(raw)
    except ValueError as error:
        raise ConfigError(f"--set {shown(key)}: {shown(raw)!r}: {error}") from None
    *parents, leaf = key.split(".")
    node: Any = document
    for depth, parent in enumerate(parents):
        if node.get(parent) is None:
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            raise ConfigError(f"--set {key}: {'.'.join(parents[: depth + 1])} is not a section")
    node[leaf] = value


def _explain(error: ValidationError, document: Mapping[str, Any]) -> Iterator[str]:
    """One line a mistake: dotted field, value, what is wrong, the nearest valid name."""
    for item in error.errors():
        location = _field_location(item["loc"])
        field = ".".join(shown(str(part), 80) for part in location) or "the study file"
        if item["type"] == "extra_forbidden":
            yield f"unknown key {field}{_nearest(location, document)}"
        elif item["type"] == "missing":
            yield f"{field} is missing"
        else:
            message = item["msg"].removeprefix("Value error, ")
            names_field = item["type"] == "value_error" and isinstance(item["input"], Mapping)  # a rule over several fields names them itself
            inside = message.startswith(("knobs.", "fixed.", "loss_weights.")) or message.endswith(NO_BOOLEAN)
            dotted = f"{field}." if location and inside else f"{field}: " if location else ""
            yield f"{dotted}{message}" if names_field else f"{field} = {_shown(item['input'])}: {message}"


def _field_location(location: tuple[int | str, ...]) -> list[int | str]:
    """Where the mistake is in the study file: pydantic's path without the tags it adds for unions."""
    path = list(location)
    if path[:2] == ["data", "classnames"]:
        return path[:2]
    if path[:1] == ["data"]:
        tag = 3 if path[1:2] in (["test_id"], ["test_ood"]) else 2
        if len(path) > tag and path[tag] in _DATASET_MODELS:
            del path[tag]
    return path


def _nearest(location: Sequence[int | str], document: Mapping[str, Any]) -> str:
    names = _valid_names(location[:-1], document)
    close = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; valid keys are {', '.join(names)}" if names else ""


def _valid_names(parents: Sequence[int | str], document: Mapping[str, Any]) -> list[str]:
    """The keys valid at a place of the study file, found by walking the models beside the document."""
    model: Any = StudyConfig
    node: Any = document
    for part in parents:
        node = node.get(part) if isinstance(node, Mapping) else None
        if isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            model = model.model_fields[str(part)].annotation
        if part in ("test_id", "test_ood"):
            model = "datasets"
        elif model == "datasets" or part in ("train", "val_id", "val_ood"):
            layout = node.get("layout") if isinstance(node, Mapping) else None
            model = _DATASET_MODELS.get(str(layout))
        elif not (isinstance(model, type) and issubclass(model, BaseModel)):
            model = next((arg for arg in get_args(model) if isinstance(arg, type) and issubclass(arg, BaseModel)), None)
    if isinstance(model, type) and issubclass(model, BaseModel):
        return list(model.model_fields)
    return []


_DATASET_MODELS: Mapping[str, type[DatasetBase]] = {
    layout: model for model in DATASET_MODELS for layout in get_args(model.model_fields["layout"].annotation)
}


def _shown(value: object) -> str:
    text = repr(value if not isinstance(value, str) else value[:100])
    return text if len(text) <= 80 else text[:77] + "..."


def _resolve_paths(config: StudyConfig, base: Path) -> StudyConfig:
    """A copy with every path absolute."""
    data = config.data
    update: dict[str, Any] = {
        split: _resolve_dataset(getattr(data, split), base, f"data.{split}") for split in ("train", "val_id", "val_ood")
    }
    for kind in ("test_id", "test_ood"):
        update[kind] = {name: _resolve_dataset(dataset, base, f"data.{kind}.{name}") for name, dataset in getattr(data, kind).items()}
    if isinstance(data.classnames, Path):
        update["classnames"] = _absolute(data.classnames, base, "data.classnames")
    if data.descriptions is not None:
        update["descriptions"] = _absolute(data.descriptions, base, "data.descriptions")
    model = config.model
    prefix, colon, path = model.name.partition(":")
    if colon and prefix == "local-dir":
        model = model.model_copy(update={"name": f"local-dir:{_absolute(Path(path), base, 'model.name')}"})
    if model.pretrained is not None and (weights := _absolute(Path(model.pretrained), base, "model.pretrained")).is_file():
        model = model.model_copy(update={"pretrained": str(weights)})
    return config.model_copy(update={"data": data.model_copy(update=update), "model": model})


def _resolve_dataset(dataset: DatasetBase, base: Path, field: str) -> DatasetBase:
    update: dict[str, Any] = {}
    for name in ("path", "root"):
        value = getattr(dataset, name, None)
        if value is not None:
            path = _absolute(Path(value), base, f"{field}.{name}")
            update[name] = str(path) if isinstance(value, str) else path
    for name in ("labels", "groups"):  # arrays: an .npy beside the images
        value = getattr(dataset, name, None)
        if isinstance(value, str) and value.endswith(".npy"):
            update[name] = str(_absolute(Path(value), base, f"{field}.{name}"))
    return dataset.model_copy(update=update)


def _absolute(path: Path, base: Path, field: str) -> Path:
    """The path itself, or what it is relative to the base. Raises ConfigError where no file can be called so."""
    try:
        path = path.expanduser()
        long = max(map(len, map(os.fsencode, path.parts)), default=0) > 255 or len(os.fsencode(path)) > 4000
        if not long:
            return path if path.is_absolute() else (base / path).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # no such user in ~user/, a loop of links, a null character
        raise ConfigError(f"{field} = {shown(str(path))!r} is not a path: {error}") from None
    raise ConfigError(f"{field} = {shown(str(path), 80)!r} is not a path: it is too long")
