"""The cache stays within its bounds, gives up what was used longest ago, and never what somebody uses."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import autoft.data.room as room_module
from autoft.data import ImageSet, PixelSpec, load_image_set, load_study_data, plan_study_data, resolve_classes
from autoft.data.room import Entry, cache_limit, choose, clear, entries, evicted_for, limit_cache, read_size, readable
from autoft.data.streamed import StreamedImages
from autoft.errors import ConfigError
from tests.data.make import folder, study, write_folder

SIDE = 16
IMAGE = SIDE * SIDE * 3


def entry_bytes(n: int, side: int = SIDE) -> int:
    """What is set aside for an entry of n images: pixels, digests, and what describes them."""
    return n * (side * side * 3 + 32) + 4096


@pytest.fixture(autouse=True)
def _unbounded() -> object:
    yield
    limit_cache(None)


def load(source: Path, cache: Path) -> ImageSet:
    return load_image_set(folder(source), "data.train", resolve_classes(study(folder(source))), PixelSpec(SIDE, "bicubic"), cache)


def is_streamed(images: ImageSet) -> bool:
    return isinstance(images.images, StreamedImages)


def kinds(cache: Path) -> list[str]:
    return sorted(entry.kind for entry in entries(cache))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("123", 123), ("20GB", 20 * 10**9), ("1.5 GiB", 3 * 2**29), ("7K", 7000), ("2TiB", 2**41), (" 5B ", 5)],
)
def test_sizes_are_read(text: str, expected: int) -> None:
    assert read_size(text, "AUTOFT_CACHE_BYTES") == expected


@pytest.mark.parametrize("text", ["", "lots", "-1", "20 XB", "1e9", "GB", "1,000"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"AUTOFT_CACHE_BYTES = .*20GB"):
        read_size(text, "AUTOFT_CACHE_BYTES")


def test_sizes_are_shown() -> None:
    assert [readable(n) for n in (0, 1023, 1024, 3 * 2**29, 2**45)] == ["0 bytes", "1023 bytes", "1.0 KiB", "1.5 GiB", "32.0 TiB"]


def test_the_default_limit_does_not_move_as_the_cache_fills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room_module, "_free", lambda folder: 1000)
    before = cache_limit(tmp_path, 0)
    monkeypatch.setattr(room_module, "_free", lambda folder: 700)
    assert cache_limit(tmp_path, 300) == before == 500


SIZES = st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=6)


@given(SIZES, st.lists(st.integers(0, 40), min_size=1, max_size=5), st.integers(0, 120))
def test_what_is_chosen_fits_beside_what_others_use(there: list[tuple[int, bool]], wanted: list[int], limit: int) -> None:
    found = [Entry(f"e{i}", "images", size, float(i), in_use) for i, (size, in_use) in enumerate(there)]
    asked = [(f"w{i}", size) for i, size in enumerate(wanted)]
    chosen = choose(asked, found, limit)
    used = sum(entry.nbytes for entry in found if entry.in_use)
    total = 0
    for name, size in asked:  # greedy, in order
        fits = used + total + size <= limit
        assert (name in chosen) == fits
        total += size if fits else 0


@given(SIZES, st.integers(0, 60), st.integers(0, 120), st.sets(st.sampled_from(["e0", "e1", "e2"])))
def test_the_least_recently_used_goes_first_and_no_more_than_needed(there: list[tuple[int, bool]], nbytes: int, limit: int, keep: set[str]) -> None:
    found = [Entry(f"e{i}", "images", size, float(-i), in_use) for i, (size, in_use) in enumerate(there)]
    gone = evicted_for(nbytes, found, limit, keep)
    free = [entry for entry in reversed(found) if not entry.in_use and entry.name not in keep]  # the last was used longest ago
    total = sum(entry.nbytes for entry in found)
    if gone is None:
        assert total - sum(entry.nbytes for entry in free) + nbytes > limit
        return
    assert gone == [entry.name for entry in free[: len(gone)]]
    left = total - sum(entry.nbytes for entry in free[: len(gone)])
    assert left + nbytes <= limit
    if gone:
        assert left + free[len(gone) - 1].nbytes + nbytes > limit


def test_the_set_used_longest_ago_makes_room(tmp_path: Path) -> None:
    first, second, third = (write_folder(tmp_path / name, {"ant": 4, "bee": 4}, seed) for seed, name in enumerate("abc"))
    cache = tmp_path / "cache"
    limit_cache(2 * entry_bytes(8))
    load(first, cache)
    load(second, cache)
    marks = {entry.name: cache / ".marks" / entry.name for entry in entries(cache)}
    for age, name in enumerate([entry.name for entry in entries(cache)]):
        os.utime(marks[name], (age, age))
    load(first, cache)  # used again just now
    load(third, cache)
    limit_cache(10**9)
    assert kinds(cache) == ["images", "images"]
    before = set(cache.iterdir())
    load(first, cache)
    load(third, cache)
    assert set(cache.iterdir()) == before, "both are still there"
    load(second, cache)
    assert kinds(cache) == ["images"] * 3


def test_what_is_in_use_never_goes_and_the_newcomer_is_streamed(tmp_path: Path) -> None:
    first, second = (write_folder(tmp_path / name, {"ant": 4, "bee": 4}, seed) for seed, name in enumerate("ab"))
    cache = tmp_path / "cache"
    limit_cache(entry_bytes(8))
    held = load(first, cache)
    pixels = held.images[:].copy()
    newcomer = load(second, cache)
    assert is_streamed(newcomer) and not is_streamed(held)
    assert kinds(cache) == ["digests", "images"]
    assert np.array_equal(load(first, cache).images, pixels)
    del held, newcomer
    gc.collect()
    assert not is_streamed(load(second, cache))


HOLDER = """
import sys
from pathlib import Path
from autoft.config import DataConfig, FolderDataset
from autoft.data import PixelSpec, load_image_set, resolve_classes
dataset = FolderDataset(layout="folder", path=Path(sys.argv[1]))
classes = resolve_classes(DataConfig(train=dataset, val_id=dataset, val_ood=dataset))
held = load_image_set(dataset, "data.train", classes, PixelSpec(16, "bicubic"), Path(sys.argv[2]))
print("held", flush=True)
sys.stdin.readline()
"""


def test_another_process_is_respected_until_it_is_killed(tmp_path: Path) -> None:
    first, second = (write_folder(tmp_path / name, {"ant": 4, "bee": 4}, seed) for seed, name in enumerate("ab"))
    cache = tmp_path / "cache"
    limit_cache(entry_bytes(8))
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(first), str(cache)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert clear(cache)[0] == [] and kinds(cache) == ["images"]
        assert is_streamed(load(second, cache))
        holder.kill()
        holder.wait()
    assert not is_streamed(load(second, cache))
    assert "images" in kinds(cache) and not (set(kinds(cache)) - {"images", "digests"})


def test_a_limit_of_nothing_streams_everything_even_what_was_kept(tmp_path: Path) -> None:
    config = study(folder(write_folder(tmp_path / "set", {"ant": 4, "bee": 3})))
    kept = load_study_data(config, SIDE, "bicubic", "shortest", tmp_path / "cache")
    limit_cache(0)
    streamed = load_study_data(config, SIDE, "bicubic", "shortest", tmp_path / "cache")
    assert all(is_streamed(images) for images in (streamed.train, streamed.val_id, streamed.val_ood))
    assert streamed.train.images.shape == kept.train.images.shape == (7, 20, 20, 3)
    for one, other in ((streamed.train, kept.train), (streamed.val_ood, kept.val_ood)):
        assert np.array_equal(one.images[:], other.images) and np.array_equal(one.images[np.array([3, 0])], other.images[[3, 0]])
        assert (one.content_hash, one.example_hashes, one.labels.tolist()) == (other.content_hash, other.example_hashes, other.labels.tolist())


def test_validation_sets_come_before_train_and_train_before_tests(tmp_path: Path) -> None:
    sets = {name: folder(write_folder(tmp_path / name, {"ant": 2, "bee": 2}, seed)) for seed, name in enumerate(("train", "id", "ood", "test"))}
    config = study(sets["train"], sets["id"], sets["ood"], test_ood={"far": sets["test"]})
    train, other = entry_bytes(4, 20), entry_bytes(4)
    expected = {2 * other - 1: {"val_ood"}, 2 * other: {"val_id", "val_ood"}, 2 * other + train - 1: {"val_id", "val_ood", "far"}}
    expected |= {2 * other + train: {"train", "val_id", "val_ood"}, 3 * other + train: {"train", "val_id", "val_ood", "far"}}
    for limit, names in expected.items():
        limit_cache(limit)
        plans = plan_study_data(config, SIDE, "bicubic", "shortest", tmp_path / "cache")
        assert {plan.name for plan in plans if plan.how == "decoded"} == names
        assert all(plan.how == "streamed" and "more than" in plan.why for plan in plans if plan.name not in names)
    assert not (tmp_path / "cache").exists(), "nothing was decoded"


def test_the_plan_is_what_happens(tmp_path: Path) -> None:
    sets = [folder(write_folder(tmp_path / name, {"ant": 2, "bee": 2}, seed)) for seed, name in enumerate(("train", "id", "ood"))]
    config, cache = study(*sets), tmp_path / "cache"
    limit_cache(2 * entry_bytes(4))
    before = plan_study_data(config, SIDE, "bicubic", "shortest", cache)
    data = load_study_data(config, SIDE, "bicubic", "shortest", cache)
    after = plan_study_data(config, SIDE, "bicubic", "shortest", cache)
    assert [(plan.name, plan.how, plan.known) for plan in before] == [("train", "streamed", False), ("val_id", "decoded", False), ("val_ood", "decoded", False)]
    assert [(plan.name, plan.how, plan.known) for plan in after] == [("train", "streamed", True), ("val_id", "cached", True), ("val_ood", "cached", True)]
    assert [is_streamed(images) for images in (data.train, data.val_id, data.val_ood)] == [True, False, False]
    assert [plan.nbytes for plan in before] == [4 * 20 * 20 * 3, 4 * IMAGE, 4 * IMAGE]


def test_clear_removes_what_nobody_uses_and_what_the_killed_left(tmp_path: Path) -> None:
    source, cache = write_folder(tmp_path / "set", {"ant": 4, "bee": 3}), tmp_path / "cache"
    held = load(source, cache)
    (cache / ("." + "0" * 32 + ".partial")).mkdir()
    (cache / ("." + "0" * 32 + ".partial") / "images.npy").write_bytes(bytes(100))
    (cache / "phash-1.npy").write_bytes(bytes(50))
    assert kinds(cache) == ["hashes", "images"], "what a killed process left does not count"
    gone, kept = clear(cache)
    assert [entry.kind for entry in gone] == ["hashes"]
    assert [(entry.kind, entry.field, entry.images, entry.in_use) for entry in kept] == [("images", "data.train", 7, True)]
    assert sorted(path.name for path in cache.iterdir() if path.is_dir()) == sorted([".marks", kept[0].name])
    del held
    gc.collect()
    assert clear(cache)[1] == [] and entries(cache) == []
    assert clear(tmp_path / "none") == ([], [])


def test_a_read_only_cache_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, cache = write_folder(tmp_path / "set", {"ant": 4, "bee": 1}), tmp_path / "cache"
    expected = load(source, cache).images[:].copy()
    gc.collect()
    monkeypatch.setattr(room_module.os, "open", lambda *a, **k: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    assert np.array_equal(load(source, cache).images, expected)
