"""The frozen model that other methods' terms share: one forward pass, never trained, its slices those of the tuned tower."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from autoft import teacher
from autoft.config.vocabulary import fill, templates
from autoft.errors import ModelError
from autoft.finetune import Recipe, finetune, training_state
from autoft.frozen import frozen_clip
from autoft.losses import METHOD_TERMS, MethodOutputs, StepOutputs, needs_of
from autoft.models import slices, state_digest
from autoft.models.classifier import zero_shot_head
from autoft.start import start_from, training_mode
from autoft.workspace import Workspace
from tests.runs import ALL_TERMS, cloned, digest, first_steps, hyperparameters, load_workspace, one_thread, outputs_of, tune
from tests.studies import CLASSES

DESCRIBED = {"red": "the colour of blood", "green": ["the colour of leaves", "grass"], "blue": "the colour of the sky"}
EVERY_TERM = ALL_TERMS | dict.fromkeys(METHOD_TERMS, 0.5)
DISTILLED = {"cross_entropy": 1.0, "ldifs": 1.0, "car_ft": 1.0, "lipsum": 1.0}


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    with one_thread():
        yield


def load(folder: Path, model: Path, **changes: Any) -> Workspace:
    (folder / "descriptions.json").write_text(json.dumps(DESCRIBED))
    return load_workspace(folder, model, data__descriptions=str(folder / "descriptions.json"), **changes)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory, tiny_vit: Path) -> Workspace:
    return load(tmp_path_factory.mktemp("vit"), tiny_vit)


@pytest.fixture(scope="module")
def convnet(tmp_path_factory: pytest.TempPathFactory, tiny_convnet: Path) -> Workspace:
    return load(tmp_path_factory.mktemp("convnet"), tiny_convnet)


@pytest.fixture(params=["vit", "convnet"])
def workspace(request: pytest.FixtureRequest) -> Workspace:
    found: Workspace = request.getfixturevalue(request.param)
    return found


def recipe(weights: dict[str, float], steps: int = 4, lr: float = 1e-3) -> Recipe:
    return Recipe(hyperparameters=hyperparameters(lr=lr, weights=weights), steps=steps, batch_size=12)


def outputs_at_start(workspace: Workspace, weights: dict[str, float], evaluation: bool = False) -> MethodOutputs:
    """Of the first step, the model as it starts."""
    run = recipe(weights)
    start_from(workspace, run.hyperparameters)
    training_mode(workspace)
    if evaluation:
        workspace.model.eval()
    more = outputs_of(workspace, run, 0).more
    assert more is not None
    return more


def fresh(workspace: Workspace) -> Workspace:
    """The same workspace before anything was cached."""
    return replace(workspace)


def sides(workspace: Workspace) -> tuple[int, int]:
    return workspace.loaded.preprocess.size, workspace.loaded.preprocess.size


def hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


# --- the frozen model


def test_the_frozen_model_is_the_zero_shot_one_after_training_too_and_takes_no_memory(workspace: Workspace) -> None:
    images = torch.randn(5, 3, *sides(workspace), generator=torch.Generator().manual_seed(0))
    workspace.zero_shot.restore(workspace.model)
    with torch.no_grad():
        expected = workspace.model.eval().image_features(images)
    names = set(workspace.model.state_dict())
    anchor = state_digest(workspace.zero_shot.tensors)
    tune(workspace, recipe(EVERY_TERM, lr=1e-2))
    frozen = frozen_clip(workspace)
    found = frozen.encode_image(images, normalize=True)  # type: ignore[operator]
    assert torch.equal(found, expected) and not found.requires_grad
    with torch.no_grad():
        assert not torch.allclose(workspace.model.eval().image_features(images), expected, atol=1e-3)
    assert state_digest(workspace.zero_shot.tensors) == anchor and set(workspace.model.state_dict()) == names
    assert not frozen.training and not any(part.training for part in frozen.modules())
    storages = {tensor.data_ptr() for tensor in workspace.zero_shot.tensors.values()}
    assert {tensor.data_ptr() for tensor in frozen.state_dict().values()} <= storages
    assert not {id(part) for part in frozen.modules()} & {id(part) for part in workspace.model.modules()}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [({"cross_entropy": 1.0, "margin": 1.0, "feature_mixup": 1.0, "focal_contrastive": 1.0}, 0), ({"ldifs": 1.0}, 1), (DISTILLED, 1)],
    ids=["none", "ldifs", "all"],
)
def test_one_frozen_forward_pass_a_step_serves_every_term_that_needs_it(workspace: Workspace, weights: dict[str, float], expected: int) -> None:
    calls: list[bool] = []
    handle = frozen_clip(workspace).visual.register_forward_hook(  # type: ignore[union-attr]
        lambda *_: calls.append(torch.is_grad_enabled())
    )
    try:
        tune(workspace, recipe(weights, steps=3))
    finally:
        handle.remove()
    assert calls == [False] * 3 * expected


def test_nothing_is_made_for_terms_that_need_nothing(vit: Workspace) -> None:
    workspace = fresh(vit)
    tune(workspace, recipe(ALL_TERMS | {"margin": 0.5, "focal_contrastive": 0.5}, steps=2))
    assert workspace.cached == {}


def test_distillation_is_zero_at_the_start_where_student_and_teacher_are_in_the_same_mode(workspace: Workspace) -> None:
    """BatchNorm in training mode is not: it takes the batch's statistics, and the teacher the running ones."""
    for evaluation in (True, False):
        run = recipe(DISTILLED)
        start_from(workspace, run.hyperparameters)
        training_mode(workspace)
        if evaluation:
            workspace.model.eval()
        outputs = outputs_of(workspace, run, 0)
        for name in ("ldifs", "car_ft", "lipsum"):
            found = float(METHOD_TERMS[name].compute(outputs).detach())
            has_batch_norm = any(isinstance(part, nn.BatchNorm2d) for part in workspace.model.modules())
            if evaluation or not has_batch_norm:
                assert found == pytest.approx(0, abs=1e-6)  # attention rounds otherwise where nothing takes gradients
            else:
                assert found > 1e-5


@pytest.mark.parametrize("name", METHOD_TERMS)
def test_every_term_moves_the_image_tower_by_finite_gradients(workspace: Workspace, name: str) -> None:
    run = recipe({"cross_entropy": 1.0, name: 1.0})
    start_from(workspace, run.hyperparameters)
    with torch.no_grad():  # away from the start, where distillation has its minimum
        rng = torch.Generator().manual_seed(0)
        for parameter in workspace.model.clip.visual.parameters():  # type: ignore[union-attr]
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=rng))
    training_mode(workspace)
    outputs = outputs_of(workspace, run, 0)
    METHOD_TERMS[name].compute(outputs).backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in workspace.model.clip.visual.parameters() if parameter.grad is not None]  # type: ignore[union-attr]
    workspace.model.zero_grad(set_to_none=True)
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)
    assert sum(float(gradient.abs().sum()) for gradient in gradients) > 1e-6


# --- fine-tuning with all of them


def test_a_resumed_run_with_every_term_ends_as_an_undisturbed_one(workspace: Workspace) -> None:
    run = recipe(EVERY_TERM, steps=6)
    expected_losses = tune(workspace, run)
    expected = digest(workspace)
    broken_off = first_steps(workspace, run, 3)
    saved = training_state(workspace, broken_off)
    saved = {**saved, "model": cloned(saved["model"])}
    new = fresh(workspace)  # nothing cached: texts are embedded while the model's own text tower is not the zero-shot one
    losses = [float(step.loss) for step in finetune(new, run, resume=saved)]
    assert losses == expected_losses[3:]
    assert digest(new) == expected


def test_every_term_is_reported_and_finite_and_the_same_run_is_the_same_to_the_bit(workspace: Workspace) -> None:
    results = []
    for _ in range(2):
        terms = [dict(step.terms) for step in finetune(workspace, recipe(EVERY_TERM), report_norms=True)]
        assert all(set(step) == set(EVERY_TERM) and all(torch.isfinite(part) for part in step.values()) for step in terms)
        results.append(([{name: float(part) for name, part in step.items()} for step in terms], digest(workspace)))
    assert results[0] == results[1]


def test_bf16_changes_little(vit: Workspace) -> None:
    def losses(precision: str) -> list[float]:
        config = vit.config.model_copy(update={"model": vit.config.model.model_copy(update={"precision": precision})})
        return tune(replace(vit, config=config), recipe(EVERY_TERM))

    assert losses("bf16") == pytest.approx(losses("fp32"), rel=0.05)


def test_strong_distillation_keeps_features_where_they_were(vit: Workspace) -> None:
    images = torch.randn(8, 3, *sides(vit), generator=torch.Generator().manual_seed(1))
    start = frozen_clip(vit).encode_image(images, normalize=True)  # type: ignore[operator]

    def moved(weights: dict[str, float]) -> float:
        tune(vit, recipe(weights, steps=30))
        with torch.no_grad():
            return float((vit.model.eval().image_features(images) - start).norm())

    plain = moved({"cross_entropy": 1.0})
    for name in ("ldifs", "car_ft", "lipsum"):
        assert moved({"cross_entropy": 1.0, name: 1000.0}) < 0.7 * plain, name


class NoWaiting(TorchDispatchMode):
    """Refuses what would wait for a GPU: a tensor's value, or how many entries are not zero."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket not in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select), func
        return func(*args, **(kwargs or {}))


def test_no_step_but_the_first_waits_for_the_device(workspace: Workspace) -> None:
    run = recipe(EVERY_TERM)
    outputs_at_start(workspace, EVERY_TERM)
    images, examples = torch.randn(12, 3, *sides(workspace)), torch.arange(12)
    with NoWaiting():
        with teacher.captured_slices(workspace.model, wanted=True) as slices_of_model:
            features = workspace.model.image_features(images)
        more = teacher.method_outputs(
            workspace, run.hyperparameters, needs_of(EVERY_TERM), images, examples, features, slices_of_model, torch.Generator()
        )
        step = StepOutputs(workspace.model.head(features), workspace.train.labels[:12], features, None, None, None, [], [], more=more)
        for term in METHOD_TERMS.values():
            term.compute(step)
    with pytest.raises(AssertionError), NoWaiting():
        bool(features.sum() > 0)


def test_what_a_step_draws_is_a_function_of_its_rng_alone(vit: Workspace) -> None:
    images, examples = torch.randn(12, 3, *sides(vit)), torch.arange(12)
    features = normalize(torch.randn(12, 16), dim=1)
    weights = {"lipsum": 1.0, "feature_mixup": 1.0}

    def drawn(seed: int, elsewhere: int) -> tuple[list[float], list[float]]:
        torch.manual_seed(elsewhere)
        rng = torch.Generator().manual_seed(seed)
        more = teacher.method_outputs(vit, hyperparameters(weights=weights), needs_of(weights), images, examples, features, None, rng)
        assert more.random_texts is not None and more.mixtures is not None
        return more.random_texts[:, 0].tolist(), more.mixtures.share.tolist()

    first, same, other = drawn(1, 1), drawn(1, 2), drawn(2, 1)
    assert first == same
    assert first[0] != other[0] and first[1] != other[1]


# --- texts


def test_contexts_are_the_templates_embeddings_averaged_over_classes(vit: Workspace) -> None:
    found = outputs_at_start(vit, DISTILLED).contexts
    assert found is not None and len(found) == 80
    clip = frozen_clip(vit)
    for row, template in zip(found, templates("imagenet"), strict=True):
        tokens = vit.loaded.tokenizer([fill(template, name) for name in CLASSES])
        mean = clip.encode_text(tokens, normalize=True).mean(dim=0)  # type: ignore[operator]
        torch.testing.assert_close(row, normalize(mean, dim=0))


def test_a_study_with_eight_templates_has_its_own_contexts(tmp_path: Path, tiny_vit: Path) -> None:
    own = [f"{word} {{}}" for word in ("a", "the", "no", "one", "my", "your", "old", "new")]
    workspace = load(tmp_path, tiny_vit, data__templates=own)
    found = teacher.contexts(workspace)
    assert len(found) == 8
    one_class = zero_shot_head(frozen_clip(workspace), workspace.loaded.tokenizer, CLASSES, own[:1])
    torch.testing.assert_close(found[0], normalize(normalize(one_class.weight, dim=1).mean(dim=0), dim=0).detach())


def test_a_steps_random_texts_are_drawn_from_the_pool_by_its_rng(vit: Workspace) -> None:
    pool = teacher.random_texts(vit)
    assert pool.shape == (1024, 16)
    torch.testing.assert_close(pool.norm(dim=1), torch.ones(1024))
    step = outputs_at_start(vit, DISTILLED).random_texts
    again = outputs_at_start(vit, DISTILLED).random_texts
    assert step is not None and again is not None and torch.equal(step, again)
    rows = [(pool == row).all(dim=1).nonzero().flatten().tolist() for row in step]
    assert len(rows) == 80 == len({row[0] for row in rows}), "80 different ones"


class WordsOnly:
    """A tokenizer of another kind: no start token, padding 1, end 2, and words of a small vocabulary."""

    vocab_size = 50

    def __call__(self, texts: list[str]) -> Tensor:
        rows = [[{"a": 7, "b": 9}[word] for word in text.split()] + [2] for text in texts]
        return torch.tensor([(row + [1] * 12)[:12] for row in rows])


def test_random_texts_leave_what_is_around_a_text_alone(vit: Workspace) -> None:
    tokens = teacher.random_tokens(vit.loaded, 500)
    start, end = 49406, 49407
    assert tokens.shape == (500, 8) and (tokens[:, 0] == start).all() and (tokens[:, -1] == end).all()
    inside = tokens[:, 1:-1]
    assert int(inside.min()) > 0 and int(inside.max()) < start and len(inside.unique()) > 2500
    other = teacher.random_tokens(replace(vit.loaded, tokenizer=WordsOnly()), 500)
    assert (other[:, 8] == 2).all() and (other[:, 9:] == 1).all()
    assert set(other[:, :8].flatten().tolist()) == set(range(50)) - {1, 2}
    with pytest.raises(ModelError, match=r"loss_weights\.lipsum"):
        teacher.random_tokens(replace(vit.loaded, tokenizer=lambda texts: torch.zeros(len(texts), 8, dtype=torch.int64)), 2)


# --- slices


def test_slices_of_a_tower_of_twelve_blocks_are_the_published_ones_and_others_as_evenly_spaced() -> None:
    assert slices.depths(12) == [0, 3, 6, 9, 12]
    assert slices.depths(24) == [0, 6, 12, 18, 24]
    assert slices.depths(7) == [0, 2, 4, 5, 7]
    assert [slices.depths(count) for count in (1, 2, 3, 4)] == [[0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]


def test_slices_are_inputs_and_outputs_of_the_blocks(workspace: Workspace) -> None:
    visual = workspace.model.eval().clip.visual
    assert isinstance(visual, nn.Module)
    names = slices.blocks(visual)
    assert len(names) in (1, 7)
    images = torch.randn(3, 3, *sides(workspace))
    before = hooks(visual)
    with slices.captured(visual) as found:
        visual(images)
    assert hooks(visual) == before
    assert len(found) == len(slices.depths(len(names))) and all(len(part) == 3 for part in found)
    value, last = found[0], 0  # from each slice to the next through the blocks between them
    for depth, part in zip(slices.depths(len(names))[1:], found[1:], strict=True):
        for name in names[last:depth]:
            value = visual.get_submodule(name)(value)
        torch.testing.assert_close(value, part)
        last = depth


@pytest.mark.parametrize("name", ["RN50", "ViT-B-32", "convnext_base", "ViTamin-S"])
def test_blocks_are_found_in_towers_of_every_kind(name: str) -> None:
    import open_clip

    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        text = {"context_length": 8, "vocab_size": 99, "width": 16, "heads": 2, "layers": 1}
        vision = {**config["vision_cfg"], "timm_model_pretrained": False}
        clip = open_clip.CLIP(embed_dim=config["embed_dim"], vision_cfg=vision, text_cfg=text)
    expected = {"RN50": (16, "layer1.0", "layer4.2"), "ViT-B-32": (12, "transformer.resblocks.0", "transformer.resblocks.11")}
    expected |= {"convnext_base": (36, "trunk.stages.0.blocks.0", "trunk.stages.3.blocks.2")}
    expected |= {"ViTamin-S": (16, "trunk.patch_embed.backbone.stages.0", "trunk.blocks.13")}
    found = slices.blocks(clip.visual)
    assert (len(found), found[0], found[-1]) == expected[name]


def test_a_tower_without_blocks_has_one_slice() -> None:
    tower = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    with slices.captured(tower) as found:
        result = tower(torch.ones(2, 3, 2, 2))
    assert len(found) == 1 and torch.equal(found[0], result) and hooks(tower) == 0


def test_hooks_are_gone_after_a_failure_too(vit: Workspace) -> None:
    with pytest.raises(RuntimeError), teacher.captured_slices(vit.model, wanted=True):
        vit.model.image_features(torch.ones(1, 2, 3, 3))
    assert hooks(vit.model) == 0
    with pytest.raises(RuntimeError):
        teacher._frozen_forward(vit, torch.ones(1, 2, 3, 3), wanted=True)
    assert hooks(frozen_clip(vit)) == 0
    tune(vit, recipe(EVERY_TERM, steps=2))
    assert hooks(vit.model) == hooks(frozen_clip(vit)) == 0


def test_a_model_that_drops_patches_is_refused_with_what_to_change(vit: Workspace) -> None:
    found = outputs_at_start(vit, DISTILLED)
    assert found.slices is not None
    run = recipe(DISTILLED)
    images = torch.randn(2, 3, *sides(vit))
    with pytest.raises(ModelError, match=r"loss_weights\.ldifs.*patch_dropout"):
        teacher.method_outputs(
            vit, run.hyperparameters, needs_of(DISTILLED), images, torch.arange(2), images, [found.slices[0][:2, 1:]], torch.Generator()
        )
