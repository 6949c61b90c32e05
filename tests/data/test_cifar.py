"""CIFAR-10 and its shifts, from miniature copies of the published files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from autoft.config import CifarCDataset, CifarDataset
from autoft.config.vocabulary import class_names
from autoft.data import check_study_data, load_study_data, open_listing
from autoft.errors import DataError
from tests.data.make import arrays, study, write_npz

NAMES = class_names("cifar10")
CORRUPTIONS = {
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow", "frost", "fog",
    "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression", "speckle_noise", "gaussian_blur", "spatter", "saturate",
}  # fmt: skip


def pictures(n: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


def binary(images: NDArray[np.uint8], labels: list[int]) -> bytes:
    """Rows of the binary version, byte by byte as its page describes them."""
    rows = bytearray()
    for image, label in zip(images, labels, strict=True):
        rows.append(label)
        for channel in range(3):
            for line in range(32):
                rows += bytes(image[line, :, channel])
    return bytes(rows)


def write_cifar10(folder: Path, per_batch: int = 4) -> Path:
    batches = folder / "cifar-10-batches-bin"
    batches.mkdir(parents=True)
    (batches / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    for seed, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        labels = [(seed * per_batch + i) % 10 for i in range(per_batch)]
        (batches / f"{name}.bin").write_bytes(binary(pictures(per_batch, seed), labels))
    return folder


def write_cifar10_c(folder: Path, types: list[str], n: int = 3) -> Path:
    """Every pixel of type t, severity s, example i has the value 50 * t + 10 * s + i."""
    folder.mkdir()
    for t, name in enumerate(types):
        values = np.array([(50 * t + 10 * s + i) % 256 for s in range(1, 6) for i in range(n)], dtype=np.uint8)
        np.save(folder / f"{name}.npy", np.broadcast_to(values[:, None, None, None], (5 * n, 32, 32, 3)))
    np.save(folder / "labels.npy", np.array([(i + 2) % 10 for _ in range(5) for i in range(n)], dtype=np.uint8))
    return folder


def cifar(path: Path, layout: Any = "cifar10", split: Any = "test", check_size: bool = False, **options: Any) -> CifarDataset:
    return CifarDataset(layout=layout, path=path, split=split, check_size=check_size, **options)


def corrupted(path: Path, check_size: bool = False, **options: Any) -> CifarCDataset:
    return CifarCDataset(layout="cifar10_c", path=path, check_size=check_size, **options)


def test_binary_batches_give_the_pixels_they_were_written_from(tmp_path: Path) -> None:
    root = write_cifar10(tmp_path)
    listing = open_listing(cifar(root, split="train"), "data.train")
    assert len(listing) == 20
    assert list(listing.labels or ()) == [NAMES[i % 10] for i in range(20)]
    for index in range(20):
        image = pictures(4, index // 4)[index % 4]
        assert np.array_equal(np.asarray(listing.decode(index)), image)
        assert listing.read(index) == image.tobytes()
    assert listing.ids[5] == "data_batch_2.bin[1]"
    test = open_listing(cifar(root / "cifar-10-batches-bin"), "data.val_id")
    assert list(test.labels or ()) == [NAMES[i] for i in (0, 1, 2, 3)]
    assert np.array_equal(np.asarray(test.decode(2)), pictures(4, 5)[2])


def test_a_study_of_every_cifar(tmp_path: Path) -> None:
    """All six sets agree on classes; the same pixels have the same hash in whichever of them they are."""
    root = write_cifar10(tmp_path / "c10")
    (tmp_path / "v6").mkdir()
    np.save(tmp_path / "v6" / "cifar10.1_v6_data.npy", pictures(4, 5))
    np.save(tmp_path / "v6" / "cifar10.1_v6_labels.npy", np.array([0, 1, 2, 3], dtype=np.int32))
    (tmp_path / "c2").mkdir()
    for split, n in (("train", 6), ("test", 3)):
        write_npz(tmp_path / "c2" / f"cifar102_{split}.npz", images=pictures(n, 9), labels=np.arange(n), label_names=np.array(NAMES))
    write_cifar10_c(tmp_path / "c", ["fog", "snow"])
    plain = write_npz(tmp_path / "plain.npz", images=pictures(2, 7), labels=np.array([9, 0]))
    config = study(
        cifar(root, split="train"),
        val_id=cifar(root),
        val_ood=corrupted(tmp_path / "c", types=("fog", "snow")),
        test_ood={
            "v1": cifar(tmp_path / "v6", "cifar10_1"),
            "v2": cifar(tmp_path / "c2", "cifar10_2"),
            "mine": arrays(plain),
        },
        classnames="cifar10",
        templates="cifar10",
        near_duplicates=None,
        allow_duplicates=(),
    )
    data = load_study_data(config, 32, "bicubic", "shortest", tmp_path / "cache")
    assert data.classes.names == NAMES
    tests = {name: images for name, (_, images) in data.tests.items()}
    assert np.array_equal(tests["v1"].images, pictures(4, 5))
    assert np.array_equal(tests["v2"].images, pictures(3, 9))
    assert tests["mine"].labels.tolist() == [9, 0]
    assert tests["v1"].example_hashes == data.val_id.example_hashes
    assert data.val_ood.group_names == ("fog", "snow")


def test_cifar10_2_test_is_the_published_2000(tmp_path: Path) -> None:
    """The authors' code loads the 10,000 training images for test."""
    for split, n in (("train", 10_000), ("test", 2_000)):
        write_npz(tmp_path / f"cifar102_{split}.npz", images=np.zeros((n, 1, 1, 3), np.uint8), labels=np.arange(n) % 10)
    assert len(open_listing(cifar(tmp_path, "cifar10_2", "test", check_size=True), "data.test_ood.v2")) == 2_000
    assert len(open_listing(cifar(tmp_path, "cifar10_2", "train", check_size=True), "data.train")) == 10_000


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_corruptions_at_one_severity(tmp_path: Path, severity: int) -> None:
    root = write_cifar10_c(tmp_path / "c", ["fog", "contrast", "unused"])
    listing = open_listing(corrupted(root, types=("contrast", "fog"), severity=severity), "data.val_ood")
    values = [int(np.asarray(listing.decode(i))[5, 7, 1]) for i in range(len(listing))]
    assert values == [50 * t + 10 * severity + i for t in (1, 0) for i in range(3)]
    assert [listing.read(i)[0] for i in range(len(listing))] == values
    assert list(listing.groups or ()) == ["contrast"] * 3 + ["fog"] * 3
    assert list(listing.labels or ()) == ["bird", "cat", "deer"] * 2
    assert listing.ids[4] == f"fog.npy[{(severity - 1) * 3 + 1}]"


def test_all_nineteen_corruptions_are_the_default(tmp_path: Path) -> None:
    root = write_cifar10_c(tmp_path / "c", sorted(CORRUPTIONS), n=1)
    assert set(open_listing(corrupted(root), "data.val_ood").groups or ()) == CORRUPTIONS
    (root / "saturate.npy").unlink()
    with pytest.raises(DataError, match=r"data\.val_ood\.path = .*there is no saturate\.npy; the corruptions here are brightness"):
        open_listing(corrupted(root), "data.val_ood")


def test_balanced_draws_take_every_class_from_all_corruptions(tmp_path: Path) -> None:
    """The authors' balanced draw kept the last corruption only."""
    root = write_cifar10_c(tmp_path / "c", ["fog", "frost", "snow"], n=10)
    dataset = corrupted(root, types=("fog", "frost", "snow"), max_examples=20, balanced=True)
    facts = check_study_data(study(dataset))[0]
    assert set(facts["per_class"].values()) == {2}
    assert len(facts["groups"]) == 3


def test_incomplete_copies_are_refused_with_both_numbers(tmp_path: Path) -> None:
    root = write_cifar10(tmp_path / "c10")
    with pytest.raises(DataError, match=r"data\.train\.path = .*20 images found, 50,000 .*check_size: false"):
        open_listing(cifar(root, split="train", check_size=True), "data.train")
    with pytest.raises(DataError, match=r"data\.val_id.*4 images found, 10,000"):
        open_listing(cifar(root, check_size=True), "data.val_id")
    faded = write_cifar10_c(tmp_path / "c", ["fog", "snow"])
    with pytest.raises(DataError, match=r"data\.val_ood.*6 images found, 20,000"):
        open_listing(corrupted(faded, check_size=True, types=("fog", "snow")), "data.val_ood")
    np.save(tmp_path / "cifar10.1_v6_data.npy", pictures(3, 0))
    np.save(tmp_path / "cifar10.1_v6_labels.npy", np.arange(3))
    with pytest.raises(DataError, match=r"3 images found, 2,000"):
        open_listing(cifar(tmp_path, "cifar10_1", check_size=True), "data.val_id")


@pytest.mark.parametrize("folder", ["cifar-10-batches-py", "."])
def test_pickled_versions_are_refused_with_the_download_to_use(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / "test_batch").write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(DataError, match=r"data\.train\.path = .*pickle.*any program.*cifar-10-binary\.tar\.gz"):
        open_listing(cifar(tmp_path), "data.train")
    (tmp_path / "cifar102_test.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"cifar102_test\.npy is a pickle.*use cifar102_test\.npz"):
        open_listing(cifar(tmp_path, "cifar10_2"), "data.train")
    np.savez(tmp_path / "cifar102_test.npz", images=np.zeros((1, 32, 32, 3), np.uint8), labels=np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"never unpickled"):
        open_listing(cifar(tmp_path, "cifar10_2"), "data.train")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    batches = write_cifar10(tmp_path) / "cifar-10-batches-bin"
    whole = (batches / "test_batch.bin").read_bytes()
    (batches / "test_batch.bin").write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"data\.val_id: batch .*test_batch\.bin is damaged: its 12291 bytes"):
        open_listing(cifar(tmp_path), "data.val_id")
    (batches / "test_batch.bin").write_bytes(whole[:3073] + b"\x0a" + whole[3074:])
    with pytest.raises(DataError, match=r"example 1 has label 10; .* 0 to 9"):
        open_listing(cifar(tmp_path), "data.val_id")
    (batches / "test_batch.bin").write_bytes(whole)
    (batches / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data\.train: batch .*data_batch_3\.bin: No such file"):
        open_listing(cifar(tmp_path, split="train"), "data.train")
    (batches / "batches.meta.txt").write_text("apple\npear\n")
    with pytest.raises(DataError, match=r"names other classes .*apple, pear"):
        open_listing(cifar(tmp_path), "data.val_id")
    with pytest.raises(DataError, match=r"data\.val_id\.path = .*there is no test_batch\.bin here nor in cifar-10-batches-bin"):
        open_listing(cifar(tmp_path / "elsewhere"), "data.val_id")


def test_wrong_corruptions(tmp_path: Path) -> None:
    root = write_cifar10_c(tmp_path / "c", ["fog", "snow"])
    for types, problem in (((), r"types is empty.*fog, snow"), (("fog", "fog"), r"fog is listed more than once"), (("labels",), r"no labels\.npy; .*fog")):
        with pytest.raises(DataError, match=rf"data\.val_ood.*{problem}"):
            open_listing(corrupted(root, types=types), "data.val_ood")
    np.save(root / "snow.npy", np.zeros((10, 32, 32, 3), np.uint8))
    with pytest.raises(DataError, match=r"data\.val_ood.*must have shape \(10,\)"):
        open_listing(corrupted(root, types=("fog", "snow")), "data.val_ood")
    np.save(root / "fog.npy", np.zeros((7, 32, 32, 3), np.uint8))
    np.save(root / "labels.npy", np.zeros(7, np.uint8))
    with pytest.raises(DataError, match=r"fog\.npy has 7 images, which are not 5 severities"):
        open_listing(corrupted(root, types=("fog",)), "data.val_ood")
