"""Other methods' loss terms against plain loops in float64, and what must hold whatever the numbers are."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from autoft.config.knobs import METHOD_TERM_NAMES
from autoft.losses import METHOD_TERMS, MethodOutputs, StepOutputs, needs_of
from autoft.losses.core_tuning import TEMPERATURE
from autoft.losses.mixtures import Mixtures, draw_mixtures, hard_pairs
from tests.runs import one_thread

Array = np.ndarray[Any, Any]
every_term = pytest.mark.parametrize("name", METHOD_TERMS)
SCALE, MARGIN = 30.0, 0.3


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    with one_thread():
        yield


def some_step(
    seed: int = 0, batch: int = 14, classes: int = 4, dim: int = 6, dtype: torch.dtype = torch.float64, labels: Tensor | None = None
) -> tuple[StepOutputs, Tensor, Tensor]:
    """A step with random values and everything any term needs, and the head that made its logits."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)

    def unit(*shape: int) -> Tensor:
        return normalize(normal(*shape), dim=1)

    features, weight, bias = unit(batch, dim), 5 * normal(classes, dim), normal(classes)
    labels = torch.randint(classes, (batch,), generator=rng) if labels is None else labels
    shapes = ((batch, 3, 4), (batch, 5, 2, 2), (batch, 7))
    more = MethodOutputs(
        initial_head=SCALE * unit(classes, dim),
        scale=torch.tensor(SCALE, dtype=dtype),
        margin=MARGIN,
        teacher_features=normalize(features + 0.3 * normal(batch, dim), dim=1),
        slices=[normal(*shape) for shape in shapes],
        teacher_slices=[normal(*shape) for shape in shapes],
        contexts=unit(9, dim),
        random_texts=unit(8, dim),
        mixtures=draw_mixtures(features, labels, rng),
        core_logits=3 * normal(batch, classes),
        core_targets=normal(batch, classes).softmax(dim=1),
    )
    step = StepOutputs(
        logits=features @ weight.T + bias,
        labels=labels,
        image_features=features,
        text_features=None,
        text_index=None,
        logit_scale=None,
        parameters=[],
        anchor=[],
        more=more,
    )
    return step, weight, bias


def value(name: str, step: StepOutputs) -> float:
    return float(METHOD_TERMS[name].compute(step))


# --- the terms once more, from their definitions


def log_softmax(row: Array) -> Array:
    top = float(max(row))
    result: Array = row - top - math.log(sum(math.exp(entry - top) for entry in row))
    return result


def mixed_rows(step: StepOutputs, classes: int) -> tuple[Array, Array, list[int]]:
    """Features and mixtures, their label vectors, and which rows there are; from the pairs and shares drawn."""
    assert step.more is not None and step.more.mixtures is not None
    mixtures = step.more.mixtures
    features, labels = step.image_features.numpy(), np.eye(classes)[step.labels.numpy()]
    rows, targets, there = list(features), list(labels), list(range(len(features)))
    for i, j, share, valid in zip(mixtures.first, mixtures.second, mixtures.share, mixtures.valid, strict=True):
        if valid:
            there.append(len(rows))
        rows.append((1 - float(share)) * features[i] + float(share) * features[j])
        targets.append((1 - float(share)) * labels[i] + float(share) * labels[j])
    return np.array(rows), np.array(targets), there


def reference_mixup(step: StepOutputs, weight: Array, bias: Array) -> float:
    rows, targets, there = mixed_rows(step, len(bias))
    mixtures = [row for row in there if row >= len(step.labels)]
    return sum(-float(targets[row] @ log_softmax(weight @ rows[row] + bias)) for row in mixtures) / len(mixtures)


def reference_contrastive(step: StepOutputs, classes: int) -> float:
    rows, targets, there = mixed_rows(step, classes)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    losses = []
    for i in there:
        others = [j for j in there if j != i]
        positives = [j for j in others if np.array_equal(targets[i], targets[j])]
        log_p = dict(zip(others, log_softmax(np.array([rows[i] @ rows[j] / TEMPERATURE for j in others])), strict=True))
        if positives:
            losses.append(sum(-(1 - math.exp(log_p[j])) * log_p[j] for j in positives) / len(positives))
    return sum(losses) / len(losses) if losses else 0.0


def reference(name: str, step: StepOutputs, weight: Tensor, bias: Tensor) -> float:
    more, features, labels = step.more, step.image_features.numpy(), step.labels.numpy()
    assert more is not None and more.teacher_features is not None
    frozen, batch = more.teacher_features.numpy(), len(labels)
    if name == "feature_mixup":
        return reference_mixup(step, weight.numpy(), bias.numpy())
    if name == "focal_contrastive":
        return reference_contrastive(step, len(bias))
    if name == "drm":
        assert more.core_logits is not None and more.core_targets is not None
        rows = zip(more.core_logits.numpy(), more.core_targets.numpy(), strict=True)
        return sum(-float(target @ log_softmax(row)) for row, target in rows) / batch
    if name == "ldifs":
        assert more.slices is not None and more.teacher_slices is not None
        total = 0.0
        for own, other in zip(more.slices, more.teacher_slices, strict=True):
            for a, b in zip(own.flatten(1).numpy(), other.flatten(1).numpy(), strict=True):
                total += float(((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2).sum()) / batch / len(more.slices)
        return total
    if name == "car_ft":
        assert more.contexts is not None
        contexts, total = more.contexts.numpy(), 0.0
        for f, f0 in zip(features, frozen, strict=True):
            log_p, log_p0 = log_softmax(SCALE * contexts @ f), log_softmax(SCALE * contexts @ f0)
            total += sum(math.exp(b) * (b - a) for a, b in zip(log_p, log_p0, strict=True)) / batch
        return total
    if name == "lipsum":
        assert more.random_texts is not None
        texts, total = more.random_texts.numpy(), 0.0
        for f, f0 in zip(features, frozen, strict=True):
            total += sum(SCALE**2 * (f @ t - f0 @ t) ** 2 for t in texts) / (2 * len(texts)) / batch
        return total
    texts, total = more.initial_head.numpy() / SCALE, 0.0
    for f, y in zip(features, labels, strict=True):
        total -= log_softmax(np.array([SCALE * (f - MARGIN * texts[y]) @ t for t in texts]))[y] / batch
    return total


@every_term
@pytest.mark.parametrize(("batch", "classes"), [(14, 4), (40, 2), (30, 100), (1, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_every_term_is_what_its_definition_says(name: str, seed: int, batch: int, classes: int) -> None:
    step, weight, bias = some_step(seed, batch, classes)
    assert value(name, step) == pytest.approx(reference(name, step, weight, bias), rel=1e-9, abs=1e-14)


@every_term
def test_gradient_is_that_of_the_value_and_not_zero(name: str) -> None:
    step, weight, bias = some_step(1, batch=8, classes=3)
    assert step.more is not None and step.more.slices is not None and step.more.core_logits is not None
    more = step.more

    def of(features: Tensor, core: Tensor, *slices: Tensor) -> Tensor:
        changed = dataclasses.replace(more, slices=slices, core_logits=core)
        logits = features @ weight.T + bias
        return METHOD_TERMS[name].compute(dataclasses.replace(step, image_features=features, logits=logits, more=changed))

    leaves = [leaf.clone().requires_grad_() for leaf in (step.image_features, step.more.core_logits, *step.more.slices)]
    assert torch.autograd.gradcheck(of, leaves)
    found = [g for g in torch.autograd.grad(of(*leaves), leaves, allow_unused=True) if g is not None]
    assert found and all(torch.isfinite(gradient).all() and gradient.abs().max() > 1e-6 for gradient in found)


@every_term
def test_half_precision_is_computed_in_float32_and_autocast_changes_nothing(name: str) -> None:
    step, _, _ = some_step(2, batch=32, dtype=torch.float32)
    expected = METHOD_TERMS[name].compute(step)
    assert expected.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(METHOD_TERMS[name].compute(step), expected)
        assert step.more is not None and step.more.slices is not None and step.more.teacher_slices is not None
        half = dataclasses.replace(
            step,
            logits=step.logits.bfloat16(),
            image_features=step.image_features.bfloat16(),
            more=dataclasses.replace(
                step.more, slices=[part.bfloat16() for part in step.more.slices], teacher_slices=[part.bfloat16() for part in step.more.teacher_slices]
            ),
        )
        found = METHOD_TERMS[name].compute(half)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(expected), rel=0.05)


@every_term
def test_the_order_of_examples_does_not_matter(name: str) -> None:
    step, _, _ = some_step(3)
    more, order = step.more, torch.randperm(14, generator=torch.Generator().manual_seed(0))
    assert more is not None and more.mixtures is not None and more.teacher_features is not None
    assert more.slices is not None and more.teacher_slices is not None and more.core_logits is not None and more.core_targets is not None
    both, place = torch.cat([order, order + 14]), order.argsort()
    mixtures = Mixtures(
        place[more.mixtures.first[both]], place[more.mixtures.second[both]], more.mixtures.share[both], more.mixtures.valid[both]
    )
    shuffled = dataclasses.replace(
        step,
        logits=step.logits[order],
        labels=step.labels[order],
        image_features=step.image_features[order],
        more=dataclasses.replace(
            more,
            teacher_features=more.teacher_features[order],
            slices=[part[order] for part in more.slices],
            teacher_slices=[part[order] for part in more.teacher_slices],
            mixtures=mixtures,
            core_logits=more.core_logits[order],
            core_targets=more.core_targets[order],
        ),
    )
    assert value(name, shuffled) == pytest.approx(value(name, step), rel=1e-12)


@pytest.mark.parametrize("name", ["ldifs", "car_ft", "lipsum"])
def test_a_student_that_computes_what_its_teacher_does_loses_nothing_and_feels_nothing(name: str) -> None:
    step, _, _ = some_step(4)
    assert step.more is not None and step.more.slices is not None
    assert value(name, step) > 0
    features = step.image_features.clone().requires_grad_()
    slices = [part.clone().requires_grad_() for part in step.more.slices]
    more = dataclasses.replace(step.more, teacher_features=step.image_features, slices=slices, teacher_slices=step.more.slices)
    loss = METHOD_TERMS[name].compute(dataclasses.replace(step, image_features=features, more=more))
    assert float(loss.detach()) == pytest.approx(0, abs=1e-15)
    loss.backward()  # type: ignore[no-untyped-call]
    for leaf in (features, *slices):
        assert leaf.grad is None or float(leaf.grad.abs().max()) < 1e-12


def test_drm_is_least_where_the_head_says_what_the_descriptions_do() -> None:
    step, _, _ = some_step(5)
    assert step.more is not None and step.more.core_targets is not None
    targets = step.more.core_targets
    there = dataclasses.replace(step, more=dataclasses.replace(step.more, core_logits=targets.log()))
    assert value("drm", there) == pytest.approx(float(-(targets * targets.log()).sum(dim=1).mean()))
    assert value("drm", there) < value("drm", step)


def test_without_a_margin_the_margin_term_is_the_zero_shot_heads_cross_entropy_and_it_grows_with_it() -> None:
    step, _, _ = some_step(6)
    assert step.more is not None
    found = [value("margin", dataclasses.replace(step, more=dataclasses.replace(step.more, margin=margin))) for margin in (0.0, 0.1, 0.3, 1.0)]
    plain = torch.nn.functional.cross_entropy(step.image_features @ step.more.initial_head.T, step.labels)
    assert found[0] == pytest.approx(float(plain))
    assert found == sorted(found) and found[0] < found[-1]


# --- what Core-tuning mixes


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "non-negative"])
@pytest.mark.parametrize(("batch", "classes"), [(24, 3), (24, 100), (5, 1), (1, 2)])
def test_hard_pairs_are_those_of_a_search_through_all_pairs(batch: int, classes: int, signed: bool) -> None:
    """Features that are never negative are where the released code's mining breaks down."""
    rng = torch.Generator().manual_seed(batch + classes)
    features = torch.randn(batch, 8, generator=rng, dtype=torch.float64)
    features = normalize(features if signed else features.abs(), dim=1)
    labels = torch.randint(classes, (batch,), generator=rng)
    positive, negative, both = hard_pairs(features, labels)
    similarity = (features @ features.T).numpy()
    for i in range(batch):
        same = [j for j in range(batch) if j != i and labels[j] == labels[i]]
        rest = [j for j in range(batch) if labels[j] != labels[i]]
        assert bool(both[i]) == bool(same and rest)
        if same and rest:
            assert int(positive[i]) == min(same, key=lambda j: similarity[i, j])
            assert int(negative[i]) == max(rest, key=lambda j: similarity[i, j])


def test_hard_pairs_are_found_on_either_side_of_orthogonal() -> None:
    """A fill of 0 would count as nearer than a negative similarity, and as further than a positive one."""
    angles = torch.tensor([0.0, 0.2, 0.5, 3.0, 3.3, 2.4], dtype=torch.float64)
    positive, negative, both = hard_pairs(torch.stack([angles.cos(), angles.sin()], dim=1), torch.tensor([0, 0, 0, 1, 1, 1]))
    assert positive.tolist() == [2, 2, 0, 5, 5, 4]
    assert negative.tolist() == [5, 5, 5, 2, 2, 2]
    assert both.all()


def test_mixtures_are_drawn_as_published() -> None:
    step, _, _ = some_step(7, batch=4000, classes=10, dtype=torch.float32)
    drawn = draw_mixtures(step.image_features, step.labels, torch.Generator().manual_seed(1))
    again = draw_mixtures(step.image_features, step.labels, torch.Generator().manual_seed(1))
    other = draw_mixtures(step.image_features, step.labels, torch.Generator().manual_seed(2))
    assert all(torch.equal(a, b) for a, b in zip(dataclasses.astuple(drawn), dataclasses.astuple(again), strict=True))
    assert not torch.equal(drawn.second, other.second) and not torch.equal(drawn.share, other.share)
    negative, positive = drawn.share.split(4000)
    assert torch.equal(drawn.first[:4000], torch.arange(4000))
    assert sorted(drawn.second[:4000].tolist()) == list(range(4000)), "a permutation"
    assert float(negative.min()) == pytest.approx(0.8) and float((negative == negative.min()).float().mean()) == pytest.approx(0.8, abs=0.03)
    assert float(positive.mean()) == pytest.approx(0.5, abs=0.02) and float(positive.std()) == pytest.approx(12**-0.5, abs=0.02)
    assert abs(float(torch.corrcoef(torch.stack([negative, positive]))[0, 1])) < 0.06, "each has a share of its own"
    assert (step.labels[drawn.first[4000:]] == step.labels).all() and (step.labels[drawn.second[4000:]] != step.labels).all()
    assert drawn.valid.all()


def test_an_anchor_without_a_partner_has_no_hard_positive_and_changes_nothing_by_it() -> None:
    step, _, _ = some_step(8, batch=9, classes=5, labels=torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 4]))
    assert step.more is not None and step.more.mixtures is not None
    mixtures = step.more.mixtures
    assert mixtures.valid.tolist() == 9 * [True] + [True, True, True, True, True, False, True, True, False]
    absurd = dataclasses.replace(
        mixtures, first=mixtures.first.masked_fill(~mixtures.valid, 8), share=mixtures.share.masked_fill(~mixtures.valid, 0.123)
    )
    changed = dataclasses.replace(step, more=dataclasses.replace(step.more, mixtures=absurd))
    for name in ("feature_mixup", "focal_contrastive"):
        assert value(name, changed) == value(name, step)


def test_the_contrastive_terms_size_does_not_depend_on_how_often_a_class_is_there() -> None:
    """With all features equal p is 1 / (others), whatever the classes are; the released code's mean is over all rows."""
    found = {}
    for classes, batch in ((2, 20), (10, 20), (2, 60)):
        features = normalize(torch.ones(batch, 4, dtype=torch.float64), dim=1)
        step, _, _ = some_step(9, batch, classes, dim=4, labels=torch.arange(batch) % classes)
        found[classes, batch] = value("focal_contrastive", dataclasses.replace(step, image_features=features))
        p = 1 / (3 * batch - 1)
        assert found[classes, batch] == pytest.approx(-(1 - p) * math.log(p))
    assert found[2, 20] == pytest.approx(found[10, 20])


def test_no_positive_pair_at_all_is_zero_and_not_nan() -> None:
    step, _, _ = some_step(10, batch=4, classes=50, labels=torch.tensor([0, 13, 27, 49]))
    assert step.more is not None and step.more.mixtures is not None
    mixtures = dataclasses.replace(step.more.mixtures, second=torch.tensor([1, 2, 3, 0, 0, 0, 0, 0]))
    features = step.image_features.clone().requires_grad_()
    loss = METHOD_TERMS["focal_contrastive"].compute(
        dataclasses.replace(step, image_features=features, more=dataclasses.replace(step.more, mixtures=mixtures))
    )
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0 and features.grad is not None and not features.grad.any()


# --- names


def test_the_terms_are_those_a_study_may_name() -> None:
    assert tuple(METHOD_TERMS) == METHOD_TERM_NAMES
    assert all(name == term.name and term.description and "arXiv" in term.source for name, term in METHOD_TERMS.items())
    assert needs_of(["cross_entropy", "margin"]) == frozenset()
    assert needs_of(["ldifs", "lipsum"]) == {"slices", "teacher", "random_texts"}


@every_term
def test_a_term_without_what_it_needs_is_refused(name: str) -> None:
    step, _, _ = some_step(11)
    assert step.more is not None
    with pytest.raises(ValueError, match="needs `more`"):
        METHOD_TERMS[name].compute(dataclasses.replace(step, more=None))
    bare = MethodOutputs(initial_head=step.more.initial_head, scale=step.more.scale, margin=MARGIN)
    if METHOD_TERMS[name].needs:
        with pytest.raises(ValueError, match="needs_of"):
            METHOD_TERMS[name].compute(dataclasses.replace(step, more=bare))
