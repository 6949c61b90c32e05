"""Formats that can point at other files: HDF5 in three ways, and archives whose members are made to go astray at length."""

import time
from pathlib import Path

import numpy as np
import pytest

from autoft.config import PatchCamelyonDataset
from autoft.data import open_listing
from autoft.errors import DataError
from tests.data.make import shards
from tests.fuzz.make_corpus import header, pax

h5py = pytest.importorskip("h5py")
PIXELS = np.zeros((2, 96, 96, 3), dtype=np.uint8)


def write(folder: Path, kind: str) -> PatchCamelyonDataset:
    """A set whose images are in the file, or elsewhere."""
    path = folder / "camelyonpatch_level_2_split_train_x.h5"
    with h5py.File(folder / "secret.h5", "w") as file:
        file["x"] = PIXELS
    (folder / "secret.bin").write_bytes(PIXELS.tobytes())
    with h5py.File(path, "w") as file:
        if kind == "here":
            file["x"] = PIXELS
        elif kind == "external link":
            file["x"] = h5py.ExternalLink(str(folder / "secret.h5"), "/x")
        elif kind == "soft link":
            file["y"] = PIXELS
            file["x"] = h5py.SoftLink("/y")
        elif kind == "external storage":
            file.create_dataset("x", PIXELS.shape, np.uint8, external=[(str(folder / "secret.bin"), 0, h5py.h5f.UNLIMITED)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout(PIXELS.shape, np.uint8)
            layout[:] = h5py.VirtualSource(str(folder / "secret.h5"), "x", PIXELS.shape)
            file.create_virtual_dataset("x", layout)
        elif kind == "huge":
            file.create_dataset("x", (10**9, 96, 96, 3), np.uint8, chunks=(1, 96, 96, 3))
    with h5py.File(folder / "camelyonpatch_level_2_split_train_y.h5", "w") as file:
        if kind == "huge":
            file.create_dataset("y", (10**9, 1, 1, 1), np.uint8, chunks=(1024, 1, 1, 1))
        else:
            file["y"] = np.zeros((2, 1, 1, 1), dtype=np.uint8)
    return PatchCamelyonDataset(layout="patchcamelyon", path=folder, split="train", check_size=False)


def test_images_in_the_file_are_read(tmp_path: Path) -> None:
    assert np.asarray(open_listing(write(tmp_path, "here"), "data.train").decode(1)).shape == (96, 96, 3)


@pytest.mark.parametrize("kind", ["external link", "soft link", "external storage", "virtual"])
def test_images_elsewhere_are_not(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match=r"data\.train: .*'x' lies in another file, and none but this one is read"):
        open_listing(write(tmp_path, kind), "data.train")


def test_an_array_of_nothing_but_promises_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="y has 1,000,000,000 labels, more than the limit"):
        open_listing(write(tmp_path, "huge"), "data.train")


@pytest.mark.parametrize(
    "content",
    [
        b"".join([pax(b"12 path=abc\n")] * 3000),
        b"".join([header(b"x", b"00000000003", b"L") + b"abc".ljust(512, b"\0")] * 3000),
        header(b"0.png", b"-0000001000"),
        pax(b"15 size=-10240\n") + header(b"1.png", b"0"),
        header(b"0.png", b"%011o" % 512) + bytes(512) + pax(b"14 size=-1536\n") + header(b"1.png", b"0"),
        pax(b"1" * 16_000) + header(b"1.png", b"0"),
    ],
    ids=["headers in headers", "names of names", "negative", "negative in a header", "back to an earlier header", "digits without end"],
)
def test_no_archive_keeps_the_reader_busy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.tar").write_bytes(content + bytes(1024))
    started = time.process_time()
    with pytest.raises(DataError, match=r"data\.train"):
        open_listing(shards(tmp_path / "s.tar"), "data.train")
    assert time.process_time() - started < 10
