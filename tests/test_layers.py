"""Layers of their own: a partition of every architecture, a rate and a decay for each, and training that is otherwise the same."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from autoft.errors import ConfigError
from autoft.finetune import Recipe, finetune, training_state
from autoft.models import ClipClassifier
from autoft.optim import build_optimizer, layer_names, lr_multiplier, parameter_groups
from autoft.search_space import Hyperparameters
from autoft.workspace import Workspace
from tests.runs import ALL_TERMS, IMAGE_TERMS, digest, first_steps, hyperparameters, load_workspace, one_thread, tune
from tests.studies import TINY_CONVNET, TINY_VIT

LR, DECAY = 1e-3, 0.1
VIT_BLOCKS = 3
TINY_TEXT = TINY_VIT["text_cfg"]


def vision(**values: Any) -> dict[str, Any]:
    return {"embed_dim": 16, "vision_cfg": {"image_size": 32, **values}, "text_cfg": TINY_TEXT}


def timm_vision(name: str, **values: Any) -> dict[str, Any]:
    return vision(timm_model_name=name, timm_model_pretrained=False, timm_pool="", timm_proj="linear", **values)


# Towers by what they are made of, with their number of blocks and some parameters whose layer is known.
TOWERS: dict[str, tuple[dict[str, Any], int, dict[str, str]]] = {
    "vit": (
        vision(layers=VIT_BLOCKS, width=32, head_width=16, patch_size=8),
        VIT_BLOCKS,
        {
            "clip.visual.conv1.weight": "visual/stem",
            "clip.visual.class_embedding": "visual/stem",
            "clip.visual.positional_embedding": "visual/stem",
            "clip.visual.ln_pre.bias": "visual/stem",
            "clip.visual.transformer.resblocks.0.ln_1.weight": "visual/block.0",
            "clip.visual.transformer.resblocks.2.mlp.c_fc.weight": "visual/block.2",
            "clip.visual.ln_post.weight": "visual/top",
            "clip.visual.proj": "visual/top",
        },
    ),
    "resnet": (
        vision(layers=[2, 1, 1, 1], width=8, head_width=8, patch_size=None),
        5,
        {
            "clip.visual.conv3.weight": "visual/stem",
            "clip.visual.layer1.0.downsample.0.weight": "visual/block.0",
            "clip.visual.layer1.1.conv1.weight": "visual/block.1",
            "clip.visual.layer2.0.bn1.weight": "visual/block.2",
            "clip.visual.attnpool.positional_embedding": "visual/top",
        },
    ),
    "mobilenet": (
        TINY_CONVNET,
        7,
        {
            "clip.visual.trunk.conv_stem.weight": "visual/stem",
            "clip.visual.trunk.bn1.bias": "visual/stem",
            "clip.visual.trunk.blocks.0.0.conv_dw.weight": "visual/block.0",
            "clip.visual.trunk.blocks.1.1.conv_dw.weight": "visual/block.1",
            "clip.visual.trunk.conv_head.weight": "visual/top",
            "clip.visual.head.proj.weight": "visual/top",
        },
    ),
    "convnext": (
        timm_vision("convnext_atto"),
        12,
        {
            "clip.visual.trunk.stem.1.bias": "visual/stem",
            "clip.visual.trunk.stages.0.blocks.1.gamma": "visual/block.1",
            "clip.visual.trunk.stages.1.downsample.1.weight": "visual/block.2",
            "clip.visual.trunk.stages.1.blocks.0.gamma": "visual/block.2",
            "clip.visual.trunk.head.norm.weight": "visual/top",
        },
    ),
    "timm vit": (
        timm_vision("vit_tiny_patch16_224"),
        12,
        {
            "clip.visual.trunk.cls_token": "visual/stem",
            "clip.visual.trunk.pos_embed": "visual/stem",
            "clip.visual.trunk.patch_embed.proj.weight": "visual/stem",
            "clip.visual.trunk.blocks.11.mlp.fc2.bias": "visual/block.11",
            "clip.visual.trunk.norm.weight": "visual/top",
        },
    ),
    "without blocks": (timm_vision("regnetx_002"), 0, {"clip.visual.trunk.s1.b1.conv1.conv.weight": "visual/stem"}),
}


def classifier(model_cfg: dict[str, Any]) -> ClipClassifier:
    """A classifier of that shape, without the memory for its weights."""
    kind = open_clip.CustomTextCLIP if "timm_model_name" in model_cfg["vision_cfg"] and model_cfg is not TINY_CONVNET else open_clip.CLIP
    with torch.device("meta"):
        return ClipClassifier(
            kind(**{name: dict(part) if isinstance(part, dict) else part for name, part in model_cfg.items()}), nn.Linear(16, 3)
        )


@pytest.fixture(params=list(TOWERS))
def tower(request: pytest.FixtureRequest) -> Any:
    model_cfg, blocks, known = TOWERS[request.param]
    return classifier(model_cfg), blocks, known


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory, tiny_vit: Path) -> Workspace:
    return load_workspace(tmp_path_factory.mktemp("vit"), tiny_vit)


@pytest.fixture(scope="module")
def convnet(tmp_path_factory: pytest.TempPathFactory, tiny_convnet: Path) -> Workspace:
    return load_workspace(tmp_path_factory.mktemp("convnet"), tiny_convnet)


@pytest.fixture(params=["vit", "convnet"])
def workspace(request: pytest.FixtureRequest) -> Workspace:
    found: Workspace = request.getfixturevalue(request.param)
    return found


def layerwise(
    workspace: Workspace, lr: dict[str, float] | None = None, decay: dict[str, float] | None = None, **values: Any
) -> Hyperparameters:
    """Layers of their own that are all as the whole would be, but for the given ones; the whole's own values must not be looked at."""
    names = layer_names(workspace.model)
    whole = hyperparameters(lr=1.0, weight_decay=1.0, **values)
    return replace(whole, layer_lr=dict.fromkeys(names, LR) | (lr or {}), layer_weight_decay=dict.fromkeys(names, DECAY) | (decay or {}))


def recipe(values: Hyperparameters, steps: int = 5, **options: Any) -> Recipe:
    return Recipe(hyperparameters=values, steps=steps, batch_size=12, **options)


def moved_layers(workspace: Workspace) -> set[str]:
    """Layers of which every parameter is not what it was at the start; those of which only some moved fail."""
    names = {id(parameter): name for name, parameter in workspace.model.named_parameters()}
    moved = set()
    for layer, parameters in parameter_groups(workspace.model).items():
        different = {not torch.equal(parameter, workspace.zero_shot.tensors[names[id(parameter)]]) for parameter in parameters}
        assert len(different) == 1, f"{layer} moved in part"
        moved |= {layer} if different == {True} else set()
    return moved


# --- the partition


def test_every_parameter_is_in_exactly_one_layer(tower: Any) -> None:
    model, blocks, _ = tower
    groups = parameter_groups(model)
    found = [id(parameter) for parameters in groups.values() for parameter in parameters]
    assert sorted(found) == sorted(id(parameter) for parameter in model.parameters())
    assert len(set(found)) == len(found)
    numbered = tuple(f"visual/block.{i}" for i in range(blocks))
    assert tuple(groups) == layer_names(model) == ("visual/stem", *numbered, *(("visual/top",) if blocks else ()), "text", "head")
    assert all(groups.values())


def test_parameters_are_where_one_expects_them(tower: Any) -> None:
    model, _, known = tower
    named = dict(model.named_parameters())
    layer_of = {id(parameter): layer for layer, parameters in parameter_groups(model).items() for parameter in parameters}
    common = {
        "head.weight": "head",
        "head.bias": "head",
        "clip.logit_scale": "head",
        **{name: "text" for name in named if name.endswith(("token_embedding.weight", "text_projection", "ln_final.bias"))},
    }
    assert "text" in common.values()
    assert {name: layer_of[id(named[name])] for name in known | common} == known | common


def test_layers_do_not_depend_on_what_trains_and_keep_the_order_of_the_parameters(tower: Any) -> None:
    model, _, _ = tower
    names = layer_names(model)
    position = {id(parameter): i for i, parameter in enumerate(model.parameters())}
    for parameters in parameter_groups(model).values():
        places = [position[id(parameter)] for parameter in parameters]
        assert places == sorted(places)
    model.train_text_tower(False)
    assert layer_names(model) == names


def test_a_tower_has_its_layers_whether_its_weights_are_on_the_meta_device_or_not(convnet: Workspace) -> None:
    assert layer_names(convnet.model) == layer_names(classifier(TINY_CONVNET))


# --- the optimizer


def test_each_layer_has_its_own_rate_and_decay(vit: Workspace) -> None:
    vit.model.train_text_tower(True)
    names = layer_names(vit.model)
    rates = {name: 1e-3 * (i + 1) for i, name in enumerate(names)}
    decays = {name: 0.1 * i for i, name in enumerate(names)}
    optimizer = build_optimizer(vit.model, 1.0, 1.0, rates, dict(reversed(decays.items())))
    assert [group["layer"] for group in optimizer.param_groups] == list(names)
    for group, parameters in zip(optimizer.param_groups, parameter_groups(vit.model).values(), strict=True):
        assert group["lr"] == group["base_lr"] == rates[group["layer"]]
        assert group["weight_decay"] == decays[group["layer"]]
        assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in parameters]


def test_a_layer_that_does_not_train_is_left_out_and_needs_no_value(vit: Workspace) -> None:
    vit.model.train_text_tower(False)
    values = dict.fromkeys(layer_names(vit.model), 0.1)
    without = {name: value for name, value in values.items() if name != "text"}
    for given in (values, without):
        optimizer = build_optimizer(vit.model, LR, DECAY, given, given)
        assert [group["layer"] for group in optimizer.param_groups] == list(without)
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        assert trained == {id(parameter) for parameter in vit.model.parameters() if parameter.requires_grad}


def test_wrong_layers_are_refused_by_name(vit: Workspace) -> None:
    vit.model.train_text_tower(True)
    values = dict.fromkeys(layer_names(vit.model), 0.1)
    missing = {name: value for name, value in values.items() if name not in ("text", "visual/top")}
    with pytest.raises(ConfigError, match=r"layer_lr\.visual/blok\.0: .*did you mean visual/block\.0\? its layers are visual/stem, "):
        build_optimizer(vit.model, LR, DECAY, values | {"visual/blok.0": 0.1}, values)
    with pytest.raises(ConfigError, match=r"layer_weight_decay\.zzz: .*no layer 'zzz'; its layers"):
        build_optimizer(vit.model, LR, DECAY, values, values | {"zzz": 0.1})
    with pytest.raises(ConfigError, match="layer_weight_decay has no value for visual/top, text;"):
        build_optimizer(vit.model, LR, DECAY, values, missing)
    with pytest.raises(ConfigError, match="layer_lr has no value for visual/stem"):
        build_optimizer(vit.model, LR, DECAY, {}, values)
    half = replace(hyperparameters(), layer_lr=values)
    with pytest.raises(ConfigError, match="layer_weight_decay has no value for visual/stem"):
        tune(vit, recipe(half))


# --- training


@pytest.mark.parametrize("weights", [ALL_TERMS, IMAGE_TERMS], ids=["with text", "without text"])
@pytest.mark.parametrize("bound", [None, 0.05], ids=["unclipped", "clipped"])
def test_layers_that_are_all_alike_train_as_one_to_the_bit(workspace: Workspace, weights: dict[str, float], bound: float | None) -> None:
    options: dict[str, Any] = {"clip_grad_norm": bound, "schedule": "cosine", "warmup_steps": 2}
    whole = tune(workspace, recipe(hyperparameters(lr=LR, weight_decay=DECAY, weights=weights), **options))
    expected = digest(workspace)
    assert tune(workspace, recipe(layerwise(workspace, weights=weights), **options)) == whole
    assert digest(workspace) == expected


@pytest.mark.parametrize("layer", ["visual/stem", "visual/block.0", "visual/top", "text"])
def test_a_layer_without_rate_and_decay_stays_while_the_others_move(workspace: Workspace, layer: str) -> None:
    tune(workspace, recipe(layerwise(workspace, lr={layer: 0.0}, decay={layer: 0.0})))
    assert moved_layers(workspace) == set(layer_names(workspace.model)) - {layer}


def test_only_the_layers_with_a_rate_move(workspace: Workspace) -> None:
    names = layer_names(workspace.model)
    for layer in ("visual/block.0", "head"):
        rates = dict.fromkeys(names, 0.0) | {layer: LR}
        tune(workspace, recipe(layerwise(workspace, lr=rates), steps=2))
        assert moved_layers(workspace) == {layer}


def test_a_schedule_scales_each_layers_own_rate(vit: Workspace) -> None:
    rates = {name: 1e-4 * (i + 1) for i, name in enumerate(layer_names(vit.model))}
    run = recipe(layerwise(vit, lr=rates), steps=7, schedule="cosine", warmup_steps=3)
    for t, step in enumerate(finetune(vit, run)):
        found = {group["layer"]: group["lr"] for group in step.optimizer.param_groups}
        assert found == pytest.approx({name: rate * lr_multiplier(t, 7, 3, "cosine") for name, rate in rates.items()}, rel=1e-12)


@pytest.mark.parametrize("weights", [ALL_TERMS, IMAGE_TERMS], ids=["with text", "without text"])
def test_a_resumed_layerwise_run_equals_an_uninterrupted_one(workspace: Workspace, weights: dict[str, float], tmp_path: Path) -> None:
    names = layer_names(workspace.model)
    rates, decays = ({name: scale * (i + 1) for i, name in enumerate(names)} for scale in (1e-4, 0.05))
    run = recipe(layerwise(workspace, rates, decays, weights=weights), steps=6, schedule="cosine", warmup_steps=2)
    losses = tune(workspace, run)
    expected = digest(workspace)
    torch.save(training_state(workspace, first_steps(workspace, run, 3)), tmp_path / "state.pt")
    tune(workspace, recipe(hyperparameters(seed=99)))  # another fine-tune, of one group, in between
    assert tune(workspace, run, resume=torch.load(tmp_path / "state.pt", weights_only=True)) == losses[3:]
    assert digest(workspace) == expected
    tune(workspace, recipe(hyperparameters(lr=LR, weight_decay=DECAY, weights=weights), steps=6, schedule="cosine", warmup_steps=2))
    assert digest(workspace) != expected, "the layers' own values matter"
