"""What follows the search, on one worker: final fine-tune, baselines, WiSE-FT, evaluation. Each stage resumes and runs once.

A stage leaves `stages/NAME.json` with the key it was computed from; the same key is never computed again. Test sets are touched by
the last stage only, and once for each model.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from autoft.batch_norm import reestimate_batch_norm
from autoft.collective import any_of
from autoft.config import Metric, StudyConfig, section_hash
from autoft.core_features import core_beta
from autoft.data import Split
from autoft.errors import Interrupted, TrialCodeError
from autoft.evaluate import NonFiniteScore, score_predictions
from autoft.files import read_json, write_json
from autoft.finetune import final_recipe
from autoft.full_finetune import Emit, FullFinetune
from autoft.methods import Setting, method_hyperparameters, slug
from autoft.models import CheckpointInfo, ClipClassifier, copy_state, read_state, save_checkpoint
from autoft.models.averaging import greedy_soup, uniform_soup
from autoft.models.shards import gathered, parts_of
from autoft.models.state import State, snapshot
from autoft.search_space import Hyperparameters
from autoft.wise_ft import interpolator
from autoft.workspace import Workspace

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StageRequest:
    """What the stages need to know; everything else is in the study file.

    methods: the full fine-tunes of the run, by name. See `trained_methods`.
    wise_ft_of: the one of them that WiSE-FT interpolates, if the study has a `wise_ft` section; None: none of them.
    soup_with: more fine-tunes, by name, that make a greedy soup with the first of `methods`; they are not evaluated themselves. None: no
        soup is made.
    validated: whether every model is scored on the validation sets too, beside the test sets.
    with_zero_shot: whether the zero-shot model is scored too.
    """

    config: StudyConfig
    run_dir: Path
    methods: Mapping[str, Hyperparameters]
    fingerprint: str
    versions: dict[str, str]
    wise_ft_of: str | None = "final"
    soup_with: Mapping[str, Hyperparameters] | None = None
    validated: bool = False
    with_zero_shot: bool = True


def load_workspace(
    config: StudyConfig,
    device: str,
    cache_dir: Path,
    progress: Callable[[str, int, int], None] | None = None,
    arrange: Callable[[ClipClassifier], None] | None = None,
) -> Workspace:
    """What `run_stages` works on: the model, and every set of the study; `arrange`: see `Workspace.load`."""
    return Workspace.load(config, device, cache_dir, splits=all_splits(config), progress=progress, arrange=arrange)


def run_stages(request: StageRequest, workspace: Workspace, emit: Emit, should_stop: Callable[[], bool]) -> None:
    """Run every stage that is not done yet.

    Args:
        workspace: of `request.config`, with all its sets; can be used again afterwards, whatever was raised. In one of several processes
            all of them call this; the first one alone writes to the run folder, which all must see, and emits.
        should_stop: that one of the processes is told to stop is enough.

    Raises:
        TrialCodeError: a fine-tune diverged, or a model's predictions are not finite.
        Interrupted: `should_stop()` said so.
        OSError: the disk is full.
    """
    try:
        _run_stages(_Stages(request, workspace, emit, should_stop), request)
    except NonFiniteScore as error:
        raise TrialCodeError(f"a model of {', '.join(request.methods)} cannot be scored: {error}") from None


def _run_stages(stages: "_Stages", request: StageRequest) -> None:
    for method, hyperparameters in request.methods.items():
        stages.train(method, hyperparameters)
    members = list(request.methods)[:1]
    for method, hyperparameters in (request.soup_with or {}).items():
        try:
            stages.train(method, hyperparameters)
            members.append(method)
        except TrialCodeError as error:  # a soup does without it; the fine-tune it is to improve must not suffer
            logger.warning("%s; it is left out of the soup", error)
    if request.config.wise_ft is not None and request.wise_ft_of is not None:
        stages.wise_ft(request.wise_ft_of)
    if request.soup_with is not None:
        stages.soup(members)
    stages.evaluate()


def all_splits(config: StudyConfig) -> list[str]:
    """Names of every split and test set of a study."""
    return ["train", "val_id", "val_ood", *config.data.test_id, *config.data.test_ood]


def trained_methods(config: StudyConfig, best: Hyperparameters, entries: int) -> dict[str, Hyperparameters]:
    """The full fine-tunes of a run: the searched configuration as `final`, and the baselines it is compared with.

    Args:
        entries: see `autoft.methods.Setting`.
    """
    base = {"lr": config.search_space.base_lr, "layer_lr": {}, "layer_weight_decay": {}}
    final = replace(best, **base) if config.final.lr == "base" else best  # type: ignore[arg-type]
    setting = Setting(config.search_space, entries, config.search.seed)
    return {"final": final, **{slug(name): method_hyperparameters(name, setting) for name in config.evaluate.baselines}}


def stage_result(run_dir: Path, stage: str) -> dict[str, Any] | None:
    """What a stage left, or None."""
    record = read_json(run_dir / "stages" / f"{stage}.json")
    return record["result"] if isinstance(record, dict) and "result" in record else None


class _Stages:
    """The stages of one run over one workspace."""

    def __init__(self, request: StageRequest, workspace: Workspace, emit: Emit, should_stop: Callable[[], bool]) -> None:
        self._first = workspace.collective.rank == 0
        self._request, self._workspace, self._should_stop = request, workspace, should_stop
        self._emit: Emit = emit if self._first else lambda event: None
        self._config, self._run_dir = request.config, request.run_dir
        data = workspace.data
        self._content = {"train": data.train.content_hash, "val_id": _hash(data.val_id), "val_ood": _hash(data.val_ood)}
        self._model_keys: dict[str, str] = {"zero_shot": request.fingerprint}

    def _run(self, stage: str, key: str, compute: Callable[[], dict[str, Any]], needs: Path | None = None) -> None:
        """Compute the stage and record its result, unless its record has the same key and its checkpoint is there."""
        path = self._run_dir / "stages" / f"{stage}.json"
        record = read_json(path)
        done = isinstance(record, dict) and record.get("key") == key and (needs is None or needs.is_dir())
        if any_of(self._workspace.collective, self._first and done):  # the first process's word: a file is not there for all at once
            return
        self.check_stop(f"before {stage}")
        self._emit({"event": "stage_started", "stage": stage})
        started = time.perf_counter()
        result = compute()
        result["seconds"] = result.get("seconds", 0.0) + time.perf_counter() - started
        if self._first:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"key": key, "result": result})
        self._emit({"event": "stage_ended", "stage": stage, "seconds": result["seconds"]})
        any_of(self._workspace.collective, False)  # nobody looks for what the first process has not finished writing

    def train(self, method: str, hyperparameters: Hyperparameters) -> None:
        """A full fine-tune; its best epoch on VAL_ID becomes `checkpoints/METHOD`."""
        recipe = final_recipe(self._config.final, hyperparameters, len(self._workspace.train))
        content = [self._content["val_id"], self._content["val_ood"]]
        key = section_hash([self._request.fingerprint, hyperparameters.to_dict(), self._config.final.model_dump(), content])
        folder = self._run_dir / "checkpoints" / method
        self._model_keys[method] = key
        saved = self._run_dir / "training" / f"{method}.pt"
        training = FullFinetune(self._workspace, method, recipe, saved, key, self._emit, self.check_stop)
        self._run(method, key, lambda: self._train(training, method, hyperparameters, folder), needs=folder)
        training.forget()

    def _train(self, training: FullFinetune, method: str, hyperparameters: Hyperparameters, folder: Path) -> dict[str, Any]:
        best, record = training.run()
        self.save(folder, best, method, hyperparameters, {name: record[name] for name in ("val_id", "val_ood")})
        return record

    def wise_ft(self, source: str) -> None:
        """Sweep alpha on validation data, and save the chosen interpolation as `checkpoints/wise_ft`."""
        section = self._config.wise_ft
        assert section is not None
        key = section_hash([self._model_keys[source], section.model_dump(), self._content])
        folder = self._run_dir / "checkpoints" / "wise_ft"
        self._model_keys["wise_ft"] = key
        self._run("wise_ft", key, lambda: self._sweep(source, folder), needs=folder)

    def _sweep(self, source: str, folder: Path) -> dict[str, Any]:
        section, workspace = self._config.wise_ft, self._workspace
        assert section is not None
        tuned = self._read(source)
        workspace.model.core_beta = core_beta(self._request.methods[source])  # also at alpha 0: between two models that predict alike
        place = interpolator(workspace, workspace.zero_shot.tensors, tuned, section)
        curve = []
        for alpha in section.alphas:
            self.check_stop(f"before alpha {alpha:g} of wise_ft")
            place(alpha)
            curve.append({"alpha": alpha, "val_id": workspace.score("val_id"), "val_ood": workspace.score("val_ood")})
            self._emit({"event": "stage_progress", "stage": "wise_ft", "done": len(curve), "of": len(section.alphas)})
        sign = 1 if self._config.direction == "maximize" else -1
        chosen = max(curve, key=lambda point: (sign * point[section.select_on], point["alpha"]))
        place(chosen["alpha"])
        scores = {"val_id": chosen["val_id"], "val_ood": chosen["val_ood"]}
        state = snapshot(workspace.model)
        self.save(folder, state, "wise_ft", self._request.methods[source], scores, alpha=chosen["alpha"])
        return {"alpha": chosen["alpha"], "select_on": section.select_on, "curve": curve}

    def soup(self, members: Sequence[str]) -> None:
        """Average the fine-tunes greedily by the first objective's validation set, and save the soup as `checkpoints/soup`."""
        key = section_hash([[self._model_keys[name] for name in members], self._content])
        folder = self._run_dir / "checkpoints" / "soup"
        self._model_keys["soup"] = key
        self._run("soup", key, lambda: self._cook(members, folder), needs=folder)

    def _cook(self, members: Sequence[str], folder: Path) -> dict[str, Any]:
        workspace, config = self._workspace, self._config
        judge = config.search.objectives[0]
        workspace.model.core_beta = core_beta(self._request.methods[members[0]])

        def score(state: State) -> float:
            self.check_stop("while mixing a soup")
            copy_state(workspace.model, state)
            reestimate_batch_norm(workspace)
            try:
                return workspace.score(judge)
            except NonFiniteScore:
                return math.nan  # keeps it out

        loaders = [partial(self._read, name) for name in members]
        uniform = score(uniform_soup(loaders))
        soup = greedy_soup(loaders, score, config.direction)
        value = score(soup.state)  # as the members were judged: with BatchNorm statistics estimated again, even of one alone
        state = snapshot(workspace.model)
        self.save(folder, state, "soup", self._request.methods[members[0]], {judge: value})
        names = [members[index] for index in soup.members]
        return {"members": names, "select_on": judge, "own_scores": dict(zip(members, soup.own_scores, strict=True)), "uniform": uniform, "greedy": soup.score}

    def _read(self, method: str) -> State:
        """The state of a checkpoint, of sharded weights this process's own parts."""
        folder, workspace = self._run_dir / "checkpoints" / method, self._workspace
        if workspace.sharded:
            return parts_of(read_state(folder, torch.device("cpu")), workspace.model)
        return read_state(folder, workspace.device)

    def _scored(self) -> list[tuple[str, str]]:
        """The models to score, and their keys: all but what is only there to be averaged."""
        left_out = {*(self._request.soup_with or {}), *([] if self._request.with_zero_shot else ["zero_shot"])}
        return [(model, key) for model, key in self._model_keys.items() if model not in left_out]

    def _place(self, model: str) -> int:
        """Make the workspace's model the one of that name, as it predicts; the seed it was trained with."""
        workspace, request = self._workspace, self._request
        workspace.model.core_beta = None
        if model == "zero_shot":
            workspace.zero_shot.restore(workspace.model)
            return 0
        copy_state(workspace.model, self._read(model))
        first = next(iter(request.methods))
        hp = request.methods[{"wise_ft": request.wise_ft_of or first, "soup": first}.get(model, model)]
        workspace.model.core_beta = core_beta(hp)
        return hp.seed

    def evaluate(self) -> None:
        """Score every model on every test set, once."""
        tests = {name: [str(split), images.content_hash] for name, (split, images) in self._workspace.data.tests.items()}
        for method, model_key in self._scored():
            sets = [tests, self._content] if self._request.validated else tests
            key = section_hash([model_key, sets, self._config.evaluate.batch_size, self._config.metric])
            self._run(f"evaluate-{method}", key, lambda method=method: self._evaluate(method))  # type: ignore[misc]

    def _evaluate(self, method: str) -> dict[str, Any]:
        workspace = self._workspace
        seed = self._place(method)
        validation = {name: workspace.score(name) for name in ("val_id", "val_ood")} if self._request.validated else {}
        rows = []
        for name, (split, _) in workspace.data.tests.items():
            self.check_stop(f"before scoring {method} on {name}")
            scored = evaluation_rows(workspace, name, split, {"model": method, "seed": seed})
            self._emit({"event": "evaluated", "model": method, "dataset": name, "value": scored[0]["value"]})
            rows += scored
        return {"evaluations": rows, **validation}

    def check_stop(self, where: str) -> None:
        """Raise `Interrupted` if the run is to stop."""
        if any_of(self._workspace.collective, self._should_stop()):
            raise Interrupted(f"stopped {where}")

    def save(
        self,
        folder: Path,
        state: State,
        method: str,
        hyperparameters: Hyperparameters,
        scores: dict[str, float],
        alpha: float | None = None,
    ) -> None:
        """Write a checkpoint folder of this study; of sharded weights all processes bring their parts."""
        if self._workspace.sharded:
            state = gathered(state, self._workspace.model, self._first)
        if not self._first:
            return
        classes = self._workspace.data.classes
        info = CheckpointInfo(
            study=self._config.study,
            method=method,
            class_keys=classes.keys,
            class_names=classes.names,
            templates=self._config.data.templates,
            fingerprint=self._request.fingerprint,
            hyperparameters=hyperparameters.to_dict(),
            alpha=alpha,
            scores=scores,
            versions=self._request.versions,
            core_beta=core_beta(hyperparameters),
        )
        sparse = self._workspace.zero_shot.tensors if hyperparameters.constraint == "saft" else None
        save_checkpoint(folder, state, self._workspace.loaded, info, sparse_against=sparse)


def evaluation_rows(workspace: Workspace, name: str, split: Split, common: dict[str, Any]) -> list[dict[str, Any]]:
    """Score the workspace's model as it is on one set: a row for the study's metric, then one for each of the usual ones."""
    images = workspace.images(name)
    logits = workspace.logits(name).cpu()
    groups = None if images.groups is None else images.groups.cpu()
    grouped = groups is None or bool((groups >= 0).any())
    usual: tuple[Metric, ...] = ("accuracy", "macro_f1", "worst_group_accuracy") if grouped else ("accuracy", "macro_f1")
    metrics = dict.fromkeys((workspace.config.metric, *usual))
    rows = []
    for metric in metrics:
        score = score_predictions(metric, logits, images.labels_cpu, groups, images.set.class_count)
        rows.append(
            {
                **common,
                "dataset": name,
                "split": str(split),
                "metric": metric,
                "value": score.value,
                "ci_low": score.ci_low,
                "ci_high": score.ci_high,
                "n": score.n,
            }
        )
    return rows


def _hash(images: Any) -> str:
    return str(images.content_hash) if images is not None else ""
