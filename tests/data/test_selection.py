"""slice, half, max_examples, balanced and draw_seed."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoft.data import check_study_data, load_study_data
from autoft.data.selection import drawn, halved
from autoft.errors import DataError
from tests.data.make import folder, study, write_folder

# Guards every stored study, as the stored draws below do.
FIRST_HALF = [1, 2, 5, 6, 8, 9]


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


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.integers(0, 99))
def test_halves_share_nothing_cover_everything_and_cut_each_class_in_the_middle(labels: list[int], seed: int) -> None:
    rows = np.array([*labels, labels[0]])
    first, second = (halved(dataset(half=half, draw_seed=seed), rows, "data.val_id") for half in ("first", "second"))  # type: ignore[arg-type]
    assert sorted([*first, *second]) == list(range(len(rows)))
    for half in (first, second):
        assert (np.diff(half) > 0).all()
    for row in np.unique(rows):
        assert (rows[first] == row).sum() - (rows[second] == row).sum() in (0, 1)


def test_halves_are_shuffled_fixed_for_ever_and_independent_of_the_draw() -> None:
    rows = np.array([0, 1] * 5 + [1])
    whole = halved(dataset(), rows, "x")  # type: ignore[arg-type]
    assert whole.tolist() == list(range(11))
    assert halved(dataset(half="first"), rows, "x").tolist() == FIRST_HALF  # type: ignore[arg-type]
    assert halved(dataset(half="first", max_examples=2, draw_seed=9), rows, "x").tolist() == FIRST_HALF  # type: ignore[arg-type]
    means = [np.mean(halved(dataset(half="second"), np.zeros(n, np.int64), "x")) / n for n in (1000, 2000)]  # type: ignore[arg-type]
    assert np.allclose(means, 0.5, atol=0.05)


def test_a_half_without_examples_is_an_error() -> None:
    with pytest.raises(DataError, match=r"data\.val_id\.half = second: .* this half is empty"):
        halved(dataset(half="second"), np.arange(3), "data.val_id")  # type: ignore[arg-type]


def test_half_comes_after_the_slice_and_before_the_draw(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 10, "b": 10})
    whole = folder(tmp_path)
    halves = [folder(tmp_path, slice=(2, 18), half=half) for half in ("first", "second")]
    drawn_half = folder(tmp_path, slice=(2, 18), half="second", max_examples=4, balanced=True)
    data = load_study_data(study(whole, *halves, test_id={"t": drawn_half}), 8, "bicubic", "shortest", tmp_path.with_name("cache"))
    first, second, four = (set(data.drawn[f"data.{name}"]) for name in ("val_id", "val_ood", "test_id.t"))
    assert first | second == set(range(2, 18))
    assert not first & second
    assert four < second
    assert data.val_id.class_counts().tolist() == data.val_ood.class_counts().tolist() == [4, 4]
    assert "data.train" not in data.drawn


@pytest.mark.parametrize("options", [{}, {"balanced": True}])
def test_draw_seed_draws_others_and_0_is_the_draw_of_old(options: dict[str, bool]) -> None:
    rows = np.repeat([0, 1], 50)
    draws = [drawn(dataset(max_examples=20, draw_seed=seed, **options), rows, "x").tolist() for seed in range(6)]  # type: ignore[arg-type]
    assert draws[0] == drawn(dataset(max_examples=20, **options), rows, "x").tolist()  # type: ignore[arg-type]
    assert len({tuple(draw) for draw in draws}) == 6
    assert all(len(set(draw)) == 20 for draw in draws)
    assert draws[3] == drawn(dataset(max_examples=20, draw_seed=3, **options), rows, "x").tolist()  # type: ignore[arg-type]


def test_defect_8_val_ood_is_class_balanced_when_it_says_so(tmp_path: Path) -> None:
    """The authors' get_ood_dataset dropped the class-balanced flag on the way, so the search was scored on a plain draw."""
    write_folder(tmp_path / "set", {"a": 40, "b": 10, "c": 3})
    whole = folder(tmp_path / "set")
    config = study(whole, val_ood=folder(tmp_path / "set", max_examples=20, balanced=True), test_id={"t": folder(tmp_path / "set", max_examples=20)})
    data = load_study_data(config, 8, "bicubic", "shortest", tmp_path / "cache")
    assert data.val_ood.class_counts().tolist() == [6, 6, 6]
    assert len(set(data.drawn["data.val_ood"])) < 18  # class c is short, so it is drawn with replacement
    counts = data.tests["t"][1].class_counts().tolist()
    assert counts != [6, 6, 6]
    assert sum(counts) == 20


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
