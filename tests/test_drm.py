"""Dual risk minimisation, reconstructed: the head of descriptions, what it is trained towards, and both heads' mixed predictions."""

import copy
import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from autoft.cli.main import main
from autoft.config import DrmConfig, load_config
from autoft.config.knobs import EXTENDED_KNOBS
from autoft.core_features import check_terms_available, core_probabilities
from autoft.data.transforms import eval_transform, resized
from autoft.errors import ConfigError, DataError
from autoft.evaluate import pool_index
from autoft.finetune import Recipe, finetune, training_state
from autoft.frozen import frozen_clip
from autoft.models import load_checkpoint, mixed_log_probabilities
from autoft.optim import layer_names, parameter_groups
from autoft.pipeline import prepare
from autoft.search_space import Hyperparameters
from autoft.start import start_from
from autoft.teacher import core_outputs
from autoft.workspace import Workspace
from tests.runs import digest, first_steps, load_workspace, one_thread, outputs_of, tune
from tests.studies import CLASSES, write_study

DESCRIPTIONS = {
    "green": ["like grass", "leaf tone", "colour of moss", "cool light", "summer tree", "lime"],  # as many as FMoW's classes have
    "blue": "sky tone",
    "red": ["warm tone", "like blood"],
}
DRM = {"cross_entropy": 1.0, "drm": 1.0}


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("descriptions") / "classes.json"
    path.write_text(json.dumps(DESCRIPTIONS))
    return path


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory, tiny_vit: Path, file: Path) -> Workspace:
    return load_workspace(tmp_path_factory.mktemp("described"), tiny_vit, data__descriptions=str(file))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_vit: Path) -> Workspace:
    return load_workspace(tmp_path_factory.mktemp("plain"), tiny_vit)


def hyperparameters(weights: dict[str, float] = DRM, **options: Any) -> Hyperparameters:
    return Hyperparameters(lr=1e-3, weight_decay=0.1, loss_weights=weights, seed=5, **options)


def recipe(weights: dict[str, float] = DRM, steps: int = 6, **options: Any) -> Recipe:
    return Recipe(hyperparameters=hyperparameters(weights, **options), steps=steps, batch_size=12)


def softmax(logits: Any) -> Any:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def exact(tensor: Tensor) -> Any:
    return tensor.detach().double().numpy()


def two_heads(workspace: Workspace, images: Tensor) -> tuple[Any, Any]:
    """Probabilities by each head alone, float64, from the weights themselves."""
    state = {name: exact(tensor) for name, tensor in workspace.model.state_dict().items() if "head" in name}
    with torch.no_grad():
        features = exact(workspace.model.image_features(images))
    first, second = (softmax(features @ state[f"{name}.weight"].T + state[f"{name}.bias"]) for name in ("head", "core_head"))
    return first, second


def inputs_of(workspace: Workspace, name: str = "b") -> Tensor:
    pixels = workspace.loaded.preprocess
    return torch.cat([eval_transform(batch, pixels.mean, pixels.std) for batch in workspace.images(name).batches(64)])


# --- the two heads


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
def test_probabilities_are_mixed_not_logits(beta: float) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 30, (2, 40, 7))
    mixed = mixed_log_probabilities(torch.tensor(first), torch.tensor(second), beta)
    expected = beta * softmax(first) + (1 - beta) * softmax(second)
    np.testing.assert_allclose(mixed.exp().numpy(), expected, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(mixed.softmax(dim=1).numpy(), expected, rtol=1e-12, atol=1e-300)


def test_mixing_is_stable_in_any_precision_and_lets_gradients_through() -> None:
    first = torch.tensor([[1e4, 0.0], [0.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    second = torch.tensor([[-1e4, 0.0], [1e4, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    mixed = mixed_log_probabilities(first, second, 0.25)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed.exp(), torch.tensor([[0.25, 0.75], [0.875, 0.125]]))
    mixed.sum().backward()  # type: ignore[no-untyped-call]
    assert all(head.grad is not None and bool(torch.isfinite(head.grad).all()) for head in (first, second))


def test_the_head_of_descriptions_is_the_mean_of_each_class_own_sentences(described: Workspace) -> None:
    clip, tokenizer = described.loaded.clip, described.loaded.tokenizer
    described.zero_shot.restore(described.model)
    rows = []
    for name in CLASSES:  # by key: the file has them in another order
        sentences = DESCRIPTIONS[name] if isinstance(DESCRIPTIONS[name], list) else [DESCRIPTIONS[name]]
        vectors = []
        for sentence in sentences:
            with torch.no_grad():
                vector = exact(clip.encode_text(tokenizer([sentence])))[0]  # type: ignore[operator]
            vectors.append(vector / np.linalg.norm(vector))
        mean = np.mean(vectors, axis=0)
        rows.append(mean / np.linalg.norm(mean) * np.exp(exact(clip.logit_scale)))  # type: ignore[arg-type]
    core_head = described.model.core_head
    assert core_head is not None
    np.testing.assert_allclose(exact(core_head.weight), rows, rtol=1e-4, atol=1e-5)
    assert not core_head.bias.any() and not core_head.weight.requires_grad
    assert {"core_head.weight", "core_head.bias"} <= described.zero_shot.tensors.keys()


def test_the_second_head_counts_as_head_among_the_layers(described: Workspace, plain: Workspace) -> None:
    core_head = described.model.core_head
    assert core_head is not None
    assert any(parameter is core_head.weight for parameter in parameter_groups(described.model)["head"])
    assert layer_names(described.model) == layer_names(plain.model)


# --- what it is trained towards


@pytest.mark.parametrize("temperature", [None, 0.3])
@pytest.mark.parametrize("normalization", ["per_class", "per_image", "none"])
def test_affinities_become_probabilities(normalization: Any, temperature: float | None) -> None:
    if normalization == "none" and temperature is None:
        return
    affinity = np.random.default_rng(1).normal(0.2, 0.1, (30, 4))
    affinity[:, 2] = 0.25  # a class that is as near to every image
    affinity[3] = affinity.min(axis=0)  # an image that is the farthest from every class
    expected = np.empty_like(affinity)
    for i, row in enumerate(affinity):
        values = []
        for j, value in enumerate(row):
            over = {"per_class": affinity[:, j], "per_image": row, "none": np.array([0.0, 1.0])}[normalization]
            spread = over.max() - over.min()
            values.append((value - over.min()) / spread if spread else 0.0)
        total = sum(values)
        expected[i] = softmax(np.array(values) / temperature) if temperature else np.array(values) / total if total else 1 / len(row)
    config = DrmConfig(normalization=normalization, temperature=temperature)
    tensor = torch.tensor(affinity)
    found = core_probabilities(tensor[5:15], config, tensor.amin(dim=0), tensor.amax(dim=0))
    np.testing.assert_allclose(found.numpy(), expected[5:15], rtol=1e-9, atol=1e-12)
    everything = core_probabilities(tensor, config, tensor.amin(dim=0), tensor.amax(dim=0))
    np.testing.assert_allclose(everything.numpy(), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(everything.sum(dim=1).numpy(), 1, rtol=1e-12)


def test_no_range_anywhere_gives_equal_probabilities() -> None:
    one = torch.full((1, 4), 0.2)
    for normalization in ("per_class", "per_image"):
        found = core_probabilities(one, DrmConfig(normalization=normalization), one[0], one[0])  # type: ignore[arg-type]
        torch.testing.assert_close(found, torch.full((1, 4), 0.25))


def test_targets_are_the_zero_shot_models_whenever_they_are_first_asked_for(described: Workspace) -> None:
    workspace = replace(described)  # which has computed nothing yet
    first_steps(workspace, recipe({"cross_entropy": 1.0}), 3)
    workspace.model.train()
    before = digest(workspace)
    state = workspace.model.state_dict()
    examples = torch.tensor([5, 40, 0, 17])
    features = torch.nn.functional.normalize(torch.randn(4, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    logits, targets = core_outputs(workspace, features, examples)
    assert digest(workspace) == before and all(module.training for module in workspace.model.modules())
    expected = exact(features) @ exact(state["core_head.weight"]).T + exact(state["core_head.bias"])
    np.testing.assert_allclose(exact(logits), expected, rtol=1e-4, atol=1e-5)

    workspace.zero_shot.restore(workspace.model)
    workspace.model.eval()
    pixels = workspace.loaded.preprocess
    squares = workspace.train.take(torch.arange(len(workspace.train)))
    with torch.no_grad():
        small = resized(squares, pixels.size, pixels.interpolation)
        zero_shot = exact(workspace.model.image_features(eval_transform(small, pixels.mean, pixels.std)))
    directions = exact(workspace.zero_shot.tensors["core_head.weight"])
    cosines = zero_shot @ (directions / np.linalg.norm(directions, axis=1, keepdims=True)).T
    scaled = (cosines - cosines.min(axis=0)) / (cosines.max(axis=0) - cosines.min(axis=0))
    np.testing.assert_allclose(exact(targets), (scaled / scaled.sum(axis=1, keepdims=True))[examples], rtol=1e-3, atol=1e-4)
    assert not targets.requires_grad


def test_a_frozen_pass_leaves_batch_norm_alone(tiny_convnet: Path, file: Path, tmp_path: Path) -> None:
    workspace = load_workspace(tmp_path, tiny_convnet, data__descriptions=str(file))
    workspace.model.train()
    images = torch.randn(6, 3, 32, 32)
    before = digest(workspace)
    frozen = frozen_clip(workspace).encode_image(images, normalize=True).detach()  # type: ignore[operator]
    assert digest(workspace) == before and all(module.training for module in workspace.model.modules())
    torch.testing.assert_close(frozen, workspace.model.eval().image_features(images).detach())


# --- training


def test_the_loss_is_that_of_both_heads(described: Workspace) -> None:
    """The first step's terms, against float64 from the same features."""
    (step,) = list(finetune(described, recipe({"cross_entropy": 1.0, "drm": 0.3}, steps=1)))
    start_from(described, hyperparameters())
    described.model.train()
    outputs = outputs_of(described, recipe(), 0)
    assert outputs.more is not None and outputs.more.core_targets is not None
    features = exact(outputs.image_features)
    core = softmax(features @ exact(described.zero_shot.tensors["core_head.weight"]).T)
    first = softmax(features @ exact(described.zero_shot.tensors["head.weight"]).T)
    drm = -(exact(outputs.more.core_targets) * np.log(core)).sum(axis=1).mean()
    ce = -np.log(first[np.arange(len(first)), outputs.labels]).mean()
    assert float(step.terms["drm"]) == pytest.approx(drm, rel=1e-4)
    assert float(step.loss) == pytest.approx(ce + 0.3 * drm, rel=1e-4)


def test_the_second_head_trains_with_the_drm_term_only(described: Workspace) -> None:
    def moved(values: Recipe) -> dict[str, bool]:
        tune(described, values)
        state, start = described.model.state_dict(), described.zero_shot.tensors
        return {name: not torch.equal(state[f"{name}.weight"], start[f"{name}.weight"]) for name in ("head", "core_head")}

    assert moved(recipe()) == {"head": True, "core_head": True}
    assert moved(recipe({"cross_entropy": 1.0})) == {"head": True, "core_head": False}
    assert moved(recipe(trained="backbone")) == {"head": False, "core_head": False}
    assert moved(recipe({"cross_entropy": 1.0, "l2_zero": 1.0})) == {"head": True, "core_head": False}
    (group,) = first_steps(described, recipe(), 1).optimizer.param_groups
    assert group["params"][-1] is dict(described.model.named_parameters())["core_head.bias"]


def test_descriptions_change_nothing_without_the_term(described: Workspace, plain: Workspace) -> None:
    weights = {"cross_entropy": 1.0, "contrastive": 0.5, "l1_init": 0.1, "hinge": 0.1}
    assert tune(described, recipe(weights)) == tune(plain, recipe(weights))
    ours, theirs = described.model.state_dict(), plain.model.state_dict()
    assert ours.keys() - theirs.keys() == {"core_head.weight", "core_head.bias"} and theirs.keys() < ours.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert described.model.core_beta is None
    assert torch.equal(described.logits("b"), plain.logits("b"))


def test_a_resumed_fine_tune_goes_on_to_the_bit(described: Workspace, tiny_vit: Path, file: Path, tmp_path: Path) -> None:
    whole = tune(described, recipe())
    expected = digest(described)
    saved = copy.deepcopy(training_state(described, first_steps(described, recipe(), 3)))
    fresh = load_workspace(tmp_path, tiny_vit, data__descriptions=str(file))  # which has no affinities yet
    assert tune(fresh, recipe(), resume=saved) == whole[3:]
    assert digest(fresh) == expected


@pytest.mark.parametrize("constraint", ["ftp", "spd", "saft", "tpgm"])
def test_constraints_go_with_it(described: Workspace, constraint: Any) -> None:
    losses = tune(described, recipe(constraint=constraint, steps=3))
    assert np.isfinite(losses).all()


def test_it_trains_and_predicts_in_bf16(tiny_vit: Path, file: Path, tmp_path: Path) -> None:
    workspace = load_workspace(tmp_path, tiny_vit, data__descriptions=str(file), model__precision="bf16")
    assert np.isfinite(tune(workspace, recipe())).all()
    logits = workspace.logits("b")
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.exp().sum(dim=1), torch.ones(len(logits)), rtol=1e-5, atol=0)


# --- predictions


def test_the_model_predicts_the_mixture_in_trials_and_by_the_first_head_elsewhere(described: Workspace) -> None:
    for beta in (0.5, 0.2):
        tune(described, recipe(drm_beta=beta))
        first, second = two_heads(described, inputs_of(described))
        np.testing.assert_allclose(exact(described.logits("b").softmax(dim=1)), beta * first + (1 - beta) * second, rtol=1e-4, atol=1e-6)
    tune(described, recipe({"cross_entropy": 1.0}))
    first, _ = two_heads(described, inputs_of(described))
    np.testing.assert_allclose(exact(described.logits("b").softmax(dim=1)), first, rtol=1e-4, atol=1e-6)


def test_beta_1_is_the_first_head_alone(described: Workspace) -> None:
    tune(described, recipe(drm_beta=1.0))
    mixed = described.logits("b")
    described.model.core_beta = None
    torch.testing.assert_close(mixed.softmax(dim=1), described.logits("b").softmax(dim=1), rtol=1e-5, atol=1e-7)


def test_a_set_with_classes_of_its_own_is_projected_before_the_heads_are_mixed(described: Workspace) -> None:
    tune(described, recipe(drm_beta=0.3))
    images, inputs = described.images("a"), inputs_of(described, "a")
    projection = ((0, 2), (1,))
    with torch.no_grad():
        features = exact(described.model.image_features(inputs))
    mixed = np.zeros((len(features), 2))
    for name, share in (("head", 0.3), ("core_head", 0.7)):
        state = described.model.state_dict()
        logits = features @ exact(state[f"{name}.weight"]).T + exact(state[f"{name}.bias"])
        mixed += share * softmax(np.stack([logits[:, list(columns)].max(axis=1) for columns in projection], axis=1))
    try:
        images.pools = pool_index(projection)
        found = described.logits("a")
    finally:
        images.pools = None
    np.testing.assert_allclose(exact(found.exp()), mixed, rtol=1e-4, atol=1e-6)


# --- whole runs


@pytest.fixture
def study(tmp_path: Path, tiny_vit: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOFT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    path = write_study(tmp_path, tiny_vit, metric="cross_entropy")
    (tmp_path / "classes.json").write_text(file.read_text())
    document = yaml.safe_load(path.read_text())
    document["data"]["descriptions"] = "classes.json"  # relative to the study file
    path.write_text(yaml.safe_dump(document))
    return path


def given(**changes: Any) -> dict[str, Any]:
    return {"lr": 3e-3, "weight_decay": 0.0, "loss_weights": DRM, "seed": 3, "drm_beta": 0.25, **changes}


def run(study: Path, values: dict[str, Any], name: str = "mine", *more: str) -> int:
    Path(f"{name}.json").write_text(json.dumps(values))
    return main(["finetune", str(study), "--hyperparameters", f"{name}.json", "--threads", "1", "--json", *more])


def rows(summary: Path, model: str) -> dict[tuple[str, str], float]:
    found = json.loads(summary.read_text())["evaluations"]
    return {(row["dataset"], row["metric"]): row["value"] for row in found if row["model"] == model}


def test_a_whole_run_predicts_with_both_heads_everywhere(study: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(study, given()) == 0
    assert run(study, given(loss_weights={"cross_entropy": 1.0}), "other") == 0
    capsys.readouterr()
    summary, other = (Path(f"runs/tiny-{name}/summary.json") for name in ("mine", "other"))
    assert rows(summary, "zero_shot") == rows(other, "zero_shot"), "the zero-shot model has one head"
    config = load_config(study)
    workspace = Workspace.load(config, "cpu", tmp_path / "cache", splits=["train", "val_ood", "a", "b"])
    for name in ("final", "wise_ft"):
        folder = Path("runs/tiny-mine/checkpoints") / name
        info = json.loads((folder / "autoft.json").read_text())
        assert info["core_beta"] == 0.25 and set(load_file(folder / "head.safetensors")) == {"weight", "bias", "core_weight", "core_bias"}
        assert "core_weight" in (folder / "README.md").read_text()
        assert main(["evaluate", str(folder), str(study), "--sets", "b", "--json"]) == 0
        by_command = {row["metric"]: row["value"] for row in json.loads(capsys.readouterr().out)["evaluations"]}
        heads = load_file(folder / "head.safetensors")
        towers = load_file(folder / "open_clip_model.safetensors")
        workspace.model.load_state_dict(
            {f"clip.{key}": tensor for key, tensor in towers.items()}
            | {f"{prefix}head.{key}": heads[f"{prefix}{key}"] for prefix in ("", "core_") for key in ("weight", "bias")}
        )
        first, second = two_heads(workspace, inputs_of(workspace))
        labels = workspace.images("b").labels_cpu.numpy()
        loss = -np.log((0.25 * first + 0.75 * second)[np.arange(len(labels)), labels]).mean()
        assert by_command["cross_entropy"] == pytest.approx(loss, rel=1e-4)
        assert rows(summary, name)["b", "cross_entropy"] == pytest.approx(loss, rel=1e-4)
    curve = json.loads(summary.read_text())["wise_ft"]["curve"]
    workspace.zero_shot.restore(workspace.model)
    workspace.model.core_beta = 0.25
    assert curve[0]["val_ood"] == pytest.approx(workspace.score("val_ood")), "alpha 0 is the zero-shot model with both heads"
    assert "core_beta" not in json.loads(Path("runs/tiny-other/checkpoints/final/autoft.json").read_text())


def test_predict_writes_the_mixed_probabilities(study: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(study, given(), "mine") == 0
    images = np.load(tmp_path / "data" / "test_b.npz")["images"][:3]
    paths = []
    for i, image in enumerate(images):
        paths.append(f"{i}.png")
        Image.fromarray(image).save(paths[-1])
    capsys.readouterr()
    folder = Path("runs/tiny-mine/checkpoints/final")
    assert main(["predict", str(folder), *paths]) == 0
    table = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    found = np.array([[float(value) for value in row[2:]] for row in table[1:]])
    workspace = Workspace.load(load_config(study), "cpu", tmp_path / "cache", splits=["train", "b"])
    workspace.model = load_checkpoint(folder)[0]
    first, second = two_heads(workspace, inputs_of(workspace)[:3])
    np.testing.assert_allclose(found, 0.25 * first + 0.75 * second, atol=2e-6)


def test_a_study_without_descriptions_scores_two_heads_as_they_are(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(study, given()) == 0
    capsys.readouterr()
    found = []
    for changes in ([], ["--set", "data.descriptions=null"]):
        assert main(["evaluate", "runs/tiny-mine/checkpoints/final", str(study), "--sets", "b", "--json", *changes]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]


# --- what is refused, and what a study's identity is


def test_the_term_without_descriptions_is_refused_before_anything_is_made(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(study, given(), "mine", "--set", "data.descriptions=null") == 2
    error = capsys.readouterr().err
    assert all(word in error for word in ("loss_weights.drm", "data.descriptions", "autoft describe")) and "Traceback" not in error
    assert not Path("runs").exists()


def test_a_fine_tune_checks_it_too(plain: Workspace) -> None:
    with pytest.raises(ConfigError, match=r"data\.descriptions"):
        start_from(plain, hyperparameters())
    check_terms_available(plain.config, hyperparameters({"cross_entropy": 1.0}))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"search_space__knobs": {"loss_weight/drm": {"low": 0.1, "high": 1}}}, "search_space.knobs.loss_weight/drm"),
        ({"search_space__knobs": {"use/drm": {"choices": [True]}}, "search_space__preset": "extended"}, "search_space.knobs.use/drm"),
        ({"search_space__knobs": {"drm_beta": {"low": 0.1, "high": 1}}}, "search_space.knobs.drm_beta"),
        ({"search_space__fixed": {"loss_weights": {"drm": 1.0}}}, "search_space.fixed.loss_weights.drm"),
        ({"search__enqueue": ["drm"]}, "search.enqueue"),
        ({"evaluate__baselines": ["drm"]}, "evaluate.baselines"),
    ],
)
def test_a_study_file_that_asks_for_it_without_descriptions_is_refused(
    changes: dict[str, Any], field: str, tmp_path: Path, tiny_vit: Path, file: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write_study(tmp_path, tiny_vit, **changes))
    assert all(word in str(caught.value) for word in (field, "data.descriptions", "autoft describe"))
    load_config(write_study(tmp_path, tiny_vit, **changes, data__descriptions=str(file)))


def test_the_extended_preset_has_its_knobs_where_there_are_descriptions(tmp_path: Path, tiny_vit: Path, file: Path) -> None:
    extended = {"search_space__preset": "extended"}
    without = load_config(write_study(tmp_path, tiny_vit, **extended))
    described = load_config(write_study(tmp_path, tiny_vit, **extended, data__descriptions=str(file)))
    assert list(described.search_space.knobs) == list(EXTENDED_KNOBS)
    assert list(without.search_space.knobs) == [name for name in EXTENDED_KNOBS if name not in ("use/drm", "loss_weight/drm")]
    again = type(without).model_validate(without.model_dump(mode="json"))
    assert again == without


def test_similarities_left_as_they_are_need_a_temperature(tmp_path: Path, tiny_vit: Path) -> None:
    with pytest.raises(ConfigError, match=r"drm.*temperature"):
        load_config(write_study(tmp_path, tiny_vit, drm__normalization="none"))
    load_config(write_study(tmp_path, tiny_vit, drm__normalization="none", drm__temperature=0.01))


def test_a_studys_identity_has_the_descriptions_in_it(tmp_path: Path, tiny_vit: Path, file: Path) -> None:
    def sections(**changes: Any) -> dict[str, Any]:
        return dict(prepare(load_config(write_study(tmp_path, tiny_vit, **changes)), tmp_path / "cache").sections)

    plain, described = sections(), sections(data__descriptions=str(file))
    assert described.keys() - plain.keys() == {"data.descriptions", "drm"} and plain.items() <= described.items()
    moved, other = tmp_path / "moved.json", tmp_path / "other.json"
    moved.write_text(json.dumps(dict(reversed(DESCRIPTIONS.items())), indent=3))
    other.write_text(json.dumps(DESCRIPTIONS | {"red": "warm tone"}))
    assert sections(data__descriptions=str(moved)) == described, "the same sentences in another place and order"
    assert sections(data__descriptions=str(other))["data.descriptions"] != described["data.descriptions"]
    assert sections(drm__normalization="per_image") == plain
    assert sections(drm__normalization="per_image", data__descriptions=str(file)) != described


def test_a_wrong_file_is_told_before_images_are_read(tmp_path: Path, tiny_vit: Path) -> None:
    path = tmp_path / "classes.json"
    path.write_text(json.dumps({"red": "warm tone", "green": "like grass"}))
    config = load_config(write_study(tmp_path, tiny_vit, data__descriptions=str(path)))
    with pytest.raises(DataError, match=r"data\.descriptions.*blue"):
        prepare(config, tmp_path / "cache", decoding=lambda field, done, of: pytest.fail("decoding"))
    path.write_text(json.dumps({"red": "warm tone", "green": "like grass", "blue": "a very long sentence about many things in the sky"}))
    with pytest.raises(DataError, match=r"data\.descriptions.*context of 8 tokens"):
        prepare(config, tmp_path / "cache", decoding=lambda field, done, of: pytest.fail("decoding"))
