"""Models between zero-shot and fine-tuned as whole models: BatchNorm statistics, Fishers on TRAIN, the sweep, `autoft interpolate`."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from autoft.batch_norm import reestimate_batch_norm
from autoft.cli.main import main
from autoft.config import load_config
from autoft.config.sections import WiseFTConfig
from autoft.fisher import diagonal_fisher, draw_labels
from autoft.models import copy_state, interpolate, load_checkpoint, read_state
from autoft.models.averaging import fisher_merge
from autoft.stages import stage_result
from autoft.train_pass import train_batches
from autoft.wise_ft import interpolator
from autoft.workspace import Workspace
from tests.runs import cloned, digest, hyperparameters, load_workspace, one_thread, stages
from tests.studies import TINY_VIT, write_model, write_study

CE = {"cross_entropy": 1.0}
FINAL = hyperparameters(1e-2, CE)
EXACT: dict[str, Any] = {"metric": "cross_entropy"}  # a metric that tells any two models apart


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def convnet_once(tmp_path_factory: pytest.TempPathFactory, tiny_convnet: Path) -> Workspace:
    return load_workspace(tmp_path_factory.mktemp("convnet"), tiny_convnet, **EXACT)


@pytest.fixture(scope="module")
def vit_once(tmp_path_factory: pytest.TempPathFactory, tiny_vit: Path) -> Workspace:
    return load_workspace(tmp_path_factory.mktemp("vit"), tiny_vit, **EXACT)


@pytest.fixture
def convnet(convnet_once: Workspace) -> Workspace:
    convnet_once.zero_shot.restore(convnet_once.model)
    return convnet_once


@pytest.fixture
def vit(vit_once: Workspace) -> Workspace:
    vit_once.zero_shot.restore(vit_once.model)
    return vit_once


def batch_norms(workspace: Workspace) -> dict[str, _BatchNorm]:
    return {name: module for name, module in workspace.model.named_modules() if isinstance(module, _BatchNorm)}


def tuned_end(workspace: Workspace) -> dict[str, torch.Tensor]:
    """Another state of the same model: every floating entry moved a little, statistics kept valid."""
    torch.manual_seed(1)
    state = {
        name: tensor * (1 + 0.2 * torch.rand_like(tensor)) if tensor.is_floating_point() else tensor + 7
        for name, tensor in workspace.zero_shot.tensors.items()
    }
    return cloned(state)


# --- TRAIN as evaluation would see it


def test_train_is_seen_as_evaluation_would_see_it(tmp_path: Path, tiny_vit: Path) -> None:
    """VAL_ID is the same file, decoded for evaluation at once; TRAIN goes through the larger square it is kept in."""
    large = {"layout": "arrays", "path": str(tmp_path / "data" / "train.npz")}
    write_study(tmp_path, tiny_vit)
    arrays = np.load(large["path"])
    smooth = np.asarray([np.kron(image[:5, :5], np.ones((12, 12, 1))) for image in arrays["images"]]).astype(np.uint8)  # 60 x 60
    np.savez(tmp_path / "smooth.npz", images=smooth, labels=arrays["labels"])
    where = {"layout": "arrays", "path": str(tmp_path / "smooth.npz")}
    workspace = load_workspace(tmp_path, tiny_vit, data__train=where, data__val_id=where)
    assert workspace.train.take(torch.tensor([0])).shape[1] == 20
    (seen,) = train_batches(workspace, 48, 48)
    expected = workspace.images("val_id").take(torch.arange(48)).permute(0, 3, 1, 2).float().div(127.5) - 1  # mean and std are 0.5
    distances = (seen[:, None] - expected[None]).abs().mean(dim=(2, 3, 4))  # (seen, expected)
    assert sorted(distances.argmin(dim=1).tolist()) == list(range(48)), "every image once"
    assert distances.min(dim=1).values.max() < 0.6 / 127.5, "under a grey level on average: twice resized is not quite once"


@pytest.mark.parametrize(("images", "batch_size", "sizes"), [(1, 10, [10]), (20, 10, [10] * 2), (21, 10, [10] * 3), (999, 10, [10] * 4), (5, 64, [48])])
def test_batches_of_train_are_whole_and_of_different_images(images: int, batch_size: int, sizes: list[int], vit: Workspace) -> None:
    batches = list(train_batches(vit, images, batch_size))
    assert [len(batch) for batch in batches] == sizes
    rows = torch.cat(batches).flatten(1)
    assert len(rows.unique(dim=0)) == len(rows)
    again = list(train_batches(vit, images, batch_size))
    assert all(torch.equal(one, other) for one, other in zip(batches, again, strict=True))
    assert not torch.equal(next(train_batches(vit, images, batch_size, seed=1)), batches[0])


# --- BatchNorm


def test_statistics_are_the_mean_over_batches_of_train(convnet: Workspace) -> None:
    copy_state(convnet.model, tuned_end(convnet))
    layers = batch_norms(convnet)
    inputs: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    hooks = [layer.register_forward_pre_hook(lambda _, given, name=name: inputs[name].append(given[0].double())) for name, layer in layers.items()]
    assert reestimate_batch_norm(convnet) == 48
    for hook in hooks:
        hook.remove()
    assert len(layers) > 10
    for name, layer in layers.items():
        assert len(inputs[name]) == 4, "batches of final.batch_size"
        means = torch.stack([given.mean(dim=(0, 2, 3)) for given in inputs[name]]).mean(dim=0)
        variances = torch.stack([given.var(dim=(0, 2, 3), unbiased=True) for given in inputs[name]]).mean(dim=0)
        torch.testing.assert_close(layer.running_mean.double(), means, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.running_var.double(), variances, rtol=1e-4, atol=1e-6)


def test_only_statistics_change_and_the_same_ones_come_out_again(convnet: Workspace) -> None:
    before = cloned(convnet.model.state_dict())
    reestimate_batch_norm(convnet, images=24)
    found = digest(convnet)
    changed = {name for name, tensor in convnet.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"{layer}.{kind}" for layer in batch_norms(convnet) for kind in ("running_mean", "running_var", "num_batches_tracked")}
    torch.manual_seed(99)
    convnet.logits("val_ood")
    reestimate_batch_norm(convnet, images=24)
    assert digest(convnet) == found
    reestimate_batch_norm(convnet, images=36)
    assert digest(convnet) != found


@pytest.mark.parametrize("breaks", [False, True])
def test_all_but_batch_norm_is_in_evaluation_mode_and_so_is_all_afterwards(breaks: bool, convnet: Workspace) -> None:
    model = convnet.model.train()
    momenta = {name: layer.momentum for name, layer in batch_norms(convnet).items()}
    modes: dict[bool, set[bool]] = {True: set(), False: set()}

    def look(*_: Any) -> None:
        for module in model.clip.visual.modules():  # type: ignore[union-attr]
            modes[isinstance(module, _BatchNorm)].add(module.training)
        if breaks:
            raise RuntimeError("out of memory")

    hook = model.clip.visual.register_forward_pre_hook(look)  # type: ignore[union-attr]
    try:
        if breaks:
            with pytest.raises(RuntimeError, match="out of memory"):
                reestimate_batch_norm(convnet)
        else:
            reestimate_batch_norm(convnet)
    finally:
        hook.remove()
    assert modes == {True: {True}, False: {False}}
    assert not any(module.training for module in model.modules())
    assert {name: layer.momentum for name, layer in batch_norms(convnet).items()} == momenta
    assert None not in momenta.values()


def test_nothing_happens_without_batch_norm_or_where_it_is_frozen(vit: Workspace, tmp_path: Path, tiny_convnet: Path) -> None:
    frozen = load_workspace(tmp_path, tiny_convnet, model__batch_norm="frozen")
    for workspace in (vit, frozen):
        before = digest(workspace)
        hook = workspace.model.register_forward_pre_hook(lambda *_: pytest.fail("costs a forward pass"))
        assert reestimate_batch_norm(workspace) == 0
        hook.remove()
        assert digest(workspace) == before


def test_batch_norm_that_no_image_passes_is_left_alone(convnet: Workspace) -> None:
    convnet.model.clip.text_norm = nn.BatchNorm1d(3)
    convnet.model.clip.text_norm.running_mean.fill_(5)
    try:
        reestimate_batch_norm(convnet)
        assert convnet.model.clip.text_norm.running_mean.tolist() == [5, 5, 5]
    finally:
        del convnet.model.clip.text_norm


# --- Fisher


@pytest.mark.parametrize("batch_size", [1, 12])
def test_the_fisher_of_the_head_is_its_closed_form_on_average(batch_size: int, vit: Workspace) -> None:
    """E_y[(d log p(y) / d b_c)^2] = p_c (1 - p_c); for a weight times its feature squared. The same for batches of any size."""
    images = torch.cat(list(train_batches(vit, 48, 48)))
    with torch.no_grad():
        features = vit.model.image_features(images).double()
        p = vit.model.head(features.float()).double().softmax(dim=1)
    spread = p * (1 - p)
    bias, weight = spread.mean(dim=0), (spread[:, :, None] * features[:, None].square()).mean(dim=0)
    draws = [diagonal_fisher(vit, batches=48, batch_size=batch_size, seed=seed) for seed in range(6 if batch_size == 1 else 72)]
    found = {name: torch.stack([draw[name] for draw in draws]).double().mean(dim=0) for name in ("head.bias", "head.weight")}
    torch.testing.assert_close(found["head.bias"], bias, rtol=0.3, atol=0)
    torch.testing.assert_close(found["head.weight"].sum(), weight.sum(), rtol=0.15, atol=0)
    torch.testing.assert_close(found["head.weight"], weight, rtol=0.6, atol=float(weight.mean()) / 3)


def test_the_fisher_is_of_what_the_logits_depend_on_and_leaves_no_trace(convnet: Workspace) -> None:
    model = convnet.model
    model.train_text_tower(False)
    model.head.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    before = digest(convnet)
    fisher = diagonal_fisher(convnet, batches=2, batch_size=8)
    assert digest(convnet) == before
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    assert fisher.keys() == {name for name, _ in model.named_parameters() if name.startswith(("clip.visual.", "head."))}
    assert all(bool((values >= 0).all() & values.isfinite().all()) and float(values.sum()) > 0 for values in fisher.values())
    again = diagonal_fisher(convnet, batches=2, batch_size=8)
    assert all(torch.equal(values, again[name]) for name, values in fisher.items())
    other = diagonal_fisher(convnet, batches=2, batch_size=8, seed=1)
    assert any(not torch.equal(values, other[name]) for name, values in fisher.items())
    model.requires_grad_(True)


def test_labels_are_drawn_as_predicted() -> None:
    p = torch.tensor([[0.5, 0.0, 0.2, 0.3], [0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    rng = torch.Generator().manual_seed(0)
    labels = torch.stack([draw_labels(p, rng) for _ in range(4000)])
    shares = torch.stack([(labels == label).float().mean(dim=0) for label in range(4)], dim=1)
    torch.testing.assert_close(shares, p, rtol=0, atol=0.03)
    assert torch.equal(shares[p == 0], torch.zeros(int((p == 0).sum())))


# --- between the ends


@pytest.mark.parametrize("weighting", ["uniform", "fisher"])
def test_the_ends_are_exact_whatever_is_done_between_them(weighting: Any, convnet: Workspace) -> None:
    ends = convnet.zero_shot.tensors, tuned_end(convnet)
    place = interpolator(convnet, *ends, WiseFTConfig(weighting=weighting))
    between = set()
    for alpha in (0.0, 0.5, 1.0, 0.5, 0.0):
        place(alpha)
        if alpha == 0.5:
            between.add(digest(convnet))
        else:
            assert all(torch.equal(tensor, ends[int(alpha)][name]) for name, tensor in convnet.model.state_dict().items())
    assert len(between) == 1, "the same alpha is the same model"


@pytest.mark.parametrize("again", [True, False])
def test_between_the_ends_weights_are_mixed_and_statistics_fit_them(again: bool, convnet: Workspace) -> None:
    end = tuned_end(convnet)
    interpolator(convnet, convnet.zero_shot.tensors, end, WiseFTConfig(reestimate_batch_norm=again))(0.3)
    found = cloned(convnet.model.state_dict())
    mixed = interpolate(convnet.zero_shot.tensors, end, 0.3)
    for name, tensor in found.items():
        statistic = name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")
        assert torch.equal(tensor, mixed[name]) or (again and statistic), name
    copy_state(convnet.model, mixed)
    if again:
        reestimate_batch_norm(convnet)
    assert all(torch.equal(tensor, found[name]) for name, tensor in convnet.model.state_dict().items())


def test_fisher_weighting_takes_each_ends_own_fisher(vit: Workspace) -> None:
    start, end = vit.zero_shot.tensors, tuned_end(vit)
    interpolator(vit, start, end, WiseFTConfig(weighting="fisher"))(0.3)
    found = cloned(vit.model.state_dict())
    fishers = []
    for state in (start, end):
        copy_state(vit.model, state)
        fishers.append(diagonal_fisher(vit))
    expected = fisher_merge(start, end, *fishers, 0.3)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert not torch.allclose(found["head.weight"], interpolate(start, end, 0.3)["head.weight"])


# --- the sweep and the command


@dataclass(frozen=True)
class Run:
    """A finished run of a small study, and the model it started from."""

    study: Path
    folder: Path
    model: Path

    @property
    def final(self) -> Path:
        return self.folder / "run" / "checkpoints" / "final"

    @property
    def wise_ft(self) -> dict[str, Any]:
        found = stage_result(self.folder / "run", "wise_ft")
        assert found is not None
        return found


def finished(folder: Path, model: Path, **changes: Any) -> Run:
    study = write_study(folder, model, **EXACT | changes)
    stages(load_config(study), folder, FINAL)
    return Run(study, folder, model)


@pytest.fixture(scope="module")
def conv_run(tmp_path_factory: pytest.TempPathFactory, tiny_convnet: Path) -> Run:
    return finished(tmp_path_factory.mktemp("conv-run"), tiny_convnet, wise_ft__alphas=[0.0, 0.5, 1.0])


@pytest.fixture(scope="module")
def vit_run(tmp_path_factory: pytest.TempPathFactory, tiny_vit: Path) -> Run:
    return finished(tmp_path_factory.mktemp("vit-run"), tiny_vit, wise_ft__alphas=[0.0, 0.25, 1.0])


@dataclass
class Said:
    code: int
    out: str
    err: str
    warnings: list[str]

    @property
    def curve(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.out)["curve"]
        return found


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Callable[..., Said]:
    """Run `autoft interpolate` in this process."""

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        caplog.clear()
        code = main(["interpolate", *map(str, arguments), "--device", "cpu"])
        return Said(code, *capsys.readouterr(), caplog.messages)

    return run


@pytest.mark.parametrize("changes", [{}, {"wise_ft__weighting": "fisher"}, {"wise_ft__reestimate_batch_norm": False}], ids=["default", "fisher", "mixed"])
def test_the_sweeps_checkpoint_is_the_model_that_was_scored(changes: dict[str, Any], tmp_path: Path, tiny_convnet: Path) -> None:
    run = finished(tmp_path, tiny_convnet, wise_ft__alphas=[0.0, 0.5], wise_ft__select_on="val_id", **changes)
    section = load_config(run.study).wise_ft
    assert section is not None
    saved = tmp_path / "run" / "checkpoints" / "wise_ft"
    point = next(point for point in run.wise_ft["curve"] if point["alpha"] == run.wise_ft["alpha"])
    workspace = load_workspace(tmp_path, tiny_convnet, **EXACT)
    copy_state(workspace.model, read_state(saved, workspace.device))
    assert (workspace.score("val_id"), workspace.score("val_ood")) == (point["val_id"], point["val_ood"])
    tuned = read_state(run.final, workspace.device)
    middle = next(point for point in run.wise_ft["curve"] if point["alpha"] == 0.5)
    interpolator(workspace, workspace.zero_shot.tensors, tuned, section)(0.5)
    assert (workspace.score("val_id"), workspace.score("val_ood")) == (middle["val_id"], middle["val_ood"])


def test_the_sweep_saves_the_chosen_model_not_the_last(tmp_path: Path, tiny_convnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    val_ood = iter([9.0, 9.0, 1.0, 9.0])  # of the fine-tuned model, then of each alpha; minimised
    scored = Workspace.score
    monkeypatch.setattr(Workspace, "score", lambda self, name: next(val_ood) if name == "val_ood" else scored(self, name))
    run = finished(tmp_path, tiny_convnet, wise_ft__alphas=[0.0, 0.5, 1.0])
    assert run.wise_ft["alpha"] == 0.5
    workspace = load_workspace(tmp_path, tiny_convnet, **EXACT)
    interpolator(workspace, workspace.zero_shot.tensors, read_state(run.final, workspace.device), WiseFTConfig())(0.5)
    saved = read_state(tmp_path / "run" / "checkpoints" / "wise_ft", workspace.device)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in workspace.model.state_dict().items())


@pytest.mark.parametrize("name", ["vit_run", "conv_run"])
def test_the_command_finds_the_runs_own_curve(name: str, command: Callable[..., Said], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    run: Run = request.getfixturevalue(name)
    alphas = [point["alpha"] for point in run.wise_ft["curve"]]
    said = command(run.model, run.final, "--alpha", *alphas, "--study", run.study, "--out", tmp_path / "out", "--json")
    assert said.code == 0 and said.warnings == []
    assert all(line.startswith("decoded ") for line in said.err.splitlines()), said.err
    assert [{key: row[key] for key in ("alpha", "val_id", "val_ood")} for row in said.curve] == run.wise_ft["curve"]
    middle = alphas[1]
    model, _, info = load_checkpoint(tmp_path / "out" / f"alpha-{middle:g}")
    assert (info.alpha, info.method, info.study) == (middle, "interpolate", "tiny")
    assert info.scores == {key: said.curve[1][key] for key in ("val_id", "val_ood")}
    made = info.hyperparameters["interpolation"]
    assert made["weighting"] == "uniform" and made.get("batch_norm") == ("computed again" if name == "conv_run" else None)
    assert info.hyperparameters["lr"] == FINAL.lr
    for alpha, end in ((0.0, None), (1.0, run.final)):
        state = read_state(tmp_path / "out" / f"alpha-{alpha:g}", torch.device("cpu"))
        expected = load_workspace(tmp_path, run.model, **EXACT).zero_shot.tensors if end is None else read_state(end, torch.device("cpu"))
        assert all(torch.equal(tensor, expected[key]) for key, tensor in state.items())
        _, _, info = load_checkpoint(tmp_path / "out" / f"alpha-{alpha:g}")
        assert "batch_norm" not in info.hyperparameters["interpolation"], "the ends are as they were"
    assert not any(module.training for module in model.modules())


def test_two_checkpoints_are_enough(command: Callable[..., Said], vit_run: Run, conv_run: Run, tmp_path: Path) -> None:
    for run, averages in ((vit_run, False), (conv_run, True)):
        out = tmp_path / run.model.name
        start = out / "alpha-0"
        assert command(run.model, run.final, "--alpha", 0, "--study", run.study, "--out", out).code == 0
        said = command(start, run.final, "--alpha", 0.25, 0.75, "--out", out / "between")
        assert said.code == 0
        assert [line.split()[:2] for line in said.out.splitlines()] == [["alpha", "0.25"], ["alpha", "0.75"]]
        assert [message[:33] for message in said.warnings] == ["BatchNorm statistics are averaged"] * averages
        ends = read_state(start, torch.device("cpu")), read_state(run.final, torch.device("cpu"))
        expected = interpolate(*ends, 0.25)
        found = read_state(out / "between" / "alpha-0.25", torch.device("cpu"))
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
        _, _, info = load_checkpoint(out / "between" / "alpha-0.25")
        assert info.hyperparameters["interpolation"].get("batch_norm") == ("averaged" if averages else None)
        assert info.scores == {} and info.alpha == 0.25
        assert command(start, run.final, "--alpha", 1, "--out", out / "end").warnings == [], "nothing is averaged at the ends"


def test_the_curve_is_printed(command: Callable[..., Said], vit_run: Run, tmp_path: Path) -> None:
    said = command(vit_run.model, vit_run.final, "--study", vit_run.study, "--out", tmp_path / "out")
    title, head, row = said.out.splitlines()
    assert title == "Cross-entropy (nats)" and head.split() == ["alpha", "VAL_ID", "VAL_OOD", "checkpoint"]
    assert row.split()[0] == "0.5" and row.split()[-1] == str(tmp_path / "out" / "alpha-0.5")
    again = command(vit_run.model, vit_run.final, "--study", vit_run.study, "--out", tmp_path / "out")
    assert (again.code, again.out) == (0, said.out), "a checkpoint of ours is replaced"


def test_mistakes_are_told_in_one_line_before_anything_is_written(command: Callable[..., Said], vit_run: Run, conv_run: Run, tmp_path: Path) -> None:
    final, study, out = vit_run.final, vit_run.study, tmp_path / "out"
    classes = shutil.copytree(final, tmp_path / "classes")
    text = (classes / "autoft.json").read_text()
    (classes / "autoft.json").write_text(text.replace('"green"', '"violet"'))
    keys = shutil.copytree(classes, tmp_path / "keys")
    record = json.loads((keys / "autoft.json").read_text())
    (keys / "autoft.json").write_text(json.dumps(record | {"class_keys": ["x", "y", "z"]}))
    pixels = shutil.copytree(final, tmp_path / "pixels")
    config = json.loads((pixels / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0.1, 0.2, 0.3]
    (pixels / "open_clip_config.json").write_text(json.dumps(config))
    foreign = tmp_path / "foreign"
    (foreign / "alpha-0.5").mkdir(parents=True)
    (foreign / "alpha-0.5" / "thesis.txt").write_text("the only copy")
    heads = shutil.copytree(final, tmp_path / "heads")
    one = load_file(heads / "head.safetensors")
    save_file({**one, "core_weight": one["weight"].clone(), "core_bias": one["bias"].clone()}, heads / "head.safetensors")
    wide = write_model(tmp_path / "wide", {**TINY_VIT, "embed_dim": 24})
    for arguments, words in (
        ((final, final, "--alpha", 1.5), "--alpha 1.5: must lie in [0, 1]"),
        ((final, final, "--alpha", 0.5, "nan"), "--alpha nan: must lie in [0, 1]"),
        ((final, final, "--set", "metric=accuracy"), "there is no --study"),
        ((vit_run.model, final), "with --study FILE its zero-shot classifier is built"),
        ((final, vit_run.model), "is not a checkpoint of this program"),
        ((final, vit_run.model, "--study", study), "is not a checkpoint of this program"),
        ((tmp_path / "nowhere", final), "there is no folder"),
        ((tmp_path / "nowhere", final, "--study", study), "there is no checkpoint at"),
        ((final, classes), "know different classes: red, green, blue; red, violet, blue"),
        ((final, keys, "--study", study), "knows the classes red, violet, blue"),
        ((final, conv_run.final), "have different architectures: vision_cfg is"),
        ((wide, final, "--study", study), "has another architecture"),
        ((final, conv_run.final, "--study", study), "has another architecture"),
        ((final, heads), "one has a second head"),
        ((final, heads, "--study", study), "one has a second head"),
        ((final, pixels), "prepare images differently"),
        ((vit_run.model, pixels, "--study", study), "prepare images differently"),
        ((final, final, "--out", foreign), "exists and is no checkpoint of this program"),
    ):
        said = command(*arguments, *(() if "--out" in arguments else ("--out", out)))
        assert said.code == 2 and words in said.err, (arguments, said.err)
        assert said.err.count("\n") == 1 and said.err.startswith("autoft interpolate: ") and said.out == ""
    assert not out.exists() and (foreign / "alpha-0.5" / "thesis.txt").is_file()


def test_a_model_that_is_read_is_not_replaced(command: Callable[..., Said], vit_run: Run, tmp_path: Path) -> None:
    start = shutil.copytree(vit_run.final, tmp_path / "alpha-0.5")
    said = command(start, vit_run.final, "--out", tmp_path)
    assert said.code == 2 and "is one of the two models" in said.err
