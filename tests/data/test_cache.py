"""The cache is used when it fits, rebuilt when it does not, and built once however many want it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import autoft.data.cache as cache_module
import autoft.data.files as files_module
import autoft.data.pixels as pixels_module
from autoft.data import ImageSet, PixelSpec, load_image_set, open_listing, resolve_classes
from autoft.data.cache import Request, load_decoded
from autoft.errors import DataError
from tests.data.make import encoded, folder, picture, study, write_folder

SPEC = PixelSpec(16, "bicubic")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "set", {"ant": 4, "bee": 3})


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The examples that are decoded, by name, while a test runs."""
    names: list[str] = []
    real = pixels_module.decode_image

    def counting(raw: bytes, field: str, example: str) -> object:
        names.append(example)
        return real(raw, field, example)

    monkeypatch.setattr(files_module, "decode_image", counting)
    return names


def load(source: Path, cache: Path, spec: PixelSpec = SPEC, **options: object) -> ImageSet:
    dataset = folder(source, **options)
    return load_image_set(dataset, "data.train", resolve_classes(study(folder(source))), spec, cache)


def entry(cache: Path) -> Path:
    (found,) = (path for path in cache.iterdir() if path.is_dir() and path.name != ".marks")
    return found


def equal(one: ImageSet, other: ImageSet) -> bool:
    same = np.array_equal(one.images, other.images) and np.array_equal(one.labels, other.labels)
    return same and (one.content_hash, one.example_hashes) == (other.content_hash, other.example_hashes)


def test_second_load_decodes_nothing_and_maps_the_file(source: Path, tmp_path: Path, decoded: list[str]) -> None:
    first = load(source, tmp_path / "cache")
    assert len(decoded) == 7
    second = load(source, tmp_path / "cache")
    assert len(decoded) == 7
    assert equal(first, second)
    assert isinstance(second.images, np.memmap)
    assert not second.images.flags.writeable
    assert second.images.shape == (7, 16, 16, 3)
    assert second.class_counts().tolist() == [4, 3]


def test_progress_is_reported_while_decoding_only(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    classes = resolve_classes(study(folder(source)))
    for _ in range(2):
        load_image_set(folder(source), "data.train", classes, SPEC, tmp_path / "cache", lambda done, of: seen.append((done, of)))
    assert seen == [(7, 7)]


@pytest.mark.parametrize(
    "change",
    [
        {"spec": PixelSpec(16, "bilinear")},
        {"spec": PixelSpec(16, "bicubic", margin=1.25)},
        {"spec": PixelSpec(16, "bicubic", "squash")},
        {"slice": (0, 4)},
        {"max_examples": 5},
    ],
)
def test_other_pixels_or_examples_are_another_entry(source: Path, tmp_path: Path, decoded: list[str], change: dict[str, object]) -> None:
    first = load(source, tmp_path / "cache")
    before = len(decoded)
    other = load(source, tmp_path / "cache", **change)  # type: ignore[arg-type]
    assert len(decoded) == before + len(other)
    assert not equal(first, other)
    assert equal(load(source, tmp_path / "cache"), first)
    assert len(decoded) == before + len(other)


def test_a_selection_that_changed_for_other_reasons_is_another_entry(source: Path, tmp_path: Path) -> None:
    """As a balanced draw does when captions are read by other templates."""
    listing = open_listing(folder(source), "data.train")
    first, second = (load_decoded(Request(listing, np.array(examples), SPEC, {}), tmp_path / "cache") for examples in ([0, 1], [2, 3]))
    assert not np.array_equal(first.images, second.images)


def test_changed_source_is_decoded_again(source: Path, tmp_path: Path, decoded: list[str]) -> None:
    first = load(source, tmp_path / "cache")
    file = source / "bee" / "01.png"
    stat = file.stat()
    file.write_bytes(encoded(picture(99)))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    second = load(source, tmp_path / "cache")
    assert len(decoded) == 14
    assert [i for i in range(7) if not np.array_equal(first.images[i], second.images[i])] == [5]
    assert [i for i in range(7) if first.example_hashes[i] != second.example_hashes[i]] == [5]
    assert first.content_hash != second.content_hash


def test_content_hash_is_of_content_and_classes_not_of_paths(source: Path, tmp_path: Path) -> None:
    first = load(source, tmp_path / "cache")
    moved = source.rename(tmp_path / "elsewhere")
    for file in (moved / "ant").iterdir():
        file.rename(file.with_name(f"x{file.name}"))
    assert load(moved, tmp_path / "other-cache").content_hash == first.content_hash
    (moved / "bee").rename(moved / "cow")
    relabelled = load(moved, tmp_path / "cache")
    assert relabelled.example_hashes == first.example_hashes
    assert relabelled.content_hash != first.content_hash


def damage(file: str, action: str, folder: Path) -> None:
    path = folder / file
    raw = path.read_bytes()
    if action == "cut":
        path.write_bytes(raw[: len(raw) // 2])
    elif action == "empty":
        path.write_bytes(b"")
    elif action == "gone":
        path.unlink()
    elif action == "flip":
        path.write_bytes(raw[:-100] + bytes([raw[-100] ^ 1]) + raw[-99:])
    elif action == "reshape":
        np.save(path, np.load(path)[:-1])
    elif action == "zero":
        path.write_bytes(raw[:128] + b"\0" * (len(raw) - 128))
    elif action == "edit":
        path.write_text(json.dumps({**json.loads(raw), "field": "data.val_id"}))


@pytest.mark.parametrize("file", ["images.npy", "digests.npy"])
@pytest.mark.parametrize("action", ["cut", "empty", "gone", "flip", "reshape", "zero"])
def test_damaged_arrays_are_built_again(source: Path, tmp_path: Path, decoded: list[str], file: str, action: str) -> None:
    first = load(source, tmp_path / "cache")
    expected = first.images.copy()
    damage(file, action, entry(tmp_path / "cache"))
    again = load(source, tmp_path / "cache")
    assert len(decoded) == 14
    assert np.array_equal(again.images, expected)
    assert again.example_hashes == first.example_hashes


@pytest.mark.parametrize("action", ["cut", "empty", "gone", "edit"])
def test_damaged_records_are_built_again(source: Path, tmp_path: Path, decoded: list[str], action: str) -> None:
    load(source, tmp_path / "cache")
    damage("meta.json", action, entry(tmp_path / "cache"))
    load(source, tmp_path / "cache")
    assert len(decoded) == 14
    load(source, tmp_path / "cache")
    assert len(decoded) == 14


def test_large_caches_are_checked_in_samples(source: Path, tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_CHECKED_BYTES", 2000)
    monkeypatch.setattr(cache_module, "_CHUNK_BYTES", 1600)
    first = load(source, tmp_path / "cache")
    assert equal(load(source, tmp_path / "cache"), first)
    assert len(decoded) == 7
    damage("images.npy", "zero", entry(tmp_path / "cache"))
    load(source, tmp_path / "cache")
    assert len(decoded) == 14


def test_small_chunks_keep_the_order(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(source, tmp_path / "one")
    monkeypatch.setattr(cache_module, "_CHUNK_BYTES", 1600)
    assert equal(load(source, tmp_path / "two"), first)


def test_a_build_that_failed_leaves_nothing_behind(source: Path, tmp_path: Path) -> None:
    file = source / "bee" / "02.png"
    good = file.read_bytes()
    file.write_bytes(good[: len(good) // 2])
    with pytest.raises(DataError, match=r"data\.train: image bee/02\.png is corrupt or truncated"):
        load(source, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir() and path.name != ".marks"]
    file.write_bytes(good)
    assert len(load(source, tmp_path / "cache")) == 7


def test_a_cache_that_cannot_be_written_is_a_data_error(source: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(DataError, match=r"data\.train: cannot write the image cache in .*cache"):
        load(source, tmp_path / "cache")


WORKER = """
import sys
from pathlib import Path
import autoft.data.files as files
from autoft.data import PixelSpec, load_image_set, resolve_classes
from autoft.config import DataConfig, FolderDataset

count, real = 0, files.decode_image
def counting(*arguments):
    global count
    count += 1
    return real(*arguments)
files.decode_image = counting
source, cache = map(Path, sys.argv[1:])
dataset = FolderDataset(layout="folder", path=source)
classes = resolve_classes(DataConfig(train=dataset, val_id=dataset, val_ood=dataset))
print("ready", flush=True)
sys.stdin.readline()
images = load_image_set(dataset, "data.train", classes, PixelSpec(16, "bicubic"), cache)
print(count, images.content_hash, int(images.images.astype("int64").sum()))
"""


def test_four_processes_build_an_entry_once(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "set", {"ant": 40, "bee": 40})
    command = [sys.executable, "-c", WORKER, str(source), str(tmp_path / "cache")]
    workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:  # all at once, once all have started
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    answers = [worker.communicate(timeout=60)[0].split() for worker in workers]
    assert sorted(int(answer[0]) for answer in answers) == [0, 0, 0, 80]
    assert len({tuple(answer[1:]) for answer in answers}) == 1
