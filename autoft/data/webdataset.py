"""Tar shards in webdataset form. Members are read where they lie in the file and never extracted."""

import functools
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any, BinaryIO

from braceexpand import braceexpand

from autoft.config import WebDataset
from autoft.data.files import IMAGE_EXTENSIONS, encoded_listing, files_signature, stat_file
from autoft.data.sets import Listing
from autoft.errors import DataError

_TEXT_EXTENSIONS = ("cls", "json", "txt")
_BLOCK = 512


@dataclass
class _Example:
    """The members of one key: where the image lies in its shard, and the texts beside it."""

    shard: Path
    key: str
    image: tuple[int, int] | None = None  # offset and size in bytes
    texts: dict[str, bytes] = dataclass_field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.shard.name}:{self.key}"


def list_webdataset(dataset: WebDataset, field: str) -> Listing:
    """Examples in the order of shards and members. A key is a member's path up to the first dot of its file name.

    The label is KEY.cls (a number or a text) or "label" in KEY.json; without either, the class is read off KEY.txt.

    Raises:
        DataError: a shard is missing, compressed or damaged, or an example has no image, no label, or two images.
    """
    shards = _expand(dataset.path, field)
    stats = [(shard, stat_file(shard, field, "shard")) for shard in shards]
    examples = [example for shard, stat in stats for example in _read_shard(shard, stat, field)]
    if not examples:
        raise DataError(f"{field}.path = {dataset.path}: the shards have no examples (KEY.jpg with KEY.cls)")
    labels = [_label(example, field) for example in examples]
    captions = [_caption(example, field) for example in examples]
    ids = [example.id for example in examples]
    unlabelled = [i for i, label in enumerate(labels) if label is None]
    uncaptioned = [i for i, caption in enumerate(captions) if caption is None]
    if unlabelled and (uncaptioned or len(unlabelled) < len(labels)):
        raise DataError(f"{field}: {ids[unlabelled[0]]} has no label: neither .cls nor .json with \"label\"")
    return encoded_listing(
        field,
        ids,
        _reader(examples, field),
        files_signature((str(shard), stat) for shard, stat in stats),
        labels=None if unlabelled else [label for label in labels if label is not None],
        captions=None if uncaptioned else [caption for caption in captions if caption is not None],
    )


def _expand(pattern: str, field: str) -> list[Path]:
    if Path(pattern).is_file():
        return [Path(pattern)]
    shards = []
    try:
        for path in braceexpand(pattern):
            stat_file(Path(path), field, "shard")  # here, so that {0..999999999} stops at the first that is missing
            shards.append(Path(path))
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{field}.path = {pattern!r}: {error}") from None
    return shards


def _read_shard(shard: Path, stat: os.stat_result, field: str) -> list[_Example]:
    try:
        members = _shard_members(shard, stat.st_size, stat.st_mtime_ns)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{field}: shard {shard} is not a whole, uncompressed tar file: {error}") from None
    examples: dict[str, _Example] = {}
    for member in members:
        example = examples.setdefault(member.key, _Example(shard, member.key))
        if member.text is not None:
            example.texts[member.extension] = member.text
        elif example.image is not None:
            raise DataError(f"{field}: {example.id} has two images in its shard")
        else:
            example.image = (member.offset, member.size)
    bare = next((example for example in examples.values() if example.image is None and "cls" in example.texts), None)
    if bare is not None:
        raise DataError(f"{field}: {bare.id} has a label but no image ({', '.join(IMAGE_EXTENSIONS)})")
    return [example for example in examples.values() if example.image is not None]


@dataclass(frozen=True)
class _Member:
    """An image's place in its shard, or a text beside it."""

    key: str
    extension: str
    offset: int
    size: int
    text: bytes | None


@functools.lru_cache(maxsize=256)
def _shard_members(shard: Path, size: int, mtime_ns: int) -> tuple[_Member, ...]:
    """Images and texts of a shard, in order. Several sets may be slices of one shard; size and date make a changed file another one."""
    with shard.open("rb") as file:
        return tuple(_members(file, size))


def _members(file: BinaryIO, size: int) -> Iterator[_Member]:
    for name, offset, length in _plain_files(file, size):
        folder, _, base = name.removeprefix("./").rpartition("/")
        stem, _, extension = base.partition(".")
        extension = extension.lower()
        if base.startswith(".") or extension not in (*IMAGE_EXTENSIONS, *_TEXT_EXTENSIONS):
            continue
        text = None
        if extension in _TEXT_EXTENSIONS:
            text = os.pread(file.fileno(), length, offset)
        yield _Member(f"{folder}/{stem}" if folder else stem, extension, offset, length, text)


def _plain_files(file: BinaryIO, size: int) -> Iterator[tuple[str, int, int]]:
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
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if member.isreg() and not member.issparse():
                yield member.name, member.offset_data, member.size


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
    if checksum != sum(header) - sum(header[148:156]) + 8 * 0x20 or (header[262:264] == b" \0" and prefix):
        return None  # the old GNU form keeps dates where ustar has the prefix
    return f"{prefix}/{name}" if prefix else name, 0 if kind == b"5" else length, kind != b"5"


def _label(example: _Example, field: str) -> str | int | None:
    if "cls" in example.texts:
        text = _decode(example, "cls", field).strip()
        if not text:
            raise DataError(f"{field}: {example.id}.cls is empty")
        return text
    if "json" not in example.texts:
        return None
    try:
        value: Any = json.loads(example.texts["json"])
    except ValueError as error:
        raise DataError(f"{field}: {example.id}.json is not JSON: {error}") from None
    label = value.get("label") if isinstance(value, dict) else None
    if label is not None and (not isinstance(label, str | int) or isinstance(label, bool) or label == ""):
        raise DataError(f"{field}: {example.id}.json: label must be a number or a text, got {label!r}")
    return label


def _caption(example: _Example, field: str) -> str | None:
    return _decode(example, "txt", field).strip() if "txt" in example.texts else None


def _decode(example: _Example, extension: str, field: str) -> str:
    try:
        return example.texts[extension].decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{field}: {example.id}.{extension} is not UTF-8 text: {error}") from None


def _reader(examples: list[_Example], field: str) -> Callable[[int], bytes]:
    def read(index: int) -> bytes:
        example = examples[index]
        assert example.image is not None
        offset, size = example.image
        try:
            with example.shard.open("rb") as file:
                raw = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise DataError(f"{field}: cannot read image {example.id}: {error.strerror or error}") from None
        if len(raw) < size:
            raise DataError(f"{field}: image {example.id} is truncated: {len(raw)} of {size} bytes")
        return raw

    return read
