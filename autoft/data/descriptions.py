"""Descriptions of a study's classes: what is visible of a class whatever the style, background or medium, in sentences.

Dual risk minimisation (arXiv 2411.19757) makes its second classifier head from them. The file is JSON, {class: sentence or list of
sentences}. Sentences go to classes by key and never by order, so a sorted file, or a study with its classes in another order, is safe.
Labels such as "empty" or "unknown" have nothing to describe; what a file says of them is noise.
"""

import difflib
import functools
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoft.config.vocabulary import class_names
from autoft.data.sets import ClassTable
from autoft.errors import DataError
from autoft.inputs import read_text_input, shown

Descriptions = tuple[tuple[str, ...], ...]

# What a file may have at most, so that looking for the class a misspelt key is nearest to takes seconds at most.
MAX_BYTES, MAX_KEYS, MAX_KEY = 64 << 20, 50_000, 500
_SHOWN = 5
_log = logging.getLogger(__name__)


def load_descriptions(path: Path, classes: ClassTable, field: str = "data.descriptions") -> Descriptions:
    """The sentences of every class, in the class table's order; at least one each.

    A key of the file is a class's key (folder or label value), its name, its position where names were given in label order, or,
    for the built-in class names of ImageNet and iWildCam, one of `class_aliases.json`. Exact class keys count first; otherwise case
    and underscores do not. A name that several classes share describes those of them that have no key of their own.

    Keys that are no class of the study are an error as long as a class is without a description, for they are probably misspelt. Once
    every class has one, they are ignored with a warning that counts them: a study may have some of a published file's classes only.

    Raises:
        DataError: naming the field, the key and what would be valid: a class without a description, an empty one, one that is not
            text, two for one class, the same sentence twice, or a file that is not a JSON object.
    """
    document = _read(path, field)
    rows, unknown = _match(list(document), classes, f"{field} = {path}")
    missing = [row for row in range(len(classes)) if row not in rows]
    if missing:
        raise DataError(f"{field} = {path}: {_what_is_missing(classes, missing, unknown)}")
    if unknown:
        names = ", ".join(map(repr, unknown[:_SHOWN])) + (" ..." if len(unknown) > _SHOWN else "")
        _log.warning("%s: %d descriptions are of no class of this study and are not used: %s", field, len(unknown), names)
    return tuple(_sentences(document[rows[row]], rows[row], f"{field} = {path}") for row in range(len(classes)))


def load_part(path: Path, classes: ClassTable, field: str) -> dict[int, tuple[str, ...]]:
    """As `load_descriptions` for an unfinished file: the sentences by class row; {} if there is no file.

    Raises:
        DataError: as there, except that a class may be missing and that a key which is no class of the study always is an error.
    """
    if not path.exists():
        return {}
    document = _read(path, field)
    rows, unknown = _match(list(document), classes, f"{field} = {path}")
    if unknown:
        raise DataError(f"{field} = {path}: {_unknown_keys(unknown, classes)}")
    return {row: _sentences(document[key], key, f"{field} = {path}") for row, key in sorted(rows.items())}


def class_labels(classes: ClassTable) -> tuple[str, ...]:
    """What each class is called in a description file: its name, or its key where the name does not stand for this class alone."""
    find = _finder(classes)
    return tuple(
        name if find(name) == (row,) else key for row, (key, name) in enumerate(zip(classes.keys, classes.names, strict=True))
    )


def to_document(classes: ClassTable, sentences: Mapping[int, Sequence[str]]) -> dict[str, list[str]]:
    """The content of a description file, classes in the study's order. sentences: by row of the class table, perhaps not all."""
    labels = class_labels(classes)
    return {labels[row]: list(sentences[row]) for row in sorted(sentences)}


def normal_text(text: str) -> str:
    """A text as class names are compared: case, underscores and the width of spaces do not count."""
    return " ".join(text.replace("_", " ").casefold().split())


class _Object(list[tuple[str, Any]]):
    """A JSON object as its (key, value) pairs, so that a key which is there twice is seen."""


def _read(path: Path, field: str) -> dict[str, Any]:
    try:
        pairs = json.loads(read_text_input(path, MAX_BYTES), object_pairs_hook=_Object)
    except OSError as error:
        raise DataError(f"{field} = {path}: cannot read the file: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{field} = {path}: not valid JSON: {error}") from None
    if not isinstance(pairs, _Object):
        raise DataError(f"{field} = {path}: must be a JSON object, {{class: sentence or list of sentences}}; it is {_kind(pairs)}")
    if len(pairs) > MAX_KEYS:
        raise DataError(f"{field} = {path}: has {len(pairs):,} keys, more than the limit of {MAX_KEYS:,}; a class has one")
    document: dict[str, Any] = {}
    for key, value in pairs:
        if len(key) > MAX_KEY:
            raise DataError(f"{field} = {path}: a key has {len(key):,} characters, more than the limit of {MAX_KEY:,}: {shown(key, 40)!r}")
        if key in document:
            raise DataError(f"{field} = {path}: the key {key!r} is there twice; a class has one key, and a list for several sentences")
        document[key] = value
    return document


def _sentences(value: Any, key: str, where: str) -> tuple[str, ...]:
    """A class's sentences, with single spaces. Raises DataError naming the key."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or isinstance(texts, _Object):
        raise DataError(f"{where}: {key!r} must be a sentence or a list of sentences; it is {_kind(value)}")
    if not texts:
        raise DataError(f"{where}: {key!r} has an empty list; give at least one sentence")
    seen: dict[str, str] = {}
    for position, text in enumerate(texts):
        what = f"{where}: {key!r}" + (f", sentence {position + 1} of {len(texts)}," if isinstance(value, list) else "")
        if not isinstance(text, str):
            raise DataError(f"{what} must be text; it is {_kind(text)}")
        if any(0xD800 <= ord(letter) < 0xE000 for letter in text):
            raise DataError(f"{what} has half of a surrogate pair, which is no character: {text!r}")
        clean = " ".join(text.split())
        if not clean:
            raise DataError(f"{what} is empty; say what is visible of the class")
        if normal_text(clean) in seen:
            raise DataError(f"{what} says the same as an earlier one: {clean!r}; it would count twice in the mean")
        seen[normal_text(clean)] = clean
    return tuple(seen.values())


def _kind(value: object) -> str:
    kinds = {bool: "true or false", type(None): "null", int: "a number", float: "a number", str: "text", _Object: "an object", list: "a list"}
    return kinds[type(value)]


@functools.cache
def _aliases() -> Mapping[str, Mapping[str, Any]]:
    """By built-in class names: how many classes there are, and the rows each further name stands for."""
    file = Path(__file__).with_name("class_aliases.json")
    document: Mapping[str, Mapping[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return document


def _finder(classes: ClassTable) -> Callable[[str], tuple[int, ...]]:
    """A function from a label to the rows it may stand for, () if to none. Later sources win: positions, names, aliases, keys."""
    rows: dict[str, tuple[int, ...]] = {str(row): (row,) for row in range(len(classes))} if classes.ordered else {}
    rows |= _grouped((normal_text(name), row) for row, name in enumerate(classes.names))
    for vocabulary, about in _aliases().items():
        if about["classes"] == len(classes) and list(map(normal_text, class_names(vocabulary))) == list(map(normal_text, classes.names)):
            rows |= {alias: tuple(positions) for alias, positions in about["aliases"].items()}
    rows |= _grouped((normal_text(key), row) for row, key in enumerate(classes.keys))
    exact = {key: (row,) for row, key in enumerate(classes.keys)}
    return lambda label: exact.get(label) or rows.get(normal_text(label), ())


def _grouped(pairs: Iterable[tuple[str, int]]) -> dict[str, tuple[int, ...]]:
    groups: dict[str, tuple[int, ...]] = {}
    for label, row in pairs:
        groups[label] = (*groups.get(label, ()), row)
    return groups


def _match(labels: Sequence[str], classes: ClassTable, where: str) -> tuple[dict[int, str], list[str]]:
    """The label of each row that has one, and the labels of no class. Raises DataError where two describe one class."""
    find = _finder(classes)
    taken: dict[int, str] = {}
    for label in sorted(labels, key=lambda label: len(find(label))):  # those of one class before those that several share
        rows = find(label)
        left = rows if len(rows) == 1 else [row for row in rows if row not in taken]
        clash = [row for row in left or rows if row in taken]
        if clash:
            row = clash[0]
            raise DataError(f"{where}: {taken[row]!r} and {label!r} both describe class {_class(classes, row)}; keep one of them")
        taken |= dict.fromkeys(left, label)
    return taken, [label for label in labels if not find(label)]


def _class(classes: ClassTable, row: int) -> str:
    key, name = classes.keys[row], classes.names[row]
    return name if normal_text(key) == normal_text(name) else f"{name} (key {key!r})"


def _what_is_missing(classes: ClassTable, missing: Sequence[int], unknown: Sequence[str]) -> str:
    """One sentence for the classes without a description, each with the unused key nearest to it, and one for the unused keys."""
    named = []
    for row in missing[:_SHOWN]:
        near = _nearest(classes.names[row], unknown) or _nearest(classes.keys[row], unknown)
        named.append(_class(classes, row) + (f" (is {near!r} meant?)" if near else ""))
    rest = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
    text = f"no description of {len(missing)} of the study's {len(classes)} classes: {', '.join(named)}{rest}"
    return f"{text}; {_unknown_keys(unknown, classes)}" if unknown else f"{text}; the key of a description is the class's key or name"


def _unknown_keys(unknown: Sequence[str], classes: ClassTable) -> str:
    labels = class_labels(classes)
    named = [f"{key!r}" + (f" (nearest: {near!r})" if (near := _nearest(key, labels)) else "") for key in unknown[:_SHOWN]]
    rest = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
    valid = ", ".join(map(repr, labels[:_SHOWN])) + (" ..." if len(labels) > _SHOWN else "")
    return f"keys that are no class of the study: {', '.join(named)}{rest}; valid are {valid}"


def _nearest(text: str, candidates: Sequence[str]) -> str | None:
    by_normal = {normal_text(candidate): candidate for candidate in candidates}
    close = difflib.get_close_matches(normal_text(text), list(by_normal), n=1, cutoff=0.6)
    return by_normal[close[0]] if close else None
