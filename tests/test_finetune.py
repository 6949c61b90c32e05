"""The training loop, trials and scoring: the searched rate arrives, the anchor stays, randomness is a function of (seed, step)."""

import csv
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from autoft.config import TrialConfig
from autoft.evaluate import NonFiniteScore
from autoft.finetune import (
    Diverged,
    Recipe,
    Step,
    batch_examples,
    final_recipe,
    finetune,
    step_generator,
    training_state,
    trial_recipe,
)
from autoft.losses import LOSS_TERMS
from autoft.losses.weight_norms import NORM_ORDERS
from autoft.models import ZeroShotState, state_digest
from autoft.optim import lr_multiplier
from autoft.search_space import Hyperparameters
from autoft.trial import Report, TrialStopped, run_trial
from autoft.workspace import DeviceImages, Workspace
from tests.runs import (
    ALL_TERMS,
    IMAGE_TERMS,
    cloned,
    digest,
    first_steps,
    hyperparameters,
    load_workspace,
    one_thread,
    outputs_of,
    tune,
    whole_trial,
)
from tests.studies import CLASSES, TINY_CONVNET, write_model

CE = {"cross_entropy": 1.0}


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


def changed(workspace: Workspace, section: str, **values: Any) -> Workspace:
    """The same warm workspace under a changed study file."""
    config = workspace.config
    part = getattr(config, section).model_copy(update=values)
    return replace(workspace, config=config.model_copy(update={section: part}))


def recipe(values: Hyperparameters, steps: int = 6, **options: Any) -> Recipe:
    return Recipe(hyperparameters=values, steps=steps, batch_size=12, **options)


def rates(steps: Iterator[Step]) -> list[float]:
    found = []
    for step in steps:
        (group,) = step.optimizer.param_groups
        found.append(group["lr"])
    return found


# --- defect 1: the searched rate


def test_defect_1_the_searched_rate_reaches_the_optimizer_in_a_trial(workspace: Workspace) -> None:
    values = hyperparameters(lr=3.21e-4, weight_decay=0.456)
    for step in finetune(workspace, trial_recipe(workspace.config.trial, values, len(workspace.train))):
        (group,) = step.optimizer.param_groups
        assert (group["lr"], group["weight_decay"], group["betas"]) == (3.21e-4, 0.456, (0.9, 0.999))
        assert {id(p) for p in group["params"]} == {id(p) for p in workspace.model.parameters()}


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_defect_1_warm_up_and_schedule_scale_the_searched_rate_in_the_final_run(vit: Workspace, schedule: Any) -> None:
    final = vit.config.final.model_copy(update={"epochs": 5, "warmup_fraction": 0.3, "schedule": schedule})
    lr = 7.7e-4
    found = rates(finetune(vit, final_recipe(final, hyperparameters(lr=lr), len(vit.train))))
    total, warm = 5 * (48 // 12), 6
    assert len(found) == total
    for t, rate in enumerate(found):
        if t < warm:
            expected = lr * (t + 1) / warm
        else:
            expected = lr * (0.5 * (1 + math.cos(math.pi * (t - warm) / (total - warm))) if schedule == "cosine" else 1.0)
        assert rate == pytest.approx(expected, rel=1e-12)
    assert max(found) == pytest.approx(lr)


def test_defect_1_the_rate_is_what_the_weights_feel(vit: Workspace) -> None:
    """Adam's first step moves every weight that has a gradient by about the rate itself."""
    for lr in (1e-5, 1e-3):
        first_steps(vit, recipe(hyperparameters(lr=lr, weights=CE, weight_decay=0.0)), 1)
        moved = (vit.model.head.weight.detach() - vit.zero_shot.tensors["head.weight"]).abs().median()
        assert float(moved) == pytest.approx(lr, rel=0.05)


def test_multipliers_stay_within_their_bounds_for_every_length() -> None:
    for total in (1, 2, 7, 50):
        for warm in range(total):
            values = [lr_multiplier(t, total, warm, "cosine") for t in range(total)]
            assert all(0 < value <= 1 for value in values)
            assert values[:warm] == sorted(values[:warm]) and values[warm:] == sorted(values[warm:], reverse=True)
            assert values[warm] == 1.0


# --- defect 2: the anchor


def test_defect_2_distances_to_the_start_are_zero_at_first_and_then_what_they_should_be(workspace: Workspace) -> None:
    run = final_recipe(workspace.config.final, hyperparameters(), len(workspace.train))
    before = state_digest(workspace.zero_shot.tensors)
    distances: list[dict[str, float]] = []
    weights = [cloned(dict(workspace.model.named_parameters()))]
    for step in finetune(workspace, run, report_norms=True):
        distances.append({term: float(step.terms[term]) for term in ("l1_init", "l2_init")})
        weights.append(cloned(dict(workspace.model.named_parameters())))
    assert distances[0] == {"l1_init": 0.0, "l2_init": 0.0}
    for t in range(1, len(distances)):
        moved = torch.cat([(weights[t][name] - workspace.zero_shot.tensors[name]).double().flatten() for name in weights[t]])
        assert distances[t]["l1_init"] == pytest.approx(float(moved.abs().mean()), rel=1e-4) != 0
        assert distances[t]["l2_init"] == pytest.approx(float(moved.square().mean()), rel=1e-4) != 0
    assert state_digest(workspace.zero_shot.tensors) == before, "training does not move the anchor"


def test_defect_2_a_strong_pull_to_the_start_keeps_the_weights_there(vit: Workspace) -> None:
    def distance(weight: float) -> float:
        tune(vit, recipe(hyperparameters(weights=CE | {"l1_init": weight}, weight_decay=0.0), steps=20))
        return sum(float((vit.zero_shot.tensors[name] - tensor.detach()).abs().sum()) for name, tensor in vit.model.named_parameters())

    assert distance(1e6) < 0.3 * distance(1e-4)


def test_defect_2_reset_restores_every_parameter_and_buffer_exactly(workspace: Workspace) -> None:
    workspace.zero_shot.restore(workspace.model)
    before = cloned(workspace.model.state_dict())
    tune(workspace, recipe(hyperparameters()))
    after = workspace.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name, _ in workspace.model.named_parameters()} <= moved
    assert {name for name in before if "running_" in name or "num_batches" in name} <= moved
    workspace.zero_shot.restore(workspace.model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in workspace.model.state_dict().items())


# --- defect 5: epochs


@pytest.mark.parametrize(("examples", "batch"), [(48, 12), (50, 12), (7, 7), (9, 2)])
def test_defect_5_an_epoch_is_without_replacement_and_the_next_one_differs(examples: int, batch: int) -> None:
    per_epoch = examples // batch
    epochs = [torch.cat([batch_examples(examples, batch, 3, e * per_epoch + i) for i in range(per_epoch)]) for e in range(4)]
    for epoch in epochs:
        assert len(epoch) == per_epoch * batch == len(set(epoch.tolist()))
        assert set(epoch.tolist()) <= set(range(examples))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4
    assert torch.equal(batch_examples(examples, batch, 3, 0), epochs[0][:batch]), "any step can be asked for again"
    assert not torch.equal(batch_examples(examples, batch, 4, 0), epochs[0][:batch])


def _spy_on_batches(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The examples of every training batch from now on."""
    seen: list[Tensor] = []
    take = DeviceImages.take

    def spied(self: DeviceImages, examples: Tensor) -> Tensor:
        seen.append(examples)
        return take(self, examples)

    monkeypatch.setattr(DeviceImages, "take", spied)
    return seen


def test_defect_5_the_final_run_sees_every_example_once_an_epoch(vit: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _spy_on_batches(monkeypatch)
    tune(vit, final_recipe(vit.config.final, hyperparameters(weights=CE), len(vit.train)))
    for epoch in (seen[:4], seen[4:]):
        assert torch.cat(epoch).sort().values.tolist() == list(range(48))


def test_a_batch_larger_than_train_is_all_of_train(vit: Workspace) -> None:
    trial = TrialConfig(steps=3, batch_size=1000)
    run = trial_recipe(trial, hyperparameters(weights=CE), len(vit.train))
    assert (run.batch_size, run.samples) == (48, 144)
    assert len(tune(vit, run)) == 3
    final = vit.config.final.model_copy(update={"batch_size": 1000})
    assert final_recipe(final, hyperparameters(), 48).steps == final.epochs


# --- defect 13: the evaluation transform


def test_defect_13_val_ood_is_scored_under_open_clips_own_evaluation_transform(workspace: Workspace) -> None:
    """Original images through `image_transform(is_train=False)`, a separately loaded model and head give the same logits."""
    name = workspace.config.model.name
    clip, _ = open_clip.create_model_from_pretrained(name)
    clip.eval()
    pixels = workspace.loaded.preprocess
    transform = open_clip.image_transform(pixels.size, is_train=False, mean=pixels.mean, std=pixels.std, interpolation="bicubic")
    arrays = np.load(workspace.config.data.val_ood.path)
    images = torch.stack([transform(Image.fromarray(image)) for image in arrays["images"]])
    templates = [lambda text, template=template: template.replace("{}", text) for template in workspace.config.data.templates]
    head = open_clip.build_zero_shot_classifier(clip, open_clip.get_tokenizer(name), CLASSES, templates, num_classes_per_batch=None)
    workspace.zero_shot.restore(workspace.model)
    with torch.no_grad():
        expected = clip.logit_scale.exp() * clip.encode_image(images, normalize=True) @ head
    torch.testing.assert_close(workspace.logits("val_ood"), expected, rtol=1e-4, atol=1e-4)
    accuracy = float((expected.argmax(dim=1).numpy() == arrays["labels"]).mean())
    assert workspace.score("val_ood") == pytest.approx(accuracy)


def test_defect_13_scoring_twice_gives_the_same_whatever_was_drawn_before(workspace: Workspace) -> None:
    results = []
    for seed in (0, 1):
        tune(workspace, recipe(hyperparameters(seed=4)))
        torch.manual_seed(seed)
        np.random.seed(seed)
        workspace.model.train()
        results += [workspace.logits("val_ood"), workspace.logits("val_ood")]
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_defect_13_a_trials_score_is_the_metric_of_its_model_on_val_ood(workspace: Workspace) -> None:
    result = whole_trial(workspace, hyperparameters())
    labels = workspace.images("val_ood").labels
    assert result.score == float((workspace.logits("val_ood").argmax(dim=1) == labels).double().mean())
    assert (result.steps, result.samples) == (4, 48)


# --- one loop: learning, terms, layers


@pytest.mark.parametrize("weights", [CE, ALL_TERMS], ids=["cross-entropy", "all terms"])
def test_the_loss_falls(vit: Workspace, weights: dict[str, float]) -> None:
    losses = tune(vit, recipe(hyperparameters(weights=weights), steps=24))
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])


def test_the_loss_is_the_weighted_sum_of_its_terms(vit: Workspace) -> None:
    weights = {term: 0.1 + i for i, term in enumerate(ALL_TERMS)}
    for step in finetune(vit, recipe(hyperparameters(weights=weights), steps=3), report_norms=True):
        assert set(step.terms) == set(weights)
        assert float(step.loss) == pytest.approx(sum(weights[term] * float(value) for term, value in step.terms.items()), rel=1e-5)


def test_reporting_the_norms_changes_no_weight(workspace: Workspace) -> None:
    states = []
    for report in (False, True):
        steps = [(digest(workspace), set(step.terms)) for step in finetune(workspace, recipe(hyperparameters()), report_norms=report)]
        states.append([state for state, _ in steps])
        assert all(terms == {term for term in ALL_TERMS if report or term not in NORM_ORDERS} for _, terms in steps)
    assert states[0] == states[1]
    tune(workspace, recipe(hyperparameters(weights={term: ALL_TERMS[term] for term in ALL_TERMS if term not in NORM_ORDERS})))
    assert digest(workspace) != states[0][-1], "the norms count though nobody reads them"


def _off_zero(vit: Workspace) -> Workspace:
    """No weight starts at 0: where nothing but rounding is left of a gradient, as of a key's bias, AdamW makes a whole step of it."""
    noise = torch.Generator().manual_seed(1)
    tensors = {
        name: tensor + 0.01 * torch.randn(tensor.shape, generator=noise) if tensor.is_floating_point() and tensor.dim() else tensor
        for name, tensor in vit.zero_shot.tensors.items()
    }
    return replace(vit, zero_shot=ZeroShotState(tensors))


@pytest.mark.parametrize("bound", [None, 0.01])
def test_a_step_is_that_of_autograd_over_the_weighted_sum(vit: Workspace, bound: float | None) -> None:
    """The first AdamW steps with every term, against plain formulas, autograd and an optimizer built here; clipping sees the norms."""
    weights = ALL_TERMS | {"l1_zero": 10.0, "l2_zero": 10.0}
    run = recipe(hyperparameters(weights=weights), steps=3, clip_grad_norm=bound)
    vit = _off_zero(vit)
    expected: list[dict[str, Tensor]] = []
    first_steps(vit, run, 1)  # lets the text tower train
    vit.zero_shot.restore(vit.model)
    parameters = dict(vit.model.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=run.hyperparameters.lr, weight_decay=run.hyperparameters.weight_decay)
    for step in range(3):
        vit.model.train()
        outputs = outputs_of(vit, run, step)
        optimizer.zero_grad()
        total = torch.stack([weight * LOSS_TERMS[term].compute(outputs) for term, weight in weights.items()]).sum()
        total.backward()  # type: ignore[no-untyped-call]
        if bound is not None:
            torch.nn.utils.clip_grad_norm_(parameters.values(), bound)
        optimizer.step()
        expected.append(cloned(parameters))
    vit.model.zero_grad()
    for taken, wanted in zip(finetune(vit, run), expected, strict=True):
        for name, parameter in vit.model.named_parameters():
            start = vit.zero_shot.tensors[name]
            torch.testing.assert_close(parameter.detach() - start, wanted[name] - start, rtol=1e-2, atol=2e-5, msg=f"{taken.number} {name}")


def test_the_order_of_the_weights_changes_nothing(vit: Workspace) -> None:
    states = []
    for weights in (ALL_TERMS, dict(reversed(ALL_TERMS.items()))):
        tune(vit, recipe(hyperparameters(weights=weights)))
        states.append(digest(vit))
    assert states[0] == states[1]


@pytest.mark.parametrize(("weights", "moves"), [(IMAGE_TERMS, False), (CE, False), (CE | {"contrastive": 0.5}, True)])
def test_the_text_tower_trains_only_for_a_term_that_needs_it(workspace: Workspace, weights: dict[str, float], moves: bool) -> None:
    tune(workspace, recipe(hyperparameters(weights=CE | {"contrastive": 1.0})))  # a trial before that trains the text tower
    tune(workspace, recipe(hyperparameters(weights=weights, weight_decay=0.5)))
    state = workspace.model.state_dict()
    moved = {name for name, start in workspace.zero_shot.tensors.items() if not torch.equal(start, state[name])}
    text = {name for name, _ in workspace.model.named_parameters() if name.startswith("clip.") and not name.startswith("clip.visual.")}
    image = {name for name, _ in workspace.model.named_parameters()} - text
    assert "clip.logit_scale" in text and any("resblocks" in name for name in text)
    assert text & moved == (text if moves else set())
    assert image <= moved


@pytest.mark.parametrize("mode", ["frozen", "train"])
def test_batch_norm_keeps_its_statistics_only_where_frozen(convnet: Workspace, mode: str) -> None:
    tune(changed(convnet, "model", batch_norm=mode), recipe(hyperparameters(weights=CE)))
    state = convnet.model.state_dict()
    layers = [name for name, module in convnet.model.named_modules() if isinstance(module, _BatchNorm)]
    assert len(layers) > 10
    for layer in layers:
        for buffer in ("running_mean", "running_var", "num_batches_tracked"):
            name = f"{layer}.{buffer}"
            assert torch.equal(state[name], convnet.zero_shot.tensors[name]) == (mode == "frozen"), name
        assert not torch.equal(state[f"{layer}.weight"], convnet.zero_shot.tensors[f"{layer}.weight"]), "its weights train in any case"


def test_the_logit_scale_stays_in_its_range(vit: Workspace) -> None:
    for start in (0.0, math.log(100)):
        tensors = cloned(vit.zero_shot.tensors)
        tensors["clip.logit_scale"].fill_(start)
        at_its_bound = replace(vit, zero_shot=ZeroShotState(tensors))
        scales = []
        for sign in (1.0, -1.0):  # one of the two pushes the scale over its bound
            for _ in finetune(at_its_bound, recipe(hyperparameters(lr=0.05, weights={"contrastive": sign}, weight_decay=0.0), steps=3)):
                scales.append(vit.model.logit_scale.item())
        assert all(0 <= scale <= math.log(100) * (1 + 1e-7) for scale in scales)
        assert len(set(scales)) > 1


def test_clip_grad_norm_clips(vit: Workspace) -> None:
    """Clipped far below Adam's epsilon, a step moves nothing; with a generous bound it moves as without one."""

    def moved(bound: float | None) -> float:
        first_steps(vit, recipe(hyperparameters(weights=CE, weight_decay=0.0), clip_grad_norm=bound), 1)
        return float((vit.model.head.weight.detach() - vit.zero_shot.tensors["head.weight"]).abs().max())

    assert moved(1e-12) < 0.01 * moved(None)
    assert moved(1e6) == moved(None)


@pytest.mark.parametrize("name", ["vit", "convnet"])
def test_bf16_autocast_runs_on_a_cpu_and_keeps_fp32_weights(name: str, request: pytest.FixtureRequest) -> None:
    workspace = changed(request.getfixturevalue(name), "model", precision="bf16")
    values = hyperparameters(weights=ALL_TERMS)
    losses = tune(workspace, recipe(values, steps=3))
    assert all(math.isfinite(loss) for loss in losses)
    assert {tensor.dtype for tensor in workspace.model.parameters()} == {torch.float32}
    logits = workspace.logits("val_ood")
    assert logits.dtype == torch.float32
    full = tune(request.getfixturevalue(name), recipe(values, steps=3))
    assert losses[0] == pytest.approx(full[0], rel=0.05 if name == "vit" else 0.3)  # 50 layers of random weights amplify rounding
    assert losses != full, "bf16 rounds"


# --- reproducible, resumable, without memory


@pytest.mark.parametrize("weights", [CE, ALL_TERMS], ids=["cross-entropy", "all terms"])
def test_a_run_resumed_from_disk_equals_an_uninterrupted_one(workspace: Workspace, weights: dict[str, float], tmp_path: Path) -> None:
    run = recipe(hyperparameters(weights=weights), steps=7, schedule="cosine", warmup_steps=2)
    losses = tune(workspace, run)
    expected = digest(workspace)
    last = first_steps(workspace, run, 3)
    torch.save(training_state(workspace, last), tmp_path / "state.pt")
    tune(workspace, recipe(hyperparameters(seed=99)))  # another fine-tune on the same worker in between
    resumed = tune(workspace, run, resume=torch.load(tmp_path / "state.pt", weights_only=True))
    assert resumed == losses[3:]
    assert digest(workspace) == expected


def test_the_same_trial_twice_is_equal_to_the_bit_and_another_seed_is_not(workspace: Workspace) -> None:
    states = []
    for seed in (1, 1, 2):
        whole_trial(workspace, hyperparameters(seed=seed))
        states.append(digest(workspace))
    assert states[0] == states[1] != states[2]


def test_every_step_of_every_seed_has_its_own_stream() -> None:
    drawn = {(seed, step): torch.rand(3, generator=step_generator(seed, step)).tolist() for seed in range(4) for step in range(50)}
    assert len({tuple(values) for values in drawn.values()}) == len(drawn)
    assert torch.rand(3, generator=step_generator(2, 7)).tolist() == drawn[2, 7], "asked for again, it is the same"
    global_draws = []
    for _ in range(2):
        step_generator(2, 7)
        global_draws.append(torch.rand(3))
    assert torch.equal(*global_draws), "what a model draws by itself is seeded too"


def test_the_order_of_trials_in_a_workspace_does_not_change_them(workspace: Workspace) -> None:
    frozen = changed(workspace, "model", batch_norm="frozen")
    trials = {
        "all terms": (workspace, hyperparameters()),
        "image terms": (workspace, hyperparameters(weights=IMAGE_TERMS, seed=6)),
        "plain": (workspace, hyperparameters(weights=CE, lr=1e-4)),
        "frozen": (frozen, hyperparameters(weights=CE | {"contrastive": 1.0}, seed=8)),
    }

    def scores(order: list[str]) -> dict[str, Any]:
        found = {}
        for name in order:
            warm, values = trials[name]
            found[name] = (whole_trial(warm, values).score, digest(warm))
            with pytest.raises((Diverged, NonFiniteScore)):  # a trial that ends with NaN everywhere
                tune(warm, recipe(hyperparameters(lr=1e38), steps=2))
                warm.score("val_ood")
            first_steps(warm, recipe(hyperparameters(seed=17)), 2)  # and one that was broken off
        return found

    once = scores(list(trials))
    assert scores(list(reversed(trials))) == once
    assert len({state for _, state in once.values()}) == 4


def test_gradients_left_by_a_broken_step_do_not_reach_the_next_trial(vit: Workspace) -> None:
    tune(vit, recipe(hyperparameters()))
    expected = digest(vit)
    for parameter in vit.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    tune(vit, recipe(hyperparameters()))
    assert digest(vit) == expected


# --- trials


def test_a_loss_that_is_not_finite_ends_the_trial_at_its_next_report(vit: Workspace) -> None:
    reporting = changed(changed(vit, "search", pruner="median"), "trial", reports=2)
    trial = run_trial(reporting, hyperparameters(lr=1e38))
    with pytest.raises(Diverged, match="not finite"):
        next(trial)
    assert math.isfinite(whole_trial(vit, hyperparameters()).score)


@pytest.mark.parametrize("metric", ["accuracy", "cross_entropy"])
def test_reports_are_scores_in_the_studys_direction_and_the_last_is_the_result(vit: Workspace, metric: str) -> None:
    reporting = changed(changed(vit, "search", pruner="median"), "trial", reports=2)
    reporting = replace(reporting, config=reporting.config.model_copy(update={"metric": metric}))
    trial = run_trial(reporting, hyperparameters(weights=CE))
    reports: list[Report] = []
    expected: list[float] = []
    while True:
        try:
            reports.append(next(trial))
        except StopIteration as end:
            result = end.value
            break
        images = reporting.images("val_ood")
        logits = reporting.logits("val_ood").double()
        accuracy = (logits.argmax(dim=1) == images.labels).double().mean()
        expected.append(float(accuracy if metric == "accuracy" else torch.nn.functional.cross_entropy(logits, images.labels)))
    assert [report.step for report in reports] == [2, 4]
    assert [report.score for report in reports] == pytest.approx(expected, rel=1e-5)
    assert result.score == reports[-1].score


def test_scoring_in_between_does_not_change_a_trial(workspace: Workspace) -> None:
    silent = whole_trial(workspace, hyperparameters())
    state = digest(workspace)
    reporting = changed(changed(workspace, "search", pruner="median"), "trial", reports=4)
    assert whole_trial(reporting, hyperparameters()).score == silent.score
    assert digest(workspace) == state


def test_a_trial_told_to_stop_says_what_it_had_cost(vit: Workspace) -> None:
    asked = itertools.count(1)

    def stop() -> bool:
        return next(asked) == 3

    with pytest.raises(TrialStopped) as stopped:
        for _ in run_trial(vit, hyperparameters(), stop):
            pass
    assert stopped.value.samples == 3 * 12
    assert stopped.value.seconds > 0


# --- captions


def test_the_contrastive_term_pairs_images_with_their_own_captions(tiny_vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.load(load_workspace(tmp_path / "arrays", tiny_vit).config.data.train.path)
    (tmp_path / "images").mkdir()
    with (tmp_path / "images" / "table.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["filepath", "label", "text"])
        for i, (image, label) in enumerate(zip(data["images"], data["labels"], strict=True)):
            Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
            table.writerow([f"{i}.png", CLASSES[label], f"picture {i // 2} of {CLASSES[label]}"])
    train = {"layout": "csv", "path": str(tmp_path / "images" / "table.csv"), "caption": "text"}
    workspace = load_workspace(tmp_path / "csv", tiny_vit, data__train=train)
    assert workspace.texts.by_example
    captions = workspace.data.train.captions
    assert captions is not None and captions[4] == f"picture 2 of {CLASSES[4 % 3]}"
    taken = _spy_on_batches(monkeypatch)
    (step,) = finetune(workspace, recipe(hyperparameters(weights=CE | {"contrastive": 1.0}, lr=1e-9), steps=1))
    # CLIP's own loss over the batch's images and captions; the rate is so small that the weights are still the zero-shot ones.
    workspace.zero_shot.restore(workspace.model)
    pixels = workspace.train_transform(workspace.train.take(taken[0]), step_generator(5, 0))
    tokens = workspace.loaded.tokenizer([captions[i] for i in taken[0]])
    with torch.no_grad():
        images, texts = workspace.model.image_features(pixels), workspace.model.text_features(tokens)
        expected = open_clip.ClipLoss()(images, texts, workspace.model.logit_scale.exp())
    assert float(step.terms["contrastive"]) == pytest.approx(float(expected), rel=1e-4)


def test_a_convnet_and_its_twin_from_other_random_weights_differ(convnet: Workspace, tmp_path: Path) -> None:
    """Guards the tests above against a study where nothing matters."""
    other = load_workspace(tmp_path, write_model(tmp_path / "model", TINY_CONVNET, seed=1))
    assert not torch.allclose(other.logits("val_ood"), convnet.logits("val_ood"))
