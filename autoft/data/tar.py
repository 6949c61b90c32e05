"""The plain files of a tar archive and where they lie in it. Nothing is extracted: no member's name becomes a path, and links lead nowhere."""

import os
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO

_BLOCK = 512
_MAX_EXTENDED = 1 << 14  # bytes of a long name or of extended headers; a path has 4096 at most
_EXTENDED = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


def plain_files(file: BinaryIO, size: int) -> Iterator[tuple[str, int, int]]:
    """Plain files of an uncompressed tar as (name, offset, bytes).

    Headers of plain files and folders in ustar form are read here, which takes a tenth of `tarfile`'s time; at the first header of
    any other kind (long names, links, sparse files, damage), `tarfile` takes over from its place.
    """
    at = 0
    while at + _BLOCK <= size:
        header = os.pread(file.fileno(), _BLOCK, at)
        found = _ustar_header(header)
        if found is None:
            break
        name, length, is_file = found
        after = at + _BLOCK + -(-length // _BLOCK) * _BLOCK
        if after > size:
            raise tarfile.ReadError("unexpected end of data")
        if is_file:
            yield name, at + _BLOCK, length
        at = after
    file.seek(at)
    rest = os.pread(file.fileno(), _BLOCK, at)
    if at and rest in (b"", bytes(_BLOCK)):
        return  # the block of zeros at the end, which some writers leave out
    with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as tar:
        for member in tar:
            if member.isreg() and not member.issparse():
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError("unexpected end of data")
                yield member.name, member.offset_data, member.size


class _Header(tarfile.TarInfo):
    """A member's header as `tarfile` reads it, without the two ways a few bytes of it keep Python busy for hours.

    A negative size makes `tarfile` read the same place over and over (CVE-2025-8194), and its pattern for extended headers takes
    quadratic time (CVE-2024-6232); both are in Pythons that are still in use.
    """

    def _block(self, count: int) -> int:
        if count < 0:
            raise tarfile.ReadError("a member has a negative size")
        return super()._block(count)  # type: ignore[misc, no-any-return]

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        if self.type in _EXTENDED and self.size > _MAX_EXTENDED:
            raise tarfile.ReadError(f"a header has {self.size:,} bytes, more than the limit of {_MAX_EXTENDED:,}")
        return super()._proc_member(tar)  # type: ignore[misc]


def _ustar_header(header: bytes) -> tuple[str, int, bool] | None:
    """Name, size and whether it is a plain file, of a plain file's or folder's header; None for any other, or a damaged one."""
    kind, magic = header[156:157], header[257:262]
    if kind not in (b"0", b"\0", b"5") or magic != b"ustar" or header[124] & 0x80:
        return None
    try:
        checksum = int(header[148:156].strip(b" \0"), 8)
        length = int(header[124:136].strip(b" \0") or b"0", 8)
        name, prefix = (field.partition(b"\0")[0].decode() for field in (header[:100], header[345:500]))
    except (ValueError, UnicodeDecodeError):
        return None
    if length < 0 or checksum != sum(header) - sum(header[148:156]) + 8 * 0x20 or (header[262:264] == b" \0" and prefix):
        return None  # the old GNU form keeps dates where ustar has the prefix
    return f"{prefix}/{name}" if prefix else name, 0 if kind == b"5" else length, kind != b"5"
