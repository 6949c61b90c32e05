"""Which classes a study has, and which of them an example belongs to."""

from pathlib import Path

import numpy as np
import pytest

from autoft.data import Listing, check_study_data, open_listing, resolve_classes
from autoft.data.classes import class_rows
from autoft.data.sets import ClassTable
from autoft.errors import DataError
from tests.data.make import (
    arrays,
    encoded,
    folder,
    picture,
    shard_members,
    shards,
    study,
    table,
    write_folder,
    write_npz,
    write_shard,
    write_table,
)


def npz(path: Path, labels: list[int]) -> Path:
    return write_npz(path, images=np.zeros((len(labels), 4, 4), np.uint8), labels=np.array(labels))


def rows(listing: Listing, classes: ClassTable, templates: tuple[str, ...] = ()) -> list[int]:
    return [int(row) for row in class_rows(listing, np.arange(len(listing)), classes, templates)]


def captioned(tmp_path: Path, captions: list[str], name: str = "t.csv") -> Path:
    (tmp_path / "0.png").write_bytes(encoded(picture(0)))
    return write_table(tmp_path / name, "filepath,text", [f'0.png,"{caption}"' for caption in captions])


def test_default_names_are_sorted_labels(tmp_path: Path) -> None:
    write_folder(tmp_path / "f", {"polar_bear": 1, "Ant": 1, "bee": 1})
    classes = resolve_classes(study(folder(tmp_path / "f")))
    assert classes.keys == ("Ant", "bee", "polar_bear")
    assert classes.names == ("Ant", "bee", "polar bear")
    numbers = resolve_classes(study(arrays(npz(tmp_path / "a.npz", [10, 9, 2]))))
    assert numbers.keys == numbers.names == ("2", "9", "10")
    write_shard(tmp_path / "s.tar", shard_members([10, 9, 2]))
    assert resolve_classes(study(shards(tmp_path / "s.tar"))).keys == ("2", "9", "10")


def test_numbers_are_positions_in_given_names(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", [2, 0, 1, 1])
    (tmp_path / "names.txt").write_text("cat\n dog \n\nemu\n")
    for names in (("cat", "dog", "emu"), tmp_path / "names.txt"):
        classes = resolve_classes(study(arrays(path), classnames=names))
        assert classes.keys == ("0", "1", "2")
        assert classes.names == ("cat", "dog", "emu")
        assert rows(open_listing(arrays(path), "data.train"), classes) == [2, 0, 1, 1]


def test_two_classes_of_one_name_are_fine_with_numbers(tmp_path: Path) -> None:
    classes = resolve_classes(study(arrays(npz(tmp_path / "a.npz", [0, 1])), classnames=("crane", "crane")))
    assert classes.names == ("crane", "crane")


def test_text_labels_match_names_up_to_case_and_underscores_in_label_order(tmp_path: Path) -> None:
    write_folder(tmp_path / "f", {"Polar_Bear": 2, "ant": 1})
    classes = resolve_classes(study(folder(tmp_path / "f"), classnames=("polar bear", "ANT")))
    assert classes.keys == ("Polar_Bear", "ant")
    assert classes.names == ("polar bear", "ANT")
    assert rows(open_listing(folder(tmp_path / "f"), "data.train"), classes) == [0, 0, 1]


def test_layouts_of_one_study_may_differ(tmp_path: Path) -> None:
    """Folder names in one split, numbers in another, table values in a third: the given names connect them."""
    write_folder(tmp_path / "f", {"polar_bear": 1, "ant": 1})
    (tmp_path / "0.png").write_bytes(encoded(picture(0)))
    in_table = table(write_table(tmp_path / "t.csv", "filepath,label", ["0.png,Polar bear", "0.png,ant"]))
    in_array = arrays(npz(tmp_path / "a.npz", [1, 0]))
    names = ("ant", "polar bear")
    for train in (folder(tmp_path / "f"), in_table, in_array):
        classes = resolve_classes(study(train, classnames=names))
        assert rows(open_listing(folder(tmp_path / "f"), "data.train"), classes) == [0, 1]
        assert rows(open_listing(in_table, "data.train"), classes) == [1, 0]
        assert rows(open_listing(in_array, "data.train"), classes) == [1, 0]


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (("ant", "bee", "cat"), r"names without a label in data\.train: bee$"),
        (("ant",), r"labels of data\.train without a name: cat$"),
        (("ant", "kat"), r"without a name: cat; names without a label in data\.train: kat$"),
        (("ant", "Ant", "cat"), r"data\.classnames has 'ant' more than once"),
        (("ant", " "), r"data\.classnames has an empty name"),
        ((), r"data\.classnames has no names"),
    ],
)
def test_names_that_do_not_fit_text_labels(tmp_path: Path, names: tuple[str, ...], problem: str) -> None:
    write_folder(tmp_path, {"ant": 1, "cat": 1})
    with pytest.raises(DataError, match=problem):
        resolve_classes(study(folder(tmp_path), classnames=names))


@pytest.mark.parametrize("labels", [[1, 2, 3], [0, 1], [0, 1, 2, 3], [-1, 0, 1]])
def test_numbers_must_be_0_to_c_minus_1_with_given_names(tmp_path: Path, labels: list[int]) -> None:
    with pytest.raises(DataError, match=r"data\.classnames has 3 names.*data\.train must be 0 to 2; they are"):
        resolve_classes(study(arrays(npz(tmp_path / "a.npz", labels)), classnames=("a", "b", "c")))


def test_one_class_or_no_file_of_names(tmp_path: Path) -> None:
    write_folder(tmp_path / "f", {"cat": 3})
    with pytest.raises(DataError, match=r"data\.train has one class only \(cat\)"):
        resolve_classes(study(folder(tmp_path / "f")))
    with pytest.raises(DataError, match=r"data\.classnames = .*none\.txt: cannot read"):
        resolve_classes(study(folder(tmp_path / "f"), classnames=tmp_path / "none.txt"))


def test_a_class_that_train_does_not_have(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"ant": 2, "cat": 2})
    write_folder(tmp_path / "ood", {"cat": 1, "zebra": 1})
    with pytest.raises(DataError, match=r"data\.val_ood has class 'zebra' \(zebra/00\.png\), which data\.train does not have; its classes are ant, cat"):
        check_study_data(study(folder(tmp_path / "train"), val_ood=folder(tmp_path / "ood")))
    with pytest.raises(DataError, match=r"data\.test_ood\.far has class 'zebra'"):
        check_study_data(study(folder(tmp_path / "train"), test_ood={"far": folder(tmp_path / "ood")}))


def test_a_class_that_only_the_rest_of_trains_folder_has(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"ant": 2, "cat": 2})
    whole = folder(tmp_path / "train")
    with pytest.raises(DataError, match=r"data\.val_id has class 'cat' \(cat/00\.png\).*its classes are ant$"):
        check_study_data(study(folder(tmp_path / "train", slice=(0, 2)), val_id=whole))


def test_captions_give_the_class_by_template_then_by_longest_name(tmp_path: Path) -> None:
    captions = ["a photo of a bear.", "Look, a POLAR BEAR on ice", "a bear", "two carp, no car at all", "a racing car"]
    path = captioned(tmp_path, captions)
    names = ("bear", "polar bear", "car", "carp", "racing", "polar")
    data = study(table(path, caption="text"), classnames=names, templates=("a photo of a {}.",))
    classes = resolve_classes(data)
    assert classes.keys == names
    listing = open_listing(data.train, "data.train")
    assert rows(listing, classes, data.templates) == [0, 1, 0, 3, 4]


def test_a_template_wins_over_a_longer_name_it_contains(tmp_path: Path) -> None:
    listing = open_listing(table(captioned(tmp_path, ["a crane in the wild."]), caption="text"), "data.train")
    classes = ClassTable(("crane", "the wild"), ("crane", "the wild"))
    assert rows(listing, classes, ("a {} in the wild.",)) == [0]
    assert rows(listing, classes) == [1]


def test_captions_that_name_no_class_or_several(tmp_path: Path) -> None:
    classes = ClassTable(("cat", "dog"), ("cat", "dog"))
    for caption, problem in {"a catalogue": "names no class; the classes are cat, dog", "a wildcat": "names no class", "cat and dog": r"names several classes \(cat, dog\)"}.items():
        listing = open_listing(table(captioned(tmp_path, ["a cat", caption]), caption="text"), "data.val_id")
        with pytest.raises(DataError, match=rf"data\.val_id: 0\.png \(t\.csv line 3\): the caption '{caption}' {problem}"):
            rows(listing, classes)


def test_captions_without_names_cannot_list_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.classnames is missing"):
        resolve_classes(study(table(captioned(tmp_path, ["a cat"]), caption="text")))
