"""Images that cannot be used: named and refused, or skipped, counted and left out of everything, the same way every time."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autoft.config import CorruptionsConfig, CsvDataset, DataConfig
from autoft.data import StudyData, check_study_data, load_study_data, open_listing
from autoft.data.files import read_bytes
from autoft.data.pixels import UnusableImage, decode_image
from autoft.data.study import MAX_SKIPPED
from autoft.errors import DataError
from autoft.report.page import render
from tests.data.make import encoded, folder, picture, shard_members, shards, study, table, write_folder, write_shard, write_table
from tests.report.factory import minimal_summary

HTML = b"<html><body>404 Not Found</body></html>"


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """Validation data without a flaw."""
    return write_folder(tmp_path / "val", {"ant": 2, "bee": 2}, seed=9)


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "train", {"ant": 6, "bee": 5})


def load(data: DataConfig, cache: Path) -> StudyData:
    return load_study_data(data, 8, "bicubic", "shortest", cache)


def section(train: Path, clean: Path, mode: str = "skip", **options: Any) -> DataConfig:
    return study(folder(train, **options), folder(clean), folder(clean), on_bad_image=mode)


def test_an_error_by_default_that_names_file_and_reason(train: Path, clean: Path, tmp_path: Path) -> None:
    (train / "bee" / "02.png").write_bytes(HTML)
    data = study(folder(train), folder(clean), folder(clean))
    assert data.on_bad_image == "error"
    for _ in range(2):
        with pytest.raises(DataError, match=r"data\.train: bee/02\.png is not an image"):
            load(data, tmp_path / "cache")


def test_a_skipped_image_is_left_out_and_the_rest_stays_aligned(train: Path, clean: Path, tmp_path: Path) -> None:
    whole = load(section(train, clean), tmp_path / "cache").train
    (train / "ant" / "03.png").write_bytes(b"")
    found = load(section(train, clean), tmp_path / "cache").train
    kept = [index for index in range(11) if index != 3]
    assert np.array_equal(found.images, whole.images[kept])
    assert np.array_equal(found.labels, whole.labels[kept])
    assert found.example_hashes == tuple(whole.example_hashes[index] for index in kept)
    assert [name for name, _ in found.skipped] == ["ant/03.png"]
    assert "0 bytes" in found.skipped[0][1]
    assert whole.skipped == ()


def test_from_the_cache_it_is_the_same_and_error_mode_still_refuses(train: Path, clean: Path, tmp_path: Path) -> None:
    (train / "ant" / "03.png").write_bytes(HTML)
    first = load(section(train, clean), tmp_path / "cache").train
    (meta,) = [path for path in (tmp_path / "cache").glob("*/meta.json") if "skipped" in json.loads(path.read_text())]
    built = meta.stat().st_mtime_ns
    second = load(section(train, clean), tmp_path / "cache").train
    assert meta.stat().st_mtime_ns == built
    assert (second.content_hash, second.skipped, second.example_hashes) == (first.content_hash, first.skipped, first.example_hashes)
    assert load(section(train, clean), tmp_path / "other").train.content_hash == first.content_hash
    with pytest.raises(DataError, match=r"data\.train: ant/03\.png is not an image"):
        load(section(train, clean, "error"), tmp_path / "cache")


def test_what_was_skipped_is_part_of_the_content(train: Path, clean: Path, tmp_path: Path) -> None:
    whole = load(section(train, clean), tmp_path / "cache").train.content_hash
    assert load(section(train, clean, "error"), tmp_path / "cache").train.content_hash == whole
    hashes = {whole}
    for content in (HTML, b"GIF89a", None):
        if content is None:
            (train / "ant" / "03.png").unlink()
        else:
            (train / "ant" / "03.png").write_bytes(content)
        hashes.add(load(section(train, clean), tmp_path / "cache").train.content_hash)
    assert len(hashes) == 4


def test_more_than_a_share_is_refused(clean: Path, tmp_path: Path) -> None:
    train = write_folder(tmp_path / "large", {"ant": 150, "bee": 110})
    assert int(MAX_SKIPPED * 260) == 2
    for n in (1, 2, 3):
        (train / "ant" / f"{n:02d}.png").write_bytes(HTML)
        if n < 3:
            assert len(load(section(train, clean), tmp_path / "cache").train.skipped) == n
    with pytest.raises(DataError, match=r"data\.train: more than 2 images cannot be used.*on_bad_image = skip.*ant/01\.png"):
        load(section(train, clean), tmp_path / "cache")


def test_a_whole_class_is_never_dropped(clean: Path, tmp_path: Path) -> None:
    train = write_folder(tmp_path / "train", {"ant": 6, "bee": 1})
    (train / "bee" / "00.png").write_bytes(HTML)
    for _ in range(2):
        with pytest.raises(DataError, match=r"data\.train: no image of class bee can be used.*bee/00\.png"):
            load(section(train, clean), tmp_path / "cache")


def test_nothing_left_is_a_data_error(train: Path, tmp_path: Path) -> None:
    one = write_folder(tmp_path / "one", {"ant": 1})
    (one / "ant" / "00.png").write_bytes(HTML)
    with pytest.raises(DataError):
        load(section(train, one), tmp_path / "cache")


def test_draws_repeats_and_their_record_follow(clean: Path, tmp_path: Path) -> None:
    """A balanced draw of a short class has an image several times; it counts once and goes everywhere."""
    train = write_folder(tmp_path / "train", {"ant": 3, "bee": 20})
    options = {"max_examples": 16, "balanced": True}
    before = load(section(train, clean, **options), tmp_path / "cache")
    drawn = before.drawn["data.train"]
    bad = max((index for index in drawn if index < 3), key=drawn.count)
    assert drawn.count(bad) > 1
    (train / "ant" / f"{bad:02d}.png").write_bytes(HTML)
    after = load(section(train, clean, **options), tmp_path / "cache")
    assert after.drawn["data.train"] == tuple(index for index in drawn if index != bad)
    assert len(after.train.skipped) == 1
    assert len(after.train) == len(after.drawn["data.train"]) == len(after.train.example_hashes)
    assert np.array_equal(after.train.labels, [0 if index < 3 else 1 for index in after.drawn["data.train"]])


@pytest.mark.slow
def test_images_under_every_corruption_keep_theirs(train: Path, clean: Path, tmp_path: Path) -> None:
    options = {"corruptions": CorruptionsConfig(severity=1, all=True)}
    whole = load(section(clean, train, **options), tmp_path / "cache").train
    (clean / "ant" / "00.png").write_bytes(HTML)
    found = load(section(clean, train, **options), tmp_path / "cache").train
    assert np.array_equal(found.images, whole.images[15:])


def test_shards_and_tables_skip_too(train: Path, clean: Path, tmp_path: Path) -> None:
    members = shard_members(["ant", "bee"] * 5)
    members[6] = (members[6][0], HTML)
    write_shard(tmp_path / "s.tar", members)
    rows = [f"{cls}/{i:02d}.png,{cls}" for cls in ("ant", "bee") for i in range(5)]
    (train / "bee" / "01.png").write_bytes(HTML)
    data = study(
        table(write_table(train / "t.csv", "filepath,label", rows)), folder(clean), folder(clean),
        test_id={"shard": shards(tmp_path / "s.tar")}, on_bad_image="skip",
    )  # fmt: skip
    found = load(data, tmp_path / "cache")
    assert found.skipped() == {
        "train": {"n": 1, "images": [{"image": "bee/01.png (t.csv line 8)", "reason": found.train.skipped[0][1]}]},
        "shard": {"n": 1, "images": [{"image": "s.tar:0003", "reason": found.tests["shard"][1].skipped[0][1]}]},
    }
    assert found.train.labels.tolist() == [0] * 5 + [1] * 4
    assert found.tests["shard"][1].labels.tolist() == [0, 1, 0, 0, 1, 0, 1, 0, 1]


def test_a_table_that_names_files_which_are_not_there_is_wrong_in_any_case(train: Path, clean: Path, tmp_path: Path) -> None:
    path = write_table(train / "t.csv", "filepath,label", ["ant/00.png,ant", "bee/99.png,bee"])
    with pytest.raises(DataError, match=r"line 3: there is no image"):
        check_study_data(study(table(path), folder(clean), folder(clean), on_bad_image="skip"))


def test_a_disk_that_does_not_answer_is_no_bad_image(train: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a moment's trouble would change the study for good."""
    import autoft.data.files as files

    def failing(path: Path, limit: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "read_input", failing)
    with pytest.raises(DataError, match="Input/output error") as error:
        load(section(train, clean), tmp_path / "cache")
    assert not isinstance(error.value, UnusableImage)


def test_the_report_lists_what_was_skipped_with_markup_as_text() -> None:
    lost = {"train": {"n": 60, "images": [{"image": f"<b>{i}</b>.jpg", "reason": "<script>alert(1)</script>"} for i in range(60)]}}
    page = render(minimal_summary() | {"description": {"skipped": lost}}, [], {}, [])
    assert 'data-skipped="train" data-value="60"' in page
    assert "&lt;b&gt;49&lt;/b&gt;.jpg" in page
    assert "<b>50" not in page and "&lt;b&gt;50" not in page and "The first 50 of 60" in page
    assert "<script" not in page


# what an image file may turn out to be


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "link to nothing", "link loop", "link to a device"])
def test_what_is_no_file_is_a_bad_image_and_never_blocks(
    train: Path, clean: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = train / "ant" / "zz.jpg"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        import socket

        with socket.socket(socket.AF_UNIX) as server:
            monkeypatch.chdir(path.parent)  # the address of a socket has room for a short name only
            server.bind(path.name)
    else:
        path.symlink_to({"link to nothing": "nowhere", "link loop": path, "link to a device": "/dev/zero"}[kind])
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append(load(section(train, clean), tmp_path / "cache"))
        except DataError as error:
            outcome.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    assert outcome, "it waits for somebody to write into the pipe"
    if kind == "link loop":  # no name of a file at all
        assert isinstance(outcome[0], DataError)
    else:
        assert [name for name, _ in outcome[0].train.skipped] == ["ant/zz.jpg"]


def test_a_folder_with_an_image_like_name_and_images_inside_is_a_folder(train: Path) -> None:
    (train / "ant" / "clip.jpg").mkdir()
    (train / "ant" / "clip.jpg" / "0.png").write_bytes(encoded(picture(1)))
    assert "ant/clip.jpg/0.png" in open_listing(folder(train), "data.train").ids


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse: takes no room
    with pytest.raises(UnusableImage, match=r"large\.jpg: it has 1,099,511,627,776 bytes, more than the limit"):
        read_bytes(path, "data.train", "large.jpg")


def test_a_picture_turned_by_its_camera_is_used_as_it_is_stored() -> None:
    """As torchvision's ImageFolder does, so that a checkpoint sees the same pixels in other programs."""
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encoded(picture(0, 20, 10), "JPEG", exif=exif), "data.train", "x.jpg").size == (20, 10)


def test_the_limit_of_pixels_is_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's is a global that any library may lift."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    raw = encoded(Image.new("1", (9_500, 9_500)), "PNG")
    with pytest.raises(UnusableImage, match="9500 x 9500 pixels, more than the limit of 89,478,485"):
        decode_image(raw, "data.train", "x.png")


# paths that a table gives


def rooted(tmp_path: Path) -> Path:
    """A root with an image, a link inside, links that lead out, and a neighbour whose name begins as its own."""
    root = write_folder(tmp_path / "root", {"a": 2})
    write_folder(tmp_path / "root-secret", {"a": 1})
    (root / "inside").symlink_to(root / "a")
    (root / "out").symlink_to(tmp_path / "root-secret")
    (root / "out.png").symlink_to(tmp_path / "root-secret" / "a" / "00.png")
    return root


@pytest.mark.parametrize("written", ["../root-secret/a/00.png", "out/a/00.png", "out.png", "a/../../root-secret/a/00.png", "ABSOLUTE"])
def test_a_table_cannot_name_an_image_outside_its_root(tmp_path: Path, written: str) -> None:
    root = rooted(tmp_path)
    written = written.replace("ABSOLUTE", str(tmp_path / "root-secret" / "a" / "00.png"))
    path = write_table(root / "t.csv", "filepath,label", ["a/00.png,x", f"{written},y"])
    with pytest.raises(DataError, match=r"data\.val_ood: t\.csv line 3: .* leads out of the root folder .*set root"):
        open_listing(table(path), "data.val_ood")


def test_a_root_above_both_is_how_to_say_that_it_is_meant(tmp_path: Path) -> None:
    rooted(tmp_path)
    path = write_table(tmp_path / "t.csv", "filepath,label", ["root/out/a/00.png,x", f"{tmp_path}/root-secret/a/00.png,y"])
    assert len(open_listing(table(path, root=tmp_path), "data.val_ood")) == 2


@pytest.mark.parametrize("written", ["inside/01.png", "a/../a/01.png", "./a/01.png", "ABSOLUTE"])
def test_a_table_may_name_an_image_below_its_root_in_any_way(tmp_path: Path, written: str) -> None:
    root = rooted(tmp_path)
    path = write_table(root / "t.csv", "filepath,label", [f"{written.replace('ABSOLUTE', str(root / 'a' / '01.png'))},x"])
    assert len(open_listing(table(path), "data.val_ood")) == 1


def test_a_root_that_is_a_link_is_where_it_leads(tmp_path: Path) -> None:
    rooted(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "root")
    path = write_table(tmp_path / "t.csv", "filepath,label", ["a/00.png,x"])
    assert len(open_listing(CsvDataset(layout="csv", path=path, root=tmp_path / "link"), "data.train")) == 1
