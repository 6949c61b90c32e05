"""What each layout's reader finds, and what it says about sets that are wrong."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from autoft.data import open_listing
from autoft.data.tar import plain_files
from autoft.errors import DataError
from tests.data.make import (
    arrays,
    as_json,
    encoded,
    folder,
    picture,
    shard_members,
    shards,
    table,
    write_folder,
    write_npz,
    write_shard,
    write_table,
)


def same_pixels(listing: object, index: int, seed: int) -> bool:
    return np.array_equal(np.asarray(listing.decode(index)), np.asarray(picture(seed)))  # type: ignore[attr-defined]


# folder


def test_folder_lists_sorted_paths_with_the_first_folder_as_class(tmp_path: Path) -> None:
    write_folder(tmp_path, {"polar_bear": 2, "ant": 1})
    (tmp_path / "ant" / "b").mkdir()
    (tmp_path / "ant" / "b" / "X.JPG").write_bytes(encoded(picture(7), "JPEG"))
    for ignored in ("ant/.hidden.png", "ant/notes.txt", "stray.png"):
        (tmp_path / ignored).write_bytes(b"x")
    (tmp_path / ".cache").mkdir()
    listing = open_listing(folder(tmp_path), "data.train")
    assert list(listing.ids) == ["ant/00.png", "ant/b/X.JPG", "polar_bear/00.png", "polar_bear/01.png"]
    assert list(listing.labels or ()) == ["ant", "ant", "polar_bear", "polar_bear"]
    assert listing.read(2) == (tmp_path / "polar_bear" / "00.png").read_bytes()
    assert same_pixels(listing, 3, 1)
    assert listing.groups is None
    assert listing.captions is None


def test_folder_follows_links_but_not_into_loops(tmp_path: Path) -> None:
    real = write_folder(tmp_path / "real", {"ant": 2})
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "insect").symlink_to(real / "ant")
    (real / "ant" / "again").symlink_to(real / "ant")
    assert list(open_listing(folder(tmp_path / "set"), "data.train").ids) == ["insect/00.png", "insect/01.png"]


def test_folder_errors_name_field_and_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    write_folder(tmp_path / "some", {"cat": 1, "dog": 0})
    cases = {"missing": "no such folder", "file": "not a folder", "empty": "no class folders", "some": "class folder dog has no images"}
    for name, problem in cases.items():
        with pytest.raises(DataError, match=rf"data\.val_ood\.path = .*{name}.*{problem}"):
            open_listing(folder(tmp_path / name), "data.val_ood")


def test_signature_follows_content_not_time_of_listing(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 2, "b": 1})
    before = open_listing(folder(tmp_path), "data.train").signature
    assert open_listing(folder(tmp_path), "data.train").signature == before
    (tmp_path / "a" / "00.png").rename(tmp_path / "a" / "02.png")
    assert open_listing(folder(tmp_path), "data.train").signature != before


# csv


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for i in range(3):
        (tmp_path / "images" / f"{i}.png").write_bytes(encoded(picture(i)))
    return tmp_path


def test_csv_reads_columns_in_row_order(images: Path) -> None:
    path = write_table(images / "t.csv", "label,filepath,where,title", ["dog,images/2.png,north,a dog", '"cat, wild",images/0.png,south,"a ""cat"""'])
    listing = open_listing(table(path, group="where", caption="title"), "data.train")
    assert list(listing.labels or ()) == ["dog", "cat, wild"]
    assert list(listing.groups or ()) == ["north", "south"]
    assert list(listing.captions or ()) == ["a dog", 'a "cat"']
    assert same_pixels(listing, 0, 2)
    assert same_pixels(listing, 1, 0)
    assert "images/0.png" in listing.ids[1]
    assert "line 3" in listing.ids[1]


def test_tsv_root_and_other_column_names(images: Path) -> None:
    path = write_table(images / "t.tsv", "\ufefffile\ty", [f"1.png\t{5}", f"{images / 'images' / '2.png'}\t6"])
    listing = open_listing(table(path, root=images / "images", filepath="file", label="y"), "data.train")
    assert list(listing.labels or ()) == ["5", "6"]
    assert same_pixels(listing, 0, 1)
    assert same_pixels(listing, 1, 2)


@pytest.mark.parametrize(
    ("header", "rows", "problem"),
    [
        ("filepath,label", ["images/0.png,a", "images/9.png,b"], r"line 3: there is no image 'images/9\.png'"),
        ("filepath,label", ["images/../../0.png,a"], r"line 2: 'images/\.\./\.\./0\.png' leads out of the root folder"),
        ("filepath,label", ["images/0.png"], r"line 2: column 'label' is empty"),
        ("filepath,label", [",a"], r"line 2: column 'filepath' is empty"),
        ("filepath,label", ["images,a"], r"line 2: .*images is not a file"),
        ("filepath,label", [], r"has no rows"),
        ("path,label", ["images/0.png,a"], r"\.filepath = 'filepath': there is no such column; the columns of t\.csv are path, label"),
        ("filepath,klass", ["images/0.png,a"], r"\.label = 'label': there is no such column.*filepath, klass"),
        ("filepath,label", ['"images/0.png,a'], r"cannot read the table"),
    ],
)
def test_csv_errors_name_the_line_or_column(images: Path, header: str, rows: list[str], problem: str) -> None:
    path = write_table(images / "t.csv", header, rows)
    with pytest.raises(DataError, match=rf"data\.train.*{problem}"):
        open_listing(table(path), "data.train")


def test_csv_missing_table_and_unreadable_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.val_id: table .*none\.csv"):
        open_listing(table(tmp_path / "none.csv"), "data.val_id")
    (tmp_path / "t.csv").write_bytes(b"filepath,label\n\xff,a\n")
    with pytest.raises(DataError, match=r"data\.val_id.*cannot read the table"):
        open_listing(table(tmp_path / "t.csv"), "data.val_id")


# webdataset


def test_shards_in_order_with_numbers_texts_json_and_captions(tmp_path: Path) -> None:
    write_shard(tmp_path / "s-000.tar", [("./README", b"hi"), ("__index__.json", b"{}"), *shard_members([3, 1])])
    write_shard(
        tmp_path / "s-001.tar",
        [("sub/x.y.json", b"-"), ("sub/x.JPG", encoded(picture(5), "JPEG")), ("sub/x.json", as_json({"label": "7"})), ("sub/.png", b"?"), ("sub/x.seg.png", b"?")],
    )
    listing = open_listing(shards(tmp_path / "s-{000..001}.tar"), "data.train")
    assert list(listing.ids) == ["s-000.tar:0000", "s-000.tar:0001", "s-001.tar:sub/x"]
    assert list(listing.labels or ()) == ["3", "1", "7"]
    assert same_pixels(listing, 1, 1)
    assert listing.read(2) == encoded(picture(5), "JPEG")
    write_shard(tmp_path / "c.tar", [("a.png", encoded(picture(0))), ("a.txt", "un chat à table\n".encode())])
    captioned = open_listing(shards(tmp_path / "c.tar"), "data.train")
    assert captioned.labels is None
    assert list(captioned.captions or ()) == ["un chat à table"]


def test_shards_without_braces_may_have_them_in_their_name(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "odd{1,2}.tar", shard_members([0]))
    assert len(open_listing(shards(path), "data.train")) == 1


PNG = encoded(picture(0))


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ([("a.png", PNG)], r"s\.tar:a has no label"),
        ([("a.png", PNG), ("a.cls", b"1"), ("b.png", PNG)], r"s\.tar:b has no label"),
        ([("a.cls", b"1")], r"s\.tar:a has a label but no image"),
        ([("a.png", PNG), ("a.jpg", PNG), ("a.cls", b"1")], r"s\.tar:a has two images"),
        ([("a.png", PNG), ("a.json", b"{")], r"s\.tar:a\.json is not JSON"),
        ([("a.png", PNG), ("a.json", as_json({"label": 1.5}))], r"s\.tar:a\.json: label must be .* got 1\.5"),
        ([("a.png", PNG), ("a.cls", b"\xff")], r"s\.tar:a\.cls is not UTF-8"),
        ([("a.png", PNG), ("a.cls", b" ")], r"s\.tar:a\.cls is empty"),
        ([("notes.txt", b"x")], r"have no examples"),
    ],
)
def test_shard_errors_name_the_key(tmp_path: Path, members: list[tuple[str, bytes]], problem: str) -> None:
    write_shard(tmp_path / "s.tar", members)
    with pytest.raises(DataError, match=rf"data\.val_ood.*{problem}"):
        open_listing(shards(tmp_path / "s.tar"), "data.val_ood")


def test_shards_that_are_missing_truncated_compressed_or_unbalanced(tmp_path: Path) -> None:
    whole = write_shard(tmp_path / "s-0.tar", shard_members(range(4)))
    with pytest.raises(DataError, match=r"data\.train: shard .*s-1\.tar"):
        open_listing(shards(tmp_path / "s-{0..1}.tar"), "data.train")
    with pytest.raises(DataError, match=r"data\.train\.path = .*Unbalanced"):
        open_listing(shards(tmp_path / "s-{0..1.tar"), "data.train")
    (tmp_path / "torn.tar").write_bytes(whole.read_bytes()[:3000])
    with tarfile.open(tmp_path / "zipped.tar", "w:gz") as tar:
        tar.add(whole, "0.png")
    (tmp_path / "zero.tar").write_bytes(b"")
    for name in ("torn", "zipped", "zero"):
        with pytest.raises(DataError, match=rf"data\.train: shard .*{name}\.tar is not a whole, uncompressed tar"):
            open_listing(shards(tmp_path / f"{name}.tar"), "data.train")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_shards_of_every_form_list_what_tarfile_lists(tmp_path: Path, form: int) -> None:
    """Long names, folders, links and a date before 1970 are where the forms differ."""
    shard, names = tmp_path / "s.tar", ["a.txt", "folder/b.cls", "long/" * 30 + "c.cls", "d" * 120 + ".cls", "é.cls", "e.cls"]
    with tarfile.open(shard, "w", format=form) as tar:
        for i, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size, member.mtime = 700 * i, -5 if i == 1 and form != tarfile.USTAR_FORMAT else 1_700_000_000
            tar.addfile(member, io.BytesIO(bytes([i]) * member.size)) if form != tarfile.USTAR_FORMAT or len(name) < 110 else None
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        link = tarfile.TarInfo("link.cls")
        link.type, link.linkname = tarfile.SYMTYPE, "a.txt"
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("last.cls"))
    with tarfile.open(shard) as tar:
        expected = [(member.name, member.offset_data, member.size) for member in tar if member.isreg()]
    with shard.open("rb") as file:
        assert list(plain_files(file, shard.stat().st_size)) == expected
    assert len(expected) >= 5


def test_members_are_never_extracted(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    write_shard(inside / "s.tar", [("../evil.png", PNG), ("../evil.cls", b"0"), ("/abs.png", PNG), ("/abs.cls", b"1")])
    listing = open_listing(shards(inside / "s.tar"), "data.train")
    assert [listing.decode(i).size for i in range(len(listing))] == [(12, 10)] * 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["inside", "s.tar"]


# arrays

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (4, 6, 5), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
LABELS = np.array([1, 0, 1, 0], dtype=np.int16)


@pytest.mark.parametrize("images", [GREY, GREY[..., None], COLOUR])
@pytest.mark.parametrize("layout", ["npz", "npy"])
def test_arrays_of_every_shape(tmp_path: Path, images: np.ndarray, layout: str) -> None:
    if layout == "npz":
        write_npz(tmp_path / "a.npz", x=images, y=LABELS, g=np.array(["n", "s", "n", "s"]))
        dataset = arrays(tmp_path / "a.npz", images="x", labels="y", groups="g")
    else:
        for name, array in (("x", images), ("y", LABELS), ("g", np.array(["n", "s", "n", "s"]))):
            np.save(tmp_path / f"{name}.npy", array)
        dataset = arrays(tmp_path / "x.npy", labels=str(tmp_path / "y.npy"), groups=str(tmp_path / "g.npy"))
    listing = open_listing(dataset, "data.train")
    assert list(listing.labels or ()) == [1, 0, 1, 0]
    assert list(listing.groups or ()) == ["n", "s", "n", "s"]
    expected = images if images.shape[3:] == (3,) else np.repeat(images.reshape(4, 6, 5, 1), 3, axis=3)
    for i in range(4):
        assert np.array_equal(np.asarray(listing.decode(i)), expected[i])
        assert listing.read(i) == images[i].tobytes()
    assert "[2]" in listing.ids[2]


@pytest.mark.parametrize(
    ("content", "options", "problem"),
    [
        ({"images": GREY.astype(np.float32), "labels": LABELS}, {}, r"images = .*must be uint8, got float32"),
        ({"images": GREY[0], "labels": LABELS}, {}, r"images = .*got shape \(6, 5\)"),
        ({"images": COLOUR[..., :2], "labels": LABELS}, {}, r"images = .*got shape \(4, 6, 5, 2\)"),
        ({"images": GREY[:0], "labels": LABELS[:0]}, {}, r"images = .*no images in shape \(0, 6, 5\)"),
        ({"images": GREY, "labels": LABELS[:3]}, {}, r"labels = .*must have shape \(4,\).*got \(3,\)"),
        ({"images": GREY, "labels": LABELS.astype(float)}, {}, r"labels = .*must be integers, got float64"),
        ({"images": GREY, "labels": LABELS[:, None]}, {}, r"labels = .*got \(4, 1\)"),
        ({"images": GREY, "labels": LABELS}, {"images": "x_train"}, r"images = 'x_train': .*has no such array; it has images, labels"),
        ({"images": GREY, "labels": LABELS}, {"groups": "g"}, r"groups = 'g': .*has no such array"),
        ({"images": GREY, "labels": np.array([1, "a", None, 2], dtype=object)}, {}, r"labels = .*never unpickled"),
        ({"images": np.array([GREY[0], None], dtype=object), "labels": LABELS}, {}, r"images = .*must be uint8, got object"),
    ],
)
def test_array_errors_name_the_array(tmp_path: Path, content: dict[str, np.ndarray], options: dict[str, str], problem: str) -> None:
    path = write_npz(tmp_path / "a.npz", **content)
    with pytest.raises(DataError, match=rf"data\.test_ood\.x\.{problem}"):
        open_listing(arrays(path, **options), "data.test_ood.x")


def test_arrays_in_files_that_are_no_arrays(tmp_path: Path) -> None:
    good = write_npz(tmp_path / "good.npz", images=GREY, labels=LABELS)
    (tmp_path / "torn.npz").write_bytes(good.read_bytes()[:200])
    np.save(tmp_path / "objects.npy", np.array([{}, None]))
    (tmp_path / "zip.npy").write_bytes(good.read_bytes())
    np.save(tmp_path / "y.npy", LABELS)
    for name, problem in {"torn.npz": "damaged", "objects.npy": "never unpickled", "zip.npy": "damaged", "none.npz": "none.npz", "a.txt": "a.txt"}.items():
        with pytest.raises(DataError, match=rf"data\.train\.images.*{problem}"):
            open_listing(arrays(tmp_path / name, labels=str(tmp_path / "y.npy")), "data.train")
    np.save(tmp_path / "x.npy", GREY)
    with pytest.raises(DataError, match=r"data\.train\.labels = 'labels'.*path of another \.npy"):
        open_listing(arrays(tmp_path / "x.npy"), "data.train")


def test_damage_beyond_the_header_is_found_on_reading(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", images=np.zeros((4, 100, 100), np.uint8), labels=LABELS)
    raw = bytearray(path.read_bytes())
    raw[20_000] ^= 0xFF
    path.write_bytes(raw)
    listing = open_listing(arrays(path), "data.train")
    with pytest.raises(DataError, match=r"data\.train\.images = a\.npz\[images\]: the file is damaged"):
        listing.decode(0)
