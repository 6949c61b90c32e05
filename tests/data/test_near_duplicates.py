"""Near-duplicates: the search misses nothing, hashes are imagehash's and are kept, copies are found and flat images are not."""

import logging
from dataclasses import replace
from pathlib import Path

import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autoft.data.hamming as hamming
import autoft.data.near as near_module
import autoft.data.perceptual as perceptual
from autoft.data.hamming import contained, near_pairs
from autoft.data.near import COMMON_HASH, FLAT_CONTRAST, Appearance, appearance, compare
from autoft.data.perceptual import Prints, perceptual_prints, print_of
from autoft.data.sets import ImageSet
from tests.data.image_sets import image_set
from tests.data.make import picture


def bits_apart(one: int, other: int) -> int:
    return (one ^ other).bit_count()


@st.composite
def clustered(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Two lists of 64-bit numbers, each a few flipped bits away from one of a few centres."""
    centres = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3))

    def number() -> int:
        value = draw(st.sampled_from(centres))
        for bit in draw(st.lists(st.integers(0, 63), max_size=6)):
            value ^= 1 << bit
        return value

    first, second = ([number() for _ in range(draw(st.integers(0, 12)))] for _ in range(2))
    return first, second


@settings(deadline=None)
@given(lists=clustered(), distance=st.integers(0, 16), by_bands=st.booleans(), block=st.sampled_from([1, 3, 1 << 18]))
def test_every_near_pair_is_found_once(lists: tuple[list[int], list[int]], distance: int, by_bands: bool, block: int) -> None:
    first, second = lists
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hamming, "_BAND_COST", -1 if by_bands else 1 << 60)
        patch.setattr(hamming, "_BLOCK", block)
        steps = list(near_pairs(np.array(first, dtype=np.uint64), np.array(second, dtype=np.uint64), distance))
    found = sorted(tuple(map(int, pair)) for i, j, d in steps for pair in zip(i, j, d, strict=True))
    assert found == [
        (i, j, bits_apart(a, b)) for i, a in enumerate(first) for j, b in enumerate(second) if bits_apart(a, b) <= distance
    ]  # fmt: skip
    assert all(len(i) <= max(block, len(second)) for i, _, _ in steps)


@settings(deadline=None)
@given(values=st.lists(st.integers(0, 20)), among=st.lists(st.integers(0, 20)))
def test_contained_is_membership(values: list[int], among: list[int]) -> None:
    found = contained(np.array(values, dtype=np.uint64), np.array(among, dtype=np.uint64))
    assert found.tolist() == [value in among for value in values]


def test_bands_cover_every_bit_once() -> None:
    for distance in range(17):
        masks = [int(mask) for mask in hamming._bands(distance)]
        assert len(masks) == distance + 1
        assert sum(masks) == 2**64 - 1
        assert max(mask.bit_count() for mask in masks) - min(mask.bit_count() for mask in masks) <= 1


def test_many_numbers_take_the_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 2**64, n, dtype=np.uint64) for n in (20_000, 3_000))
    second[:50] = first[100:150] ^ np.uint64(0b101)
    monkeypatch.setattr(hamming, "_all_pairs", None)
    ((i, j, d),) = ([np.concatenate(part) for part in zip(*near_pairs(first, second, 2), strict=True)],)
    assert sorted(i.tolist()) == list(range(100, 150))
    assert sorted(j.tolist()) == list(range(50))
    assert set(d.tolist()) == {2}


def test_a_print_is_the_pictures_phash() -> None:
    for seed, side in ((0, 64), (1, 28), (2, 100)):
        image = picture(seed, side, side)
        value, contrast = print_of(np.asarray(image))
        assert value == int(str(imagehash.phash(image)), 16)
        assert contrast > FLAT_CONTRAST
    assert print_of(np.full((40, 40, 3), 9, dtype=np.uint8))[1] == 0


@pytest.fixture
def pictures() -> ImageSet:
    return image_set("data.train", [np.asarray(picture(seed, 20, 20)) for seed in range(300)])


def test_prints_are_computed_once_and_kept(pictures: ImageSet, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    first, second = (perceptual_prints(pictures, tmp_path, lambda done, of: seen.append((done, of))) for _ in range(2))
    assert seen == [(256, 300), (300, 300)]
    assert np.array_equal(first.hashes, second.hashes)
    assert np.array_equal(first.contrast, second.contrast)
    assert [(int(first.hashes[i]), int(first.contrast[i])) for i in (0, 299)] == [print_of(pictures.images[i]) for i in (0, 299)]
    assert [path.name for path in tmp_path.iterdir()] == [next(tmp_path.glob("phash-*.npy")).name]


def test_threads_change_nothing(pictures: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = perceptual_prints(pictures, tmp_path / "one")
    monkeypatch.setattr(perceptual, "_SIDE_FOR_THREADS", 1)
    monkeypatch.setattr(perceptual, "_CHUNK", 7)
    assert np.array_equal(alone.hashes, perceptual_prints(pictures, tmp_path / "many").hashes)


class _Touch:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("damage", ["truncated", "empty", "shape", "type", "pickle", "contrast"])
def test_a_damaged_entry_is_computed_again(pictures: ImageSet, tmp_path: Path, damage: str) -> None:
    good = perceptual_prints(pictures, tmp_path)
    (path,) = tmp_path.glob("phash-*.npy")
    whole = path.read_bytes()
    if damage in ("truncated", "empty"):
        path.write_bytes(whole[: 500 if damage == "truncated" else 0])
    else:
        table = np.load(path)
        bad = {"shape": table[:, 1:], "type": table.astype(np.int64), "pickle": np.array([_Touch(tmp_path / "ran")]), "contrast": table + np.uint64(1 << 8)}
        np.save(path, bad[damage], allow_pickle=True)
    assert np.array_equal(perceptual_prints(pictures, tmp_path).hashes, good.hashes)
    assert path.read_bytes() == whole
    assert not (tmp_path / "ran").exists()


def test_the_same_content_with_other_pixels_is_another_entry(pictures: ImageSet, tmp_path: Path) -> None:
    """As of images that were corrupted, or resized in another way."""
    inverted = replace(pictures, images=255 - pictures.images)
    assert not np.array_equal(perceptual_prints(pictures, tmp_path).hashes, perceptual_prints(inverted, tmp_path).hashes)


def test_hashes_that_cannot_be_kept_are_used_all_the_same(pictures: ImageSet, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        prints = perceptual_prints(pictures, tmp_path / "file" / "cache")
    assert len(prints.hashes) == 300
    assert "cannot keep perceptual hashes" in caplog.text


def seen(hashes: list[int], content: list[int], contrast: list[int] | None = None) -> Appearance:
    levels = np.array([255] * len(hashes) if contrast is None else contrast, dtype=np.uint8)
    return appearance(Prints(np.array(hashes, dtype=np.uint64), levels), np.array(content, dtype=np.uint64))


few = st.lists(st.tuples(st.sampled_from([0, 1, 3, 7, 255, 2**63]), st.integers(0, 15), st.sampled_from([FLAT_CONTRAST - 1, FLAT_CONTRAST, 255])), max_size=40)


@settings(deadline=None)
@given(first=few, second=few, distance=st.integers(0, 4))
def test_counts_agree_with_their_definition(
    first: list[tuple[int, int, int]], second: list[tuple[int, int, int]], distance: int
) -> None:
    sides = [first, second]
    common = {h for side in sides for h in {h for h, _, _ in side} if _owners(side, h) > 3}
    told = [[contrast >= FLAT_CONTRAST and h not in common for h, _, contrast in side] for side in sides]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_module, "COMMON_HASH", 3)
        found = compare(seen(*_columns(first)), seen(*_columns(second)), distance, 1000)
    for one, other, near, ignored in ((0, 1, found.first, found.first_ignored), (1, 0, found.second, found.second_ignored)):
        contents = {content for _, content, _ in sides[other]}
        assert ignored == told[one].count(False)
        assert near == sum(
            told[one][i] and content not in contents and any(told[other][j] and bits_apart(h, g) <= distance for j, (g, _, _) in enumerate(sides[other]))
            for i, (h, content, _) in enumerate(sides[one])
        )
    assert list(found.closest) == sorted(found.closest, key=lambda match: (match[2], match[0], match[1]))
    assert bool(found.closest) == bool(found.first or found.second)
    for i, j, apart in found.closest:
        assert told[0][i]
        assert told[1][j]
        assert first[i][1] != second[j][1]
        assert apart == bits_apart(first[i][0], second[j][0]) <= distance


def _owners(side: list[tuple[int, int, int]], value: int) -> int:
    """How many contents have a hash, a content's being that of its first image."""
    first_of: dict[int, int] = {}
    for h, content, _ in side:
        first_of.setdefault(content, h)
    return sum(h == value for h in first_of.values())


def _columns(side: list[tuple[int, int, int]]) -> tuple[list[int], list[int], list[int]]:
    return [h for h, _, _ in side], [c for _, c, _ in side], [k for _, _, k in side]


def test_a_hash_that_many_images_share_is_left_out_and_counted() -> None:
    many = seen([5] * (COMMON_HASH + 1) + [1 << 40], list(range(COMMON_HASH + 2)))
    two = seen([5, 1 << 40], [100, 101])
    found, turned = compare(many, two, 0, 10), compare(two, many, 0, 10)
    assert (found.first, found.second) == (turned.second, turned.first) == (1, 1)
    assert (found.first_ignored, found.second_ignored) == (turned.second_ignored, turned.first_ignored) == (COMMON_HASH + 1, 1)
    assert found.closest == ((COMMON_HASH + 1, 1, 0),)
    assert turned.closest == ((1, COMMON_HASH + 1, 0),)


def test_one_image_under_many_corruptions_does_not_make_its_hash_common() -> None:
    found = compare(seen([5] * 15, [1] * 15), seen([5], [2]), 0, 10)
    assert (found.first, found.second, found.first_ignored) == (15, 1, 0)


def test_only_the_closest_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hamming, "_BLOCK", 1)  # so that they come in many steps
    first = seen([0b111 << 8 * k for k in range(6)], list(range(6)))
    second = seen([0b001 << 8 * k for k in range(3)] + [0b111 << 8 * k for k in range(3, 6)], list(range(10, 16)))
    found = compare(first, second, 2, 4)
    assert (found.first, found.second) == (6, 6)
    assert found.closest == ((3, 3, 0), (4, 4, 0), (5, 5, 0), (0, 0, 2))
