"""The contract of summary.json, and how a document is checked against a schema."""

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
    mistakes = schema_mistakes(summary, _validator())
    if mistakes:
        raise AutoFTError(f"summary.json does not fit its schema: {mistakes}")
    try:
        json.dumps(summary, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # the page could not be written
        raise AutoFTError("summary.json has a text with half of a surrogate pair, which is no character") from None


def schema_mistakes(document: Any, validator: Draft202012Validator) -> str:
    """What does not fit, each with its dotted field, the first `SHOWN` of them in one line; empty if everything fits."""
    errors = sorted(validator.iter_errors(document), key=lambda error: [str(part) for part in error.absolute_path])
    lines = [f"{_field(error.absolute_path)}: {_short(error.message)}" for error in errors[:SHOWN]]
    more = [f"and {len(errors) - SHOWN} more"] if len(errors) > SHOWN else []
    return "; ".join([*lines, *more])


def _field(path: Iterable[str | int]) -> str:
    return ".".join(str(part) for part in path) or "the document"


def _short(message: str) -> str:
    return message if len(message) <= 160 else f"{message[:100]} ... {message[-50:]}"
