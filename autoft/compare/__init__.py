"""Every method on the same data: tuned with the same number of validation evaluations, trained with several seeds, scored once.

The rule is `autoft.compare.plan.RULE`. Everything is resumable: tuning is a study for each method in the database, and every training leaves
a record.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from optuna.study import Study
from optuna.trial import TrialState

from autoft.compare.plan import (
    COMPARED,
    FINETUNE,
    LR_FACTOR,
    RULE,
    SEARCHES,
    SOUP,
    SOUP_MEMBERS,
    WISE_FT,
    ZERO_SHOT,
    Plan,
    check_methods,
    comparison_config,
    default_methods,
    ranges,
    tuned_with,
    tuning_space,
)
from autoft.compare.records import Cell, Records
from autoft.comparison.records import Budget, Comparison, Evaluation, Method, Run
from autoft.config import SearchSpaceConfig, dump_config
from autoft.enqueue import enqueue
from autoft.errors import TrialCodeError
from autoft.executor import Executor
from autoft.files import write_text
from autoft.fingerprint import check_fingerprint
from autoft.journal import Journal
from autoft.ledger import study_id
from autoft.lifeline import Lifeline, Outage
from autoft.methods import METHODS, Setting, method_hyperparameters
from autoft.pipeline import Inputs, package_versions
from autoft.search import Coordinator
from autoft.search_space import Hyperparameters, sample_hyperparameters
from autoft.stages import StageRequest
from autoft.trials_table import trial_seconds

__all__ = ["COMPARED", "FINETUNE", "LR_FACTOR", "SEARCHES", "ZERO_SHOT", "Comparer", "Plan", "check_methods", "comparison_config", "default_methods", "tuning_space"]



class OwnedStudy(Protocol):
    """A study this process owns."""

    study: Study

    @property
    def lifeline(self) -> Lifeline:
        """To its database."""
        ...


OpenStudy = Callable[[str], AbstractContextManager[OwnedStudy]]
Observe = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Tuned:
    """A method after tuning. ranked: the configurations of its complete trials, best first; scores: by trial, None where it diverged."""

    ranked: tuple[Hyperparameters, ...]
    scores: tuple[float | None, ...]
    seconds: float


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
        self._failed: dict[str, str] = {}  # methods that could not be tuned, and why
        self._records = Records(inputs, run_dir / "cells", plan.keep)

    def run(self, hardware: str) -> Comparison:
        """Tune, train and score what is not done yet.

        Raises:
            Interrupted: `should_stop()` said so; the same call goes on.
            StudyConflict: a tuning study of that name was made from other inputs.
        """
        self._run_dir.mkdir(parents=True, exist_ok=True)
        write_text(self._run_dir / "study.yaml", dump_config(self._inputs.config))
        for method in dict.fromkeys(source for name in self._plan.methods if (source := tuned_with(name)) is not None):
            try:
                self._tuned[method] = self._tune(method)
            except TrialCodeError as failure:  # the other methods can still be compared
                self._executor.forget()  # the other trials of this method
                self._failed[method] = str(failure)
                self._observe({"event": "method_failed", "method": method, "error": str(failure)})
        cells = self._cells()
        missing = [cell for cell in cells if not self._records.is_done(cell)]
        self._observe({"event": "cells", "done": len(cells) - len(missing), "of": len(cells)})
        for cell in missing:
            cell.request.run_dir.mkdir(parents=True, exist_ok=True)
            write_text(cell.request.run_dir / "study.yaml", dump_config(self._inputs.config))
        for index, error in self._executor.run_all_stages([cell.request for cell in missing], self._observe):
            self._records.write(missing[index], error)
            self._observe({"event": "cell_ended", "cell": missing[index].name, "error": None if error is None else str(error)})
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
        with self._open_tuning(config.study) as handle:
            study, outage = handle.study, Outage(handle.lifeline, self._observe)

            def begin() -> Journal:
                check_fingerprint(study, {**self._inputs.sections, "search_space": space.model_dump(mode="json"), "comparison": method})
                enqueue(study, space, {method: self._first(method)}, count)
                return Journal(self._run_dir / "tuning" / f"{method}.jsonl", study_id(study))

            journal = outage.patiently(begin, self._should_stop)
            self._observe({"event": "tuning", "method": method, "trials": count})
            Coordinator(config, study, self._executor, journal, self._observe, self._should_stop, handle.lifeline, outage).run()
            tuned = outage.patiently(lambda: _tuned(study, space, config.direction), self._should_stop)
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
        built = tuple(name for name in (FINETUNE, WISE_FT, SOUP) if name in self._plan.methods and FINETUNE in self._tuned)
        for seed in range(self._plan.seeds):
            if built:
                first, *others = (replace(hp, seed=seed) for hp in self._tuned[FINETUNE].ranked[:SOUP_MEMBERS])
                soup = {f"soup-{index}": hp for index, hp in enumerate(others, start=2)} if SOUP in built else None
                wise_ft_of = FINETUNE if WISE_FT in built else None
                cells.append(self._cell(f"{FINETUNE}-{seed}", built, seed, {FINETUNE: first}, soup_with=soup, wise_ft_of=wise_ft_of))
            for method in self._plan.methods:
                if method in self._tuned and method not in built:
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

    def _comparison(self, cells: Sequence[Cell], hardware: str) -> Comparison:
        config, data = self._inputs.config, self._inputs.data
        sizes = {"train": len(data.train), "val_id": len(data.val_id), "val_ood": len(data.val_ood)}
        sizes |= {name: len(images) for name, (_, images) in data.tests.items()}
        runs = [run for cell in cells for method in cell.methods if (run := self._records.run(cell, method)) is not None]
        lost = [name for name in self._plan.methods if tuned_with(name) in self._failed]
        runs += [{"method": name, "seed": seed, "error": self._failed[tuned_with(name) or ""]} for name in lost for seed in range(self._plan.seeds)]
        model = config.model
        return Comparison(
            study=config.study,
            metric=config.metric,
            direction=config.direction,
            model=Path(model.name).name if model.name.startswith("local-dir:") else model.name,
            n_classes=len(data.classes.names),
            data=sizes,
            versions=package_versions(),
            notes=_notes(self._records.versions(cells)),
            hardware=hardware,
            budget=Budget(evaluations=self._plan.evaluations, steps=config.trial.steps, rule=RULE),
            methods=tuple(self._method(name) for name in self._plan.methods),
            runs=tuple(self._timed(run) for run in runs),
        )

    def _timed(self, run: Mapping[str, Any]) -> Run:
        source = tuned_with(run["method"])
        seconds = self._tuned[source].seconds if source in self._tuned else None
        evaluations = tuple(Evaluation(**row) for row in run.get("evaluations", ()))
        return Run(**{**run, "evaluations": evaluations, "tune_seconds": seconds})

    def _method(self, name: str) -> Method:
        source = tuned_with(name)
        if source is None:
            return Method(name=name, source="the foundation model as it is")
        spec = METHODS.get(name)  # type: ignore[call-overload]
        about = spec.source if spec else _ABOUT.get(name, "")
        reconstructed = spec.reconstructed if spec else name == "autoft_extended"
        if source not in self._tuned:
            return Method(name=name, source=about, reconstructed=reconstructed)
        tuned = self._tuned[source]
        return Method(
            name=name,
            source=about,
            knobs=self._knobs(name, tuned),
            chosen={key: value for key, value in tuned.ranked[0].to_dict().items() if key != "seed"},
            tuning_scores=tuned.scores if name == source else (),
            tuning_evaluations=len(tuned.scores) + self._more_looks(name, tuned),
            reconstructed=reconstructed,
        )

    def _knobs(self, name: str, tuned: Tuned) -> dict[str, str]:
        if name == WISE_FT and self._inputs.config.wise_ft is not None:
            return {"alpha": ", ".join(f"{alpha:g}" for alpha in self._inputs.config.wise_ft.alphas)}
        if name == SOUP:
            return {"members": f"the best {min(SOUP_MEMBERS, len(tuned.ranked))} of {FINETUNE}'s {len(tuned.scores)}"}
        return ranges(self._space(name), name)

    def _more_looks(self, name: str, tuned: Tuned) -> int:
        """How often a method looks at VAL_OOD for each seed, besides tuning."""
        if name == WISE_FT and self._inputs.config.wise_ft is not None:
            return len(self._inputs.config.wise_ft.alphas)
        members = min(SOUP_MEMBERS, len(tuned.ranked))
        return 2 * members - 1 if name == SOUP else 0


_ABOUT: Mapping[str, str] = {
    WISE_FT: "plain fine-tuning interpolated with the zero-shot weights, alpha by VAL_OOD for each seed: WiSE-FT (Wortsman et al. 2022, "
    "arXiv 2109.01903)",
    SOUP: "greedy average of full fine-tunes with plain fine-tuning's best tuned settings, by VAL_OOD: model soups (Wortsman et al. 2022, "
    "arXiv 2203.05482)",
    **{name: f"AutoFT (Cho et al. 2024, arXiv 2401.10220) over {about}" for name, about in SEARCHES.items()},
}


def _notes(versions: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    """A warning where runs were made with different packages."""
    if len(versions) < 2:
        return ()
    names = sorted({name for one in versions for name in one if len({other.get(name) for other in versions}) > 1})
    seen = "; ".join(f"{name} {', '.join(sorted({one.get(name, 'none') for one in versions}))}" for name in names)
    return (f"The runs were not all made with the same versions of: {seen}.",)


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
