"""Whole studies: splits, groups, captions, and the real data sets."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import autoft.data.study as study_module
from autoft.config import DataConfig, DatasetBase, load_config, parse_config
from autoft.data import (
    Listing,
    PixelSpec,
    Split,
    check_study_data,
    load_image_set,
    load_study_data,
    open_listing,
    resolve_classes,
)
from autoft.errors import DataError
from tests.data.make import arrays, encoded, folder, picture, study, table, write_folder, write_npz, write_table


def small_study(tmp_path: Path) -> object:
    sets = {
        name: folder(write_folder(tmp_path / name, counts, seed))
        for seed, (name, counts) in enumerate(
            {"train": {"ant": 5, "bee": 3}, "id": {"ant": 2, "bee": 2}, "ood": {"bee": 2}, "t1": {"ant": 1, "bee": 1}, "t2": {"ant": 3}}.items()
        )
    }
    return study(sets["train"], sets["id"], sets["ood"], test_id={"near": sets["t1"]}, test_ood={"far": sets["t2"]})


def test_train_has_a_margin_and_the_rest_has_not(tmp_path: Path) -> None:
    events: list[tuple[str, int, int]] = []
    data = load_study_data(small_study(tmp_path), 16, "bicubic", "shortest", tmp_path / "c", progress=lambda *e: events.append(e))  # type: ignore[arg-type]
    assert data.train.images.shape == (8, 20, 20, 3)
    assert {s.images.shape[1:] for s in (data.val_id, data.val_ood, *(s for _, s in data.tests.values()))} == {(16, 16, 3)}
    assert {name: split for name, (split, _) in data.tests.items()} == {"near": Split.TEST_ID, "far": Split.TEST_OOD}
    assert data.val_ood.labels.tolist() == [1, 1]
    assert data.val_ood.class_count == 2
    assert [(field, of) for field, _, of in events] == [
        ("data.train", 8), ("data.val_id", 4), ("data.val_ood", 2), ("data.test_id.near", 2), ("data.test_ood.far", 3)
    ]  # fmt: skip


def test_only_the_splits_asked_for_are_loaded(tmp_path: Path) -> None:
    data = load_study_data(small_study(tmp_path), 16, "bicubic", "shortest", tmp_path / "c", splits=["train", "val_ood", "far"])  # type: ignore[arg-type]
    assert len(data.train) == 8
    assert len(data.val_ood) == 2
    assert list(data.tests) == ["far"]
    assert data.val_id is None


def test_nothing_is_decoded_before_every_set_is_checked(tmp_path: Path) -> None:
    config = small_study(tmp_path)
    write_folder(tmp_path / "t2" / "..", {"t2/wasp": 1})
    with pytest.raises(DataError, match=r"data\.test_ood\.far has class 'wasp'"):
        load_study_data(config, 16, "bicubic", "shortest", tmp_path / "c")  # type: ignore[arg-type]
    assert not (tmp_path / "c").exists()


def test_check_says_what_a_study_holds_and_decodes_nothing(tmp_path: Path) -> None:
    config = small_study(tmp_path)
    (tmp_path / "t2" / "ant" / "00.png").write_bytes(b"not decoded here")
    facts = check_study_data(config)  # type: ignore[arg-type]
    assert [(f["field"], f["split"], f["n"], f["per_class"]) for f in facts] == [
        ("data.train", "train", 8, {"ant": 5, "bee": 3}),
        ("data.val_id", "val_id", 4, {"ant": 2, "bee": 2}),
        ("data.val_ood", "val_ood", 2, {"ant": 0, "bee": 2}),
        ("data.test_id.near", "test_id", 2, {"ant": 1, "bee": 1}),
        ("data.test_ood.far", "test_ood", 3, {"ant": 3, "bee": 0}),
    ]


def test_groups_and_captions_follow_the_draw(tmp_path: Path) -> None:
    rows = []
    for i in range(12):
        (tmp_path / f"{i}.png").write_bytes(encoded(picture(i)))
        rows.append(f"{i}.png,{'ab'[i % 2]},{'xyz'[i % 3]},text {i}")
    dataset = table(write_table(tmp_path / "t.csv", "filepath,label,site,text", rows), group="site", caption="text", slice=(2, 12), max_examples=5)
    classes = resolve_classes(study(dataset))
    images = load_image_set(dataset, "data.train", classes, PixelSpec(16, "bicubic"), tmp_path / "c")
    assert images.captions is not None
    assert images.groups is not None
    assert images.group_names == ("x", "y", "z")
    kept = [int(text.removeprefix("text ")) for text in images.captions]
    assert len(kept) == 5
    assert kept == sorted(kept)
    assert min(kept) >= 2
    assert [images.group_names[g] for g in images.groups] == ["xyz"[i % 3] for i in kept]
    assert images.labels.tolist() == [i % 2 for i in kept]
    assert check_study_data(study(dataset))[0]["groups"] == {g: ["xyz"[i % 3] for i in kept].count(g) for g in "xyz"}


def test_group_numbers_are_in_numerical_order(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", images=np.zeros((3, 4, 4), np.uint8), labels=np.array([0, 1, 0]), groups=np.array([10, 9, 2]))
    dataset = arrays(path, groups="groups")
    images = load_image_set(dataset, "data.train", resolve_classes(study(dataset)), PixelSpec(8, "bicubic"), tmp_path / "c")
    assert images.group_names == ("2", "9", "10")
    assert images.groups is not None
    assert images.groups.tolist() == [2, 1, 0]


@pytest.mark.parametrize("names", [("n", "s"), ("9", "10")])
def test_examples_without_a_group_count_in_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]) -> None:
    config = study(folder(write_folder(tmp_path / "set", {"ant": 3, "bee": 2})))
    first, second = names
    listed = open_listing
    monkeypatch.setattr(study_module, "open_listing", lambda d, field: replace(listed(d, field), groups=[first, "", second, first, ""]))
    images = load_study_data(config, 8, "bicubic", "shortest", tmp_path / "c").val_ood
    assert images.group_names == names
    assert images.groups is not None
    assert images.groups.tolist() == [0, -1, 1, 0, -1]
    assert check_study_data(config)[2]["groups"] == {first: 2, second: 1}


# Sets with classes of their own


def pooled_study(tmp_path: Path, patch: pytest.MonkeyPatch, pools: Mapping[str, tuple[str, ...]], counts: Mapping[str, int], where: str) -> DataConfig:
    """Classes ant, bee, cow, dog; the set at `where` has folders `counts`, whose labels are `pools`."""
    train = folder(write_folder(tmp_path / "train", {"ant": 2, "bee": 2, "cow": 2, "dog": 2}))
    own = folder(write_folder(tmp_path / "own", counts, seed=1))
    listed = open_listing

    def opened(dataset: DatasetBase, field: str) -> Listing:
        return replace(listed(dataset, field), pools=pools) if dataset == own else listed(dataset, field)

    patch.setattr(study_module, "open_listing", opened)
    return study(own if where == "train" else train, own if where == "val_id" else train, own if where == "val_ood" else train, test_ood={"t": own})


def test_pools_give_a_test_set_its_own_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pools = {"insect": ("bee", "ant"), "beast": ("dog", "wolf"), "cattle": ("cow",)}
    config = pooled_study(tmp_path, monkeypatch, pools, {"insect": 3, "beast": 2}, "test")
    data = load_study_data(config, 8, "bicubic", "shortest", tmp_path / "c")
    images = data.tests["t"][1]
    assert images.class_count == 3  # beast, cattle, insect
    assert images.projection == ((3,), (2,), (0, 1))
    assert images.labels.tolist() == [0, 0, 2, 2, 2]
    assert images.class_counts().tolist() == [2, 0, 3]
    assert data.train.projection is None
    assert data.train.class_count == 4
    assert check_study_data(config)[-1]["per_class"] == {"beast": 2, "cattle": 0, "insect": 3}


@pytest.mark.parametrize("where", ["train", "val_id", "val_ood"])
def test_only_test_sets_may_have_classes_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    config = pooled_study(tmp_path, monkeypatch, {"ant": ("ant",), "bee": ("bee",)}, {"ant": 2, "bee": 2}, where)
    with pytest.raises(DataError, match=rf"data\.{where}: .* classes of its own, so it can be a test set only"):
        load_study_data(config, 8, "bicubic", "shortest", tmp_path / "c")


def test_pools_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = pooled_study(tmp_path, monkeypatch, {"insect": ("ant",), "bird": ("owl", "tit")}, {"insect": 1, "bird": 1}, "test")
    with pytest.raises(DataError, match=r"data\.test_ood\.t has class 'bird', which stands for owl, tit: data\.train has none"):
        check_study_data(config)
    config = pooled_study(tmp_path / "2", monkeypatch, {"insect": ("ant",)}, {"insect": 1, "bird": 1}, "test")
    with pytest.raises(DataError, match=r"data\.test_ood\.t has class 'bird' \(bird/00\.png\), which is none of the layout's 1 classes"):
        check_study_data(config)


def test_captions_and_groups_are_content(tmp_path: Path) -> None:
    hashes = set()
    for title, site in (("one", "n"), ("two", "n"), ("one", "s")):
        for i in range(2):
            (tmp_path / f"{i}.png").write_bytes(encoded(picture(i)))
        path = write_table(tmp_path / "t.csv", "filepath,label,text,site", [f"0.png,a,{title},{site}", "1.png,b,x,n"])
        dataset = table(path, caption="text", group="site")
        hashes.add(load_image_set(dataset, "data.train", resolve_classes(study(dataset)), PixelSpec(8, "bicubic"), tmp_path / "c").content_hash)
    assert len(hashes) == 3


def test_captions_are_read_by_the_studys_templates(tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(encoded(picture(i)))
    path = write_table(tmp_path / "t.csv", "filepath,text", ["0.png,a cat in the wild.", "1.png,a wild in the wild."])
    config = study(table(path, caption="text"), classnames=("cat", "wild"), templates=("a {} in the wild.",))
    data = load_study_data(config, 8, "bicubic", "shortest", tmp_path / "c")
    assert data.train.labels.tolist() == [0, 1]
    assert data.train.captions == ("a cat in the wild.", "a wild in the wild.")


# The real sets


def test_pacs_folders(shared: Path, tmp_path: Path) -> None:
    config = load_config(shared / "examples" / "pacs.yaml")
    facts = {f["field"]: f for f in check_study_data(config.data)}
    assert facts["data.train"]["n"] == sum(1 for _ in (shared / "data/pacs/photo/train").rglob("*.jpg"))
    assert list(facts["data.train"]["per_class"]) == ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"]
    data = load_study_data(config.data, 64, "bicubic", "shortest", tmp_path, splits=["val_ood"])
    assert data.val_ood.class_counts().tolist() == list(facts["data.val_ood"]["per_class"].values())


def test_cifar10_shards(shared: Path, tmp_path: Path) -> None:
    folder_of = shared / "data" / "cifar10"
    sets = {name: {"layout": "webdataset", "path": f"{name}-{shards}.tar"} for name, shards in (("train", "{000..003}"), ("val", "000"))}
    document = {
        "study": "c", "model": {"name": "m"}, "search_space": {"base_lr": 1e-4}, "search": {"n_trials": 1}, "trial": {"steps": 1},
        "data": {"classnames": "classnames.txt", "train": sets["train"], "val_id": {**sets["val"], "slice": [0, 1000]},
                 "val_ood": {**sets["val"], "slice": [1000, 2000], "max_examples": 200, "balanced": True}},
    }  # fmt: skip
    config = parse_config(document, base=folder_of)
    facts = check_study_data(config.data)
    assert [f["n"] for f in facts] == [10_000, 1_000, 200]
    assert set(facts[0]["per_class"].values()) == {1_000}
    assert set(facts[2]["per_class"].values()) == {20}
    data = load_study_data(config.data, 32, "bicubic", "shortest", tmp_path, splits=["val_ood"])
    listing = open_listing(config.data.val_ood, "data.val_ood")
    originals = {np.asarray(listing.decode(i)).tobytes() for i in range(1000, 2000)}
    assert all(image.tobytes() in originals for image in data.val_ood.images)
    assert data.classes.names[:2] == ("airplane", "automobile")


def test_digit_arrays(shared: Path, tmp_path: Path) -> None:
    config = load_config(shared / "examples" / "digits.yaml")
    facts = {f["field"]: f for f in check_study_data(config.data)}
    assert facts["data.train"]["n"] == 8_000
    assert facts["data.val_id"]["n"] == 2_000
    assert set(facts["data.val_ood"]["per_class"].values()) == {50}
    data = load_study_data(config.data, 28, "bicubic", "shortest", tmp_path, splits=["val_id", "mnistm"])
    with np.load(shared / "data" / "digits" / "mnist.npz", allow_pickle=False) as file:
        assert np.array_equal(data.val_id.images, np.repeat(file["x_train"][8000:, ..., None], 3, axis=3))
        assert np.array_equal(data.val_id.labels, file["y_train"][8000:])
    assert data.tests["mnistm"][1].images.shape == (1500, 28, 28, 3)
