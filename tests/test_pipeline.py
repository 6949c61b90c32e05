"""A whole run in this process: search, final fine-tune, WiSE-FT, evaluation, report; then the same command again."""

import csv
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState

from autoft import finetune as finetune_module
from autoft.config import load_config
from autoft.errors import Interrupted, StudyConflict
from autoft.executor import InProcessExecutor
from autoft.pipeline import Inputs, is_complete, prepare, run_pipeline
from autoft.report.schema import check_summary
from autoft.search_space import Hyperparameters, sample_hyperparameters
from autoft.workspace import Workspace
from tests.runs import one_thread, started, whole_trial
from tests.studies import write_images, write_study


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    with one_thread():
        yield


@dataclass(frozen=True)
class Place:
    """A study folder with its database; the image cache lies beside it."""

    folder: Path
    model: Path

    def inputs(self, **changes: Any) -> Inputs:
        return prepare(load_config(write_study(self.folder, self.model, **changes)), self.folder / "cache")

    def study(self, inputs: Inputs) -> optuna.Study:
        return optuna.create_study(
            study_name="tiny", direction=inputs.config.direction, storage=f"sqlite:///{self.folder}/study.db", load_if_exists=True
        )

    def copy(self, folder: Path) -> "Place":
        shutil.copytree(self.folder, folder)
        return replace(self, folder=folder)


@dataclass(frozen=True)
class Run:
    """A finished run, and what was counted beside it."""

    place: Place
    inputs: Inputs
    study: optuna.Study
    summary: dict[str, Any]
    events: list[dict[str, Any]]
    samples: Counter[str]
    forwards: Counter[str]


def run(
    place: Place,
    inputs: Inputs,
    should_stop: Callable[[], bool] = lambda: False,
    events: list[dict[str, Any]] | None = None,
    report: bool = False,
) -> Run:
    """`run_pipeline` with an in-process executor; counts training examples and scored images by stage on the way.

    report: draw the report; else an empty one, to save seconds.
    """
    study = place.study(inputs)
    events = [] if events is None else events
    now = ["search"]
    samples: Counter[str] = Counter()
    forwards: Counter[str] = Counter()
    batches, logits = finetune_module.batch_examples, Workspace.logits

    def observe(event: dict[str, Any]) -> None:
        events.append(event)
        if event["event"] == "stage_started":
            now[0] = event["stage"]

    def counted_batches(*args: Any) -> torch.Tensor:
        examples = batches(*args)
        samples[now[0]] += len(examples)
        return examples

    def counted_logits(self: Workspace, name: str) -> torch.Tensor:
        found = logits(self, name)
        forwards[f"{now[0]}/{name}"] += len(found)
        return found

    def executor() -> InProcessExecutor:
        return InProcessExecutor(inputs.config, device="cpu", threads=1, cache_dir=place.folder / "cache", should_stop=should_stop)

    with pytest.MonkeyPatch.context() as spies:
        spies.setattr(finetune_module, "batch_examples", counted_batches)
        spies.setattr(Workspace, "logits", counted_logits)
        if not report:
            spies.setattr("autoft.pipeline.write_report", lambda run_dir: (run_dir / "report.html").touch())
        summary = run_pipeline(inputs, study, executor, place.folder / "run", observe, should_stop)
    return Run(place, inputs, study, summary, events, samples, forwards)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, tiny_vit: Path) -> Run:
    place = Place(tmp_path_factory.mktemp("pipeline") / "study", tiny_vit)
    place.folder.mkdir()
    return run(place, place.inputs(), report=True)


@pytest.fixture
def again(first: Run, tmp_path: Path) -> Place:
    """A copy of the finished study, database and run folder, to go on from."""
    return first.place.copy(tmp_path / "study")


def values(study: optuna.Study) -> list[Any]:
    return [(trial.number, trial.state, trial.params, trial.value) for trial in study.trials]


# --- what a run leaves


def test_the_run_folder_is_whole(first: Run) -> None:
    folder = first.place.folder / "run"
    summary = json.loads((folder / "summary.json").read_text())
    check_summary(summary)
    assert summary == json.loads(json.dumps(first.summary))
    assert summary["state"] == "complete" and summary["search"]["n_complete"] == 6
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"study.yaml", "journal.jsonl", "summary.json", "report.html", "trials.csv"} <= found
    assert {f"checkpoints/{name}/open_clip_model.safetensors" for name in ("final", "wise_ft")} <= found
    assert any(name.startswith("plots/") for name in found)
    assert not [name for name in found if "partial" in name or name.endswith(".pt")]
    assert load_config(folder / "study.yaml") == first.inputs.config


def test_defect_3_the_best_trials_hyperparameters_are_the_final_runs(first: Run) -> None:
    best = max(first.study.trials, key=lambda trial: (trial.value, -trial.number))
    summary = first.summary
    assert summary["search"]["best_trial"]["number"] == best.number
    params = best.params
    assert "loss_weight/cross_entropy" not in params, "the reference is not sampled, so no sampled value can leak into the final run"
    expected = {
        "lr": params["lr"],
        "weight_decay": params["weight_decay"],
        "seed": params["seed"],
        "loss_weights": {"cross_entropy": 1.0} | {name.removeprefix("loss_weight/"): w for name, w in params.items() if "/" in name},
    }
    assert len(expected["loss_weights"]) == 9
    assert summary["search"]["best_trial"]["hyperparameters"] == expected
    assert summary["final"]["hyperparameters"] == expected
    info = json.loads((first.place.folder / "run" / "checkpoints" / "final" / "autoft.json").read_text())
    assert info["hyperparameters"] == expected


def test_defect_3_what_ran_is_what_is_replayed(first: Run) -> None:
    """A trial's score comes back when its stored parameters run alone, on another worker."""
    workspace = Workspace.load(first.inputs.config, "cpu", first.place.folder / "cache")
    for trial in reversed(first.study.trials):
        replayed = sample_hyperparameters(trial, first.inputs.config.search_space)
        assert whole_trial(workspace, replayed).score == trial.value


def test_every_model_is_evaluated_on_every_test_set(first: Run) -> None:
    rows = {(row["model"], row["dataset"], row["split"]) for row in first.summary["evaluations"]}
    assert rows == {(model, *side) for model in ("zero_shot", "final", "wise_ft") for side in (("a", "test_id"), ("b", "test_ood"))}
    seeds = {row["model"]: row["seed"] for row in first.summary["evaluations"]}
    assert seeds["final"] == seeds["wise_ft"] == first.summary["final"]["hyperparameters"]["seed"]


def test_cost_figures_are_what_was_counted(first: Run) -> None:
    cost = first.summary["cost"]
    assert cost["search_samples"] == first.samples["search"] == 6 * 4 * 12
    assert cost["final_samples"] == first.samples["final"] == 2 * 48
    assert cost["search_over_final"] == first.samples["search"] / first.samples["final"]
    assert cost["search_eval_samples"] == first.forwards["search/val_ood"] == 6 * 24
    assert cost["baseline_samples"] == 0
    ran = [event for event in first.events if event["event"] == "trial_ended"]
    assert cost["search_seconds"] == pytest.approx(sum(event["seconds"] for event in ran))
    (ended,) = [event for event in first.events if event["event"] == "stage_ended" and event["stage"] == "final"]
    assert cost["final_seconds"] == pytest.approx(ended["seconds"])
    assert cost["workers"] == 1


def test_no_test_set_is_looked_at_before_the_evaluation(first: Run) -> None:
    assert not [name for name in first.forwards if name.endswith(("/a", "/b")) and not name.startswith("evaluate-")]
    assert [first.forwards[f"evaluate-{model}/{name}"] for model in ("zero_shot", "final", "wise_ft") for name in ("a", "b")] == [30] * 6


def test_the_table_of_trials_holds_what_the_study_holds(first: Run) -> None:
    with (first.place.folder / "run" / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, trial in zip(rows, first.study.trials, strict=True):
        assert (int(row["number"]), row["state"], float(row["score"])) == (trial.number, trial.state.name, trial.value)
        assert {name: float(row[name]) for name in trial.params} == trial.params
        assert float(row["report/4"]) == trial.value


# --- the same command again


def test_a_finished_run_is_complete_and_running_it_again_changes_nothing(again: Place, first: Run) -> None:
    inputs = again.inputs()
    assert is_complete(inputs, again.study(inputs), again.folder / "run")
    before = {path: path.read_bytes() for path in (again.folder / "run").rglob("*.safetensors")}
    second = run(again, inputs)
    assert started(second.events) == ["report"]
    assert not [event for event in second.events if event["event"].startswith("trial")]
    assert second.samples.total() == second.forwards.total() == 0
    assert second.summary == first.summary
    assert {path: path.read_bytes() for path in (again.folder / "run").rglob("*.safetensors")} == before


@pytest.mark.parametrize(
    ("changes", "complete"),
    [
        ({"search__n_trials": 5}, True),
        ({"search__n_trials": 7}, False),
        ({"wise_ft": None}, False),
        ({"wise_ft__select_on": "val_id"}, False),
        ({"final__epochs": 3}, False),
        ({"evaluate__baselines": ["finetune"]}, False),
    ],
    ids=str,
)
def test_complete_means_all_that_the_study_file_asks_for(changes: dict[str, Any], complete: bool, again: Place) -> None:
    inputs = again.inputs(**changes)
    assert is_complete(inputs, again.study(inputs), again.folder / "run") == complete


@pytest.mark.parametrize("missing", ["summary.json", "report.html"])
def test_a_run_without_its_summary_or_report_is_not_complete(missing: str, again: Place) -> None:
    (again.folder / "run" / missing).unlink()
    inputs = again.inputs()
    assert not is_complete(inputs, again.study(inputs), again.folder / "run")


def test_more_trials_go_on_from_where_the_study_stands(again: Place, first: Run) -> None:
    more = run(again, again.inputs(search__n_trials=8))
    assert values(more.study)[:6] == values(first.study)
    assert [trial.state for trial in more.study.trials] == [TrialState.COMPLETE] * 8
    assert more.samples["search"] == 2 * 4 * 12, "only the two new trials were run"
    assert more.summary["cost"]["search_samples"] == 8 * 4 * 12
    assert more.summary["search"]["best_trial"]["score"] == max(trial.value or 0.0 for trial in more.study.trials)
    assert more.summary["final"]["hyperparameters"] == more.summary["search"]["best_trial"]["hyperparameters"]
    check_summary(more.summary)


def test_a_changed_final_section_trains_again_and_leaves_the_search_alone(again: Place, first: Run) -> None:
    longer = run(again, again.inputs(final__epochs=3, wise_ft=None, evaluate__baselines=["finetune"]))
    assert started(longer.events) == ["final", "finetune", "evaluate-final", "evaluate-finetune", "report"]
    assert values(longer.study) == values(first.study)
    assert longer.samples["search"] == 0
    assert longer.summary["cost"]["baseline_samples"] == longer.samples["finetune"] == 3 * 48
    assert "wise_ft" not in longer.summary
    assert {row["model"] for row in longer.summary["evaluations"]} == {"zero_shot", "final", "finetune"}
    check_summary(longer.summary)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"search_space__base_lr": 2e-3}, ["search_space.base_lr: 0.001 there, 0.002 here"]),
        ({"search_space__terms": ["hinge"], "trial__steps": 5}, ["search_space.terms", "trial.steps: 4 there, 5 here"]),
        ({"metric": "macro_f1"}, ["metric: accuracy there, macro_f1 here"]),
        ({"search__seed": 4}, ["search.seed: 3 there, 4 here"]),
        ({"data__classnames": ["red", "green", "violet"]}, ["data.classes"]),
        ({"model__batch_norm": "frozen"}, ["model.batch_norm: train there, frozen here"]),
    ],
    ids=str,
)
def test_another_study_of_the_same_name_is_refused_with_what_differs(changes: dict[str, Any], named: list[str], again: Place) -> None:
    before = {path: path.read_bytes() for path in again.folder.rglob("*") if path.is_file() and "run" in path.parts}
    inputs = again.inputs(**changes)
    assert not is_complete(inputs, again.study(inputs), again.folder / "run")
    with pytest.raises(StudyConflict) as conflict:
        run(again, inputs)
    text = str(conflict.value)
    assert all(line in text for line in named), text
    assert len([line for line in text.splitlines() if " there, " in line]) == len(named), "nothing else is said to differ"
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("name", ["train", "val_ood"])
def test_changed_data_is_another_study_and_moved_data_is_not(name: str, again: Place) -> None:
    inputs = again.inputs()
    moved = again.folder / "elsewhere.npz"
    shutil.copy(again.folder / "data" / f"{name}.npz", moved)
    inputs = again.inputs(**{f"data__{name}": {"layout": "arrays", "path": str(moved)}})
    assert is_complete(inputs, again.study(inputs), again.folder / "run")
    write_images(moved, 24, seed=77, noise=20)
    inputs = prepare(inputs.config, again.folder / "cache")
    with pytest.raises(StudyConflict, match=f"data.{name}: .* there, .* here"):
        run(again, inputs)


# --- interrupted


def test_a_run_stopped_again_and_again_ends_as_an_undisturbed_one(tmp_path: Path, tiny_vit: Path, first: Run) -> None:
    place = Place(tmp_path / "study", tiny_vit)
    place.folder.mkdir()
    events: list[dict[str, Any]] = []
    stops = 0
    while True:
        asked = [0]

        def stop(asked: list[int] = asked) -> bool:
            asked[0] += 1
            return asked[0] > 11

        try:
            done = run(place, place.inputs(), stop, events)
            break
        except Interrupted:
            stops += 1
            assert stops < 30
    assert stops > 3
    assert any(event.get("adopted") for event in events), "a trial was stopped in its middle"
    assert values(done.study) == values(first.study)
    same = {"search", "final", "wise_ft", "evaluations", "fingerprint", "run_key"}
    assert {name: done.summary[name] for name in same} == {name: first.summary[name] for name in same}
    for file in ("final/open_clip_model", "final/head", "wise_ft/open_clip_model", "wise_ft/head"):
        path = f"run/checkpoints/{file}.safetensors"
        assert (place.folder / path).read_bytes() == (first.place.folder / path).read_bytes()


@pytest.mark.parametrize(("metric", "model"), [("cross_entropy", "tiny_convnet"), ("macro_f1", "tiny_vit")])
def test_other_metrics_select_in_their_direction_with_a_pruner(metric: str, model: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """TPE and pruning, end to end; with the convolutional model BatchNorm too."""
    place = Place(tmp_path, request.getfixturevalue(model))
    done = run(place, place.inputs(metric=metric, search__n_trials=8, search__pruner="median", search__sampler="tpe", trial__reports=2))
    check_summary(done.summary)
    complete = [trial for trial in done.study.trials if trial.state == TrialState.COMPLETE]
    pick = min if metric == "cross_entropy" else max
    assert done.summary["search"]["best_trial"]["score"] == pick(trial.value or 0.0 for trial in complete)
    assert done.summary["search"]["n_complete"] + done.summary["search"]["n_pruned"] == 8
    assert all(set(trial.intermediate_values) == {2, 4} for trial in complete), "the pruner gets reports"
    assert Hyperparameters.from_dict(done.summary["final"]["hyperparameters"]).lr > 0
    assert {row["metric"] for row in done.summary["evaluations"]} >= {metric, "accuracy"}
    assert all(math.isfinite(row["value"]) for row in done.summary["evaluations"])
    curve = done.summary["wise_ft"]["curve"]
    chosen = next(point for point in curve if point["alpha"] == done.summary["wise_ft"]["alpha"])
    assert chosen["val_ood"] == pick(point["val_ood"] for point in curve)
    cost = done.summary["cost"]
    assert cost["search_samples"] == done.samples["search"]
    assert cost["search_eval_samples"] == done.forwards["search/val_ood"]
