"""Tar shards in webdataset form. Members are read where they lie in the file and never extracted."""

import functools
import itertools
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any, BinaryIO

from braceexpand import alphabet, braceexpand

from autoft.config import WebDataset
from autoft.data.files import IMAGE_EXTENSIONS, encoded_listing, files_signature, stat_file
from autoft.data.pixels import MAX_BYTES, UnusableImage
from autoft.data.sets import Listing
from autoft.data.tar import plain_files
from autoft.errors import DataError
from autoft.inputs import shown

_TEXT_EXTENSIONS = ("cls", "json", "txt")
MAX_SHARDS = 250_000
_MAX_PATTERN = 4096  # characters
_MAX_LEVELS = 8  # of braces in braces
_MAX_TEXT = 1 << 20  # bytes, of a label or caption


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
    if "{" not in pattern or _is_file(pattern):
        return [Path(pattern)]
    _check_pattern(pattern, field)
    shards: dict[Path, None] = {}
    try:
        expanded = [Path(path) for path in braceexpand(pattern)]
    except (ValueError, RecursionError) as error:
        raise DataError(f"{field}.path = {pattern!r}: {error}") from None
    for path in expanded:
        if path in shards:
            raise DataError(f"{field}.path = {pattern!r} names the shard {path} twice")
        stat_file(path, field, "shard")
        shards[path] = None
    return list(shards)


def _is_file(pattern: str) -> bool:
    try:
        return Path(pattern).is_file()
    except (OSError, ValueError):
        return False


def _check_pattern(pattern: str, field: str) -> None:
    """Raise DataError for a pattern that stands for too many shards, before it is expanded: {0..999999999} would fill the memory."""
    if len(pattern) > _MAX_PATTERN:
        raise DataError(f"{field}.path has {len(pattern):,} characters, more than the limit of {_MAX_PATTERN:,}")
    levels = itertools.accumulate({"{": 1, "}": -1}.get(letter, 0) for letter in pattern)
    if max(levels, default=0) > _MAX_LEVELS:
        raise DataError(f"{field}.path = {shown(pattern)!r} has braces in braces over {_MAX_LEVELS} levels deep")
    if _at_most(pattern) > MAX_SHARDS:
        raise DataError(f"{field}.path = {shown(pattern)!r} stands for more than {MAX_SHARDS:,} shards")


def _at_most(pattern: str) -> int:
    """How many texts a brace pattern stands for, or more: nested lists are counted as if they were multiplied."""
    count, commas = 1, list[int]()
    for token in re.findall(r"\\.|[{},]", pattern):
        if token == "{":
            commas.append(0)
        elif token == "," and commas:
            commas[-1] += 1
        elif token == "}" and commas:
            count *= commas.pop() + 1
    for first, last in re.findall(r"\{(-?\d+)\.\.(-?\d+)", pattern):
        count *= abs(int(last) - int(first)) + 1
    letters = len(re.findall(r"\{[A-Za-z]\.\.[A-Za-z]", pattern))
    return count * int(len(alphabet) ** letters)


def _read_shard(shard: Path, stat: os.stat_result, field: str) -> list[_Example]:
    try:
        members = _shard_members(shard, stat.st_size, stat.st_mtime_ns)
    except (tarfile.TarError, OSError, EOFError, MemoryError, RecursionError, ValueError) as error:  # tarfile raises them all on damage
        raise DataError(f"{field}: shard {shard} is not a whole, uncompressed tar file: {shown(str(error))}") from None
    examples: dict[str, _Example] = {}
    for member in members:
        example = examples.setdefault(member.key, _Example(shard, member.key))
        if member.text is not None:
            if member.extension in example.texts:
                raise DataError(f"{field}: {example.id}.{member.extension} is there twice in its shard")
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
    for name, offset, length in plain_files(file, size):
        folder, _, base = name.removeprefix("./").rpartition("/")
        stem, _, extension = base.partition(".")
        extension = extension.lower()
        if base.startswith(".") or extension not in (*IMAGE_EXTENSIONS, *_TEXT_EXTENSIONS):
            continue
        text = None
        if extension in _TEXT_EXTENSIONS:
            if length > _MAX_TEXT:
                raise ValueError(f"{shown(name)} has {length:,} bytes, more than the limit of {_MAX_TEXT:,} of a label or caption")
            text = os.pread(file.fileno(), length, offset)
        yield _Member(f"{folder}/{stem}" if folder else stem, extension, offset, length, text)


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
    except (ValueError, RecursionError) as error:
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
        if size > MAX_BYTES:
            raise UnusableImage(f"{field}: image {example.id} has {size:,} bytes, more than the limit of {MAX_BYTES:,}")
        try:
            with example.shard.open("rb") as file:
                raw = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise DataError(f"{field}: cannot read image {example.id}: {error.strerror or error}") from None
        if len(raw) < size:
            raise UnusableImage(f"{field}: image {example.id} is truncated: {len(raw)} of {size} bytes")
        return raw

    return read
