"""Tar shards in webdataset form. Members are read where they lie in the file and never extracted."""

import json
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any

from braceexpand import braceexpand

from autoft.config import WebDataset
from autoft.data.files import IMAGE_EXTENSIONS, encoded_listing, files_signature, stat_file
from autoft.data.sets import Listing
from autoft.errors import DataError

_TEXT_EXTENSIONS = ("cls", "json", "txt")


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
    stats = [(str(shard), stat_file(shard, field, "shard")) for shard in shards]
    examples = [example for shard in shards for example in _read_shard(shard, field)]
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
        files_signature(stats),
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


def _read_shard(shard: Path, field: str) -> list[_Example]:
    examples: dict[str, _Example] = {}
    try:
        with tarfile.open(shard, mode="r:") as tar:
            for key, extension, member in _members(tar):
                example = examples.setdefault(key, _Example(shard, key))
                if extension in IMAGE_EXTENSIONS:
                    if example.image is not None:
                        raise DataError(f"{field}: {example.id} has two images in its shard")
                    example.image = (member.offset_data, member.size)
                elif extension in _TEXT_EXTENSIONS:
                    content = tar.extractfile(member)
                    assert content is not None
                    example.texts[extension] = content.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{field}: shard {shard} is not a whole, uncompressed tar file: {error}") from None
    bare = next((example for example in examples.values() if example.image is None and "cls" in example.texts), None)
    if bare is not None:
        raise DataError(f"{field}: {bare.id} has a label but no image ({', '.join(IMAGE_EXTENSIONS)})")
    return [example for example in examples.values() if example.image is not None]


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Plain files as (key, extension, member)."""
    for member in tar:
        folder, _, name = member.name.removeprefix("./").rpartition("/")
        if member.isreg() and not member.issparse() and not name.startswith("."):
            stem, _, extension = name.partition(".")
            yield (f"{folder}/{stem}" if folder else stem), extension.lower(), member


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
