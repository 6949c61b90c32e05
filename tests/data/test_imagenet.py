"""ImageNet, V2, R, A, Sketch, C and ObjectNet, read from miniature copies in their published layouts."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from autoft.config import DataConfig, ImageNetCDataset, ImageNetDataset, OfficialDataset
from autoft.data import StudyData, load_study_data, open_listing
from autoft.data.imagenet import imagenet_wnids
from autoft.data.official import IMAGENET_C_TYPES, OFFICIAL_SIZES, official_size
from autoft.errors import DataError
from tests.data.make import encoded, picture

WNIDS = tuple(imagenet_wnids())
R_CLASSES = (WNIDS[1], WNIDS[9], WNIDS[988])
A_CLASSES = (WNIDS[6], WNIDS[988])
Layout = Literal["imagenet", "imagenet_v2", "imagenet_r", "imagenet_a", "imagenet_sketch", "objectnet"]


def write_jpegs(root: Path, names: Any, count: int, seed: int) -> None:
    for c, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{name}_{i}.JPEG").write_bytes(encoded(picture(seed * 10_000 + c * 10 + i, 8, 8), "JPEG"))


def write_objectnet(root: Path, first_id: int = 0) -> Path:
    """Three classes, of which two are ImageNet's; chairs are ImageNet's classes 423, 559 and 765."""
    order = np.random.default_rng(0).permutation(1000)  # line of the text file -> index
    lines = [f"thing {index}" for index in order.tolist()]
    for index, name in {423: "barber chair", 559: "folding chair", 765: "rocking chair, rocker", 954: "banana", 134: "crane", 517: "crane"}.items():
        lines[int(np.flatnonzero(order == index)[0])] = name
    mappings = root / "mappings"
    mappings.mkdir(parents=True)
    (mappings / "imagenet_to_label_2012_v2").write_text("\n".join(lines) + "\n")
    write_json(mappings / "pytorch_to_imagenet_2012_id.json", {str(index): line + first_id for line, index in enumerate(order.tolist())})
    write_json(mappings / "folder_to_objectnet_label.json", {"chair": "Chair", "banana": "Banana", "air_freshener": "Air freshener"})
    write_json(mappings / "objectnet_to_imagenet_1k.json", {"Chair": "barber chair; folding chair; rocking chair, rocker", "Banana": "banana"})
    for folder, count in (("chair", 2), ("banana", 1), ("air_freshener", 2)):
        (root / "images" / folder).mkdir(parents=True)
        for i in range(count):
            image = Image.new("RGB", (14, 12), (255, 0, 0))
            image.paste(picture(image_seed(folder, i), 10, 8), (2, 2))
            (root / "images" / folder / f"{i:03x}.png").write_bytes(encoded(image))
    return root


def image_seed(folder: str, i: int) -> int:
    return sum(folder.encode()) * 10 + i


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("imagenet-family")
    write_jpegs(root / "imagenet" / "train", WNIDS, 1, 1)
    write_jpegs(root / "imagenet" / "val_dirs", WNIDS[:2], 2, 2)
    (root / "imagenet" / "val").mkdir()
    (root / "imagenet" / "val" / "ILSVRC2012_val_00000001.JPEG").write_bytes(b"flat, and so not used")
    write_jpegs(root / "v2", ("0", "10", "9", "999"), 1, 3)
    write_jpegs(root / "r", R_CLASSES, 2, 4)
    (root / "r" / "README.txt").write_text("200 classes")
    write_jpegs(root / "a", A_CLASSES, 1, 5)
    write_jpegs(root / "sketch" / "sketch", WNIDS[998:], 1, 6)
    for c, name in enumerate((*IMAGENET_C_TYPES, "speckle_noise")):
        write_jpegs(root / "c" / name / "5", WNIDS[3:5], 1, 10 + c)
    write_jpegs(root / "c" / "fog" / "3", WNIDS[3:5], 1, 40)
    write_objectnet(root / "objectnet")
    return root


def imagenet(path: Path, layout: Layout = "imagenet", **options: Any) -> ImageNetDataset:
    return ImageNetDataset(layout=layout, path=path, **{"check_size": False, **options})


def corrupted(path: Path, **options: Any) -> ImageNetCDataset:
    return ImageNetCDataset(layout="imagenet_c", path=path, **{"check_size": False, **options})


def load(root: Path, cache: Path, **tests: Any) -> StudyData:
    data = DataConfig(
        classnames="imagenet",  # type: ignore[arg-type]  # expanded by the section
        train=imagenet(root / "imagenet", split="train"),
        val_id=imagenet(root / "imagenet"),
        val_ood=corrupted(root / "c", max_examples=30, balanced=True),
        test_ood=tests,
    )
    return load_study_data(data, 8, "bicubic", "shortest", cache)


def test_wnids_are_those_of_the_published_lists() -> None:
    from open_clip import IMAGENET_CLASSNAMES
    from timm.data import ImageNetInfo

    assert list(WNIDS) == ImageNetInfo("imagenet-1k").label_names() == sorted(WNIDS)
    assert IMAGENET_CLASSNAMES[imagenet_wnids()["n07753592"]] == "banana"


def test_every_set_of_the_family_in_one_study(root: Path, tmp_path: Path) -> None:
    data = load(
        root,
        tmp_path,
        v2=imagenet(root / "v2", "imagenet_v2"),
        r=imagenet(root / "r", "imagenet_r"),
        a=imagenet(root / "a", "imagenet_a"),
        sketch=imagenet(root / "sketch", "imagenet_sketch"),
        objectnet=imagenet(root / "objectnet", "objectnet"),
    )
    tests = {name: images for name, (_, images) in data.tests.items()}
    assert (len(data.classes), data.classes.names[954]) == (1000, "banana")
    assert data.train.labels.tolist() == list(range(1000))
    assert data.val_id.labels.tolist() == [0, 0, 1, 1]
    assert tests["v2"].labels.tolist() == [0, 10, 9, 999]
    assert tests["sketch"].labels.tolist() == [998, 999]
    assert all(images.class_count == 1000 and images.projection is None for images in (data.train, data.val_ood, tests["v2"], tests["sketch"]))
    assert (tests["r"].projection, tests["r"].labels.tolist()) == (((1,), (9,), (988,)), [0, 0, 1, 1, 2, 2])
    assert (tests["a"].projection, tests["a"].labels.tolist()) == (((6,), (988,)), [0, 1])
    assert (tests["objectnet"].projection, tests["objectnet"].labels.tolist()) == (((954,), (423, 559, 765)), [0, 1, 1])
    assert [tests[name].class_count for name in ("r", "a", "objectnet")] == [3, 2, 2]


def test_a_balanced_draw_of_imagenet_c_comes_from_all_15_corruptions(root: Path, tmp_path: Path) -> None:
    """The authors' loader kept the last corruption only."""
    listing = open_listing(corrupted(root / "c"), "data.val_ood")
    assert Counter(listing.groups) == dict.fromkeys(IMAGENET_C_TYPES, 2)
    assert len(IMAGENET_C_TYPES) == 15
    assert listing.ids[2] == f"shot_noise/5/{WNIDS[3]}/{WNIDS[3]}_0.JPEG"
    assert listing.read(2) == (root / "c" / listing.ids[2]).read_bytes()
    images = load(root, tmp_path).val_ood
    assert images.groups is not None
    assert np.bincount(images.groups).tolist() == [2] * 15
    assert np.bincount(images.labels, minlength=1000)[3:5].tolist() == [15, 15]


def test_imagenet_c_takes_other_severities_and_types(root: Path) -> None:
    listing = open_listing(corrupted(root / "c", severity=3, types=["fog"]), "data.val_ood")
    assert list(listing.groups or ()) == ["fog", "fog"]
    assert set(open_listing(corrupted(root / "c", types=["speckle_noise", "fog"]), "data.val_ood").groups or ()) == {"speckle_noise", "fog"}
    with pytest.raises(DataError, match=r"data\.val_ood\.path = .*no folder gaussian_noise/3; missing corruptions: gaussian_noise, .*zoom_blur"):
        open_listing(corrupted(root / "c", severity=3), "data.val_ood")


@pytest.mark.parametrize("folders", [("ILSVRC2012/train", "ILSVRC2012/val_dirs"), ("train", "val"), ("ILSVRC2012/train", "ILSVRC2012/val")])
def test_imagenet_folders_of_other_names(tmp_path: Path, folders: tuple[str, str]) -> None:
    for seed, (folder, wnid) in enumerate(zip(folders, WNIDS, strict=False)):
        write_jpegs(tmp_path / folder, [wnid], 1, seed)
    assert open_listing(imagenet(tmp_path, split="train"), "data.train").labels == [0]
    assert open_listing(imagenet(tmp_path), "data.val_id").labels == [1]


def test_sketch_without_its_own_folder_and_sets_that_are_not_there(tmp_path: Path) -> None:
    write_jpegs(tmp_path, [WNIDS[5]], 1, 0)
    assert open_listing(imagenet(tmp_path, "imagenet_sketch"), "data.test_ood.s").labels == [5]
    with pytest.raises(DataError, match=r"data\.train\.path = .*no folder train or ILSVRC2012/train in it"):
        open_listing(imagenet(tmp_path, split="train"), "data.train")
    with pytest.raises(DataError, match=r"data\.test_ood\.r\.path = .*none: there is no such folder"):
        open_listing(imagenet(tmp_path / "none", "imagenet_r"), "data.test_ood.r")


@pytest.mark.parametrize("layout", ["imagenet_v2", "imagenet_r", "imagenet_a", "imagenet_sketch"])
def test_folders_that_are_no_class(tmp_path: Path, layout: Layout) -> None:
    write_jpegs(tmp_path, ["n99999999"], 1, 0)
    with pytest.raises(DataError, match=r"data\.test_ood\.x\.path = .*: folder n99999999 is none of ImageNet's 1000 classes"):
        open_listing(imagenet(tmp_path, layout), "data.test_ood.x")


@pytest.mark.parametrize(
    ("dataset", "found", "published"),
    [
        (lambda root, **o: imagenet(root / "imagenet", split="train", **o), 1000, 1_281_167),
        (lambda root, **o: imagenet(root / "imagenet", **o), 4, 50_000),
        (lambda root, **o: imagenet(root / "v2", "imagenet_v2", **o), 4, 10_000),
        (lambda root, **o: imagenet(root / "r", "imagenet_r", **o), 6, 30_000),
        (lambda root, **o: imagenet(root / "a", "imagenet_a", **o), 2, 7_500),
        (lambda root, **o: imagenet(root / "sketch", "imagenet_sketch", **o), 2, 50_889),
        (lambda root, **o: imagenet(root / "objectnet", "objectnet", **o), 3, 18_574),
        (lambda root, **o: corrupted(root / "c", **o), 30, 750_000),
        (lambda root, **o: corrupted(root / "c", types=["fog"], **o), 2, 50_000),
    ],
)
def test_an_incomplete_copy_is_refused_and_a_whole_one_is_not(
    root: Path, monkeypatch: pytest.MonkeyPatch, dataset: Any, found: int, published: int
) -> None:
    whole: OfficialDataset = dataset(root, check_size=True)
    assert official_size(whole) == published
    with pytest.raises(DataError, match=rf"data\.test_ood\.x\.path = .*incomplete copy: {found:,} images found, {published:,} published .*check_size"):
        open_listing(whole, "data.test_ood.x")
    monkeypatch.setattr("autoft.data.official.official_size", lambda dataset: found)
    assert len(open_listing(whole, "data.test_ood.x")) == found
    monkeypatch.setattr("autoft.data.official.official_size", lambda dataset: found - 1)
    with pytest.raises(DataError, match="not the published set"):
        open_listing(whole, "data.test_ood.x")


def test_published_sizes_hang_together() -> None:
    assert sum(OFFICIAL_SIZES["iwildcam", split] for split in ("train", "val", "test", "id_val", "id_test")) == 203_029
    assert sum(OFFICIAL_SIZES["fmow", split] for split in ("train", "val", "test", "id_val", "id_test")) == 141_696
    assert OFFICIAL_SIZES["imagenet", "val"] == 50 * 1000


def test_objectnet_images_lose_their_red_border(root: Path) -> None:
    listing = open_listing(imagenet(root / "objectnet", "objectnet"), "data.test_ood.o")
    assert list(listing.ids) == ["banana/000.png", "chair/000.png", "chair/001.png"]
    for i, (folder, seed) in enumerate([("banana", 0), ("chair", 0), ("chair", 1)]):
        assert np.array_equal(np.asarray(listing.decode(i)), np.asarray(picture(image_seed(folder, seed), 10, 8)))
    assert listing.read(0) == (root / "objectnet" / "images" / "banana" / "000.png").read_bytes()


def test_objectnet_ids_may_count_from_one(tmp_path: Path) -> None:
    expected = {"banana": ("954",), "chair": ("423", "559", "765")}
    for first in (0, 1):
        listing = open_listing(imagenet(write_objectnet(tmp_path / str(first), first), "objectnet"), "data.test_ood.o")
        assert listing.pools == expected
    names = tmp_path / "1" / "mappings" / "imagenet_to_label_2012_v2"
    names.rename(names.with_suffix(".txt"))
    assert open_listing(imagenet(tmp_path / "1", "objectnet"), "data.test_ood.o").pools == expected


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("objectnet_to_imagenet_1k.json", None, r"cannot read mapping file .*objectnet_to_imagenet_1k\.json: No such file"),
        ("imagenet_to_label_2012_v2", None, r"cannot read mapping file .*imagenet_to_label_2012_v2: No such file"),
        ("objectnet_to_imagenet_1k.json", "{", "is not JSON"),
        ("objectnet_to_imagenet_1k.json", "[]", "must be a JSON object whose values are texts"),
        ("pytorch_to_imagenet_2012_id.json", '{"0": "1"}', "must be a JSON object whose values are integers"),
        ("pytorch_to_imagenet_2012_id.json", '{"0": 0, "1": 1}', r"has 2 ids, which must be the numbers of the 1000 lines of imagenet_to_label_2012_v2"),
        ("objectnet_to_imagenet_1k.json", '{"Chair": "stool"}', "gives 'Chair' the ImageNet class 'stool', which must be one line"),
        ("objectnet_to_imagenet_1k.json", '{"Chair": "crane"}', "gives 'Chair' the ImageNet class 'crane', which must be one line"),
        ("folder_to_objectnet_label.json", '{"chair": "Chair"}', "has no folder for 'Banana'"),
        ("folder_to_objectnet_label.json", '{"sofa": "Chair", "fruit": "Banana"}', "none of the 2 classes shared with ImageNet has a folder"),
    ],
)
def test_objectnet_mappings_that_are_wrong(tmp_path: Path, file: str, content: str | None, problem: str) -> None:
    write_objectnet(tmp_path)
    path = tmp_path / "mappings" / file
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=rf"data\.test_ood\.o.*{problem}"):
        open_listing(imagenet(tmp_path, "objectnet"), "data.test_ood.o")


def test_damaged_and_tiny_images_are_named(tmp_path: Path) -> None:
    write_objectnet(tmp_path)
    (tmp_path / "images" / "banana" / "000.png").write_bytes(encoded(picture(0, 12, 4)))
    (tmp_path / "images" / "chair" / "000.png").write_bytes(b"no image")
    listing = open_listing(imagenet(tmp_path, "objectnet"), "data.test_ood.o")
    with pytest.raises(DataError, match=r"data\.test_ood\.o: image banana/000\.png has 12 x 4 pixels"):
        listing.decode(0)
    with pytest.raises(DataError, match=r"data\.test_ood\.o: chair/000\.png is not an image"):
        listing.decode(1)


def test_sets_with_classes_of_their_own_are_test_sets_only(root: Path, tmp_path: Path) -> None:
    data = DataConfig(
        classnames="imagenet",  # type: ignore[arg-type]
        train=imagenet(root / "imagenet", split="train"),
        val_id=imagenet(root / "imagenet"),
        val_ood=imagenet(root / "r", "imagenet_r"),
    )
    with pytest.raises(DataError, match=r"data\.val_ood"):
        load_study_data(data, 8, "bicubic", "shortest", tmp_path)
