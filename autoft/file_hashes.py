"""What files hold: the sha256 of a run's files, and one for each folder of weights."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

BLOCK_BYTES = 4 * 2**20
_UNFINISHED = "training"  # folders with the state of a fine-tune that has not ended


@dataclass(frozen=True)
class FileHash:
    """What a file holds: 64 hex digits, and its size."""

    sha256: str
    bytes: int


def files_of(folder: Path) -> tuple[str, ...]:
    """The files of a run folder worth keeping, as sorted paths within it: none that are hidden or links, and no unfinished training."""
    found = []
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        if path.is_file() and not path.is_symlink() and not any(part.startswith(".") or part == _UNFINISHED for part in inside.parts):
            found.append(inside.as_posix())
    return tuple(sorted(found))


def hash_files(folder: Path, files: tuple[str, ...] | None = None) -> dict[str, FileHash]:
    """Size and sha256 of files in a run folder; by default of `files_of` it. Raises OSError."""
    found = {}
    for file in files_of(folder) if files is None else files:
        with (folder / file).open("rb") as stream:
            found[file] = hash_stream(stream)
    return found


def content_hash(hashes: Mapping[str, FileHash]) -> FileHash:
    """One hash for several files: of their names and hashes, sorted by name; and their size together."""
    lines = "".join(f"{name}\0{found.sha256}\n" for name, found in sorted(hashes.items()))
    return FileHash(hashlib.sha256(lines.encode()).hexdigest(), sum(found.bytes for found in hashes.values()))


def checkpoints_in(hashes: Mapping[str, FileHash]) -> dict[str, FileHash]:
    """The checkpoint folders among a run's files, by path within it, each with the content hash of its safetensors files."""
    folders: dict[str, dict[str, FileHash]] = {}
    for file, found in hashes.items():
        folder, _, name = file.rpartition("/")
        if name.endswith(".safetensors") and "checkpoints" in folder.split("/"):
            folders.setdefault(folder, {})[name] = found
    return {folder: content_hash(inside) for folder, inside in sorted(folders.items())}


def hash_stream(stream: IO[bytes]) -> FileHash:
    """Read a stream to its end."""
    digest, size = hashlib.sha256(), 0
    for block in iter(lambda: stream.read(BLOCK_BYTES), b""):
        digest.update(block)
        size += len(block)
    return FileHash(digest.hexdigest(), size)
