"""What a comparison recorded: its methods, how they were tuned, and every run. The only data the rest of the package reads."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

from jsonschema import Draft202012Validator

from autoft.errors import DataError
from autoft.files import read_json, write_json
from autoft.report.schema import schema_mistakes

VERSION = 1
FINETUNE, ZERO_SHOT, LINEAR_PROBE = "finetune", "zero_shot", "linear_probe"
OURS = ("autoft", "autoft_extended")
MemoryKind = Literal["process", "cuda"]


@dataclass(frozen=True)
class Evaluation:
    """One metric of one run on one data set; shares lie in [0, 1], the interval is 95 % over test images."""

    dataset: str
    split: str
    metric: str
    value: float
    ci_low: float | None
    ci_high: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How methods were tuned.

    evaluations: tuning evaluations each method may use. steps: optimizer steps of one. rule: how a method's values were selected.
    """

    evaluations: int
    steps: int | None
    rule: str


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method as it was run.

    source: a citation. knobs: what was tuned, with its range as text. chosen: the hyperparameters all its runs used.
    tuning_scores: VAL_OOD score of each tuning trial, None where it has none. tuning_evaluations: how many it really used.
    reconstructed: whether its source leaves something open that had to be filled in.
    """

    name: str
    source: str
    knobs: Mapping[str, str] = field(default_factory=dict)
    chosen: Mapping[str, Any] = field(default_factory=dict)
    tuning_scores: tuple[float | None, ...] = ()
    tuning_evaluations: int = 0
    reconstructed: bool = False


@dataclass(frozen=True, kw_only=True)
class Run:
    """One method trained with one seed.

    seed: None for a method that has none. evaluations: empty where the run failed, whose `error` then says why.
    tune_seconds: what tuning the method took; done once, so all its runs carry the same. peak_memory_bytes: the most the process
    or the device held, as `peak_memory_kind` says.
    """

    method: str
    seed: int | None
    evaluations: tuple[Evaluation, ...] = ()
    val_id: float | None = None
    val_ood: float | None = None
    train_seconds: float | None = None
    tune_seconds: float | None = None
    peak_memory_bytes: int | None = None
    peak_memory_kind: MemoryKind | None = None
    steps: int | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that was recorded. data: images of each data set. hardware: one line. Raises DataError if it contradicts itself."""

    study: str
    metric: str
    direction: Literal["maximize", "minimize"]
    model: str
    n_classes: int | None
    data: Mapping[str, int]
    versions: Mapping[str, str]
    hardware: str
    budget: Budget
    methods: tuple[Method, ...]
    runs: tuple[Run, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(self)

    def method(self, name: str) -> Method | None:
        """The method of that name, or None."""
        return next((method for method in self.methods if method.name == name), None)

    def runs_of(self, name: str) -> tuple[Run, ...]:
        """A method's runs by seed, failed ones included."""
        return tuple(sorted((run for run in self.runs if run.method == name), key=lambda run: (run.seed is not None, run.seed or 0)))

    def deterministic(self, name: str) -> bool:
        """Whether a method has one run that stands for every seed: zero-shot, and what was run without a seed."""
        runs = self.runs_of(name)
        return len(runs) == 1 and (name == ZERO_SHOT or runs[0].seed is None)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Every seed that some method was trained with."""
        trained = (run for run in self.runs if not self.deterministic(run.method))
        return tuple(sorted({run.seed for run in trained if run.seed is not None}))

    def to_dict(self) -> dict[str, Any]:
        """As JSON: `version`, then the fields by their names."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return {"version": VERSION, **plain}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """The comparison of a `to_dict`, or of the same written by hand.

        Rows of `evaluations` may also carry `model` and `seed`, as in summary.json, if they are those of their run.

        Raises:
            DataError: naming the dotted field, its value and what would be valid.
        """
        mistakes = schema_mistakes(document, _validator()) or "; ".join(_not_finite(document))
        if mistakes:
            raise DataError(f"the comparison does not fit its schema: {mistakes}")
        fields = {key: value for key, value in document.items() if key in {item.name for item in dataclasses.fields(cls)}}
        return cls(
            **fields
            | {
                "budget": Budget(**_known(Budget, document["budget"])),
                "methods": tuple(_method(item) for item in document["methods"]),
                "runs": tuple(_run(item, f"runs.{index}") for index, item in enumerate(document["runs"])),
                "notes": tuple(document.get("notes", ())),
            }
        )


def read_comparison(path: Path) -> Comparison:
    """A comparison from its JSON file. Raises DataError."""
    document = read_json(path)
    if not isinstance(document, dict):
        raise DataError(f"{path} is absent or is not a JSON object; a comparison writes it when its first method has run")
    return Comparison.from_dict(document)


def save_comparison(comparison: Comparison, path: Path) -> None:
    """Write a comparison as JSON, whole or not at all."""
    write_json(path, comparison.to_dict())


@cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads(files("autoft.comparison").joinpath("schema.json").read_text(encoding="utf-8")))


def _known(kind: type, item: Mapping[str, Any]) -> dict[str, Any]:
    names = {found.name for found in dataclasses.fields(kind)}
    return {key: value for key, value in item.items() if key in names}


def _method(item: Mapping[str, Any]) -> Method:
    return Method(**_known(Method, item) | {"tuning_scores": tuple(item.get("tuning_scores", ()))})


def _run(item: Mapping[str, Any], where: str) -> Run:
    for index, row in enumerate(item.get("evaluations", ())):
        for key, own in (("model", item["method"]), ("seed", item["seed"])):
            if row.get(key, own) != own:
                raise DataError(f"{where}.evaluations.{index}.{key}: {row[key]!r} is not that of its run, {own!r}")
    evaluations = tuple(Evaluation(**_known(Evaluation, row)) for row in item.get("evaluations", ()))
    return Run(**_known(Run, item) | {"evaluations": evaluations})


def _not_finite(value: Any, where: str = "") -> Iterator[str]:
    """Python's JSON lets NaN and infinities pass; we do not."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{where}: {value} is not a finite number"
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _not_finite(item, f"{where}.{key}".lstrip("."))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, item in enumerate(value):
            yield from _not_finite(item, f"{where}.{index}".lstrip("."))


def _check(comparison: Comparison) -> None:
    names = [method.name for method in comparison.methods]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise DataError(f"methods.{index}.name: {name!r} appears twice; every method needs a name of its own")
    seen: set[tuple[str, int | None]] = set()
    for index, run in enumerate(comparison.runs):
        where = f"runs.{index}"
        if run.method not in names:
            raise DataError(f"{where}.method: {run.method!r} is not among the methods: {', '.join(names)}")
        if (run.method, run.seed) in seen:
            raise DataError(f"{where}.seed: {run.method} with seed {run.seed} was recorded twice")
        seen.add((run.method, run.seed))
        if run.error is not None and run.evaluations:
            raise DataError(f"{where}.error: {run.error!r}, but the run has evaluations; a failed run has none")
        keys = [(row.dataset, row.split, row.metric) for row in run.evaluations]
        for row, key in enumerate(keys):
            if key in keys[:row]:
                raise DataError(f"{where}.evaluations.{row}: {' '.join(key)} was scored twice")


def json_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One object per method, seed, data set and metric, in the form of summary.json's `evaluations`; `model` is the method."""
    return [
        {"model": run.method, "seed": run.seed, **dataclasses.asdict(row)}
        for method in comparison.methods
        for run in comparison.runs_of(method.name)
        for row in run.evaluations
    ]
