"""Processes that share the weights out among them take the steps one would take with all of them, and hold a share of the memory."""

import argparse
import gc
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

import autoft.workspace
from autoft.cli.launch import check_flags, check_sharded
from autoft.cli.parser import build_parser
from autoft.collective import ALONE, Collective
from autoft.config import load_config
from autoft.errors import AutoFTError, ClusterError, ConfigError, Interrupted
from autoft.finetune import Recipe, finetune, training_state
from autoft.models import ClipClassifier
from autoft.models.shards import gathered, own_state, shard_towers
from autoft.search_space import Hyperparameters
from autoft.stages import StageRequest, all_splits, run_stages, stage_result
from autoft.stages import load_workspace as load_run
from autoft.workspace import Workspace
from tests.launching import Launch, environment
from tests.processes import in_processes
from tests.runs import ALL_TERMS, load_workspace, one_thread
from tests.studies import write_study
from workers.capacity import Node
from workers.distributed import plan_final

SMOOTH_TERMS = {term: weight for term, weight in ALL_TERMS.items() if not term.startswith("l1_")}  # see tests/test_distributed.py
STUDY = {"evaluate__batch_size": 7, "final__epochs": 2, "final__batch_size": 11, "final__clip_grad_norm": 1.0, "wise_ft__alphas": [0.0, 0.5, 1.0]}
STOPPED = 2  # the step after which fine-tunes are broken off

# Every one clips the gradient, warms up and follows a schedule.
CURVES: dict[str, dict[str, Any]] = {
    "adamw": {},
    "sgd": {"optimizer": "sgd", "lr": 0.01},
    "layers": {"layer_decay": 0.7, "loss_weights": {"contrastive": 1.0, "l2_init": 10.0}},
    "images alone": {"loss_weights": {"cross_entropy": 1.0, "hinge": 0.1}},
    "norm alone": {"loss_weights": {"l2_zero": 30.0}},
    "mixtures": {"loss_weights": {"cross_entropy": 1.0, "feature_mixup": 1.0, "focal_contrastive": 0.1}},
    "average": {"loss_weights": {"margin": 1.0}, "trained": "backbone", "averaging": "beta"},
}
METHODS: dict[str, dict[str, Any]] = {
    "final": {},
    "flyp": {"loss_weights": {"contrastive": 1.0}, "alpha": 0.75},
    "clipood": CURVES["average"],
}


def hyperparameters(**values: Any) -> Hyperparameters:
    return Hyperparameters(**{"lr": 1e-3, "weight_decay": 0.1, "loss_weights": SMOOTH_TERMS, "seed": 5, **values})


def recipe(steps: int = 4, batch_size: int = 11, **values: Any) -> Recipe:
    return Recipe(hyperparameters=hyperparameters(**values), steps=steps, batch_size=batch_size, schedule="cosine", warmup_steps=1, clip_grad_norm=1.0)


def load_bf16(folder: Path, collective: Collective) -> Workspace:
    """As on a GPU: single precision, and towers that compute in bf16."""
    config = load_config(folder / "tiny.yaml")
    config = config.model_copy(update={"model": config.model.model_copy(update={"precision": "bf16"})})
    arrange = shard_towers if collective.size > 1 else None
    return replace(Workspace.load(config, "cpu", folder / "cache", splits=all_splits(config), arrange=arrange), collective=collective)


def load64(folder: Path, collective: Collective) -> Workspace:
    """In double precision, whose rounding hides no mistake; of several processes with sharded weights."""
    config = load_config(folder / "tiny.yaml")

    def arrange(model: ClipClassifier) -> None:
        model.double()
        if collective.size > 1:
            shard_towers(model)

    workspace = Workspace.load(config, "cpu", folder / "cache", splits=all_splits(config), arrange=arrange)
    transform = workspace.train_transform
    return replace(workspace, collective=collective, train_transform=lambda images, *draw: transform(images, *draw).double())


def run(workspace: Workspace, of: Recipe, resume: Mapping[str, Any] | None = None) -> dict[str, Any]:
    steps = list(finetune(workspace, of, resume, report_norms=True))
    last = steps[-1].average
    return {
        "losses": torch.stack([step.loss for step in steps]),
        "terms": {name: torch.stack([step.terms[name] for step in steps]) for name in steps[0].terms},
        "state": gathered(own_state(workspace.model), workspace.model, wanted=True),
        "average": {} if last is None else gathered(last, workspace.model, wanted=True),
        "exact": all(step.split.exact and step.split.parts == 1 for step in steps),
    }


def broken_off(workspace: Workspace, of: Recipe) -> dict[str, Any]:
    """The training state in the middle, of whole weights."""
    return training_state(workspace, next(islice(finetune(workspace, of), STOPPED - 1, None)))


def held(workspace: Workspace, of: Recipe) -> dict[str, int]:
    """Bytes of tensors when the second step has all its gradients: by what they are for, and of everything that is alive."""
    found: dict[str, int] = {}

    def count(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        if not optimizer.state:
            return
        gc.collect()
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in gc.get_objects() if type(tensor) in (Tensor, torch.nn.Parameter)}
        found.update(
            weights=sum(weight.nbytes for weight in weights),
            gradients=sum(weight.grad.nbytes for weight in weights if weight.grad is not None),
            optimizer=sum(value.nbytes for values in optimizer.state.values() for value in values.values()),
            anchor=sum(tensor.nbytes for tensor in workspace.zero_shot.tensors.values()),
            alive=sum(storages.values()),
        )

    handle = register_optimizer_step_pre_hook(count)
    try:
        list(finetune(workspace, of))
    finally:
        handle.remove()
    return found


def stages(workspace: Workspace, folder: Path, stop_at: int | None = None, only: str | None = None) -> None:
    """Final fine-tune, two more methods, WiSE-FT and evaluation in double precision; stopped when it is asked for the so many-th time."""
    evaluated = autoft.workspace.eval_transform
    methods = {name: hyperparameters(**values) for name, values in METHODS.items() if only in (None, name)}
    request = StageRequest(config=workspace.config, run_dir=folder, methods=methods, fingerprint="f" * 16, versions={"autoft": "0"})
    asked = iter(range(1, 10_000))
    with mock.patch.object(autoft.workspace, "eval_transform", lambda *args: evaluated(*args).double()):
        try:
            run_stages(request, workspace, lambda event: None, lambda: workspace.collective.rank == 0 and next(asked) == stop_at)
        except Interrupted:
            assert stop_at is not None


def in_two(collective: Collective, folder: str) -> dict[str, Any]:
    """What one of two processes has to say."""
    place = Path(folder)
    workspace = load64(place, collective)
    found: dict[str, Any] = {"held": held(workspace, recipe(2))}  # before anything whole is brought together
    found["curves"] = {name: run(workspace, recipe(**values)) for name, values in CURVES.items()}
    for name in ("adamw", "sgd", "average"):
        state = broken_off(workspace, recipe(**CURVES[name]))
        if collective.rank == 0:
            torch.save(state, place / f"sharded-{name}.pt")
        collective.largest([0])
        for source in ("sharded", "alone"):
            found[f"from {source}: {name}"] = run(workspace, recipe(**CURVES[name]), torch.load(place / f"{source}-{name}.pt", weights_only=True))
    found["nine"] = run(workspace, recipe(loss_weights=ALL_TERMS))
    found["bf16"] = run(load_bf16(place, collective), recipe())
    found["logits"] = workspace_logits(workspace)
    stages(workspace, place / "two")
    stages(workspace, place / "moved", stop_at=4, only="final")
    stages(workspace, place / "back", only="final")  # which one process has begun
    return found


def workspace_logits(workspace: Workspace) -> Tensor:
    evaluated = autoft.workspace.eval_transform
    workspace.zero_shot.restore(workspace.model)
    with mock.patch.object(autoft.workspace, "eval_transform", lambda *args: evaluated(*args).double()):
        return workspace.logits("b")


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_vit: Path) -> Path:
    found = tmp_path_factory.mktemp("sharded")
    write_study(found, tiny_vit, **STUDY)
    return found


@pytest.fixture(scope="module")
def one(folder: Path) -> Workspace:
    return load64(folder, ALONE)


@pytest.fixture(scope="module")
def alone(folder: Path, one: Workspace) -> dict[str, Any]:
    """What one process comes to, with states in the middle for two to go on from."""
    found: dict[str, Any] = {"held": held(one, recipe(2))}
    for name in ("adamw", "sgd", "average"):
        torch.save(broken_off(one, recipe(**CURVES[name])), folder / f"alone-{name}.pt")
    stages(one, folder / "one")
    stages(one, folder / "back", stop_at=4, only="final")
    return {**found, "curves": {name: run(one, recipe(**values)) for name, values in CURVES.items()}}


@pytest.fixture(scope="module")
def two(folder: Path, alone: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = in_processes(2, in_two, str(folder))
    return found


def check_same(found: Mapping[str, Any], wanted: Mapping[str, Any], steps: int = 0, tolerance: float = 1e-10) -> None:
    """The same curve, from that step on, and the same weights; AdamW divides gradients by themselves, so that weights may differ by more."""
    assert found["exact"]
    torch.testing.assert_close(found["losses"], wanted["losses"][steps:], rtol=0, atol=tolerance)
    assert list(found["terms"]) == list(wanted["terms"])
    for name, values in wanted["terms"].items():
        torch.testing.assert_close(found["terms"][name], values[steps:], rtol=0, atol=tolerance)
    torch.testing.assert_close(found["state"], wanted["state"], rtol=0, atol=tolerance)
    torch.testing.assert_close(found["average"], wanted["average"], rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", CURVES)
def test_losses_terms_and_weights_are_those_of_one_process(alone: dict[str, Any], two: list[dict[str, Any]], name: str) -> None:
    for found in two:
        check_same(found["curves"][name], alone["curves"][name])
        torch.testing.assert_close(found["curves"][name], two[0]["curves"][name], rtol=0, atol=0)


def test_the_curve_of_all_nine_terms_and_of_towers_in_bf16(folder: Path, one: Workspace, two: list[dict[str, Any]]) -> None:
    """Of the nine the weights are not compared: where a gradient is but rounding, the L1 norms take its sign."""
    nine, bf16 = run(one, recipe(loss_weights=ALL_TERMS)), run(load_bf16(folder, ALONE), recipe())
    torch.testing.assert_close(two[0]["nine"]["losses"], nine["losses"], rtol=0, atol=1e-6)
    torch.testing.assert_close(two[0]["bf16"]["losses"], bf16["losses"], rtol=0, atol=0.05)
    assert set(two[0]["nine"]["terms"]) == set(ALL_TERMS)


def test_each_process_holds_half(alone: dict[str, Any], two: list[dict[str, Any]]) -> None:
    whole = alone["held"]
    for found in two:
        shares = {name: size / whole[name] for name, size in found["held"].items()}
        assert all(0.4 < share < 0.6 for share in shares.values()), shares
    for name in ("weights", "gradients", "anchor"):
        assert sum(found["held"][name] for found in two) >= whole[name], name


@pytest.mark.parametrize("name", ["adamw", "sgd", "average"])
def test_it_goes_on_from_the_middle_as_if_it_had_not_stopped(two: list[dict[str, Any]], name: str) -> None:
    for found in two:
        uninterrupted, resumed = found["curves"][name], found[f"from sharded: {name}"]
        assert torch.equal(resumed["losses"], uninterrupted["losses"][STOPPED:])
        torch.testing.assert_close(resumed["state"], uninterrupted["state"], rtol=0, atol=0)
        torch.testing.assert_close(resumed["average"], uninterrupted["average"], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["adamw", "sgd", "average"])
def test_a_state_goes_on_with_another_number_of_processes(folder: Path, one: Workspace, alone: dict[str, Any], two: list[dict[str, Any]], name: str) -> None:
    """Both ways, and it is the same on disk: the same names, shapes and types, the same values."""
    check_same(two[0][f"from alone: {name}"], alone["curves"][name], STOPPED)
    stored, wanted = (torch.load(folder / f"{source}-{name}.pt", weights_only=True) for source in ("sharded", "alone"))
    torch.testing.assert_close(stored, wanted, rtol=0, atol=1e-10)
    check_same(run(one, recipe(**CURVES[name]), stored), alone["curves"][name], STOPPED)


def test_logits_are_those_of_one_process(one: Workspace, two: list[dict[str, Any]]) -> None:
    """30 images in batches of 7: one process has three batches, the other two."""
    for found in two:
        torch.testing.assert_close(found["logits"], workspace_logits(one), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", [*METHODS, "wise_ft"])
def test_a_run_leaves_what_one_process_leaves(folder: Path, two: list[dict[str, Any]], name: str) -> None:
    """Checkpoints as one process writes them, and the same curves, best epochs and scores."""
    files = [sorted(path.name for path in (folder / run / "checkpoints" / name).iterdir()) for run in ("one", "two")]
    assert files[0] == files[1]
    for file in ("open_clip_model.safetensors", "head.safetensors"):
        found, wanted = (load_file(folder / run / "checkpoints" / name / file) for run in ("two", "one"))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    check_results(folder / "two", folder / "one", name)
    check_results(folder / "two", folder / "one", f"evaluate-{name}")
    assert not list((folder / "two" / "training").iterdir())


def check_results(found: Path, wanted: Path, stage: str) -> None:
    results = [stage_result(run, stage) or {} for run in (found, wanted)]
    assert results[0]
    for measured in ("seconds", "peak_memory_bytes"):
        for result in results:
            result.pop(measured, None)
    assert results[0].get("best_epoch") == results[1].get("best_epoch")
    assert _rounded(results[0]) == _rounded(results[1])


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _rounded(item) for name, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else round(value, 9) if isinstance(value, float) else value


def test_a_run_that_is_stopped_sharded_goes_on_in_one_process_and_the_other_way(folder: Path, one: Workspace, two: list[dict[str, Any]]) -> None:
    state = torch.load(folder / "moved" / "training" / "final.pt", weights_only=True)
    assert 0 < state["training"]["step"] < 8 and state["training"]["step"] % 4
    assert len(state["losses"]) == state["training"]["step"]
    stages(one, folder / "moved", only="final")
    check_results(folder / "moved", folder / "one", "final")
    check_results(folder / "back", folder / "one", "final")


# --- more processes, other models


def in_three(collective: Collective, folder: str) -> dict[str, Any]:
    workspace = load64(Path(folder), collective)
    refused = ""
    try:
        run(workspace, recipe(batch_size=2))
    except ConfigError as error:
        refused = str(error)
    state = torch.load(Path(folder) / "sharded-adamw.pt", weights_only=True)
    return {
        "smooth": run(workspace, recipe()),
        "few texts": run(workspace, recipe(batch_size=3)),
        "from two": run(workspace, recipe(), state),
        "logits": workspace_logits(workspace),
        "refused": refused,
    }


@pytest.mark.slow
def test_three_processes(folder: Path, one: Workspace, alone: dict[str, Any], two: list[dict[str, Any]]) -> None:
    """Shares are not equal, some weights have fewer rows than that, and in batches of 3 there are steps with two texts."""
    three = in_processes(3, in_three, str(folder))
    few = run(one, recipe(batch_size=3))
    for found in three:
        check_same(found["smooth"], alone["curves"]["adamw"])
        check_same(found["few texts"], few)
        check_same(found["from two"], alone["curves"]["adamw"], STOPPED)
        torch.testing.assert_close(found["logits"], workspace_logits(one), rtol=0, atol=1e-10)
        assert found["refused"] == (
            "a batch of 2 cannot be shared among 3 processes with --final-sharded, each of which needs an example; take fewer processes or a "
            "larger final.batch_size"
        )


CONVNETS = {"frozen": SMOOTH_TERMS, "train": {"cross_entropy": 1.0, "l2_init": 10.0}}


def convnet_in_two(collective: Collective, folder: str) -> dict[str, Any]:
    found = {}
    for norm, weights in CONVNETS.items():
        workspace = load64(Path(folder) / norm, collective)
        found[norm] = run(workspace, recipe(3, 8, loss_weights=weights))
        stored = training_state(workspace, next(finetune(workspace, recipe(3, 8, loss_weights=weights))))
        if collective.rank == 0:
            torch.save(stored, Path(folder) / f"{norm}.pt")
    return found


@pytest.mark.slow
def test_a_convolutional_model(tmp_path: Path, tiny_convnet: Path) -> None:
    """Its weights are laid out otherwise in one process, which goes on from what two have written."""
    for norm in CONVNETS:
        write_study(tmp_path / norm, tiny_convnet, model__batch_norm=norm)
    many = in_processes(2, convnet_in_two, str(tmp_path))
    workspace = load64(tmp_path / "frozen", ALONE)
    alone = run(workspace, recipe(3, 8))
    check_same(many[0]["frozen"], alone, tolerance=1e-9)
    check_same(run(workspace, recipe(3, 8), torch.load(tmp_path / "frozen.pt", weights_only=True)), alone, 1, tolerance=1e-9)
    trained = many[0]["train"]
    assert not trained["exact"] and torch.isfinite(trained["losses"]).all()
    torch.testing.assert_close(many[1]["train"], trained, rtol=0, atol=0)


# --- what is refused


@pytest.fixture
def sharded_alone(folder: Path, tmp_path: Path) -> Iterator[Workspace]:
    """A process that shares weights with nobody, for errors that come before anything is exchanged."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    config = load_config(folder / "tiny.yaml")
    try:
        yield Workspace.load(config, "cpu", folder / "cache", splits=all_splits(config), arrange=shard_towers)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        *(({"constraint": name}, f"constraint = {name} looks at whole tensors.*valid is none") for name in ("ftp", "tpgm", "spd", "saft")),
        ({"start": "linear_probe"}, r"start = linear_probe needs the frozen model.*valid is zero_shot"),
        *(
            ({"loss_weights": {"cross_entropy": 1.0, term: 1.0}}, rf"loss_weights\.{term}: the term {term} needs the frozen model.*valid terms are cross_entropy, ")
            for term in ("ldifs", "car_ft", "lipsum", "drm")
        ),
    ],
)  # fmt: skip
def test_what_needs_whole_weights_is_refused(sharded_alone: Workspace, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        next(finetune(sharded_alone, recipe(**values)))


def test_memory_that_runs_out_is_told_and_no_batch_split(sharded_alone: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def scarce(model: ClipClassifier, images: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(ClipClassifier, "image_features", scarce)
    with pytest.raises(ConfigError, match=r"final\.batch_size = 11 does not fit the memory of cpu, and with --final-sharded no batch is computed in parts"):
        next(finetune(sharded_alone, recipe()))
    with pytest.raises(ConfigError, match=r"evaluate\.batch_size = 7 does not fit"):
        sharded_alone.score("val_id")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluate__baselines": ["finetune", "saft"]}, "evaluate.baselines = saft: constraint = saft looks at whole tensors"),
        ({"evaluate__baselines": ["car_ft"]}, "evaluate.baselines = car_ft: loss_weights.car_ft: the term car_ft needs"),
        ({"search__enqueue": ["lp_ft"]}, "search.enqueue = lp_ft: start = linear_probe needs"),
        ({"search_space__preset": "extended"}, "search_space.knobs.constraint = ftp looks at whole tensors"),
        ({"search_space__knobs": {"use/ldifs": {"choices": [False, True]}}}, "search_space.knobs.use/ldifs: the term ldifs needs"),
        ({"search_space__fixed": {"constraint": "tpgm"}}, "search_space.fixed.constraint = tpgm looks at"),
        ({"search_space__fixed": {"loss_weights": {"lipsum": 1.0}}}, "search_space.fixed.loss_weights.lipsum: the term lipsum needs"),
        ({"wise_ft__weighting": "fisher"}, "wise_ft.weighting = fisher needs gradients of whole weights, which --final-sharded has not; valid is uniform"),
    ],
)
def test_a_study_that_may_come_to_it_is_refused_before_it_starts(tmp_path: Path, tiny_vit: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_sharded(load_config(write_study(tmp_path, tiny_vit, **changes)))
    assert str(caught.value).startswith(message)


def test_a_study_of_the_papers_space_is_not_refused(tmp_path: Path, tiny_vit: Path) -> None:
    baselines = ["finetune", "flyp", "l2sp", "core_tuning", "clipood"]
    check_sharded(load_config(write_study(tmp_path, tiny_vit, search__enqueue=["finetune", "flyp", "l2sp"], evaluate__baselines=baselines)))


def launch_arguments(*flags: str) -> argparse.Namespace:
    return build_parser().parse_args(["launch", "study.yaml", "--final-sharded", *flags])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--executor", "in-process"), "--executor in-process has one process; --final-sharded needs --executor ray, and --final-workers of at least 2"),
        (("--final-workers", "1"), "--final-workers 1 has nobody to share weights with; --final-sharded needs --final-workers of at least 2"),
    ],
)
def test_flags_that_cannot_go_together(tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(AutoFTError) as caught:
        check_flags(launch_arguments("--runs", str(tmp_path), *flags))
    assert str(caught.value) == message


def test_weights_are_shared_by_two_workers_at_least() -> None:
    node = Node(id="0", address="10.0.0.1", cpus=8, gpus=0)
    with pytest.raises(ClusterError, match=r"without --final-workers there is one; valid is --final-workers N with N of at least 2"):
        plan_final([node], None, None, None, "cpu", sharded=True)
    found = plan_final([node], 2, None, None, "cpu", sharded=True)
    assert found is not None and found.count == 2


def test_nothing_is_sharded_by_default(tmp_path: Path, tiny_vit: Path) -> None:
    assert not load_workspace(tmp_path, tiny_vit).sharded


# --- the whole command


@pytest.mark.slow
def test_a_launch_on_ray(tmp_path: Path, tiny_vit: Path) -> None:
    """Its final fine-tune has the curve of one process with the hyperparameters it has found, and the run is a whole one."""
    study = write_study(tmp_path, tiny_vit, final__batch_size=11, final__epochs=2, search__n_trials=2)
    env = environment(tmp_path / "home", AUTOFT_STORAGE_URL=f"sqlite:///{tmp_path}/study.db", RAY_USAGE_STATS_ENABLED="0")
    flags = ["--workers", "2", "--threads-per-worker", "1", "--device", "cpu", "--json", "--runs", tmp_path, "--final-workers", "2", "--final-sharded"]
    launch = Launch("launch", study, *flags, env=env, cwd=tmp_path).finish(seconds=500)
    (started,) = [event for event in launch.events if event["event"] == "final_workers"]
    assert (started["count"], started["sharded"]) == (2, True)
    folder = tmp_path / "tiny"
    assert (folder / "report.html").is_file() and (folder / "checkpoints" / "wise_ft").is_dir()
    config = load_config(study)
    methods = {"final": Hyperparameters.from_dict((stage_result(folder, "final") or {})["hyperparameters"])}
    request = StageRequest(config=config, run_dir=tmp_path / "one", methods=methods, fingerprint="f" * 16, versions={})
    run_stages(request, load_run(config, "cpu", tmp_path / "cache"), lambda event: None, lambda: False)
    curves = [[epoch[value] for epoch in (stage_result(run, "final") or {})["epochs"] for value in ("train_loss", "val_id")] for run in (folder, tmp_path / "one")]
    assert curves[0] == pytest.approx(curves[1], abs=1e-3)
