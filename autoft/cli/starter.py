"""`autoft init`: a commented study file, printed from the fields' own descriptions."""

import argparse
import json
import textwrap
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from autoft.config import DataConfig, FolderDataset, StudyConfig
from autoft.errors import ConfigError

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
    """Write a starter file; an existing file is never overwritten."""
    path: Path = args.file
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(starter())
    except FileExistsError:
        raise ConfigError(f"{path} exists already; give another name") from None
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None
    print(f"wrote {path}; edit the paths under data:, then check it with `autoft plan {path}`")
    return 0


def starter() -> str:
    """The text of a starter study file: every field with its sentence and its default."""
    head = "# An AutoFT study. Relative paths are relative to this file. Lines that are commented out show defaults."
    return "\n".join([head, *_section(StudyConfig, "", 0)]) + "\n"


def _section(model: type[BaseModel], prefix: str, indent: int) -> list[str]:
    lines: list[str] = []
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        nested = _nested(field)
        pad = "  " * indent
        if not indent:
            lines.append("")
        if field.description:
            lines += textwrap.wrap(field.description, _WIDTH, initial_indent=f"{pad}# ", subsequent_indent=f"{pad}# ")
        if nested is not None:
            lines += [f"{pad}{name}:", *_section(nested, f"{key}.", indent + 1)]
        elif isinstance(_EXAMPLES.get(key), dict):
            lines.append(f"{pad}{name}:")
            lines += [f"{pad}  {test}: {{layout: folder, path: {path}}}" for test, path in _EXAMPLES[key].items()]
        elif key.startswith("data.") and key in _EXAMPLES:
            lines.append(f"{pad}{name}: {{layout: folder, path: {_EXAMPLES[key]}}}")
        elif key in _EXAMPLES:
            lines.append(f"{pad}{name}: {_yaml(_EXAMPLES[key])}")
        else:
            lines.append(f"{pad}# {name}: {_yaml(field.default)}")
    if model is DataConfig:
        lines += ["  # Other layouts: csv, webdataset, arrays. Every layout takes slice, max_examples and balanced:"]
        lines += [f"  #   {name}: {field.description}" for name, field in FolderDataset.model_fields.items() if name in ("slice", "max_examples", "balanced")]
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
