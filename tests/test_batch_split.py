"""A batch that does not fit the memory is computed in parts, and comes to the same where that can be."""

import gc
import json
import math
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autoft.batch_split import Split, fitting, is_out_of_memory
from autoft.executor import Failed, FailureKind, Job, trial_events
from autoft.finetune import Recipe, draw_batch, finetune, training_state
from autoft.frozen import train_features
from autoft.gradients import StepLoss, most_parts
from autoft.losses import TERMS, couples_examples
from autoft.models import ClipClassifier, ZeroShotState
from autoft.models.state import trainable_parameters
from autoft.search_space import Hyperparameters
from autoft.stages import stage_result
from autoft.start import start_from, training_mode
from autoft.trial import run_trial
from autoft.workspace import Workspace
from tests.runs import cloned, digest, first_steps, load_workspace, one_thread, stages, tune, whole_trial
from tests.studies import TINY_VIT, write_model

CE = {"cross_entropy": 1.0}
EVERY_TERM = dict.fromkeys(TERMS, 0.5)
# Where a gradient is but rounding, a sign of it tells nothing: the L1 norms', once the weights have moved.
SMOOTH_TERMS = {term: weight for term, weight in EVERY_TERM.items() if not term.startswith("l1_")}
AT_REST = ("ldifs", "car_ft", "lipsum")  # at the start their gradient is 0, but for rounding
DESCRIBED = {"red": "the colour of blood", "green": ["the colour of leaves", "grass"], "blue": "the colour of the sky"}
BATCH = 11  # 3, 3, 3, 2 in four parts

MakeLimit = Callable[..., "Limit"]


class Limit:
    """A device that has memory for so many images, or texts, in a forward pass. Remembers what was asked for."""

    def __init__(self, examples: float, evaluation: float = math.inf) -> None:
        self.examples, self.evaluation = examples, evaluation
        self.asked: list[int] = []  # sizes of image batches while the model trains
        self.scored: list[int] = []  # while it does not
        self.failed = 0
        self.fails_at: int | None = None  # the so many-th training batch fails, whatever its size
        self.left: list[weakref.ref[Tensor]] = []

    def check(self, model: ClipClassifier, inputs: Tensor, count: bool) -> None:
        assert all(reference() is None for reference in self.left), "what a failed attempt had allocated is still there"
        if count:
            (self.asked if model.training else self.scored).append(len(inputs))
        if len(inputs) > (self.examples if model.training else self.evaluation) or (count and len(self.asked) == self.fails_at):
            activations = torch.ones(1000, requires_grad=True) * 2
            self.left.append(weakref.ref(activations))
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> MakeLimit:
    """Sets the limit."""
    image_features, text_features = ClipClassifier.image_features, ClipClassifier.text_features

    def limit(examples: float, evaluation: float = math.inf) -> Limit:
        found = Limit(examples, evaluation)

        def images(model: ClipClassifier, inputs: Tensor) -> Tensor:
            found.check(model, inputs, count=True)
            return image_features(model, inputs)

        def texts(model: ClipClassifier, tokens: Tensor) -> Tensor:
            found.check(model, tokens, count=False)
            return text_features(model, tokens)

        monkeypatch.setattr(ClipClassifier, "image_features", images)
        monkeypatch.setattr(ClipClassifier, "text_features", texts)
        return found

    return limit


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    with one_thread():
        yield


def load(folder: Path, model: Path, **changes: Any) -> Workspace:
    (folder / "descriptions.json").write_text(json.dumps(DESCRIBED))
    return load_workspace(folder, model, data__descriptions=str(folder / "descriptions.json"), **changes)


def in_float64(workspace: Workspace) -> Workspace:
    """The same workspace computing in double precision, whose rounding hides no mistake."""
    features = train_features(workspace)
    model, transform = workspace.model.double(), workspace.train_transform
    wide = replace(workspace, zero_shot=ZeroShotState.of(model), train_transform=lambda images, *draw: transform(images, *draw).double())
    wide.cached["train_features"] = features
    return wide


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory, tiny_vit: Path) -> Workspace:
    return in_float64(load(tmp_path_factory.mktemp("vit"), tiny_vit))


@pytest.fixture(scope="module")
def convnet(tmp_path_factory: pytest.TempPathFactory, tiny_convnet: Path) -> Workspace:
    return in_float64(load(tmp_path_factory.mktemp("convnet"), tiny_convnet, model__batch_norm="frozen"))


@pytest.fixture(scope="module")
def training_norm(tmp_path_factory: pytest.TempPathFactory, tiny_convnet: Path) -> Workspace:
    return load(tmp_path_factory.mktemp("norm"), tiny_convnet, model__batch_norm="train")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_vit: Path) -> Workspace:
    """In single precision, to be scored too."""
    return load(tmp_path_factory.mktemp("plain"), tiny_vit)


@pytest.fixture(params=["vit", "convnet"])
def exact(request: pytest.FixtureRequest) -> Workspace:
    """A model of which an example's features do not depend on the others in its batch."""
    found: Workspace = request.getfixturevalue(request.param)
    return found


@pytest.fixture(autouse=True)
def _whole(request: pytest.FixtureRequest) -> None:
    """No test knows of another one's splits."""
    for name in {"vit", "convnet", "training_norm", "plain", "exact"} & set(request.fixturenames):
        workspace = request.getfixturevalue(name)
        workspace.batch_split = workspace.evaluation_split = 1


def recipe(weights: dict[str, float] = CE, steps: int = 3, **options: Any) -> Recipe:
    """With SGD: where AdamW's gradient is but rounding it is divided by itself, and the last bit decides where a weight goes."""
    options = {"optimizer": "adamw" if options.get("constraint") == "saft" else "sgd", **options}
    values = Hyperparameters(lr=1e-3, weight_decay=0.1, loss_weights=weights, seed=5, **options)
    return Recipe(hyperparameters=values, steps=steps, batch_size=BATCH)


def weights_of(workspace: Workspace) -> dict[str, Tensor]:
    return cloned(workspace.model.state_dict())


def run(workspace: Workspace, of: Recipe) -> tuple[dict[str, Tensor], list[dict[str, float]], Split]:
    """Weights at the end, the terms of each step, and how all batches were computed."""
    terms, split = [], Split()
    for step in finetune(workspace, of, report_norms=True):
        terms.append({"loss": float(step.loss)} | {name: float(value) for name, value in step.terms.items()})
        split |= step.split
    return weights_of(workspace), terms, split


def assert_equal(found: tuple[dict[str, Tensor], list[dict[str, float]], Split], wanted: tuple[Any, Any, Any], rel: float = 1e-9) -> None:
    for name, tensor in wanted[0].items():
        torch.testing.assert_close(found[0][name], tensor, rtol=rel, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")
    assert found[1] == [pytest.approx(terms, rel=rel, abs=1e-12) for terms in wanted[1]]
    assert [list(terms) for terms in found[1]] == [list(terms) for terms in wanted[1]], "in the same order"


# --- what comes out is what whole batches would have given


@pytest.mark.parametrize("weights", [*({term: 1.0} for term in TERMS), EVERY_TERM], ids=[*TERMS, "every term"])
def test_the_gradient_of_parts_is_that_of_the_whole_batch(exact: Workspace, weights: dict[str, float]) -> None:
    """Of each parameter, away from the start, where some terms have none."""
    of = recipe(weights)
    start_from(exact, of.hyperparameters)
    training_mode(exact)
    parameters = trainable_parameters(exact.model)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=rng, dtype=parameter.dtype))
    step_loss = StepLoss(exact, of.hyperparameters, parameters, exact.zero_shot.parameters_of(exact.model))

    def gradient(parts: int) -> tuple[list[Tensor | None], list[float]]:
        exact.model.zero_grad()
        loss, terms, split = step_loss.add_gradients(draw_batch(exact, of, 0), parts, with_norms=True)
        assert split == Split(parts, exact=True)
        return [parameter.grad for parameter in parameters], [float(value) for value in (loss.detach(), *terms.values())]

    whole, values = gradient(1)
    total = math.sqrt(sum(float(part.square().sum()) for part in whole if part is not None))
    for parts in (2, 4, BATCH):
        found, same = gradient(parts)
        assert same == pytest.approx(values, rel=1e-9)
        for part, wanted in zip(found, whole, strict=True):
            assert (part is None) == (wanted is None)
            if part is not None and wanted is not None:
                assert float((part - wanted).norm()) <= 1e-9 * float(wanted.norm()) + 1e-12 * total


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        *(("vit", {term: 1.0} | (CE if term in AT_REST else {})) for term in TERMS),
        ("vit", SMOOTH_TERMS),
        ("convnet", CE),
        ("convnet", SMOOTH_TERMS),
    ],
    ids=[*TERMS, "every term", "convnet, cross_entropy", "convnet, every term"],
)
def test_parts_come_to_the_same_as_the_whole_batch(
    name: str, weights: dict[str, float], request: pytest.FixtureRequest, limited: MakeLimit
) -> None:
    workspace: Workspace = request.getfixturevalue(name)
    workspace.batch_split = 1
    whole = run(workspace, recipe(weights))
    limit = limited(examples=5)
    parts = run(workspace, recipe(weights))
    assert limit.failed == 2, "eleven at once, and six"
    assert_equal(parts, whole)
    assert (whole[2], parts[2], workspace.batch_split) == (Split(1, True), Split(4, True), 4)
    assert any(not torch.equal(tensor, workspace.zero_shot.tensors[name]) for name, tensor in parts[0].items())


def test_chunks_of_one_example_are_the_smallest(vit: Workspace, limited: MakeLimit) -> None:
    limit = limited(math.inf)
    for weights in (CE, SMOOTH_TERMS):
        vit.batch_split, limit.examples = 1, math.inf
        whole = run(vit, recipe(weights, steps=2))
        limit.examples = 1
        assert_equal(run(vit, recipe(weights, steps=2)), whole)
        assert limit.asked[-1] == 1


def test_terms_that_couple_examples_are_known() -> None:
    """A term that is added here has to pass the two tests above."""
    assert {term for term in TERMS if couples_examples([term])} == {"contrastive", "feature_mixup", "focal_contrastive"}


def test_a_part_is_seen_once_where_no_term_needs_the_whole_batch_and_twice_where_one_does(vit: Workspace, limited: MakeLimit) -> None:
    vit.batch_split = 4
    limit = limited(math.inf)
    tune(vit, recipe({"cross_entropy": 1.0, "lipsum": 0.5, "ldifs": 0.5, "l2_init": 1.0}, steps=1))
    assert limit.asked == [3, 3, 3, 2]
    limit.asked.clear()
    tune(vit, recipe({"cross_entropy": 1.0, "contrastive": 1.0}, steps=1))
    assert limit.asked == [3, 3, 3, 2, 2, 3, 3, 3], "for the features, and for their gradients"


def test_the_frozen_model_too_sees_parts(vit: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    for weights in (CE | {"ldifs": 1.0}, CE | {"car_ft": 1.0, "focal_contrastive": 1.0}):
        sizes: list[int] = []
        clip = type(vit.model.clip)
        encode = clip.encode_image

        def counted(self: Any, images: Tensor, normalize: bool = False, encode: Any = encode, sizes: list[int] = sizes) -> Tensor:
            sizes.append(len(images))
            found: Tensor = encode(self, images, normalize)
            return found

        tune(vit, recipe(weights, steps=1))  # builds what is cached
        vit.batch_split = 4
        with monkeypatch.context() as patch:
            patch.setattr(clip, "encode_image", counted)
            tune(vit, recipe(weights, steps=1))
        assert max(sizes) == 3, sizes
        vit.batch_split = 1


def test_half_precision_adds_parts_up_in_full(tmp_path: Path, tiny_vit: Path) -> None:
    """bf16 rounds the gradient of each part, not their sum: many parts are no further from the truth than one batch."""
    workspace = load(tmp_path, tiny_vit)
    section = workspace.config.model.model_copy(update={"precision": "bf16"})
    half = replace(workspace, config=workspace.config.model_copy(update={"model": section}))
    of = recipe({"contrastive": 1.0})

    def gradient(where: Workspace, parts: int) -> Tensor:
        start_from(where, of.hyperparameters)
        training_mode(where)
        parameters = trainable_parameters(where.model)
        StepLoss(where, of.hyperparameters, parameters, []).add_gradients(draw_batch(where, of, 0), parts)
        found = where.model.get_parameter("clip.visual.transformer.resblocks.0.mlp.c_fc.weight").grad
        assert found is not None
        return found

    truth = gradient(workspace, 1)
    once, often = (float((gradient(half, parts) - truth).norm() / truth.norm()) for parts in (1, BATCH))
    assert 0.001 < once < 0.1 and often < 1.04 * once, "1.09 where the parts are added up in bf16"


# --- without a limit nothing changes


def test_where_everything_fits_nothing_is_split_and_nothing_more_is_done(
    vit: Workspace, monkeypatch: pytest.MonkeyPatch, limited: MakeLimit
) -> None:
    for name in ("checkpoint", "_release"):
        monkeypatch.setattr(f"autoft.batch_split.{name}", lambda *args, **options: pytest.fail("not needed"))
    monkeypatch.setattr(torch.Tensor, "tensor_split", lambda *args: pytest.fail("not needed"))
    limit = limited(math.inf)
    _, _, split = run(vit, recipe(EVERY_TERM))
    assert (split, vit.batch_split, limit.asked) == (Split(), 1, [BATCH] * 3)


# --- a worker remembers


def test_a_trial_that_ran_out_of_memory_says_so_and_the_next_one_does_not(plain: Workspace, limited: MakeLimit) -> None:
    values = recipe(EVERY_TERM).hyperparameters
    whole = whole_trial(plain, values)
    limit = limited(examples=4)
    results = [whole_trial(plain, values), whole_trial(plain, values)]
    assert limit.failed == 2, "in the first trial only"
    assert [(result.batch_split, result.batch_split_exact) for result in [whole, *results]] == [(1, True), (4, True), (4, True)]
    assert [result.score for result in results] == [whole.score] * 2


@pytest.mark.parametrize("weights", [CE, EVERY_TERM], ids=["cross-entropy", "every term"])
@pytest.mark.parametrize("name", ["vit", "training_norm"])
def test_finding_the_split_leaves_no_trace(
    name: str, weights: dict[str, float], request: pytest.FixtureRequest, limited: MakeLimit
) -> None:
    """To the bit, BatchNorm's statistics among it: the failed attempts, and those of a trial before, might never have been."""
    workspace: Workspace = request.getfixturevalue(name)
    workspace.batch_split = 4
    tune(workspace, recipe(weights))
    expected = digest(workspace)
    workspace.batch_split = 1
    limit = limited(examples=3)
    tune(workspace, recipe(weights))
    assert (limit.failed, workspace.batch_split, digest(workspace)) == (2, 4, expected)
    tune(workspace, recipe({"hinge": 1.0}))
    tune(workspace, recipe(weights))
    assert digest(workspace) == expected


def test_memory_that_runs_out_later_repeats_that_step_only(vit: Workspace, limited: MakeLimit) -> None:
    whole = run(vit, recipe(SMOOTH_TERMS, steps=4))
    limit = limited(math.inf)
    splits = []
    for step in finetune(vit, recipe(SMOOTH_TERMS, steps=4)):
        splits.append(step.split.parts)
        limit.examples = 6 if step.number >= 2 else math.inf
    assert splits == [1, 1, 2, 2]
    for tensor, wanted in zip(weights_of(vit).values(), whole[0].values(), strict=True):
        torch.testing.assert_close(tensor, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weights", [CE, EVERY_TERM], ids=["cross-entropy", "every term"])
def test_a_resumed_run_goes_on_with_its_split(vit: Workspace, weights: dict[str, float], tmp_path: Path) -> None:
    vit.batch_split = 3
    tune(vit, recipe(weights, steps=5))
    expected = digest(vit)
    torch.save(training_state(vit, first_steps(vit, recipe(weights, steps=5), 2)), tmp_path / "state.pt")
    for other in (1, 8):
        vit.batch_split = other
        tune(vit, recipe(weights, steps=5), resume=torch.load(tmp_path / "state.pt", weights_only=True))
        assert (vit.batch_split, digest(vit)) == (3, expected)


def test_the_record_of_a_full_fine_tune_has_its_split(tmp_path: Path, tiny_vit: Path, limited: MakeLimit) -> None:
    from autoft.config import load_config
    from tests.studies import write_study

    config = load_config(write_study(tmp_path, tiny_vit, evaluate__baselines=[]))
    limited(examples=6)
    stages(config, tmp_path, recipe().hyperparameters)
    record = stage_result(tmp_path / "run", "final")
    assert record is not None and (record["batch_split"], record["batch_split_exact"]) == (2, True)


@pytest.mark.parametrize("name", ["vit", "training_norm"])
def test_memory_that_runs_out_halfway_through_the_backward_pass(name: str, request: pytest.FixtureRequest, limited: MakeLimit) -> None:
    """Gradients of some parts are there already, and BatchNorm has seen the batch."""
    workspace: Workspace = request.getfixturevalue(name)
    for weights, fails_at in ((CE, 2), (EVERY_TERM, 4)):
        workspace.batch_split = 4
        tune(workspace, recipe(weights))
        expected = digest(workspace)
        workspace.batch_split = 2
        limit = limited(math.inf)
        limit.fails_at = fails_at
        tune(workspace, recipe(weights))
        assert (limit.failed, workspace.batch_split, digest(workspace)) == (1, 4, expected)


# --- where it is not the same, it says so


@pytest.mark.parametrize("weights", [CE, EVERY_TERM], ids=["cross-entropy", "every term"])
def test_batch_norm_that_trains_is_not_exact_and_counts_every_part_once(training_norm: Workspace, weights: dict[str, float]) -> None:
    training_norm.batch_split = 4
    found, _, split = run(training_norm, recipe(weights, steps=2))
    assert split == Split(4, exact=False)
    counters = {
        int(tensor) - int(training_norm.zero_shot.tensors[name]) for name, tensor in found.items() if name.endswith("num_batches_tracked")
    }
    assert counters == {2 * 4}
    assert (most_parts(training_norm, BATCH), most_parts(training_norm, 1)) == (5, 1), "two examples have a variance, one has none"
    result = whole_trial(training_norm, recipe(weights).hyperparameters)
    assert (result.batch_split, result.batch_split_exact) == (4, False)


@pytest.mark.parametrize("weights", [CE, CE | {"contrastive": 1.0}], ids=["cross-entropy", "contrastive"])
def test_dropout_is_not_exact(weights: dict[str, float], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    vision = TINY_VIT["vision_cfg"] | {"patch_dropout": 0.5}  # type: ignore[operator]
    workspace = load(tmp_path, write_model(tmp_path_factory.mktemp("model"), {**TINY_VIT, "vision_cfg": vision}))
    assert run(workspace, recipe(weights))[2] == Split()
    workspace.batch_split = 2
    first, _, split = run(workspace, recipe(weights))
    assert split == Split(2, exact=False)
    again, _, _ = run(workspace, recipe(weights))
    assert all(torch.equal(first[name], again[name]) for name in first)


# --- methods that compute gradients of their own


@pytest.mark.parametrize("reduction", ["abs_of_sum", "sum_of_abs"])
def test_safts_mask_is_that_of_whole_batches(vit: Workspace, reduction: Any, limited: MakeLimit) -> None:
    of = recipe(CE, constraint="saft", density=0.05, mask_batches=3, mask_reduction=reduction)
    whole = run(vit, of)
    limit = limited(math.inf)
    limit.examples = 6
    assert_equal(run(vit, of), whole)
    assert limit.failed == 1
    moved = sum(int((tensor != vit.zero_shot.tensors[name]).sum()) for name, tensor in whole[0].items())
    assert 0 < moved < 0.06 * sum(tensor.numel() for tensor in whole[0].values())


def test_tpgms_held_out_batch_is_split_too(vit: Workspace, limited: MakeLimit) -> None:
    limit = limited(math.inf)
    whole = run(vit, recipe(CE, constraint="tpgm"))
    assert limit.scored == [5] * 3, "a tenth of TRAIN"
    for limit.examples, limit.evaluation in ((math.inf, 2), (6, 3)):
        limit.scored.clear()
        vit.batch_split = 1
        assert_equal(run(vit, recipe(CE, constraint="tpgm")), whole)
        assert limit.failed and max(limit.scored[-4:]) == limit.evaluation


# --- scoring


def test_scoring_in_smaller_batches_gives_the_same_scores(plain: Workspace, limited: MakeLimit) -> None:
    evaluate = plain.config.evaluate.model_copy(update={"batch_size": 20})
    plain = replace(plain, config=plain.config.model_copy(update={"evaluate": evaluate}))
    expected = plain.logits("val_ood")
    limit = limited(math.inf, evaluation=7)
    torch.testing.assert_close(plain.logits("val_ood"), expected, rtol=1e-5, atol=1e-5)
    assert (limit.failed, plain.evaluation_split, plain.batch_split) == (2, 4, 1)
    assert limit.scored == [20, 10, 5, 5, 5, 5, 4]
    plain.logits("val_id")
    assert limit.failed == 2
    limit.evaluation = 0
    with pytest.raises(torch.OutOfMemoryError):
        plain.logits("val_ood")


# --- when nothing helps


def test_only_when_the_smallest_parts_do_not_fit_the_error_leaves_the_loop(vit: Workspace, limited: MakeLimit) -> None:
    tune(vit, recipe(EVERY_TERM))
    expected = digest(vit)
    limit = limited(examples=0)
    with pytest.raises(torch.OutOfMemoryError, match="not even the smallest of 11 parts of a batch fits the memory: CUDA out of memory"):
        tune(vit, recipe(EVERY_TERM))
    assert limit.failed == 5, "1, 2, 4, 8 and 11 parts"
    assert vit.batch_split == 1, "it was of no use"
    assert all(parameter.grad is None for parameter in vit.model.parameters())
    (event,) = trial_events(vit, Job(0, recipe().hyperparameters), lambda: False, "worker")
    assert isinstance(event, Failed) and event.kind == FailureKind.OUT_OF_MEMORY and "\n" not in event.message
    limit.examples = math.inf
    tune(vit, recipe(EVERY_TERM))
    assert digest(vit) == expected


def test_an_optimizer_without_memory_is_no_matter_of_the_batch(vit: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.optim.SGD, "step", fails)
    with pytest.raises(torch.OutOfMemoryError, match=r"^CUDA out of memory\.$"):
        tune(vit, recipe())
    assert vit.batch_split == 1


def test_other_errors_are_not_taken_for_it(vit: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(ClipClassifier, "image_features", fails)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        next(run_trial(vit, recipe().hyperparameters))
    assert vit.batch_split == 1
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(MemoryError()) and not is_out_of_memory(RuntimeError("out of range"))


@pytest.mark.parametrize(
    ("split", "most", "fits", "tried", "known"),
    [(1, 11, 3, [1, 2, 4], 4), (8, 4, 4, [4], 8), (4, 11, 9, [4, 8, 11], 16), (1, 1, 1, [1], 1)],
)
def test_parts_are_doubled_until_they_fit(split: int, most: int, fits: int, tried: list[int], known: int) -> None:
    asked: list[int] = []

    def compute(parts: int) -> str:
        asked.append(parts)
        if parts < fits:
            raise torch.OutOfMemoryError("")
        return "done"

    assert fitting(compute, split, most, torch.device("cpu")) == ("done", known)
    assert asked == tried


_SHORT_OF_MEMORY = """
import ctypes, gc, json, resource, sys
from pathlib import Path
import torch
from autoft.search_space import Hyperparameters
from tests.runs import load_workspace, whole_trial
from tests.studies import TINY_VIT, write_model

torch.set_num_threads(1)
torch._C._set_mkldnn_enabled(False)  # it does not say why it "could not create a primitive"
folder, weights = Path(sys.argv[1]), json.loads(sys.argv[2])
vision = {"image_size": 32, "layers": 3, "width": 128, "head_width": 64, "patch_size": 2}
model = write_model(folder / "model", {**TINY_VIT, "vision_cfg": vision})
workspace = load_workspace(folder, model, trial__batch_size=32, trial__steps=1)
values = Hyperparameters(lr=1e-4, weight_decay=0.1, loss_weights=weights, seed=5)

def virtual(kind):
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    line = next(line for line in open("/proc/self/status") if line.startswith(kind))
    return int(line.split()[1]) * 1024

workspace.batch_split = 8  # loads what there is to load
whole_trial(workspace, values)
base = virtual("VmSize")
workspace.batch_split = 1
whole = whole_trial(workspace, values)
needed = virtual("VmPeak") - max(base, virtual("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (virtual("VmSize") + needed // 2, resource.RLIM_INFINITY))
results = [whole_trial(workspace, values), whole_trial(workspace, values)]
print(json.dumps([[result.batch_split, result.batch_split_exact, result.score - whole.score] for result in results]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a process's memory can be limited on Linux only")
@pytest.mark.parametrize("weights", [CE, CE | {"contrastive": 1.0}], ids=["cross-entropy", "contrastive"])
def test_a_process_that_really_runs_out_of_memory_ends_its_trials_well(weights: dict[str, float], tmp_path: Path) -> None:
    """The CPU's allocator fails, half of what the whole batch takes being there."""
    command = [sys.executable, "-c", _SHORT_OF_MEMORY, str(tmp_path), json.dumps(weights)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = json.loads(done.stdout.splitlines()[-1])
    assert first[0] > 1 and first == second == [first[0], True, pytest.approx(0, abs=0.1)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, to run out of its memory")
@pytest.mark.parametrize("weights", [CE, CE | {"contrastive": 1.0}], ids=["cross-entropy", "contrastive"])
def test_a_real_device_runs_out_of_memory_and_the_trial_ends_well(weights: dict[str, float], tmp_path: Path) -> None:
    vision = {"image_size": 64, "layers": 8, "width": 256, "head_width": 64, "patch_size": 4}
    model = write_model(tmp_path / "model", {**TINY_VIT, "vision_cfg": vision})
    workspace = load_workspace(tmp_path, model, trial__batch_size=48, trial__steps=3)
    workspace = Workspace.load(workspace.config, "cuda", tmp_path / "cache")
    values = Hyperparameters(lr=1e-4, weight_decay=0.1, loss_weights=weights, seed=5)
    whole = whole_trial(workspace, values)
    gc.collect()
    torch.cuda.empty_cache()
    kept, total = torch.cuda.memory_allocated(), torch.cuda.get_device_properties(0).total_memory
    peak = torch.cuda.max_memory_allocated()
    try:
        torch.cuda.set_per_process_memory_fraction((kept + 0.5 * (peak - kept)) / total)
        results = [whole_trial(workspace, values), whole_trial(workspace, values)]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert [result.batch_split > 1 and result.batch_split_exact for result in results] == [True, True]
    assert results[0].score == results[1].score == pytest.approx(whole.score, abs=0.1)
