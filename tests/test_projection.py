"""Evaluation on sets with classes of their own: each is the largest of the study's logits it pools."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics
from torch.nn import functional

from autoft.data import Split
from autoft.evaluate import NonFiniteScore, metric_fn, pool_index, pooled_logits
from autoft.stages import evaluation_rows
from autoft.workspace import Workspace
from tests.runs import load_workspace

Projection = tuple[tuple[int, ...], ...]


def test_pooling_by_hand() -> None:
    logits = torch.tensor([[1.0, 5.0, 3.0, 4.0], [9.0, -2.0, -3.0, -1.0]])
    assert pooled_logits(logits, pool_index(((2, 3, 0), (1,)))).tolist() == [[4.0, 5.0], [9.0, -2.0]]


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), classes=st.integers(1, 12), widest=st.integers(1, 5))
def test_pooling_is_a_loop_over_classes(seed: int, classes: int, widest: int) -> None:
    rng = np.random.default_rng(seed)
    columns = rng.permutation(classes * widest).tolist()
    projection = [columns[c * widest : c * widest + rng.integers(1, widest + 1)] for c in range(classes)]
    logits = rng.normal(0, 3, (7, classes * widest))
    expected = np.stack([logits[:, pool].max(axis=1) for pool in projection], axis=1)
    assert np.array_equal(pooled_logits(torch.from_numpy(logits), pool_index(projection)).numpy(), expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_logit_that_is_not_finite_is_not_pooled_away(bad: float) -> None:
    logits = torch.zeros(3, 4)
    logits[1, 2] = bad
    with pytest.raises(NonFiniteScore):
        metric_fn("accuracy")(pooled_logits(logits, pool_index(((0, 2), (1, 3)))), torch.zeros(3, dtype=torch.int64), None, 2)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, tiny_vit: Path) -> Workspace:
    return load_workspace(tmp_path_factory.mktemp("projection"), tiny_vit, metric="cross_entropy", evaluate__batch_size=7)


def with_projection(workspace: Workspace, projection: Projection, labels: np.ndarray) -> Workspace:
    """The workspace with another test set, named `own`: the images of `b` under classes of their own."""
    split, images = workspace.data.tests["b"]
    own = replace(images, labels=labels.astype(np.int64), class_count=len(projection), projection=projection)
    return replace(workspace, data=replace(workspace.data, tests={**workspace.data.tests, "own": (split, own)}), sets={})


def test_a_workspace_scores_a_set_on_its_own_classes(workspace: Workspace) -> None:
    """Two classes: red or blue, and green."""
    plain = workspace.logits("b")
    labels = np.arange(30) % 2
    own = with_projection(workspace, ((0, 2), (1,)), labels)
    expected = torch.stack([plain[:, [0, 2]].amax(dim=1), plain[:, 1]], dim=1)
    assert torch.equal(own.logits("own"), expected)
    assert own.score("own") == pytest.approx(float(functional.cross_entropy(expected.double(), torch.from_numpy(labels))), rel=1e-6)
    assert torch.equal(own.logits("b"), plain)
    rows = {row["metric"]: row for row in evaluation_rows(own, "own", Split.TEST_OOD, {})}
    predicted = expected.argmax(dim=1).numpy()
    assert rows["accuracy"]["value"] == pytest.approx(sklearn_metrics.accuracy_score(labels, predicted))
    assert rows["macro_f1"]["value"] == pytest.approx(sklearn_metrics.f1_score(labels, predicted, average="macro", zero_division=0))
    assert rows["cross_entropy"]["value"] == pytest.approx(own.score("own"), rel=1e-6)
    assert {row["n"] for row in rows.values()} == {30}


def test_the_studys_own_classes_as_pools_change_nothing(workspace: Workspace) -> None:
    labels = np.asarray(workspace.data.tests["b"][1].labels)
    same = with_projection(workspace, ((0,), (1,), (2,)), labels)
    assert torch.equal(same.logits("own"), workspace.logits("b"))
    assert evaluation_rows(same, "own", Split.TEST_OOD, {}) == [row | {"dataset": "own"} for row in evaluation_rows(workspace, "b", Split.TEST_OOD, {})]


def test_a_set_with_some_of_the_classes_is_judged_among_those(workspace: Workspace) -> None:
    """ImageNet-R's rule: a class the set does not have is never predicted, so accuracy cannot fall."""
    labels = np.asarray(workspace.data.tests["b"][1].labels)
    some = np.flatnonzero(labels < 2)
    plain = workspace.logits("b")[some].argmax(dim=1).numpy()
    own = with_projection(workspace, ((0,), (1,)), np.minimum(labels, 1))
    among = own.logits("own")[some].argmax(dim=1).numpy()
    assert set(among.tolist()) <= {0, 1}
    assert np.mean(among == labels[some]) >= np.mean(plain == labels[some])
