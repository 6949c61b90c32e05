"""What this machine has: Python, packages, memory, disks, limits, threads, time zone."""

import os
import resource
import shutil
import sys
import time
import zoneinfo
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from autoft.cli.checks.finding import Asked, Finding, ok, problem, skipped, warning
from autoft.cli.runtime import cache_dir, home_dir

GIB = 2**30
LOW_DISK_BYTES, NO_DISK_BYTES = 10 * GIB, 1 * GIB  # a study of a ViT-B/16 keeps about 2 GB; a full disk ends it
OUR_STORE_BYTES = 256 * 2**20  # a local Ray of AutoFT takes half of that (workers/cluster.py)
RAY_SHARE = 0.3  # of memory, what `ray start` gives its object store unless told otherwise
FEW_FILES = 4096  # every worker, connection and mapped image file is one; Ray asks for 65536


def python(asked: Asked) -> Iterator[Finding]:
    """The interpreter, against what the package says it needs."""
    version = ".".join(map(str, sys.version_info[:3]))
    try:
        needed = SpecifierSet(metadata.metadata("autoft")["Requires-Python"] or "")
    except metadata.PackageNotFoundError:
        yield skipped("python", f"{version}; autoft is not installed as a package, so what it needs is not known")
        return
    if version in needed:
        yield ok("python", f"{version} at {sys.executable}")
    else:
        yield problem("python", f"{version}, and autoft needs {needed}", "make a virtual environment with a newer Python")


def packages(asked: Asked) -> Iterator[Finding]:
    """Every package autoft names, against the versions it accepts."""
    try:
        lines = metadata.requires("autoft") or []
    except metadata.PackageNotFoundError:
        yield skipped("packages", "autoft is not installed as a package")
        return
    wanted = [requirement for requirement in map(Requirement, lines) if requirement.marker is None or requirement.marker.evaluate({"extra": ""})]
    wrong = [fault for requirement in wanted if (fault := _fault(requirement)) is not None]
    if wrong:
        yield problem("packages", "; ".join(wrong), "run: pip install --upgrade --constraint constraints.txt autoft")
    else:
        main = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "open_clip_torch", "optuna", "ray"))
        yield ok("packages", f"all {len(wanted)} fit: {main}, ...")


def _fault(requirement: Requirement) -> str | None:
    try:
        installed = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is missing"
    if requirement.specifier.contains(installed, prereleases=True):
        return None
    return f"{requirement.name} is {installed}, needed is {requirement.specifier}"


def memory(asked: Asked) -> Iterator[Finding]:
    """Shared memory, where Ray keeps its object store; Docker gives a container 64 MB of it."""
    shared = Path("/dev/shm")
    if not shared.is_dir():
        yield skipped("shared memory", "this system has no /dev/shm")
        return
    size, memory_bytes = shutil.disk_usage(shared).total, memory_limit()
    detail = f"/dev/shm {_gib(size)}, {size / memory_bytes:.0%} of {_gib(memory_bytes)} memory"
    if size < OUR_STORE_BYTES:
        yield warning("shared memory", detail, "give the container --shm-size=1g (compose: shm_size); Ray falls back to the disk, which is slow")
    elif size < RAY_SHARE * memory_bytes:
        yield ok("shared memory", f"{detail}; a node started with `ray start` takes {RAY_SHARE:.0%} unless it is given --object-store-memory")
    else:
        yield ok("shared memory", detail)


def memory_limit() -> int:
    """Memory this process may use: the machine's, or the container's where it is less. Bytes."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        try:
            return min(whole, int(file.read_text()))
        except (OSError, ValueError):  # not a container of that kind, or no limit ("max")
            continue
    return whole


def disks(asked: Asked) -> Iterator[Finding]:
    """Whether run folders, decoded images and the embedded database can be written, and have room."""
    for name, folder in (("runs", asked.runs), ("image cache", cache_dir()), ("home", home_dir())):
        yield _disk(f"disk: {name}", folder)


def _disk(check: str, folder: Path) -> Finding:
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return problem(check, f"{there} cannot be written", "choose another folder: --runs, AUTOFT_CACHE_DIR or AUTOFT_HOME")
    free = shutil.disk_usage(there).free
    detail = f"{_gib(free)} free for {folder}"
    if free < NO_DISK_BYTES:
        return problem(check, detail, f"make room: under {_gib(NO_DISK_BYTES)} a study ends in the middle of a checkpoint")
    if free < LOW_DISK_BYTES:
        return warning(check, detail, f"make room: checkpoints and decoded images of a large study take more than {_gib(LOW_DISK_BYTES)}")
    return ok(check, detail)


def open_files(asked: Asked) -> Iterator[Finding]:
    """How many files a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = soft == resource.RLIM_INFINITY
    detail = "no limit" if unlimited else f"{soft} (at most {hard})"
    if unlimited or soft >= FEW_FILES:
        yield ok("open files", detail)
    else:
        yield warning("open files", detail, "run: ulimit -n 65536 before starting (compose: ulimits; systemd: LimitNOFILE)")


def threads(asked: Asked) -> Iterator[Finding]:
    """OpenMP's settings, which every worker inherits."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given, policy = os.environ.get("OMP_NUM_THREADS"), os.environ.get("OMP_WAIT_POLICY", "")
    detail = f"{cores} cores, OMP_NUM_THREADS {given or 'not set'}, OMP_WAIT_POLICY {policy or 'not set'}"
    if given is not None and (not given.isdecimal() or not 1 <= int(given) <= cores):
        yield warning("threads", detail, f"unset OMP_NUM_THREADS (--threads-per-worker decides), or set it to 1 to {cores}")
    elif policy.upper() == "ACTIVE":
        yield warning("threads", detail, "unset OMP_WAIT_POLICY: threads that spin while they wait take the cores of other workers")
    else:
        yield ok("threads", detail)


def timezone(asked: Asked) -> Iterator[Finding]:
    """A TZ that is not known is silently taken for UTC; the trials' times are local ones."""
    given = os.environ.get("TZ", "").lstrip(":")
    if given and "/" in given and not given.startswith("/") and given not in zoneinfo.available_timezones():
        yield warning("time zone", f"TZ={given} is not known here, so times are UTC", "install tzdata, or set TZ=UTC on every machine")
    else:
        yield ok("time zone", f"{time.strftime('%Z')}, {time.strftime('%z')} from UTC")


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size < 100 * GIB else f"{size / GIB:.0f} GiB"
