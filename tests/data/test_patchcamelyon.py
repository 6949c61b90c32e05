"""PatchCamelyon, from miniature copies of its HDF5 files."""

import gzip
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from autoft.config import PatchCamelyonDataset
from autoft.data import load_study_data, open_listing
from autoft.errors import DataError
from tests.data.make import study

h5py = pytest.importorskip("h5py", reason="needs h5py, which the hdf5 extra installs")
NAMES = ("lymph node", "lymph node containing metastatic tumor tissue")


def pictures(n: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, 96, 96, 3), dtype=np.uint8)


def write(folder: Path, split: str, labels: list[int], seed: int = 0, **storage: Any) -> Path:
    folder.mkdir(exist_ok=True)
    with h5py.File(folder / f"camelyonpatch_level_2_split_{split}_x.h5", "w") as file:
        file.create_dataset("x", data=pictures(len(labels), seed), **storage)
    with h5py.File(folder / f"camelyonpatch_level_2_split_{split}_y.h5", "w") as file:
        file.create_dataset("y", data=np.array(labels, dtype=np.uint8).reshape(-1, 1, 1, 1))
    return folder


def pcam(path: Path, split: Any = "test", check_size: bool = False, **options: Any) -> PatchCamelyonDataset:
    return PatchCamelyonDataset(layout="patchcamelyon", path=path, split=split, check_size=check_size, **options)


@pytest.mark.parametrize("storage", [{}, {"chunks": (2, 96, 96, 3), "compression": "gzip"}])
def test_a_study_of_the_three_splits(tmp_path: Path, storage: dict[str, Any]) -> None:
    labels = {"train": [1, 0, 1, 0, 0, 0, 1, 1, 0, 1], "valid": [0, 1], "test": [1, 1, 0]}
    for seed, (split, values) in enumerate(labels.items()):
        write(tmp_path, split, values, seed, **storage)
    config = study(pcam(tmp_path, "train"), pcam(tmp_path, "valid"), pcam(tmp_path, "valid"), test_id={"test": pcam(tmp_path)},
                   classnames="patchcamelyon", templates="patchcamelyon", near_duplicates=None)  # fmt: skip
    data = load_study_data(config, 96, "bicubic", "shortest", tmp_path / "cache")
    assert data.classes.names == NAMES
    assert data.train.labels.tolist() == labels["train"]
    assert np.array_equal(data.val_id.images, pictures(2, 1))
    assert np.array_equal(data.tests["test"][1].images, pictures(3, 2))


def test_names_need_not_be_given(tmp_path: Path) -> None:
    write(tmp_path, "train", [0, 1, 1, 0])
    data = load_study_data(study(pcam(tmp_path, "train", max_examples=2, balanced=True)), 8, "bicubic", "shortest", tmp_path / "cache", splits=["train"])
    assert data.classes.names == NAMES
    assert sorted(data.train.labels.tolist()) == [0, 1]


def test_incomplete_copies_are_refused_with_both_numbers(tmp_path: Path) -> None:
    for split, published in (("train", "262,144"), ("valid", "32,768"), ("test", "32,768")):
        write(tmp_path, split, [0, 1])
        with pytest.raises(DataError, match=rf"data\.train\.path = .*2 images found, {published} .*patchcamelyon {split}.*check_size: false"):
            open_listing(pcam(tmp_path, split, check_size=True), "data.train")


def test_nothing_is_read_of_the_images_before_one_is_decoded(tmp_path: Path) -> None:
    """Overwriting the pixels after the listing shows in what is decoded."""
    write(tmp_path, "test", [0, 1, 0])
    listing = open_listing(pcam(tmp_path), "data.test_id.a")
    path = tmp_path / "camelyonpatch_level_2_split_test_x.h5"
    raw = path.read_bytes()
    start = raw.index(pictures(3, 0)[1].tobytes())
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(96 * 96 * 3))
    assert not np.asarray(listing.decode(1)).any()
    assert listing.read(1) == bytes(96 * 96 * 3)
    assert listing.ids[1] == "camelyonpatch_level_2_split_test_x.h5[1]"


def test_compressed_missing_and_damaged_files(tmp_path: Path) -> None:
    where = r"data\.val_id.*camelyonpatch_level_2_split_test"
    with pytest.raises(DataError, match=where + r"_x\.h5: No such file"):
        open_listing(pcam(tmp_path), "data.val_id")
    x = write(tmp_path, "test", [0, 1]) / "camelyonpatch_level_2_split_test_x.h5"
    whole = x.read_bytes()
    x.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=where + r"_x\.h5 is damaged or not an HDF5 file"):
        open_listing(pcam(tmp_path), "data.val_id")
    x.with_suffix(".h5.gz").write_bytes(gzip.compress(whole))
    x.unlink()
    with pytest.raises(DataError, match=where + r"_x\.h5\.gz is compressed.*gunzip"):
        open_listing(pcam(tmp_path), "data.val_id")


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("x", np.zeros((2, 96, 96), np.uint8), r"x must be images \(n, 96, 96, 3\) uint8, got uint8 of shape \(2, 96, 96\)"),
        ("x", np.zeros((2, 96, 96, 3), np.float32), r"x must be images .* got float32"),
        ("images", np.zeros((2, 96, 96, 3), np.uint8), r"has no array 'x'; it has images"),
        ("y", np.zeros((3, 1, 1, 1), np.uint8), r"y must be 2 integers, one an image, got uint8 of shape \(3, 1, 1, 1\)"),
        ("y", np.zeros((2, 1, 1, 1), np.float32), r"y must be 2 integers"),
        ("y", np.array([0, 2], np.uint8).reshape(2, 1, 1, 1), r"example 1 has label 2; .* 0 to 1"),
    ],
)
def test_arrays_that_are_not_patchcamelyons(tmp_path: Path, key: str, value: NDArray[Any], problem: str) -> None:
    write(tmp_path, "train", [0, 1])
    with h5py.File(tmp_path / f"camelyonpatch_level_2_split_train_{'y' if key == 'y' else 'x'}.h5", "w") as file:
        file[key] = value
    with pytest.raises(DataError, match=rf"data\.train: .*{problem}"):
        open_listing(pcam(tmp_path, "train"), "data.train")


def test_without_h5py_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "test", [0, 1])
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r"data\.val_ood\.layout = patchcamelyon: .*h5py.*pip install 'autoft\[hdf5\]'"):
        open_listing(pcam(tmp_path), "data.val_ood")
