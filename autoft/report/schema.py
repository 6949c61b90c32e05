"""The contract of summary.json."""

import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jsonschema import Draft202012Validator

from autoft.errors import AutoFTError

SHOWN = 5  # mistakes named in one message


@cache
def _validator() -> Draft202012Validator:
    text = files("autoft.report").joinpath("schema.json").read_text(encoding="utf-8")
    return Draft202012Validator(json.loads(text))


def check_summary(summary: Mapping[str, Any]) -> None:
    """Check a summary against schema.json; keys the schema does not know are allowed.

    Raises:
        AutoFTError: naming the dotted field, its value and what is wrong.
    """
    errors = sorted(_validator().iter_errors(summary), key=lambda error: [str(part) for part in error.absolute_path])
    if errors:
        lines = [f"{_field(error.absolute_path)}: {_short(error.message)}" for error in errors[:SHOWN]]
        more = [f"and {len(errors) - SHOWN} more"] if len(errors) > SHOWN else []
        raise AutoFTError("summary.json does not fit its schema: " + "; ".join([*lines, *more]))


def _field(path: Iterable[str | int]) -> str:
    return ".".join(str(part) for part in path) or "the document"


def _short(message: str) -> str:
    return message if len(message) <= 160 else f"{message[:100]} ... {message[-50:]}"
