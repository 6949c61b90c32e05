"""What every section of a study file shares."""

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator

NO_BOOLEAN = "must be a number, not true or false"


class Section(BaseModel):
    """A frozen section that refuses keys it does not know, and true or false where a number is meant."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _check_no_boolean(cls, values: Any) -> Any:
        """Python counts True as 1; YAML reads `on` and `yes` as true."""
        for name, field in cls.model_fields.items():
            if isinstance(values, dict) and _has_boolean(values.get(name)) and _is_numeric(field.annotation):
                raise ValueError(f"{name} = {values[name]!r}: {NO_BOOLEAN}")
        return values


def _is_numeric(annotation: Any) -> bool:
    """Whether a field holds numbers and nothing that may be true or false."""
    kinds = set(_kinds(annotation))
    return bool(kinds & {int, float}) and not any(kind is bool or kind is Any or _is_section(kind) for kind in kinds)


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types a field may hold at any depth, with bool for a literal true or false."""
    parts = get_args(annotation)
    if not parts:
        yield bool if isinstance(annotation, bool) else annotation
    for part in parts:
        yield from _kinds(part)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _has_boolean(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_has_boolean, value))
    if isinstance(value, dict):
        return any(map(_has_boolean, value.values()))
    return isinstance(value, bool)
