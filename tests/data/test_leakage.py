"""Images that are in two sets of a study: refused, allowed, counted, listed."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import autoft.data.leakage as leakage
from autoft.config import DataConfig
from autoft.data import ClassTable, PixelSpec, Split, StudyData, load_image_set, load_study_data, resolve_classes
from autoft.data.leakage import MAX_EXAMPLES, LeakageReport, PairReport, check_leakage, describe_leakage
from autoft.errors import DataError
from tests.data.image_sets import image_set
from tests.data.make import arrays, encoded, folder, study, write_folder

Pixels = NDArray[np.uint8]


def scene(seed: int, side: int = 32) -> Image.Image:
    """A random image with detail: in one as smooth as `picture`, most of a perceptual hash is rounding."""
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8))
    return coarse.resize((side, side), Image.Resampling.BICUBIC)


def pixels(seeds: Sequence[int]) -> list[Pixels]:
    return [np.asarray(scene(seed)) for seed in seeds]


def made(sets: Mapping[str, Sequence[int] | tuple[Sequence[Pixels], Sequence[bytes]]]) -> StudyData:
    """A study whose sets hold the pictures of some seeds, or some pixels and what they were decoded from."""
    built = {}
    for name, content in sets.items():
        field = f"data.{name}" if name in ("train", "val_id", "val_ood") else f"data.test_ood.{name}"
        built[name] = image_set(field, *content) if isinstance(content, tuple) else image_set(field, pixels(content))
    tests = {name: (Split.TEST_OOD, images) for name, images in built.items() if images.field.startswith("data.test")}
    return StudyData(ClassTable(("thing",), ("thing",)), built.get("train"), built.get("val_id"), built.get("val_ood"), tests)  # type: ignore[arg-type]


def settings(data: StudyData, **options: object) -> DataConfig:
    """A data section with these test sets. The check takes its images from `data`, never from here."""
    anything = folder(Path("nowhere"))
    return study(anything, test_ood=dict.fromkeys(data.tests, anything), **options)


def pair(report: LeakageReport, first: str, second: str) -> PairReport:
    (found,) = (one for one in report.pairs if (one.first, one.second) == (first, second))
    return found


def test_sets_that_share_nothing_raise_no_warning(tmp_path: Path) -> None:
    data = made({"train": range(20), "val_id": range(20, 25), "val_ood": range(25, 35), "far": range(35, 45), "farther": range(45, 50)})
    report = check_leakage(data, settings(data), tmp_path)
    assert [(one.first, one.second) for one in report.pairs] == [
        ("val_ood", "train"), ("val_ood", "val_id"), ("val_ood", "far"), ("val_ood", "farther"),
        ("train", "val_id"), ("train", "far"), ("train", "farther"), ("val_id", "far"), ("val_id", "farther"),
    ]  # fmt: skip
    assert {(one.first_exact, one.second_exact, one.first_near, one.second_near, one.first_ignored) for one in report.pairs} == {(0, 0, 0, 0, 0)}
    assert (pair(report, "val_ood", "far").first_size, pair(report, "val_ood", "far").second_size) == (10, 10)
    assert pair(report, "train", "farther").second_field == "data.test_ood.farther"
    assert describe_leakage(report) == []


@pytest.mark.parametrize(("name", "field"), [("far", "data.test_ood.far"), ("train", "data.train")])
def test_an_image_of_val_ood_elsewhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, field: str) -> None:
    sets = {"train": range(10), "val_ood": range(20, 30), "far": range(40, 45)}
    data = made({**sets, name: [90, 22, 91, 27]})
    monkeypatch.setattr(leakage, "perceptual_prints", None)  # the refusal comes before the slow part
    with pytest.raises(DataError) as refused:
        check_leakage(data, settings(data), tmp_path)
    assert f"2 of 10 images of data.val_ood are also in {field} (positions 2, 7 and there 1, 3)" in str(refused.value)
    assert f"data.allow_duplicates: [[val_ood, {name}]]" in str(refused.value)


def test_every_refused_pair_is_named_and_few_positions_are(tmp_path: Path) -> None:
    data = made({"train": range(3), "val_ood": range(20), "far": range(20), "clean": [70]})
    with pytest.raises(DataError, match=r"3 of 20 .* data\.train \(positions 0, 1, 2 and") as refused:
        check_leakage(data, settings(data), tmp_path)
    assert "20 of 20 images of data.val_ood are also in data.test_ood.far (positions 0, 1, 2, 3, 4, ... and there 0" in str(refused.value)
    assert "clean" not in str(refused.value)


@pytest.mark.parametrize("allowed", [("val_ood", "far"), ("far", "val_ood")])
def test_a_pair_may_be_allowed_in_either_order(tmp_path: Path, allowed: tuple[str, str]) -> None:
    data = made({"train": range(5), "val_ood": range(20, 30), "far": [*range(22, 26), 60]})
    report = check_leakage(data, settings(data, allow_duplicates=(allowed,)), tmp_path)
    found = pair(report, "val_ood", "far")
    assert (found.allowed, found.first_exact, found.second_exact) == (True, 4, 4)
    assert [(one.first, one.second, one.first_hash == one.second_hash, one.distance) for one in found.exact] == [
        (2, 0, True, 0), (3, 1, True, 0), (4, 2, True, 0), (5, 3, True, 0)
    ]  # fmt: skip
    assert found.exact[0].first_hash == data.val_ood.example_hashes[2]
    assert not pair(report, "val_ood", "train").allowed
    assert describe_leakage(report) == ["4 of 5 images of data.test_ood.far are also in data.val_ood, as data.allow_duplicates permits"]


def test_an_allowed_pair_allows_no_other(tmp_path: Path) -> None:
    data = made({"train": range(5), "val_ood": range(20, 30), "far": [20], "farther": [21]})
    with pytest.raises(DataError, match=r"data\.test_ood\.farther") as refused:
        check_leakage(data, settings(data, allow_duplicates=(("val_ood", "far"),)), tmp_path)
    assert "data.test_ood.far " not in str(refused.value)


def test_the_few_shot_recipe_is_refused_from_files(tmp_path: Path) -> None:
    """It validates on the set that it reports."""
    train, shared = folder(write_folder(tmp_path / "train", {"ant": 4, "bee": 4})), folder(write_folder(tmp_path / "v2", {"ant": 2, "bee": 3}, 1))
    for options, raises in (({}, True), ({"allow_duplicates": (("v2", "val_ood"),)}, False)):
        config = study(train, val_ood=shared, test_ood={"v2": shared}, **options)
        data = load_study_data(config, 16, "bicubic", "shortest", tmp_path / "cache")
        if raises:
            with pytest.raises(DataError, match=r"5 of 5 images of data\.val_ood are also in data\.test_ood\.v2"):
                check_leakage(data, config, tmp_path / "cache")
        else:
            assert pair(check_leakage(data, config, tmp_path / "cache"), "val_ood", "v2").first_exact == 5


def test_train_in_a_test_set_is_a_warning(tmp_path: Path) -> None:
    data = made({"train": range(30), "val_ood": range(40, 45), "far": range(25, 35)})
    report = check_leakage(data, settings(data), tmp_path)
    assert (pair(report, "train", "far").first_exact, pair(report, "train", "far").second_exact) == (5, 5)
    assert describe_leakage(report) == ["5 of 10 images of data.test_ood.far are also in data.train"]


def test_val_id_may_share_images_with_val_ood(tmp_path: Path) -> None:
    data = made({"train": range(5), "val_id": range(10, 20), "val_ood": range(10, 20)})
    report = check_leakage(data, settings(data), tmp_path)
    assert pair(report, "val_ood", "val_id").first_exact == 10
    assert describe_leakage(report) == []


def test_val_id_from_train_is_a_warning(tmp_path: Path) -> None:
    data = made({"train": range(10), "val_id": range(8, 12), "val_ood": range(20, 25)})
    assert describe_leakage(check_leakage(data, settings(data), tmp_path)) == ["2 of 4 images of data.val_id are also in data.train"]


def test_a_corrupted_copy_is_the_image_it_was(tmp_path: Path) -> None:
    """VAL_OOD made of a test set's images by corrupting them: other pixels, the same source."""
    clean = pixels(range(6))
    noisy = [np.clip(image + np.random.default_rng(i).normal(0, 90, image.shape), 0, 255).astype(np.uint8) for i, image in enumerate(clean)]
    sources = [encoded(scene(seed)) for seed in range(6)]
    data = made({"train": [50], "val_ood": (noisy[:3] * 2, sources[:3] * 2), "far": (clean, sources)})
    with pytest.raises(DataError, match=r"6 of 6 images of data\.val_ood are also in data\.test_ood\.far \(positions 0, 1, 2, 3, 4, \.\.\. and there 0, 1, 2, 0, 1,"):
        check_leakage(data, settings(data), tmp_path)
    report = check_leakage(data, settings(data, allow_duplicates=(("val_ood", "far"),)), tmp_path)
    found = pair(report, "val_ood", "far")
    assert (found.first_exact, found.second_exact, found.first_near, found.second_near) == (6, 3, 0, 0)


def test_an_image_that_was_encoded_again_is_a_near_duplicate(tmp_path: Path) -> None:
    copies = [np.asarray(Image.open(io.BytesIO(encoded(scene(seed), "JPEG", quality=quality)))) for seed, quality in ((60, 75), (63, 75), (63, 90))]
    others = pixels(range(10))
    data = made({"train": range(20, 30), "val_ood": ([*others, *copies], [bytes([i]) for i in range(13)]), "far": range(60, 70)})
    report = check_leakage(data, settings(data), tmp_path)
    found = pair(report, "val_ood", "far")
    assert (found.first_exact, found.first_near, found.second_near) == (0, 3, 2)
    assert {(one.first, one.second) for one in found.near} <= {(10, 0), (11, 3), (12, 3)}
    assert all(one.distance <= 2 and one.first_hash != one.second_hash for one in found.near)
    assert (found.near[0].second_hash, report.near_duplicates) == (data.tests["far"][1].example_hashes[found.near[0].second], 2)
    first, caveat = describe_leakage(report)
    assert first == "2 of 10 images of data.test_ood.far look like images of data.val_ood: their perceptual hashes differ in at most 2 of 64 bits"
    assert "a person" in caveat


def test_other_sizes_of_an_image_are_near_duplicates(tmp_path: Path) -> None:
    """TRAIN is kept larger than the other sets; its copies must be found nevertheless."""
    for kind in ("png", "bmp"):
        for seed in range(9):
            path = tmp_path / kind / ("ant" if seed < 5 else "bee") / f"{seed}.{kind}"
            path.parent.mkdir(parents=True, exist_ok=True)
            scene(seed, 100).save(path)
    other = folder(write_folder(tmp_path / "ood", {"ant": 3}, 5))
    config = study(folder(tmp_path / "png"), val_id=other, val_ood=other, test_id={"near": folder(tmp_path / "bmp")})
    data = load_study_data(config, 64, "bicubic", "shortest", tmp_path / "cache")
    assert data.train.images.shape != data.tests["near"][1].images.shape
    found = pair(check_leakage(data, config, tmp_path / "cache"), "train", "near")
    assert (found.first_exact, found.first_near, found.second_near) == (0, 9, 9)
    assert [(one.first, one.second) for one in sorted(found.near, key=lambda one: one.first)] == [(i, i) for i in range(9)]


def test_flat_images_do_not_flood_the_report(tmp_path: Path) -> None:
    flat = [np.full((32, 32, 3), level, dtype=np.uint8) for level in range(100, 130)]
    data = made({"train": (flat, [b"t%d" % i for i in range(30)]), "val_ood": range(5), "far": (flat, [b"f%d" % i for i in range(30)])})
    report = check_leakage(data, settings(data), tmp_path)
    found = pair(report, "train", "far")
    assert (found.first_near, found.second_near, found.first_ignored, found.second_ignored) == (0, 0, 30, 30)
    assert describe_leakage(report) == [
        f"30 of 30 images of {field} are too flat or too much alike to look for near-duplicates of them" for field in ("data.train", "data.test_ood.far")
    ]


def test_near_duplicates_need_not_be_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leakage, "perceptual_prints", None)
    data = made({"train": range(5), "val_ood": range(10, 15), "far": range(3, 8)})
    report = check_leakage(data, settings(data, near_duplicates=None), tmp_path)
    found = pair(report, "train", "far")
    assert (found.second_exact, found.first_near, found.second_near, found.first_ignored) == (2, None, None, None)
    assert len(describe_leakage(report)) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_report_is_json_and_lists_a_few_examples(tmp_path: Path) -> None:
    data = made({"train": range(40), "val_ood": range(50, 55), "far": range(40)})
    report = check_leakage(data, settings(data), tmp_path)
    plain = report.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    (found,) = (one for one in plain["pairs"] if (one["first"], one["second"]) == ("train", "far"))
    assert (found["first_exact"], len(found["exact"]), found["near"]) == (40, MAX_EXAMPLES, [])
    assert found["exact"][3] == {"first": 3, "second": 3, "first_hash": data.train.example_hashes[3], "second_hash": data.train.example_hashes[3], "distance": 0}
    assert plain["near_duplicates"] == 2
    assert plain["perceptual_hash"].startswith("phash")


def test_listed_content_hashes_keep_their_zeros(tmp_path: Path) -> None:
    raw = next(raw for i in range(9999) if hashlib.sha256(raw := b"%d" % i).hexdigest().startswith("00"))
    data = made({"train": (pixels([0]), [raw]), "val_ood": [1], "far": (pixels([0]), [raw])})
    (found,) = pair(check_leakage(data, settings(data), tmp_path), "train", "far").exact
    assert found.first_hash == found.second_hash == data.train.example_hashes[0]


def test_sets_that_were_not_loaded_are_left_out(tmp_path: Path) -> None:
    report = check_leakage(data := made({"train": range(5), "far": range(10, 15)}), settings(data), tmp_path)
    assert [(one.first, one.second) for one in report.pairs] == [("train", "far")]


def test_progress_names_the_set_and_hashes_are_kept(tmp_path: Path) -> None:
    data = made({"train": range(5), "val_ood": range(10, 13)})
    events: list[tuple[str, int, int]] = []
    for _ in range(2):
        check_leakage(data, settings(data), tmp_path, lambda *event: events.append(event))
    assert sorted(events) == [("data.train", 5, 5), ("data.val_ood", 3, 3)]


def test_mnist_m_is_found_to_be_made_of_mnist(shared: Path, tmp_path: Path) -> None:
    """MNIST-M puts MNIST's digits on photographs, in the same order here, so matches of a digit with itself are no accident."""
    sets = {name: arrays(shared / "data/digits" / f"{name}.npz", images="x_test", labels="y_test") for name in ("mnist", "mnistm")}
    loaded = {
        name: load_image_set(dataset, f"data.{name}", resolve_classes(study(dataset)), PixelSpec(28, "bicubic"), tmp_path)
        for name, dataset in sets.items()
    }
    data = StudyData(ClassTable((), ()), loaded["mnist"], None, None, {"mnistm": (Split.TEST_OOD, loaded["mnistm"])})  # type: ignore[arg-type]
    found = pair(check_leakage(data, settings(data, near_duplicates=0), tmp_path), "train", "mnistm")
    assert found.first_exact == 0
    assert found.second_near is not None
    assert 5 <= found.second_near <= 50
    assert sum(one.first == one.second for one in found.near) >= 8
