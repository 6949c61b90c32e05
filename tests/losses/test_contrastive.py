"""InfoNCE: against the written-out batch x batch formula, gradients, limits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from autoft.losses.contrastive import contrastive
from tests.losses import reference


def features(seed: int, rows: int, dim: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(rows, dim, generator=rng, dtype=torch.float64), dim=1)


def written_out(images: Tensor, texts: Tensor, index: Tensor, scale: Tensor) -> Tensor:
    """The published form: one text an example, the whole matrix, two cross-entropies."""
    logits = scale * images @ texts[index].T
    target = torch.arange(len(images))
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 9),
    texts=st.integers(1, 9),
    dim=st.integers(1, 6),
    scale=st.sampled_from([1.0, 14.3, 100.0]),
)
def test_value_is_that_of_the_definition_with_and_without_shared_texts(seed: int, batch: int, texts: int, dim: int, scale: float) -> None:
    images, prompts = features(seed, batch, dim), features(seed + 1, texts, dim)
    index = torch.randint(texts, (batch,), generator=torch.Generator().manual_seed(seed))  # some texts may go unused
    value = float(contrastive(images, prompts, index, torch.tensor(scale, dtype=torch.float64)))
    assert value == pytest.approx(reference.contrastive(images.numpy(), prompts.numpy()[index.numpy()], scale), rel=1e-9, abs=1e-11)
    single = float(contrastive(images.float(), prompts.float(), index, torch.tensor(scale)))
    assert single == pytest.approx(value, rel=1e-5, abs=1e-6 * scale)


def test_gradients_equal_those_of_the_written_out_form() -> None:
    images, prompts, scale = features(0, 8, 5).requires_grad_(), features(1, 4, 5).requires_grad_(), torch.tensor(14.0, dtype=torch.float64)
    scale.requires_grad_()
    index = torch.tensor([0, 0, 1, 2, 2, 2, 0, 1])  # text 3 is not used
    ours = torch.autograd.grad(contrastive(images, prompts, index, scale), (images, prompts, scale))
    theirs = torch.autograd.grad(written_out(images, prompts, index, scale), (images, prompts, scale))
    torch.testing.assert_close(ours, theirs)
    assert ours[1][3].abs().max() == 0


def test_gradcheck() -> None:
    inputs = (features(0, 5, 3).requires_grad_(), features(1, 3, 3).requires_grad_())
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([0, 1, 2, 0, 1])
    assert torch.autograd.gradcheck(lambda images, texts, s: contrastive(images, texts, index, s), (*inputs, scale))


def test_distinct_perfect_pairs_cost_nothing_at_a_large_scale() -> None:
    pairs = torch.eye(6)
    assert float(contrastive(pairs, pairs, torch.arange(6), torch.tensor(100.0))) == pytest.approx(0.0, abs=1e-6)
    swapped = torch.tensor([1, 0, 3, 2, 5, 4])  # every image is paired with another's text: the full price, s
    assert float(contrastive(pairs, pairs, swapped, torch.tensor(100.0))) == pytest.approx(100.0)


def test_one_class_in_the_batch() -> None:
    """All texts are one text t. Every column of a row is equal: image to text is ln B. Every column is a_i = s I_i.t, whose softmax
    over images is compared with each image in turn: text to image is logsumexp(a) - mean(a), at least ln B."""
    images, text, scale = features(0, 6, 4), features(1, 1, 4), torch.tensor(9.0, dtype=torch.float64)
    a = (scale * images @ text.T).squeeze(1)
    expected = (math.log(6) + torch.logsumexp(a, 0) - a.mean()) / 2
    value = contrastive(images, text, torch.zeros(6, dtype=torch.int64), scale)
    torch.testing.assert_close(value, expected)
    assert value > math.log(6)
    same = contrastive(images[:1].expand(6, -1), text, torch.zeros(6, dtype=torch.int64), scale)
    assert float(same) == pytest.approx(math.log(6))


def test_a_batch_of_one_costs_nothing() -> None:
    value = contrastive(features(0, 1, 4), features(1, 1, 4), torch.zeros(1, dtype=torch.int64), torch.tensor(100.0, dtype=torch.float64))
    assert float(value) == pytest.approx(0.0, abs=1e-12)


def test_only_which_image_has_which_text_matters() -> None:
    images, prompts, scale = features(0, 8, 5), features(1, 4, 5), torch.tensor(14.0, dtype=torch.float64)
    index = torch.tensor([0, 0, 1, 2, 3, 2, 0, 1])
    expected = contrastive(images, prompts, index, scale)
    order, rows = torch.randperm(8), torch.randperm(4)
    torch.testing.assert_close(contrastive(images[order], prompts, index[order], scale), expected)
    torch.testing.assert_close(contrastive(images, prompts[rows], rows.argsort()[index], scale), expected)
    torch.testing.assert_close(contrastive(images, prompts[index], torch.arange(8), scale), expected)


def test_exchanging_towers_changes_nothing_where_texts_are_distinct() -> None:
    images, prompts, scale = features(0, 5, 4), features(1, 5, 4), torch.tensor(14.0, dtype=torch.float64)
    torch.testing.assert_close(
        contrastive(images, prompts, torch.arange(5), scale), contrastive(prompts, images, torch.arange(5), scale)
    )


def test_products_are_not_left_to_autocast() -> None:
    images, prompts, index = features(0, 32, 16).float(), features(1, 8, 16).float(), torch.arange(32) % 8
    exact = contrastive(images.double(), prompts.double(), index, torch.tensor(100.0, dtype=torch.float64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = contrastive(images, prompts, index, torch.tensor(100.0))
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(exact), rel=1e-5)


def test_half_precision_features_and_a_huge_scale_stay_finite() -> None:
    images, prompts = features(0, 8, 4).bfloat16().requires_grad_(), features(1, 3, 4).bfloat16().requires_grad_()
    value = contrastive(images, prompts, torch.arange(8) % 3, torch.tensor(1e4))
    value.backward()  # type: ignore[no-untyped-call]
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert images.grad is not None
    assert torch.isfinite(images.grad).all()
