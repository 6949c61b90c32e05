"""Files appear whole, and a disk that cannot take them is an OSError that names the file, whoever wrote it."""

import errno
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from autoft.files import disk_errors, replace_folder, write_text

FULL = Path("/dev/full")  # every write to it fails as on a full disk

needs_dev_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full, which Linux has")


@needs_dev_full
def test_a_full_disk_names_the_file_whoever_writes() -> None:
    def plain() -> None:
        with FULL.open("w") as file:
            file.write("x")
            file.flush()

    def torchs() -> None:
        with FULL.open("wb", buffering=0) as file:
            torch.save({"a": torch.zeros(1000)}, file)

    for write in (plain, torchs):
        with pytest.raises(OSError) as found, disk_errors(FULL):
            write()
        assert found.value.errno == errno.ENOSPC and found.value.filename == str(FULL), write.__name__


def test_what_rust_tells_in_words_is_understood(tmp_path: Path) -> None:
    with pytest.raises(OSError) as found, disk_errors(tmp_path / "weights"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert (found.value.errno, found.value.filename) == (errno.ENOSPC, str(tmp_path / "weights"))


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), disk_errors(tmp_path / "x"):
        raise ZeroDivisionError
    with pytest.raises(Exception, match=r"(?i)no such file") as found, disk_errors(tmp_path / "missing" / "x"):
        save_file({"a": torch.zeros(1)}, tmp_path / "missing" / "x")
    assert isinstance(found.value, OSError)


def test_what_a_killed_process_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / ".a.txt.partial").write_text("half")
    write_text(tmp_path / "a.txt", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_text() == "whole"


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    write_text(tmp_path / "kept" / "a.txt", "before")
    with pytest.raises(ZeroDivisionError), replace_folder(tmp_path / "kept") as partial:
        (partial / "a.txt").write_text("after")
        raise ZeroDivisionError
    assert (tmp_path / "kept" / "a.txt").read_text() == "before"
