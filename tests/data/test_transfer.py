"""Caltech-101, Stanford Cars, Flowers-102 and rendered SST-2, from miniature copies of their folders; few-shot draws."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from numpy.typing import NDArray

from autoft.config import ImageNetDataset, TransferDataset
from autoft.config.vocabulary import class_names, folder_names
from autoft.data import check_study_data, load_study_data, open_listing
from autoft.data.transfer import class_parts
from autoft.errors import DataError
from tests.data.make import encoded, folder, picture, study, write_folder

CARS = ("AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012", "smart fortwo Convertible 2012")


def transfer(path: Path, layout: Any, split: Any = "train", check_size: bool = False, **options: Any) -> TransferDataset:
    return TransferDataset(layout=layout, path=path, split=split, check_size=check_size, **options)


def write_pictures(root: Path, names: list[str], seed: int = 0) -> None:
    """Lossless images under the published names, so that pixels can be compared."""
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(picture(seed + i)))


def write_caltech(root: Path, counts: dict[str, int]) -> Path:
    for seed, (name, count) in enumerate({**counts, "BACKGROUND_Google": 3}.items()):
        write_pictures(root / "101_ObjectCategories" / name, [f"image_{i:04d}.jpg" for i in range(1, count + 1)], 100 * seed)
    (root / "101_ObjectCategories" / "BACKGROUND_Google" / "tmp").write_text("")
    return root


def write_annotations(path: Path, files: list[str], classes: list[int]) -> None:
    kinds = [(name, object) for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
    rows = np.array([(1, 2, 30, 40, number, name) for name, number in zip(files, classes, strict=True)], dtype=kinds)
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {"annotations": rows})


def write_cars(root: Path, train: list[int], test: list[int]) -> Path:
    for kind, classes in (("train", train), ("test", test)):
        files = [f"{i:05d}.jpg" for i in range(1, len(classes) + 1)]
        write_pictures(root / f"cars_{kind}", files, 1000 if kind == "test" else 0)
        name = root / ("cars_test_annos_withlabels.mat" if kind == "test" else "devkit/cars_train_annos.mat")
        write_annotations(name, files, classes)
    scipy.io.savemat(root / "devkit" / "cars_meta.mat", {"class_names": np.array(CARS, dtype=object)})
    return root


def write_flowers(root: Path, labels: list[int], **splits: list[int]) -> Path:
    write_pictures(root, [f"jpg/image_{i:05d}.jpg" for i in range(1, len(labels) + 1)])
    scipy.io.savemat(root / "imagelabels.mat", {"labels": np.array([labels], dtype=np.uint8)})
    scipy.io.savemat(root / "setid.mat", {key: np.array([ids], dtype=np.uint16) for key, ids in splits.items()})
    return root


def same(image: Any, seed: int) -> bool:
    return np.array_equal(np.asarray(image), np.asarray(picture(seed)))


# Splits


def test_parts_cover_each_class_once_and_keep_their_shares() -> None:
    rng = np.random.default_rng(0)
    labels = [f"c{number}" for number in rng.integers(0, 12, 2000)]
    parts = class_parts(labels, (60, 20, 20))
    for label, count in Counter(labels).items():
        sizes = np.bincount(parts[np.array(labels) == label], minlength=3)
        assert sizes.sum() == count
        assert np.abs(sizes - count * np.array([0.6, 0.2, 0.2])).max() <= 1
    assert np.corrcoef(parts, np.arange(2000))[0, 1] < 0.1


def test_parts_are_fixed_for_ever() -> None:
    """Every stored result on Caltech-101 and Stanford Cars hangs on them."""
    assert class_parts(["a"] * 10 + ["b"] * 5, (60, 20, 20)).tolist() == [0, 1, 0, 0, 0, 2, 2, 0, 1, 0, 2, 1, 0, 0, 0]


# Caltech-101


def test_caltech_splits_share_no_image_and_leave_the_background_out(tmp_path: Path) -> None:
    root = write_caltech(tmp_path, {"Faces": 10, "Faces_easy": 5, "yin_yang": 15})
    listings = {split: open_listing(transfer(root, "caltech101", split), "data.train") for split in ("train", "val", "test")}
    assert {split: len(listing) for split, listing in listings.items()} == {"train": 18, "val": 6, "test": 6}
    ids = [example for listing in listings.values() for example in listing.ids]
    assert len(set(ids)) == 30
    assert not any("BACKGROUND" in example for example in ids)
    for listing in listings.values():
        for index, (example, label) in enumerate(zip(listing.ids, listing.labels or (), strict=True)):
            place, name = example.split("/")
            assert folder_names("caltech101")[place] == label
            assert listing.read(index) == (root / "101_ObjectCategories" / example).read_bytes()
            seed = 100 * ("Faces", "Faces_easy", "yin_yang").index(place) + int(name[6:10]) - 1
            assert same(listing.decode(index), seed)
    inside = open_listing(transfer(root / "101_ObjectCategories", "caltech101", "val"), "data.train")
    assert list(inside.ids) == list(listings["val"].ids)


def test_caltech_names_fit_the_built_in_list(tmp_path: Path) -> None:
    root = write_caltech(tmp_path / "caltech", dict.fromkeys(folder_names("caltech101"), 3))
    config = study(*(transfer(root, "caltech101", split) for split in ("train", "val", "test")), classnames="caltech101", templates="caltech101")
    facts = {fact["field"]: fact for fact in check_study_data(config)}
    assert list(facts["data.train"]["per_class"]) == list(class_names("caltech101"))
    assert set(facts["data.train"]["per_class"].values()) == {2}


def test_caltech_wants_all_images_of_its_own_categories(tmp_path: Path) -> None:
    root = write_caltech(tmp_path, {"ant": 4, "bass": 4})
    with pytest.raises(DataError, match=r"data\.val_id\.path = .*8 images found, 8,677 .*caltech101.*check_size: false"):
        open_listing(transfer(root, "caltech101", "val", check_size=True), "data.val_id")
    write_folder(root / "101_ObjectCategories" / "zebra", {"x": 1})
    with pytest.raises(DataError, match=r"data\.val_id\.path = .*folder zebra is no category of Caltech-101"):
        open_listing(transfer(root, "caltech101", "val"), "data.val_id")


# Stanford Cars


def test_a_study_of_stanford_cars(tmp_path: Path) -> None:
    train = [1 + i % 3 for i in range(30)]
    root = write_cars(tmp_path / "cars", train, [3, 1])
    sets = [transfer(root, "stanford_cars", split) for split in ("train", "val", "val", "test")]
    config = study(*sets[:3], test_id={"test": sets[3]}, templates="stanford_cars", near_duplicates=None)
    facts = {fact["field"]: fact for fact in check_study_data(config)}
    assert facts["data.train"]["per_class"] == dict.fromkeys(CARS, 8)
    assert facts["data.val_id"]["per_class"] == dict.fromkeys(CARS, 2)
    listings = [open_listing(item, "data.train") for item in sets]
    assert not set(listings[0].ids) & set(listings[1].ids)
    for listing in listings[:2]:
        for index, (example, label) in enumerate(zip(listing.ids, listing.labels or (), strict=True)):
            number = int(example.removeprefix("cars_train/").removesuffix(".jpg"))
            assert label == CARS[train[number - 1] - 1]
            assert same(listing.decode(index), number - 1)
    assert list(listings[3].labels or ()) == [CARS[2], CARS[0]]
    assert same(listings[3].decode(1), 1001)
    data = load_study_data(config, 8, "bicubic", "shortest", tmp_path / "cache")
    assert data.classes.names == CARS


def test_cars_that_do_not_fit(tmp_path: Path) -> None:
    root = write_cars(tmp_path, [1, 2, 3], [1])
    for split, problem in (("train", "3 images found, 8,144"), ("val", "3 images found, 8,144"), ("test", "1 images found, 8,041")):
        with pytest.raises(DataError, match=rf"data\.train\.path = .*{problem}"):
            open_listing(transfer(root, "stanford_cars", split, check_size=True), "data.train")
    (root / "cars_test_annos_withlabels.mat").rename(root / "devkit" / "cars_test_annos.mat")
    with pytest.raises(DataError, match=r"no cars_test_annos_withlabels\.mat here nor in devkit; cars_test_annos\.mat has no labels"):
        open_listing(transfer(root, "stanford_cars", "test"), "data.train")
    table = root / "devkit" / "cars_train_annos.mat"
    write_annotations(table, ["00001.jpg", "00002.jpg", "00003.jpg"], [1, 4, 1])
    with pytest.raises(DataError, match=r"cars_train_annos\.mat: example 1 has label 4; .* 1 to 3"):
        open_listing(transfer(root, "stanford_cars"), "data.train")
    write_annotations(table, ["00001.jpg", "../../00002.jpg"], [1, 1])
    with pytest.raises(DataError, match=r"names an image outside its folder: cars_train/\.\./\.\./00002\.jpg"):
        open_listing(transfer(root, "stanford_cars"), "data.train")
    write_annotations(table, ["00001.jpg", "00009.jpg"], [1, 1])
    with pytest.raises(DataError, match=r"data\.train: image .*cars_train/00009\.jpg: No such file"):
        open_listing(transfer(root, "stanford_cars"), "data.train")
    scipy.io.savemat(table, {"annotations": np.arange(3)})
    with pytest.raises(DataError, match=r"annotations in .* need fname and class"):
        open_listing(transfer(root, "stanford_cars"), "data.train")
    scipy.io.savemat(table, {"other": np.arange(3)})
    with pytest.raises(DataError, match=r"has no variable 'annotations'"):
        open_listing(transfer(root, "stanford_cars"), "data.train")


@pytest.mark.parametrize("content", [b"", b"not a matlab file, but long enough to have a header of some kind" * 4, None])
def test_damaged_matlab_files(tmp_path: Path, content: bytes | None) -> None:
    root = write_cars(tmp_path, [1, 2, 3], [1])
    table = root / "devkit" / "cars_train_annos.mat"
    table.write_bytes(table.read_bytes()[:-100] if content is None else content)
    with pytest.raises(DataError, match=r"data\.train: .*cars_train_annos\.mat is damaged or not a MATLAB 5 file"):
        open_listing(transfer(root, "stanford_cars"), "data.train")


# Flowers-102


def test_flowers_have_their_official_split_and_built_in_names(tmp_path: Path) -> None:
    labels = [102, 1, 93, 2, 1, 102]
    root = write_flowers(tmp_path, labels, trnid=[2, 1, 3, 4], valid=[5], tstid=[6])
    names = class_names("flowers102")
    listing = open_listing(transfer(root, "flowers102"), "data.train")
    assert list(listing.ids) == [f"jpg/image_{i:05d}.jpg" for i in (2, 1, 3, 4)]
    assert list(listing.labels or ()) == ["pink primrose", "blackberry lily", names[92], "hard-leaved pocket orchid"]
    assert all(same(listing.decode(i), number - 1) for i, number in enumerate((2, 1, 3, 4)))
    assert list(open_listing(transfer(root, "flowers102", "val"), "data.val_id").labels or ()) == ["pink primrose"]
    assert list(open_listing(transfer(root, "flowers102", "test"), "data.val_id").ids) == ["jpg/image_00006.jpg"]


def test_a_study_of_flowers_by_the_built_in_names(tmp_path: Path) -> None:
    labels = [*range(1, 103), 7, 3]
    root = write_flowers(tmp_path / "flowers", labels, trnid=list(range(1, 103)), valid=[103], tstid=[104])
    sets = [transfer(root, "flowers102", split) for split in ("train", "val", "test")]
    config = study(sets[0], sets[1], sets[1], test_id={"test": sets[2]}, classnames="flowers102", templates="flowers102", near_duplicates=None)
    data = load_study_data(config, 8, "bicubic", "shortest", tmp_path / "cache")
    assert data.train.labels.tolist() == list(range(102))
    assert data.val_id.labels.tolist() == [6]
    assert data.tests["test"][1].labels.tolist() == [2]


def test_flowers_that_do_not_fit(tmp_path: Path) -> None:
    root = write_flowers(tmp_path, [1, 2, 103], trnid=[1, 2], valid=[4], tstid=[3])
    with pytest.raises(DataError, match=r"imagelabels\.mat: example 2 has label 103; .* 1 to 102"):
        open_listing(transfer(root, "flowers102"), "data.train")
    scipy.io.savemat(root / "imagelabels.mat", {"labels": np.array([[1, 2, 102]])})
    for split, found, published in (("train", 2, "1,020"), ("test", 1, "6,149")):
        with pytest.raises(DataError, match=rf"data\.train\.path = .*{found} images found, {published}"):
            open_listing(transfer(root, "flowers102", split, check_size=True), "data.train")
    with pytest.raises(DataError, match=r"valid in .*setid\.mat has image 4, but imagelabels\.mat has labels of images 1 to 3 only"):
        open_listing(transfer(root, "flowers102", "val"), "data.val_id")
    (root / "setid.mat").unlink()
    with pytest.raises(DataError, match=r"data\.val_id\.path = .*no setid\.mat here nor in devkit"):
        open_listing(transfer(root, "flowers102", "val"), "data.val_id")


# Rendered SST-2 and few-shot ImageNet: the folder layout is all they need


def test_rendered_sst2_is_a_folder_of_two_classes(tmp_path: Path) -> None:
    root = tmp_path / "rendered-sst2"
    for seed, (split, count) in enumerate({"train": 12, "valid": 4, "test": 3}.items()):
        write_folder(root / split, {"negative": count, "positive": count}, seed)
    shots = {"max_examples": 8, "balanced": True}
    config = study(folder(root / "train", **shots), folder(root / "valid"), folder(root / "valid"), test_id={"test": folder(root / "test")},
                   classnames="sst2", templates="sst2", near_duplicates=None)  # fmt: skip
    data = load_study_data(config, 8, "bicubic", "shortest", tmp_path / "cache")
    assert data.classes.names == ("negative", "positive")
    assert config.templates == ("a {} review of a movie.",)
    assert data.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert data.tests["test"][1].labels.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("layout", ["folder", "imagenet"])
def test_k_shots_of_every_class_and_other_ones_by_seed(tmp_path: Path, layout: str) -> None:
    write_folder(tmp_path / "train", dict.fromkeys(("n01440764", "n01443537", "n01484850"), 20))

    def draw(seed: int) -> NDArray[Any]:
        shots: dict[str, Any] = {"max_examples": 4 * 3, "balanced": True, "draw_seed": seed}
        if layout == "imagenet":
            dataset: Any = ImageNetDataset(layout="imagenet", path=tmp_path, split="train", check_size=False, **shots)
        else:
            dataset = folder(tmp_path / "train", **shots)
        data = load_study_data(study(dataset), 8, "bicubic", "shortest", tmp_path / "cache", splits=["train"])
        assert data.train.class_counts().tolist() == [4, 4, 4]
        return np.array(sorted(data.train.example_hashes))

    first, again, second = draw(0), draw(0), draw(1)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)
