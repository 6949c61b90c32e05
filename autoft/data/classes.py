"""The class table of a study, and raw labels or captions as rows of it."""

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoft.config import DataConfig
from autoft.config.vocabulary import fill
from autoft.data.layouts import open_listing
from autoft.data.sets import ClassTable, Listing
from autoft.errors import DataError
from autoft.inputs import read_text_input, shown

_SHOWN = 20
MAX_NAMES_BYTES = 16 << 20  # of data.classnames; ImageNet-21k's names have 0.5 MB


def resolve_classes(data: DataConfig) -> ClassTable:
    """The study's classes from `data.classnames` and TRAIN's labels; see `class_table`. Raises DataError."""
    return class_table(data, open_listing(data.train, "data.train"))


def class_table(data: DataConfig, train: Listing) -> ClassTable:
    """The study's classes in label order.

    Without `classnames`: TRAIN's labels, texts sorted and with underscores read as spaces, numbers in numerical order. With
    them: a numeric label i is name i; a text label is the name equal to it up to case and underscores.

    Raises:
        DataError: names and TRAIN's labels do not match one to one, or there are fewer than two classes.
    """
    names = _given_names(data)
    if train.labels is None and names is None:
        raise DataError("data.classnames is missing: data.train has captions but no labels, so classes cannot be listed from it")
    if names is None:
        assert train.labels is not None
        keys = _sorted_keys(train.labels)
        table = ClassTable(keys, tuple(key.replace("_", " ") for key in keys))
    elif train.labels is None:
        table = ClassTable(names, names, ordered=True)
    else:
        table = ClassTable(_match_names(names, _sorted_keys(train.labels)), names, ordered=True)
    if len(table) < 2:
        raise DataError(f"data.train has one class only ({table.names[0]}); at least two are needed")
    for key in (*table.keys, *table.names):
        if "\0" in key or any(0xD800 <= ord(letter) < 0xE000 for letter in key):
            raise DataError(f"the class {shown(key)!r} of data.train has a name that is no text; rename its folder or label")
    return table


def _given_names(data: DataConfig) -> tuple[str, ...] | None:
    names = data.classnames
    if isinstance(names, Path):
        try:
            lines = read_text_input(names, MAX_NAMES_BYTES).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"data.classnames = {names}: cannot read the file: {getattr(error, 'strerror', None) or error}") from None
        names = tuple(line.strip() for line in lines if line.strip())
    if names is not None and not all(name.strip() for name in names):
        raise DataError("data.classnames has an empty name")
    if names is not None and not names:
        raise DataError("data.classnames has no names")
    return names


def _sorted_keys(labels: Sequence[str | int]) -> tuple[str, ...]:
    distinct = set(labels)
    numbers = {number for label in distinct if (number := _number(label)) is not None}
    if all(_number(label) is not None for label in distinct):
        return tuple(str(number) for number in sorted(numbers))
    return tuple(sorted(str(label) for label in distinct))


def _number(label: str | int) -> int | None:
    if isinstance(label, int):
        return label
    return int(label) if re.fullmatch(r"-?[0-9]{1,18}", label) else None


def _match_names(names: tuple[str, ...], keys: tuple[str, ...]) -> tuple[str, ...]:
    """The key of each name."""
    if all(_number(key) is not None for key in keys) and not {_normal(key) for key in keys} <= {_normal(name) for name in names}:
        wanted = tuple(str(index) for index in range(len(names)))
        if keys != wanted:
            wrong = _shown(sorted(set(keys) ^ set(wanted), key=int))
            raise DataError(
                f"data.classnames has {len(names)} names, so the labels of data.train must be 0 to {len(names) - 1}; "
                f"they are {_shown(keys)} (missing or too many: {wrong})"
            )
        return keys
    for what, values in (("data.classnames", names), ("data.train", keys)):
        twice = [value for value, count in Counter(map(_normal, values)).items() if count > 1]
        if twice:
            raise DataError(f"{what} has {twice[0]!r} more than once (case and underscores do not count), so labels cannot be matched by name")
    by_name = {_normal(key): key for key in keys}
    unnamed = [key for key in keys if _normal(key) not in set(map(_normal, names))]
    unused = [name for name in names if _normal(name) not in by_name]
    if unnamed or unused:
        parts = [f"labels of data.train without a name: {_shown(unnamed)}"] if unnamed else []
        parts += [f"names without a label in data.train: {_shown(unused)}"] if unused else []
        raise DataError(f"data.classnames does not fit data.train; {'; '.join(parts)}")
    return tuple(by_name[_normal(name)] for name in names)


def class_rows(listing: Listing, examples: NDArray[np.int64], classes: ClassTable, templates: Sequence[str] = ()) -> NDArray[np.int64]:
    """Rows of the class table of some examples, (examples,) int64.

    Raises:
        DataError: naming field, class and TRAIN's classes where a label is none of them, or the example whose caption names no class.
    """
    if listing.labels is None:
        assert listing.captions is not None
        reader = _CaptionReader(classes, templates)
        return np.array([reader.row(listing.captions[i], listing.field, listing.ids[i]) for i in examples], dtype=np.int64)
    lookup = _LabelLookup(classes)
    rows = np.empty(len(examples), dtype=np.int64)
    for position, example in enumerate(examples):
        label = listing.labels[example]
        row = lookup.row(label)
        if row is None:
            raise DataError(unknown_class(listing.field, str(label), listing.ids[example], classes.keys))
        rows[position] = row
    return rows


def class_row_lookup(classes: ClassTable) -> Callable[[str | int], int | None]:
    """A function from a raw label to its row of the class table, or None if it has none."""
    return _LabelLookup(classes).row


def unknown_class(field: str, label: str, example: str, known: Iterable[str]) -> str:
    """The message for an example whose class TRAIN does not have."""
    return f"{field} has class {label!r} ({example}), which data.train does not have; its classes are {_shown(list(known))}"


class _LabelLookup:
    """Raw labels to rows: by key, by position where names were given in label order, then by name."""

    def __init__(self, classes: ClassTable) -> None:
        self._by_key = {key: row for row, key in enumerate(classes.keys)}
        self._positions = len(classes) if classes.ordered else 0
        names: dict[str, set[int]] = {}
        for row, pair in enumerate(zip(classes.keys, classes.names, strict=True)):
            for name in pair:
                names.setdefault(_normal(name), set()).add(row)
        self._by_name = {name: min(rows) for name, rows in names.items() if len(rows) == 1}
        self.row = functools.cache(self._row)

    def _row(self, label: str | int) -> int | None:
        if str(label) in self._by_key:
            return self._by_key[str(label)]
        number = _number(label)
        if number is not None and str(number) in self._by_key:
            return self._by_key[str(number)]
        if number is not None and 0 <= number < self._positions:
            return number
        return self._by_name.get(_normal(str(label)))


class _CaptionReader:
    """Reads the class off a caption: a template filled with its name, else the longest name in it as whole words."""

    def __init__(self, classes: ClassTable, templates: Sequence[str]) -> None:
        self._names = classes.names
        self._exact = {fill(template, name): row for template in templates for row, name in enumerate(classes.names)}
        self._rows = {_normal(name): row for row, name in reversed(list(enumerate(classes.names)))}
        longest_first = sorted(self._rows, key=len, reverse=True)
        # A look-ahead, so that names which overlap in the caption are all found.
        self._pattern = re.compile(rf"(?<!\w)(?=({'|'.join(map(re.escape, longest_first))})(?!\w))")
        self._found = functools.cache(self._find)

    def row(self, caption: str, field: str, example: str) -> int:
        """The class's row. Raises DataError naming the example if no name, or several equally long ones, are in its caption."""
        found = self._found(caption)
        if len(found) != 1:
            problem = "names no class" if not found else f"names several classes ({', '.join(self._names[row] for row in found)})"
            raise DataError(f"{field}: {example}: the caption {caption!r} {problem}; the classes are {_shown(self._names)}")
        return found[0]

    def _find(self, caption: str) -> list[int]:
        if caption in self._exact:
            return [self._exact[caption]]
        names = set(self._pattern.findall(_normal(caption)))
        longest = max(map(len, names), default=0)
        return sorted(self._rows[name] for name in names if len(name) == longest)


def _normal(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _shown(values: Sequence[str]) -> str:
    rest = len(values) - _SHOWN
    return ", ".join(values[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
