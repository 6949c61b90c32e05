"""iWildCam and FMoW, read from miniature copies in WILDS' layout, and compared with the wilds package where it is installed.

The package is a tool of the tests only. It needs torch_scatter, which has to be compiled, so the Makefile installs it without its
dependencies, and the tests here stand in for the one function they need of torch_scatter.
"""

import csv
import sys
import types
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from autoft.config import DataConfig, WildsDataset
from autoft.config.vocabulary import class_names
from autoft.data import load_study_data, open_listing
from autoft.data.official import OFFICIAL_SIZES
from autoft.errors import DataError
from autoft.evaluate import score_predictions
from tests.data.make import encoded, picture

Split = Literal["train", "val", "test", "id_val", "id_test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test", "id_val", "id_test")
MOMENTS = (
    *("2002-03-04T05:06:07Z", "2012-12-31T23:59:59Z", "2013-01-01T00:00:00Z", "2014-06-16T10:19:03Z"),
    *("2015-12-31T23:59:59Z", "2016-01-01T00:00:00Z", "2017-12-31T11:00:00Z"),
)
COUNTRIES = (
    *(("United States of America", "USA", "Americas"), ("Germany", "DEU", "Europe"), ("Namibia", "NAM", "Africa")),
    *(("China", "CHN", "Asia"), ("Australia", "AUS", "Oceania"), ("Antarctica", "ATA", "")),
)
CATEGORIES = ("airport", "multi-unit_residential", "zoo")


def write_rows(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def write_iwildcam(root: Path) -> Path:
    """All 182 classes in train, a dozen in the other splits, shuffled."""
    rng = np.random.default_rng(0)
    examples = [(split, y) for split in SPLITS for y in (range(182) if split == "train" else rng.integers(0, 182, 12).tolist())]
    rows = []
    for i, e in enumerate(rng.permutation(len(examples)).tolist()):
        split, y = examples[e]
        location = {"val": 2, "test": 3}.get(split, i % 2)
        name = f"{i:08x}-21bc-11ea-a13a-137349068a90.jpg"
        rows.append([i, split, location, 100 + location, i, f"seq{i}", "2013-01-02 03:04:05.000", y, y + 2, name, name[:-4]])
        (root / "train").mkdir(parents=True, exist_ok=True)
        (root / "train" / name).write_bytes(encoded(picture(i, 8, 8), "JPEG"))
    header = ["", "split", "location_remapped", "location", "sequence_remapped", "sequence", "datetime", "y", "category_id", "filename", "image_id"]
    write_rows(root / "metadata.csv", header, rows)
    write_rows(root / "categories.csv", ["y", "category_id", "name"], [[y, y + 2, f"species {y}"] for y in range(182)] + [[99999, 243, "absent"]])
    (root / "RELEASE_v2.0.txt").touch()
    return root


def write_fmow(root: Path) -> Path:
    """FMoW's four splits at all moments in all regions and in a country no table knows, shuffled; images of all but `seq`."""
    combinations = list(product(("train", "val", "test", "seq"), MOMENTS, [code for _, code, region in COUNTRIES if region] + ["XXX"]))
    rows = []
    (root / "images").mkdir(parents=True)
    for number, c in enumerate(np.random.default_rng(0).permutation(len(combinations)).tolist()):
        split, moment, country = combinations[c]
        category = CATEGORIES[c % 3]
        rows.append([split, f"{category}_{number}_rgb.jpg", True, category, moment, country, 1.5, -2.5])
        if split != "seq":
            (root / "images" / f"rgb_img_{number}.png").write_bytes(encoded(picture(number, 8, 8)))
    header = ["split", "img_filename", "visible", "category", "timestamp", "country_code", "lat", "lon"]
    write_rows(root / "rgb_metadata.csv", header, rows)
    write_rows(root / "country_code_mapping.csv", ["name", "alpha-2", "alpha-3", "region"], [[n, a[:2], a, r] for n, a, r in COUNTRIES])
    (root / "RELEASE_v1.1.txt").touch()
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both sets under the names the wilds package gives them."""
    root = tmp_path_factory.mktemp("wilds")
    write_iwildcam(root / "iwildcam_v2.0")
    write_fmow(root / "fmow_v1.1")
    return root


def iwildcam(root: Path, split: Split, **options: Any) -> WildsDataset:
    return WildsDataset(layout="iwildcam", path=root / "iwildcam_v2.0", split=split, **{"check_size": False, **options})


def fmow(root: Path, split: Split, **options: Any) -> WildsDataset:
    return WildsDataset(layout="fmow", path=root / "fmow_v1.1", split=split, **{"check_size": False, **options})


def study(dataset: Any, root: Path) -> DataConfig:
    tests = {split: dataset(root, split) for split in ("test", "id_test")}
    return DataConfig(train=dataset(root, "train"), val_id=dataset(root, "id_val"), val_ood=dataset(root, "val"), test_ood=tests)


def small_fmow(root: Path, rows: list[list[str]]) -> Path:
    write_rows(root / "fmow_v1.1" / "rgb_metadata.csv", ["split", "timestamp", "category", "country_code"], rows)
    write_rows(root / "fmow_v1.1" / "country_code_mapping.csv", ["name", "alpha-3", "region"], [[n, a, r] for n, a, r in COUNTRIES])
    (root / "fmow_v1.1" / "images").mkdir()
    for number in range(len(rows)):
        (root / "fmow_v1.1" / "images" / f"rgb_img_{number}.png").write_bytes(encoded(picture(number, 8, 8)))
    return root


def test_fmow_splits_by_year_and_counts_the_sequestered_rows(tmp_path: Path) -> None:
    small_fmow(
        tmp_path,
        [
            ["seq", "2010-01-01T00:00:00Z", "zoo", "USA"],
            ["train", "2012-12-31T23:59:59Z", "zoo", "USA"],
            ["train", "2013-01-01T00:00:00Z", "zoo", "USA"],
            ["val", "2012-12-31T23:59:59Z", "airport", "DEU"],
            ["val", "2013-01-01T00:00:00Z", "airport", "XXX"],
            ["val", "2015-12-31T23:59:59.5Z", "zoo", "NAM"],
            ["val", "2016-01-01T00:00:00Z", "zoo", "NAM"],
            ["test", "2012-06-01T00:00:00Z", "zoo", "CHN"],
            ["test", "2014-06-01T00:00:00Z", "zoo", "CHN"],
            ["test", "2016-01-01T00:00:00Z", "zoo", "ATA"],
        ],
    )
    found = {}
    for split in SPLITS:
        listing = open_listing(fmow(tmp_path, split), "data.train")
        found[split] = list(zip(listing.ids, listing.labels or (), listing.groups or (), strict=True))
    assert found == {
        "train": [("rgb_img_1.png", "zoo", "Americas")],
        "id_val": [("rgb_img_3.png", "airport", "Europe")],
        "id_test": [("rgb_img_7.png", "zoo", "Asia")],
        "val": [("rgb_img_4.png", "airport", ""), ("rgb_img_5.png", "zoo", "Africa")],
        "test": [("rgb_img_9.png", "zoo", "")],
    }


def test_a_study_of_fmow(root: Path, tmp_path: Path) -> None:
    data = load_study_data(study(fmow, root), 8, "bicubic", "shortest", tmp_path)
    assert data.classes.keys == CATEGORIES
    test = data.tests["test"][1]
    assert test.group_names == ("Africa", "Americas", "Asia", "Europe", "Oceania")
    assert test.groups is not None
    assert Counter(test.groups.tolist()) == {-1: 2, 0: 2, 1: 2, 2: 2, 3: 2, 4: 2}
    assert (len(data.train), len(data.val_id), len(data.val_ood), len(test)) == (12, 12, 18, 12)


def test_defect_15_iwildcam_has_182_classes(tmp_path: Path) -> None:
    """The authors' code took 294 in places."""
    assert len(class_names("iwildcam")) == 182
    folder = iwildcam(tmp_path, "train").path
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "a.jpg").write_bytes(encoded(picture(0, 8, 8), "JPEG"))
    for y in (181, 182, 293):
        (folder / "metadata.csv").write_text(f"split,location_remapped,y,filename\ntrain,0,{y},a.jpg\n")
        if y < 182:
            assert open_listing(iwildcam(tmp_path, "train"), "data.train").labels == [y]
        else:
            with pytest.raises(DataError, match=f"y = '{y}' is no class; there are 0 to 181"):
                open_listing(iwildcam(tmp_path, "train"), "data.train")


def test_a_study_of_iwildcam(root: Path, tmp_path: Path) -> None:
    data = load_study_data(study(iwildcam, root), 8, "bicubic", "shortest", tmp_path)
    assert data.classes.keys == tuple(map(str, range(182)))
    assert sorted(data.train.labels.tolist()) == list(range(182))
    assert data.train.group_names == ("0", "1")
    assert (data.val_ood.group_names, data.tests["test"][1].group_names) == (("2",), ("3",))
    assert [len(images) for images in (data.val_id, data.val_ood, *(images for _, images in data.tests.values()))] == [12] * 4


@pytest.mark.parametrize(("dataset", "layout"), [(iwildcam, "iwildcam"), (fmow, "fmow")])
@pytest.mark.parametrize("split", SPLITS)
def test_incomplete_copies_are_refused(root: Path, dataset: Any, layout: str, split: Split) -> None:
    found = len(open_listing(dataset(root, split), "data.train"))
    published = OFFICIAL_SIZES[layout, split]
    with pytest.raises(DataError, match=rf"data\.train\.path = .*incomplete copy: {found} images found, {published:,} published for {layout} {split}"):
        open_listing(dataset(root, split, check_size=True), "data.train")


def test_images_that_are_not_there(tmp_path: Path) -> None:
    small_fmow(tmp_path, [["train", "2012-01-01T00:00:00Z", "zoo", "USA"]] * 5)
    for number in (1, 3):
        (tmp_path / "fmow_v1.1" / "images" / f"rgb_img_{number}.png").unlink()
    with pytest.raises(DataError, match=r"data\.train: 2 of the 5 images in the table are not in .*images; the first is rgb_img_1\.png"):
        open_listing(fmow(tmp_path, "train"), "data.train")
    with pytest.raises(DataError, match=r"data\.val_ood\.path = .*the table has no rows of split val"):
        open_listing(fmow(tmp_path, "val"), "data.val_ood")


@pytest.mark.parametrize(
    ("dataset", "file", "content", "problem"),
    [
        (iwildcam, "metadata.csv", "split,y,filename\n", r"has no column 'location_remapped'; its columns are split, y, filename"),
        (iwildcam, "metadata.csv", "", r"has no column 'split'; its columns are \(none\)"),
        (iwildcam, "metadata.csv", "split,location_remapped,y,filename\ntrain,0,182,a.jpg\n", r"metadata\.csv line 2: y = '182' is no class"),
        (iwildcam, "metadata.csv", "split,location_remapped,y,filename\ntrain,0\n", r"line 2 has 2 columns, the header 4"),
        (iwildcam, "metadata.csv", 'split,location_remapped,y,filename\n"train', r"cannot read .*metadata\.csv"),
        (iwildcam, "metadata.csv", None, r"table .*metadata\.csv: No such file"),
        (fmow, "rgb_metadata.csv", "split,timestamp,category,country_code\ntrain,today,zoo,USA\n", r"line 2: timestamp 'today' is not a date"),
        (fmow, "rgb_metadata.csv", "split,timestamp,country_code\n", r"has no column 'category'"),
        (fmow, "country_code_mapping.csv", None, r"table .*country_code_mapping\.csv: No such file"),
    ],
)
def test_tables_that_are_wrong(tmp_path: Path, dataset: Any, file: str, content: str | None, problem: str) -> None:
    folder = dataset(tmp_path, "train").path
    (write_iwildcam if dataset is iwildcam else write_fmow)(folder)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(DataError, match=rf"data\.train.*{problem}"):
        open_listing(dataset(tmp_path, "train"), "data.train")


@pytest.fixture
def wilds(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wilds", reason="the wilds package is not installed; see the top of this file")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # its FMoW sets another one for the whole process
    stand_in = types.ModuleType("torch_scatter")

    def scatter(src: torch.Tensor, index: torch.Tensor, dim_size: int, reduce: str) -> torch.Tensor:
        return torch.zeros(dim_size, dtype=src.dtype).scatter_reduce(0, index, src, reduce, include_self=False)

    stand_in.scatter = scatter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_scatter", stand_in)


@pytest.mark.usefixtures("wilds")
def test_iwildcam_is_what_the_wilds_package_reads(root: Path, tmp_path: Path) -> None:
    from wilds.datasets.iwildcam_dataset import IWildCamDataset

    reference = IWildCamDataset(version="2.0", root_dir=str(root))
    for split in SPLITS:
        compare(reference, open_listing(iwildcam(root, split), "data.train"), split, "location", str)
    images = load_study_data(study(iwildcam, root), 8, "bicubic", "shortest", tmp_path).tests["test"][1]
    logits = guesses(images.labels, 182)
    results, _ = reference.eval(logits.argmax(dim=1), torch.from_numpy(images.labels), reference.get_subset("test").metadata_array)
    for metric, name in (("accuracy", "acc_avg"), ("macro_f1", "F1-macro_all")):
        assert score_predictions(metric, logits, images.labels, images.groups, 182).value == pytest.approx(float(results[name]))  # type: ignore[arg-type]


@pytest.mark.usefixtures("wilds")
def test_fmow_is_what_the_wilds_package_reads(root: Path, tmp_path: Path) -> None:
    from wilds.datasets.fmow_dataset import FMoWDataset, categories

    assert categories == sorted(categories)  # so that labels sorted as texts are in the package's order
    reference = FMoWDataset(version="1.1", root_dir=str(root))
    regions = reference._metadata_map["region"]
    for split in SPLITS:
        listing = open_listing(fmow(root, split), "data.train")
        compare(reference, listing, split, "region", lambda region: "" if regions[region] == "Other" else regions[region], categories)
    data = load_study_data(study(fmow, root), 8, "bicubic", "shortest", tmp_path)
    for name in ("test", "id_test"):
        images = data.tests[name][1]
        logits = guesses(images.labels, 3)
        theirs = torch.tensor([categories.index(category) for category in data.classes.keys])
        results, _ = reference.eval(theirs[logits.argmax(dim=1)], theirs[images.labels], reference.get_subset(name).metadata_array)
        for metric, key in (("accuracy", "acc_avg"), ("worst_group_accuracy", "acc_worst_region")):
            assert score_predictions(metric, logits, images.labels, images.groups, 3).value == pytest.approx(float(results[key]))  # type: ignore[arg-type]


def compare(reference: Any, listing: Any, split: str, group: str, group_name: Any, names: Any = None) -> None:
    """Labels, groups and pixels of a split, in its order."""
    subset = reference.get_subset(split)
    labels = [names.index(label) for label in listing.labels] if names else listing.labels
    column = reference.metadata_fields.index(group)
    assert labels == subset.y_array.tolist()
    assert list(listing.groups) == [group_name(value) for value in subset.metadata_array[:, column].tolist()]
    for i in range(len(listing)):
        assert np.array_equal(np.asarray(listing.decode(i)), np.asarray(subset[i][0].convert("RGB")))


def guesses(labels: Any, classes: int) -> torch.Tensor:
    """Logits that are right about half the time."""
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 1, (len(labels), classes))
    right = rng.random(len(labels)) < 0.5
    logits[right, labels[right]] += 10
    return torch.from_numpy(logits)
