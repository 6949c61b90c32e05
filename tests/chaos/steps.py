"""Durable steps of a run, as they happen: every fsync, rename and removal of a file, every line of the journal, every commit.

Nothing in the product knows of this: the functions of `os` and of SQLAlchemy's dialect that make something durable are wrapped from
outside, so a step added to the product tomorrow is a step here too.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Functions of Optuna and ours whose commit it is, innermost first found on the stack; others are named by the function that committed.
_BORING = ("do_commit", "_commit_impl", "commit", "_do_commit", "__exit__", "_scoped_session", "_create_scoped_session", "wrapper", "_prepare_impl", "_go")

_READING = ("get_", "read", "check_")  # ends a transaction that wrote nothing


class Steps:
    """Calls `passed(label)` after every durable step of the main thread.

    Labels are `fsync:FILE`, `rename:FILE`, `unlink:FILE`, `commit:FUNCTION`, and `torn:journal.jsonl`, which is in the middle of a step: half a
    line is written, and nobody has asked for it to be flushed.
    """

    def __init__(self, passed: Callable[[str], None]) -> None:
        self._passed = passed
        self.names: dict[int, str] = {}

    def install(self) -> None:
        """Wrap the functions, for the rest of the process."""
        from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2

        from autoft.journal import Journal

        os.replace = self._around(os.replace, lambda source, target, **_: f"rename:{label(target)}")
        os.rename = self._around(os.rename, lambda source, target, **_: f"rename:{label(target)}")
        os.fsync = self._around(os.fsync, lambda file: f"fsync:{label(_path_of(file))}")
        os.unlink = self._around(os.unlink, lambda path, **_: f"unlink:{label(path)}")
        os.remove = os.unlink
        commit = PGDialect_psycopg2.do_commit

        def do_commit(dialect: Any, connection: Any) -> None:
            commit(dialect, connection)
            name = _committer()
            if not name.startswith(_READING):
                self._pass(f"commit:{name}")

        PGDialect_psycopg2.do_commit = do_commit  # type: ignore[method-assign]
        self._tear(Journal)

    def _tear(self, journal: Any) -> None:
        append = journal.append

        def torn_append(itself: Any, entry: Any) -> None:
            size = itself._path.stat().st_size if itself._path.exists() else 0
            with itself._path.open("a", encoding="utf-8") as file:
                file.write('{"study_id": "half a li')
            self._pass("torn:journal.jsonl")
            os.truncate(itself._path, size)
            append(itself, entry)

        journal.append = torn_append

    def _around(self, function: Callable[..., Any], labelled: Callable[..., str]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            name = labelled(*arguments, **options)
            result = function(*arguments, **options)
            self._pass(name)
            return result

        return wrapped

    def _pass(self, name: str) -> None:
        if threading.current_thread() is threading.main_thread():
            self._passed(name)


class Recorder:
    """Notes every step in a file, unbuffered."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("ab", buffering=0)

    def __call__(self, name: str) -> None:
        self._file.write(name.encode() + b"\n")


class Killer:
    """SIGKILLs this process after the n-th step of a name."""

    def __init__(self, name: str, n: int) -> None:
        self._name, self._n = name, n
        self._seen: Counter[str] = Counter()

    def __call__(self, name: str) -> None:
        self._seen[name] += 1
        if name == self._name and self._seen[name] == self._n:
            os.kill(os.getpid(), 9)


def label(path: Any) -> str:
    """The end of a path that names a thing of the run folder: `stages/final.json`, `journal.jsonl`; of the image cache, `cache`."""
    path = Path(os.fsdecode(path))
    if any(part.startswith("cache") for part in path.parts):
        return "cache"
    if path.parent.name == "plots":
        return f"plots/PLOT{path.suffix}"
    kept = path.parts[-2:] if path.parent.name in ("stages", "training", "checkpoints") or path.parent.name.startswith(".") else path.parts[-1:]
    return "/".join(part.replace(f".{os.getpid()}.", ".") for part in kept)


def _path_of(file: int) -> str:
    try:
        return str(Path(f"/proc/self/fd/{file}").readlink())
    except OSError:
        return "?"


def _committer() -> str:
    """The function a commit belongs to: the first one on the stack of Optuna's storage or of our packages."""
    frame = sys._getframe(2)
    while frame is not None:
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        ours = "/optuna/storages/" in file or "/storage/" in file or "/autoft/" in file
        if ours and name not in _BORING and not name.startswith("<"):
            return name.lstrip("_")
        frame = frame.f_back  # type: ignore[assignment]
    return "?"
