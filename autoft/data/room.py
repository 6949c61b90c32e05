"""The folder of the image cache: what lies in it, who uses it, how much it may hold, and what makes room for more.

An entry is in use while a living process holds a shared `flock` on its mark, a file in `.marks`; the kernel drops it when the process ends,
however it ends. Entries that nobody uses go, the least recently used first, where room is needed. See docs/adr/0019-cache-and-streaming.md.
"""

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoft.errors import ConfigError
from autoft.files import read_json

# Of what the disk had free if the cache were empty. The other half is for run folders, which hold checkpoints, and for everybody else.
DISK_SHARE = 0.5
DIGESTS = "-digests"  # ends the name of an entry that keeps what was learned of a set whose pixels are not kept
HASHES = "phash-"  # begins the name of a file of perceptual hashes

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_limit: int | None = None


def read_size(text: str, name: str) -> int:
    """Bytes written as 20000000000, 20GB or 20GiB. Raises ConfigError naming the setting."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]i?)?B?", text.strip())
    if found is None:
        raise ConfigError(f"{name} = {text!r}: must be a number of bytes, such as 20000000000, 20GB or 20GiB; 0 keeps no decoded images")
    return int(float(found[1]) * _UNITS[found[2] or ""])


def readable(nbytes: float) -> str:
    """A size as people read it: 3.4 GiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "bytes" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} TiB"


def limit_cache(nbytes: int | None) -> None:
    """Bound the image caches this process writes to; None: `DISK_SHARE` of the disk. 0 keeps no pixels at all."""
    global _limit
    _limit = nbytes


def cache_limit(cache_dir: Path, held: int) -> int:
    """Bytes a cache may hold in all, of which it holds `held` now."""
    return int(DISK_SHARE * (_free(cache_dir) + held)) if _limit is None else _limit


def _free(folder: Path) -> int:
    return shutil.disk_usage(next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())).free


@dataclass(frozen=True)
class Entry:
    """What lies in a cache under one name.

    kind: "images"; "digests" of a set whose images are streamed; perceptual "hashes"; or "building", what a living process is writing.
    nbytes: on disk; while it is being built, when it is done.
    used: when it was last used, seconds since the epoch.
    in_use: by a living process.
    field, images: the set it was made for, and how many images it has; "" and None where that is not known.
    """

    name: str
    kind: str
    nbytes: int
    used: float
    in_use: bool
    field: str = ""
    images: int | None = None


def use(cache_dir: Path, name: str) -> int | None:
    """Mark an entry as used by this process until the descriptor is closed; None in a folder that cannot be written.

    Waits while the entry is being removed.
    """
    path = _mark(cache_dir, name)
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if _is_there(path, descriptor):
            os.utime(descriptor)
            return descriptor
        os.close(descriptor)  # it was removed meanwhile, and whoever makes it anew has another file


def entries(cache_dir: Path) -> list[Entry]:
    """Everything in a cache, the least recently used first."""
    found = []
    for path in sorted(cache_dir.iterdir()) if cache_dir.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):  # another process removes or renames it
            entry = _entry(cache_dir, path)
            if entry is not None:
                found.append(entry)
    return sorted(found, key=lambda entry: (entry.used, entry.name))


def choose(wanted: Sequence[tuple[str, int]], there: Collection[Entry], limit: int) -> set[str]:
    """Which of the wanted entries, (name, bytes) with the most important first, are kept in the cache; the others are streamed.

    Whatever nobody uses could make room, so what counts is what others use.
    """
    names = {name for name, _ in wanted}
    left = limit - sum(entry.nbytes for entry in _counted(there) if entry.in_use and entry.name not in names)
    chosen: set[str] = set()
    for name, nbytes in wanted:
        if name not in chosen and nbytes <= left:
            chosen.add(name)
            left -= nbytes
    return chosen


def evicted_for(nbytes: int, there: Collection[Entry], limit: int, keep: Collection[str] = ()) -> list[str] | None:
    """The entries that have to go so that `nbytes` more fit, least recently used first; None: they do not fit."""
    counted = _counted(there)
    over = sum(entry.nbytes for entry in counted) + nbytes - limit
    gone = []
    for entry in sorted(counted, key=lambda entry: entry.used):
        if over <= 0:
            break
        if not entry.in_use and entry.name not in keep:
            gone.append(entry.name)
            over -= entry.nbytes
    return gone if over <= 0 else None


def _counted(there: Collection[Entry]) -> list[Entry]:
    """What the limit is for. Digests that are in use come on top: they belong to sets that are streamed because there is no room."""
    return [entry for entry in there if entry.kind != "digests" or not entry.in_use]


@contextlib.contextmanager
def arranging(cache_dir: Path) -> Iterator[None]:
    """For the block nobody else makes room in the cache or reserves some of it."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(cache_dir / ".room.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def make_room(cache_dir: Path, name: str, nbytes: int, keep: Collection[str] = (), reserved: int = 0) -> bool:
    """Remove entries nobody uses until `nbytes` fit under `name`; whether they do. To be called while `arranging`.

    Args:
        name: of the entry to be written; what it has now does not count.
        keep: entries that stay in any case.
        reserved: bytes that are to stay free besides.
    """
    for path in cache_dir.glob(".*.partial"):
        _remove_leftover(cache_dir, path)
    there = entries(cache_dir)
    limit = cache_limit(cache_dir, sum(entry.nbytes for entry in there))
    gone = evicted_for(nbytes + reserved, [entry for entry in there if entry.name != name], limit, keep)
    return gone is not None and all([remove(cache_dir, name) for name in gone])


def remove(cache_dir: Path, name: str) -> bool:
    """Remove an entry unless a process uses it; whether it is gone."""
    if name.startswith(HASHES):
        (cache_dir / name).unlink(missing_ok=True)
        return True
    path = _mark(cache_dir, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if not _try_lock(descriptor) or not _is_there(path, descriptor):
            return False
        gone = cache_dir / f".{name}.{os.getpid()}.gone"  # in one step, so that nobody ever sees half of it
        with contextlib.suppress(FileNotFoundError):
            (cache_dir / name).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        (cache_dir / f"{name}.lock").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)


def clear(cache_dir: Path) -> tuple[list[Entry], list[Entry]]:
    """Remove everything nobody uses: what went, and what is in use and stays."""
    if not cache_dir.is_dir():
        return [], []
    with arranging(cache_dir):
        for pattern in (".*.partial", ".*.old", ".*.gone"):
            for path in cache_dir.glob(pattern):
                _remove_leftover(cache_dir, path)
        found = [(entry, not entry.in_use and remove(cache_dir, entry.name)) for entry in entries(cache_dir)]
    return [entry for entry, gone in found if gone], [entry for entry, gone in found if not gone]


def _entry(cache_dir: Path, path: Path) -> Entry | None:
    name = path.name
    if name.startswith(HASHES) and name.endswith(".npy"):
        stat = path.stat()
        return Entry(name, "hashes", stat.st_size, max(stat.st_mtime, stat.st_atime), in_use=False)
    if not path.is_dir() or name == ".marks" or name.endswith((".old", ".gone")):
        return None
    if name.startswith(".") and name.endswith(".partial"):
        owner = name[1:].removesuffix(".partial")
        return Entry(owner, "building", _bytes_of(path), time.time(), in_use=True) if _in_use(cache_dir, owner) else None
    meta = read_json(path / "meta.json")
    meta = meta if isinstance(meta, Mapping) else {}
    shape = meta.get("shape") or [None]
    kind = "digests" if name.endswith(DIGESTS) else "images"
    return Entry(name, kind, _bytes_of(path), _used(cache_dir, path), _in_use(cache_dir, name), str(meta.get("field", "")), shape[0])


def _bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _used(cache_dir: Path, path: Path) -> float:
    try:
        return _mark(cache_dir, path.name).stat().st_mtime
    except OSError:
        return path.stat().st_mtime


def _in_use(cache_dir: Path, name: str) -> bool:
    try:
        descriptor = os.open(_mark(cache_dir, name), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftover(cache_dir: Path, path: Path) -> None:
    """What a process left that was killed while it built or removed an entry."""
    name = path.name[1:].split(".")[0]
    if not _in_use(cache_dir, name):
        shutil.rmtree(path, ignore_errors=True)


def _mark(cache_dir: Path, name: str) -> Path:
    return cache_dir / ".marks" / name


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_there(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
