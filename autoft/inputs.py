"""Reading files that somebody else wrote: regular ones only, of a bounded size, and never waiting for a writer.

A named pipe under the name of an image would block whoever opens it, and a device such as /dev/zero has no end.
"""

import errno
import os
import stat
from io import RawIOBase
from pathlib import Path

_CHUNK = 1 << 20


def read_input(path: Path, limit: int, *, pipes: bool = False) -> bytes:
    """A file's content.

    Args:
        limit: bytes; a larger file is refused, whatever size its metadata says.
        pipes: also read what is no regular file, such as /dev/stdin or a shell's <(...), and wait for it.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger than `limit`; `strerror` says which, without the path.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (0 if pipes else os.O_NONBLOCK))
    except ValueError:  # a name with a null character, or text that is no Unicode
        raise OSError(errno.EINVAL, "its name cannot be the name of a file") from None
    with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor has no path
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise OSError(errno.EISDIR, "it is a folder")
        if not stat.S_ISREG(found.st_mode) and not pipes:
            raise OSError(errno.EINVAL, f"it is {_kind(found.st_mode)}, not a file")
        if found.st_size > limit:
            raise OSError(errno.EFBIG, f"it has {found.st_size:,} bytes, more than the limit of {limit:,}")
        return _read(file, limit)


def read_text_input(path: Path, limit: int, *, pipes: bool = False) -> str:
    """A UTF-8 text file's content, without a byte order mark. Raises OSError as `read_input`, and UnicodeDecodeError."""
    return read_input(path, limit, pipes=pipes).decode("utf-8-sig")


def _read(file: RawIOBase, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := file.read(_CHUNK):
        parts.append(part)
        size += len(part)
        if size > limit:
            raise OSError(errno.EFBIG, f"it has more than the limit of {limit:,} bytes")
    return b"".join(parts)


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"))
    return next((name for test, name in kinds if test(mode)), "something else")


def shown(text: str, length: int = 200) -> str:
    """A text of somebody else's for a message or a page: cut, and without control characters or halves of surrogate pairs."""
    clean = "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text[: length + 1])
    return clean if len(clean) <= length else clean[: length - 3] + "..."
