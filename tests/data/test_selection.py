"""slice, max_examples and balanced."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoft.data import check_study_data
from autoft.data.selection import drawn
from autoft.errors import DataError
from tests.data.make import folder, study, write_folder


def dataset(**options: object) -> object:
    return folder(Path("unused"), **options)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 80))
def test_max_examples_draws_distinct_examples_in_order(labels: list[int], count: int) -> None:
    kept = drawn(dataset(max_examples=count), np.array(labels), "data.train")  # type: ignore[arg-type]
    assert len(kept) == min(count, len(labels))
    assert (np.diff(kept) > 0).all()
    assert kept[0] >= 0
    assert kept[-1] < len(labels)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(5, 80))
def test_balanced_gives_each_class_present_the_same_share(labels: list[int], count: int) -> None:
    rows = np.array(labels)
    kept = drawn(dataset(max_examples=count, balanced=True), rows, "data.train")  # type: ignore[arg-type]
    present = np.unique(rows)
    share = count // len(present)
    assert (np.diff(kept) >= 0).all()
    for row in present:
        members = kept[rows[kept] == row]
        assert len(members) == share
        if (rows == row).sum() >= share:
            assert len(set(members.tolist())) == share


def test_draws_are_spread_over_the_set_and_fixed_for_ever() -> None:
    """The stored draw guards every stored study: if it changes, VAL_OOD changes under the same fingerprint inputs."""
    kept = drawn(dataset(max_examples=6), np.zeros(100, np.int64), "data.train")  # type: ignore[arg-type]
    assert kept.tolist() == [14, 49, 64, 68, 71, 75]
    balanced = drawn(dataset(max_examples=6, balanced=True), np.array([0, 1] * 5 + [2]), "data.train")  # type: ignore[arg-type]
    assert balanced.tolist() == [1, 2, 3, 4, 10, 10]
    means = [np.mean(drawn(dataset(max_examples=n // 4), np.zeros(n, np.int64), "x")) / n for n in (1000, 2000, 4000)]  # type: ignore[arg-type]
    assert np.allclose(means, 0.5, atol=0.06)


def test_balanced_with_fewer_examples_than_classes() -> None:
    with pytest.raises(DataError, match=r"data\.val_ood\.max_examples = 2: balanced needs .* 3 classes"):
        drawn(dataset(max_examples=2, balanced=True), np.arange(3), "data.val_ood")  # type: ignore[arg-type]


def test_slice_comes_before_the_draw_and_must_fit(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 6, "b": 6})
    whole = folder(tmp_path)
    part = folder(tmp_path, slice=(4, 10), max_examples=4, balanced=True)
    facts = check_study_data(study(whole, val_ood=part))[2]
    assert facts["field"] == "data.val_ood"
    assert facts["n"] == 4
    assert facts["available"] == 12
    assert facts["per_class"] == {"a": 2, "b": 2}
    with pytest.raises(DataError, match=r"data\.val_ood\.slice = \[4, 13\]: the set has 12 examples"):
        check_study_data(study(whole, val_ood=folder(tmp_path, slice=(4, 13))))
