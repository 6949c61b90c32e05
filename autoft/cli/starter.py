"""`autoft init`: a commented study file, printed from the fields' own descriptions, or a preset."""

import argparse
import inspect
import json
import os
import textwrap
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from autoft.config import DATASET_MODELS, DataConfig, DatasetBase, StudyConfig
from autoft.errors import ConfigError
from autoft.presets import preset_names, preset_text, read_preset

# What a starter file says where a field has no default.
_EXAMPLES: dict[str, Any] = {
    "study": "my-study",
    "model.name": "ViT-B-16-quickgelu",
    "model.pretrained": "openai",
    "data.train": "data/train",
    "data.val_id": "data/val",
    "data.val_ood": "data/other-domain/val",
    "data.test_id": {"same_domain": "data/test"},
    "data.test_ood": {"other_domain": "data/other-domain/test"},
    "search_space.base_lr": 1e-5,
    "search.n_trials": 100,
    "trial.steps": 50,
    "final.epochs": 10,
    "wise_ft.select_on": "val_ood",
    "evaluate.baselines": ["finetune"],
}
_WIDTH = 110


def init(args: argparse.Namespace) -> int:
    """Write a starter file or a preset; an existing file is never overwritten."""
    preset, path = _what_and_where(args.what, args.file)
    if preset is None and args.data_root is not None:
        raise ConfigError(f"--data-root goes with a preset; presets are {', '.join(preset_names())}")
    text = starter() if preset is None else preset_text(preset, _relative_root(args.data_root, path))
    try:
        content = text.encode("utf-8")
    except UnicodeEncodeError:
        raise ConfigError(f"--data-root = {str(args.data_root)!r} is not UTF-8, which a study file has to be") from None
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        raise ConfigError(f"{path} exists already; give another name") from None
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None
    print(f"wrote {path}; edit the paths under data:, then check it with `autoft plan {path}`")
    return 0


def _what_and_where(what: str | None, file: Path | None) -> tuple[str | None, Path]:
    """The preset, if one is asked for, and the file to write.

    A name of a preset is a preset; what looks like a path (it has a folder or a suffix) is the starter file's.

    Raises:
        ConfigError: neither, so that a misspelt preset does not become a file of that name.
    """
    if what is None:
        return None, Path("study.yaml")
    if what in preset_names():
        return what, file or Path(f"{what}.yaml")
    path = Path(what)
    if path.suffix in (".yaml", ".yml") or path.name != what:
        if file is not None:
            raise ConfigError(f"one file at a time: got {what} and {file}; a preset comes before the file: autoft init PRESET FILE")
        return None, path
    try:
        read_preset(what)
    except ConfigError as error:
        raise ConfigError(f"{error}; a starter file's name ends in .yaml") from None
    raise AssertionError(f"{what} is a preset")


def _relative_root(root: Path | None, path: Path) -> str | None:
    """--data-root as the study file says it: relative to the file, unless it was given absolute."""
    if root is None or root.is_absolute() or str(root).startswith("~"):
        return None if root is None else str(root)
    return os.path.relpath(root.absolute(), path.resolve().parent)


def starter() -> str:
    """The text of a starter study file: every field with its sentence and its default."""
    head = "# An AutoFT study. Relative paths are relative to this file. Lines that are commented out show defaults."
    return "\n".join([head, *_section(StudyConfig, "", 0)]) + "\n"


def _section(model: type[BaseModel], prefix: str, indent: int, default: str = "# ") -> list[str]:
    """A section's fields. default: what stands before one that is at its default."""
    lines: list[str] = []
    for name, field in model.model_fields.items():
        if not indent:
            lines.append("")
        lines += _field(name, field, f"{prefix}{name}", indent, default)
    return lines + (_layouts() if model is DataConfig else [])


def _field(name: str, field: FieldInfo, key: str, indent: int, default: str) -> list[str]:
    """A field's sentence, and its example or its default."""
    pad, nested, example = "  " * indent, _nested(field), _EXAMPLES.get(key)
    lines = _comment(field.description or (inspect.getdoc(nested) if nested else None) or "", pad)
    if nested is not None:
        if not any(known.startswith(f"{key}.") for known in _EXAMPLES):  # all at its defaults: commented out as a whole
            inner = _section(nested, f"{key}.", indent + 1, default="")
            return [*lines, f"{pad}# {name}:", *(f"{pad}# {line.removeprefix(pad)}" for line in inner)]
        return [*lines, f"{pad}{name}:", *_section(nested, f"{key}.", indent + 1)]
    if isinstance(example, dict):
        return [*lines, f"{pad}{name}:", *(f"{pad}  {test}: {{layout: folder, path: {path}}}" for test, path in example.items())]
    if example is not None:
        value = f"{{layout: folder, path: {example}}}" if key.startswith("data.") else _yaml(example)
        return [*lines, f"{pad}{name}: {value}"]
    return [*lines, f"{pad}{default}{name}: {_yaml(field.get_default(call_default_factory=True))}"]


def _comment(text: str, pad: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), _WIDTH, initial_indent=f"{pad}# ", subsequent_indent=f"{pad}# ")


def _layouts() -> list[str]:
    """What a data set may say besides a folder's path."""
    layouts = ", ".join(name for model in DATASET_MODELS for name in get_args(model.model_fields["layout"].annotation))
    lines = _comment(f"Layouts: {layouts}. docs/study-file.md has the fields of each. Every layout takes:", "  ")
    for name, field in DatasetBase.model_fields.items():
        lines += textwrap.wrap(f"{name}: {field.description}", _WIDTH, initial_indent="  #   ", subsequent_indent="  #     ")
    return lines


def _nested(field: FieldInfo) -> type[BaseModel] | None:
    """The section a field holds, if it holds one."""
    annotation = field.annotation
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    sections = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
    return sections[0] if len(sections) == 1 else None


def _yaml(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}" if "e" not in f"{value:g}" else f"{value:.1e}"
    return json.dumps(list(value) if isinstance(value, tuple) else value)
