"""Every method on the same data: tuned with the same number of validation evaluations, trained with several seeds, scored once.

The rule. A method's tuning evaluation is one trial: a short fine-tune of `trial.steps` steps, scored on VAL_OOD. The first runs the method's
published setting at the study's `base_lr`; the others are proposed by the study's sampler over the learning rate and the method's own knobs.
The best one is trained in full once for each seed. WiSE-FT and the soup build on plain fine-tuning's tuned setting: WiSE-FT's own evaluations
are the alphas it tries on VAL_OOD, the soup's the candidates it considers.

Everything is resumable: tuning is a study for each method in the database, and every training leaves a record.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import TrialState

from autoft.comparison.records import Budget, Comparison, Evaluation, Method, Run
from autoft.config import ConfirmConfig, Knob, SearchSpaceConfig, StudyConfig, WiseFTConfig, dump_config, section_hash
from autoft.enqueue import enqueue
from autoft.errors import ConfigError, TrialCodeError
from autoft.executor import Executor
from autoft.files import read_json, write_json, write_text
from autoft.fingerprint import check_fingerprint
from autoft.journal import Journal
from autoft.methods import METHODS, Setting, method_hyperparameters
from autoft.pipeline import Inputs, package_versions
from autoft.search import Coordinator, study_id
from autoft.search_space import Hyperparameters, sample_hyperparameters
from autoft.stages import StageRequest, stage_result
from autoft.trials_table import trial_seconds

ZERO_SHOT, FINETUNE, WISE_FT, SOUP = "zero_shot", "finetune", "wise_ft", "soup"
SEARCHES: Mapping[str, str] = {"autoft": "the study's own search space", "autoft_extended": "the extended search space"}
COMPARED = (
    ZERO_SHOT,
    "linear_probe",
    FINETUNE,
    "lp_ft",
    "l2sp",
    "flyp",
    WISE_FT,
    "drm",
    "ftp",
    "tpgm",
    "spd",
    "saft",
    "core_tuning",
    "ldifs",
    "car_ft",
    "lipsum_ft",
    "clipood",
    SOUP,
    *SEARCHES,
)
# The learning rates every method is tuned over, relative to base_lr. Wide enough for what searches found on the example studies.
LR_FACTOR = (0.1, 30.0)
SOUP_MEMBERS = 4
OpenStudy = Callable[[str], AbstractContextManager[Study]]
Observe = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is compared. evaluations: tuning evaluations a method gets. keep: whether the checkpoints of all runs stay."""

    methods: tuple[str, ...]
    seeds: int
    evaluations: int
    keep: bool = False


@dataclass(frozen=True)
class Tuned:
    """A method after tuning. ranked: the configurations of its complete trials, best first; scores: by trial, None where it diverged."""

    ranked: tuple[Hyperparameters, ...]
    scores: tuple[float | None, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One piece of work for a worker: a training with one seed, and what is made of it without further training.

    methods: the names of the comparison it answers.
    """

    name: str
    methods: tuple[str, ...]
    seed: int | None
    request: StageRequest


def check_methods(names: Sequence[str], config: StudyConfig) -> tuple[str, ...]:
    """The methods by name, in the order of `COMPARED`.

    Raises:
        ConfigError: a name is none of them, or twice there, or the method needs something the study does not have.
    """
    for name in names:
        if name not in COMPARED:
            raise ConfigError(f"--methods {name}: there is no such method; they are {', '.join(COMPARED)}")
        if list(names).count(name) > 1:
            raise ConfigError(f"--methods: {name} is listed twice")
    if "drm" in names and config.data.descriptions is None:
        raise ConfigError("--methods drm needs data.descriptions; write them with autoft describe, or leave drm out")
    return tuple(name for name in COMPARED if name in names)


def default_methods(config: StudyConfig) -> tuple[str, ...]:
    """All methods the study has what it takes for."""
    return tuple(name for name in COMPARED if name != "drm" or config.data.descriptions is not None)


def comparison_config(config: StudyConfig, evaluations: int) -> StudyConfig:
    """The study as its comparison runs it: no pruning, one objective, and as many alphas for WiSE-FT as others have evaluations."""
    alphas = tuple(round((index + 1) / evaluations, 4) for index in range(evaluations))
    search = config.search.model_copy(
        update={
            "pruner": "none",
            "objectives": ("val_ood",),
            "enqueue": (),
            "warm_start_from": (),
            "n_trials": evaluations,
            "confirm": ConfirmConfig(top=1, repeats=0),
        }
    )
    wise_ft = (config.wise_ft or WiseFTConfig()).model_copy(update={"alphas": alphas, "select_on": "val_ood"})
    return config.model_copy(update={"search": search, "wise_ft": wise_ft})


def tuning_space(method: str, setting: Setting, described: bool) -> SearchSpaceConfig:
    """What a method is tuned over: the learning rate and its own knobs, or for AutoFT its search space.

    Args:
        described: whether the study has `data.descriptions`, without which no drm term can be searched.
    """
    space = setting.space
    if method == "autoft":
        return space
    if method == "autoft_extended":
        extended = SearchSpaceConfig(preset="extended", base_lr=space.base_lr, base_weight_decay=space.base_weight_decay)
        kept = {name: knob for name, knob in extended.knobs.items() if described or not name.endswith("/drm")}
        return extended.model_copy(update={"knobs": kept})
    hp, spec = method_hyperparameters(method, setting), METHODS[method]  # type: ignore[arg-type,index]
    fixed = {name: value for name, value in hp.to_dict().items() if name not in ("lr", "weight_decay", "seed")}
    factor = LR_FACTOR if spec.tunes_lr else (1.0, 1.0)
    return SearchSpaceConfig(
        base_lr=space.base_lr,
        base_weight_decay=hp.weight_decay,
        reference=space.reference,
        terms=(space.reference,),
        lr_factor=factor,
        weight_decay=(hp.weight_decay, hp.weight_decay),
        seed=(setting.seed, setting.seed),
        fixed=fixed,
        knobs=spec.knobs(setting),
    )


def tuned_with(method: str) -> str | None:
    """The method whose tuning this one uses; None for the zero-shot model."""
    return {ZERO_SHOT: None, WISE_FT: FINETUNE, SOUP: FINETUNE}.get(method, method)


class Comparer:
    """One comparison, from wherever it stands to its end.

    Args:
        inputs: of `comparison_config`'s study.
        open_tuning: owns the study of that name in the database, made if it is not there.
    """

    def __init__(
        self, inputs: Inputs, plan: Plan, executor: Executor, run_dir: Path, open_tuning: OpenStudy, observe: Observe, should_stop: Callable[[], bool]
    ) -> None:
        self._inputs, self._plan, self._executor, self._run_dir = inputs, plan, executor, run_dir
        self._open_tuning, self._observe, self._should_stop = open_tuning, observe, should_stop
        config = inputs.config
        self._setting = Setting(config.search_space, inputs.entries, config.search.seed)
        self._tuned: dict[str, Tuned] = {}

    def run(self, hardware: str) -> Comparison:
        """Tune, train and score what is not done yet.

        Raises:
            Interrupted: `should_stop()` said so; the same call goes on.
            StudyConflict: a tuning study of that name was made from other inputs.
        """
        self._run_dir.mkdir(parents=True, exist_ok=True)
        write_text(self._run_dir / "study.yaml", dump_config(self._inputs.config))
        for method in dict.fromkeys(source for name in self._plan.methods if (source := tuned_with(name)) is not None):
            self._tuned[method] = self._tune(method)
        cells = self._cells()
        missing = [cell for cell in cells if self._record(cell) is None]
        self._observe({"event": "cells", "done": len(cells) - len(missing), "of": len(cells)})
        for cell in missing:
            cell.request.run_dir.mkdir(parents=True, exist_ok=True)
            write_text(cell.request.run_dir / "study.yaml", dump_config(self._inputs.config))
        for index, error in self._executor.run_all_stages([cell.request for cell in missing], self._observe):
            self._finish(missing[index], error)
        return self._comparison(cells, hardware)

    def _tune(self, method: str) -> Tuned:
        """Run the method's trials. A method without anything to tune has one, for its score on VAL_OOD."""
        space = self._space(method)
        something = bool(space.knobs) or space.lr_factor[0] < space.lr_factor[1]
        count = self._plan.evaluations if something else 1
        config = self._inputs.config
        config = config.model_copy(
            update={
                "study": f"{config.study}.{method}",
                "search_space": space,
                "search": config.search.model_copy(update={"n_trials": count}),
            }
        )
        with self._open_tuning(config.study) as study:
            check_fingerprint(study, {**self._inputs.sections, "search_space": space.model_dump(mode="json"), "comparison": method})
            journal = Journal(self._run_dir / "tuning" / f"{method}.jsonl", study_id(study))
            enqueue(study, space, {method: self._first(method)}, count)
            self._observe({"event": "tuning", "method": method, "trials": count})
            Coordinator(config, study, self._executor, journal, self._observe, self._should_stop).run()
            tuned = _tuned(study, space, config.direction)
        self._observe({"event": "tuned", "method": method, "best": max(_scored(tuned)) if config.direction == "maximize" else min(_scored(tuned))})
        return tuned

    def _space(self, method: str) -> SearchSpaceConfig:
        return tuning_space(method, self._setting, self._inputs.config.data.descriptions is not None)

    def _first(self, method: str) -> Hyperparameters:
        """A method's published setting; AutoFT's search, like its own studies, begins with plain fine-tuning."""
        return method_hyperparameters(FINETUNE if method in SEARCHES else method, self._setting)  # type: ignore[arg-type]

    def _cells(self) -> list[Cell]:
        """Plain fine-tuning with what builds on it first, so that a comparison that is stopped has its baseline; then seed by seed."""
        cells = []
        if ZERO_SHOT in self._plan.methods:
            cells.append(self._cell(ZERO_SHOT, (ZERO_SHOT,), None, {}, with_zero_shot=True))
        built = tuple(name for name in (FINETUNE, WISE_FT, SOUP) if name in self._plan.methods)
        for seed in range(self._plan.seeds):
            if built:
                first, *others = (replace(hp, seed=seed) for hp in self._tuned[FINETUNE].ranked[:SOUP_MEMBERS])
                soup = {f"soup-{index}": hp for index, hp in enumerate(others, start=2)} if SOUP in built else None
                wise_ft_of = FINETUNE if WISE_FT in built else None
                cells.append(self._cell(f"{FINETUNE}-{seed}", built, seed, {FINETUNE: first}, soup_with=soup, wise_ft_of=wise_ft_of))
            for method in self._plan.methods:
                if method not in (ZERO_SHOT, *built):
                    best = replace(self._tuned[method].ranked[0], seed=seed)
                    cells.append(self._cell(f"{method}-{seed}", (method,), seed, {method: best}))
        return cells

    def _cell(self, name: str, methods: tuple[str, ...], seed: int | None, trained: Mapping[str, Hyperparameters], **options: Any) -> Cell:
        inputs = self._inputs
        values = {"wise_ft_of": None, "with_zero_shot": False, **options}
        request = StageRequest(
            config=inputs.config,
            run_dir=(self._run_dir / "cells" / name).resolve(),
            methods=trained,
            fingerprint=inputs.fingerprint,
            versions=package_versions(),
            validated=True,
            **values,
        )
        return Cell(name=name, methods=methods, seed=seed, request=request)

    def _key(self, cell: Cell) -> str:
        """Everything a cell's result depends on."""
        config, data, request = self._inputs.config, self._inputs.data, cell.request
        content = [data.val_id.content_hash, *((name, str(split), images.content_hash) for name, (split, images) in sorted(data.tests.items()))]
        trained = {name: hp.digest() for name, hp in (*request.methods.items(), *(request.soup_with or {}).items())}
        sections = [config.final.model_dump(), config.wise_ft and config.wise_ft.model_dump(), config.evaluate.model_dump()]
        return section_hash([self._inputs.fingerprint, cell.methods, trained, sections, content])

    def _record(self, cell: Cell) -> list[dict[str, Any]] | None:
        """The runs a cell has left, if it was the same cell."""
        record = read_json(self._run_dir / "cells" / f"{cell.name}.json")
        return list(record["runs"]) if isinstance(record, dict) and record.get("key") == self._key(cell) else None

    def _finish(self, cell: Cell, error: TrialCodeError | None) -> None:
        """Write a cell's record, and let its checkpoints go unless they are wanted."""
        if error is None:
            runs = [_run(cell, method) for method in cell.methods]
        else:
            runs = [{"method": method, "seed": cell.seed, "error": str(error)} for method in cell.methods]
        write_json(self._run_dir / "cells" / f"{cell.name}.json", {"key": self._key(cell), "runs": runs})
        if not self._plan.keep:
            shutil.rmtree(cell.request.run_dir)
        self._observe({"event": "cell_ended", "cell": cell.name, "error": None if error is None else str(error)})

    def _comparison(self, cells: Sequence[Cell], hardware: str) -> Comparison:
        config, data = self._inputs.config, self._inputs.data
        sizes = {"train": len(data.train), "val_id": len(data.val_id), "val_ood": len(data.val_ood)}
        sizes |= {name: len(images) for name, (_, images) in data.tests.items()}
        runs = [run for cell in cells for run in self._record(cell) or []]
        model = config.model
        return Comparison(
            study=config.study,
            metric=config.metric,
            direction=config.direction,
            model=Path(model.name).name if model.name.startswith("local-dir:") else model.name,
            n_classes=len(data.classes.names),
            data=sizes,
            versions=package_versions(),
            hardware=hardware,
            budget=Budget(evaluations=self._plan.evaluations, steps=config.trial.steps, rule=RULE),
            methods=tuple(self._method(name) for name in self._plan.methods),
            runs=tuple(self._timed(run) for run in runs),
        )

    def _timed(self, run: Mapping[str, Any]) -> Run:
        source = tuned_with(run["method"])
        seconds = None if source is None else self._tuned[source].seconds
        evaluations = tuple(Evaluation(**row) for row in run.get("evaluations", ()))
        return Run(**{**run, "evaluations": evaluations, "tune_seconds": seconds})

    def _method(self, name: str) -> Method:
        source = tuned_with(name)
        if source is None:
            return Method(name=name, source="the foundation model as it is")
        tuned, space = self._tuned[source], self._space(source)
        chosen = {key: value for key, value in tuned.ranked[0].to_dict().items() if key != "seed"}
        if name == WISE_FT:
            knobs = {"alpha": ", ".join(f"{alpha:g}" for alpha in self._inputs.config.wise_ft.alphas)}  # type: ignore[union-attr]
            about = "plain fine-tuning interpolated with the zero-shot weights, alpha by VAL_OOD for each seed: WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903)"
            return Method(name=name, source=about, knobs=knobs, chosen=chosen, tuning_evaluations=self._plan.evaluations)
        if name == SOUP:
            about = "greedy average of full fine-tunes with plain fine-tuning's best tuned settings, by VAL_OOD: model soups (Wortsman et al. 2022, arXiv 2203.05482)"
            members = f"the best {min(SOUP_MEMBERS, len(tuned.ranked))} of {FINETUNE}'s {len(tuned.scores)}"
            return Method(name=name, source=about, knobs={"members": members}, chosen=chosen, tuning_evaluations=min(SOUP_MEMBERS, len(tuned.ranked)))
        spec = METHODS.get(name)  # type: ignore[call-overload]
        about = spec.source if spec else f"AutoFT (Cho et al. 2024, arXiv 2401.10220) over {SEARCHES[name]}"
        return Method(
            name=name,
            source=about,
            knobs=_ranges(space, name),
            chosen=chosen,
            tuning_scores=tuned.scores,
            tuning_evaluations=len(tuned.scores),
            reconstructed=spec.reconstructed if spec else name == "autoft_extended",
        )


RULE = (
    "Each method's tuning evaluations are short fine-tunes scored on VAL_OOD: its published setting at base_lr first, then the sampler's proposals "
    "over the learning rate and the method's own knobs. The best one is trained in full once a seed, its epoch chosen on VAL_ID. WiSE-FT and "
    "the soup build on plain fine-tuning's tuned setting; their own evaluations are the alphas and the members tried on VAL_OOD."
)


def _scored(tuned: Tuned) -> list[float]:
    return [score for score in tuned.scores if score is not None]


def _tuned(study: Study, space: SearchSpaceConfig, direction: str) -> Tuned:
    """What a finished tuning study says. Raises TrialCodeError if all its trials diverged."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        raise TrialCodeError(f"every tuning trial of {study.study_name} diverged; lower search_space.base_lr")
    sign = -1 if direction == "maximize" else 1
    ranked = sorted(complete, key=lambda trial: (sign * (trial.value or 0.0), trial.number))
    return Tuned(
        tuple(sample_hyperparameters(trial, space) for trial in ranked),
        tuple(trial.value if trial.state == TrialState.COMPLETE else None for trial in trials),
        sum(trial_seconds(trial) or 0.0 for trial in trials),
    )


def _ranges(space: SearchSpaceConfig, method: str) -> dict[str, str]:
    """What is tuned, as text."""
    if method in SEARCHES:
        knobs = f", and {len(space.knobs)} knobs" if space.knobs else ""
        return {"search space": f"preset {space.preset}: the learning rate, the weight decay, {len(space.searched_terms)} loss weights and the seed{knobs}"}
    low, high = (factor * space.base_lr for factor in space.lr_factor)
    return {**({"lr": f"{low:g} to {high:g}, log"} if low < high else {}), **{name: _range_text(knob) for name, knob in space.knobs.items()}}


def _range_text(knob: Knob) -> str:
    return ", ".join(map(str, knob.choices)) if knob.choices else f"{knob.low:g} to {knob.high:g}{', log' if knob.log else ''}"


def _run(cell: Cell, method: str) -> dict[str, Any]:
    """A method's run out of a cell's stage records."""
    folder = cell.request.run_dir
    parts = [record for name in _parts(cell, method) if (record := stage_result(folder, name)) is not None]
    validated, evaluated = stage_result(folder, f"validate-{method}"), stage_result(folder, f"evaluate-{method}")
    assert validated is not None and evaluated is not None
    peaks = [record["peak_memory_bytes"] for record in parts if record.get("peak_memory_bytes") is not None]
    wanted = ("dataset", "split", "metric", "value", "ci_low", "ci_high", "n")
    return {
        "method": method,
        "seed": cell.seed,
        "evaluations": [{name: row[name] for name in wanted} for row in evaluated["evaluations"]],
        "val_id": validated["val_id"],
        "val_ood": validated["val_ood"],
        "train_seconds": sum(record["seconds"] for record in parts),
        "peak_memory_bytes": max(peaks) if peaks else None,
        "peak_memory_kind": next((record["peak_memory_kind"] for record in parts if record.get("peak_memory_bytes") is not None), None),
        "steps": sum(record.get("steps", 0) for record in parts),
    }


def _parts(cell: Cell, method: str) -> Iterator[str]:
    """The stages whose work a method's model took."""
    if method == ZERO_SHOT:
        return
    yield FINETUNE if method in (WISE_FT, SOUP) else method
    if method == SOUP:
        yield from cell.request.soup_with or {}
    if method in (WISE_FT, SOUP):
        yield method
