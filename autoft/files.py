"""Files that appear whole or not at all: written beside their place, flushed to disk, renamed."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

_NOTHING_LEFT = 64 * 1024  # bytes


def write_text(path: Path, text: str) -> None:
    """Replace a file's content atomically. Raises OSError; what was there before stays."""
    with replace_text_stream(path) as file:
        file.write(text)


@contextmanager
def replace_text_stream(path: Path) -> Iterator[TextIO]:
    """A text file to write to, which takes the place of `path` when the block ends without an error."""
    partial = path.with_name(f".{path.name}.partial")  # always the same, so that what a killed process leaves is written over
    try:
        with disk_errors(path), partial.open("w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically; non-finite numbers are refused."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any | None:
    """A JSON file's value, or None if it is absent or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Name the file in an OSError. Libraries that write by themselves report a full disk in words of their own, which becomes one, too."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    except Exception as error:
        number = _errno_in(error)
        if number is None and shutil.disk_usage(path.parent).free < _NOTHING_LEFT:
            number = errno.ENOSPC
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from None


def _errno_in(error: BaseException | None) -> int | None:
    """The operating system's error an exception was raised for, or tells in its text as Rust's do."""
    while error is not None:
        if isinstance(error, OSError):
            return error.errno
        told = re.search(r"\(os error (\d+)\)", str(error))
        if told:
            return int(told.group(1))
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder that takes the place of `folder` when the block ends without an error."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in partial.rglob("*"):
            _sync(path)
        _sync(partial)
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        _sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
