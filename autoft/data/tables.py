"""A table (comma- or tab-separated) with one row an image."""

import csv
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from autoft.config import CsvDataset
from autoft.data.files import MAX_TEXT_BYTES, Below, encoded_listing, files_signature, read_bytes, stat_file
from autoft.data.sets import Listing
from autoft.errors import DataError
from autoft.inputs import shown


@dataclass(frozen=True)
class _Columns:
    """Names of the columns that are there."""

    filepath: str
    label: str | None
    caption: str | None
    group: str | None


def list_table(dataset: CsvDataset, field: str) -> Listing:
    """Examples in the order of the rows. Without a label column the class is read off the caption.

    Raises:
        DataError: the table, a column, a cell or an image file is missing, or a path leaves the root; rows are named by line.
    """
    table = stat_file(dataset.path, field, "table")
    if table.st_size > MAX_TEXT_BYTES:
        raise DataError(f"{field}.path = {dataset.path}: the table has {table.st_size:,} bytes, more than the limit of {MAX_TEXT_BYTES:,}")
    try:
        columns, rows = _read_rows(dataset, field)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{field}.path = {dataset.path}: cannot read the table: {error}") from None
    root = dataset.root or dataset.path.parent
    below, stats = Below(root), dict[str, os.stat_result]()
    for line, row in rows:
        written = row[columns.filepath]
        if written not in stats:
            stats[written] = _stat_image(below, root, written, f"{field}: {dataset.path.name} line {line}")
    ids = [f"{row[columns.filepath]} ({dataset.path.name} line {line})" for line, row in rows]

    def values(column: str | None) -> list[str] | None:
        return None if column is None else [row[column] for _, row in rows]

    def read(index: int) -> bytes:
        return read_bytes(root / rows[index][1][columns.filepath], field, ids[index])

    signature = files_signature([(str(dataset.path), table), *stats.items()])
    labels = values(columns.label)
    return encoded_listing(field, ids, read, signature, labels=labels, groups=values(columns.group), captions=values(columns.caption))


def _read_rows(dataset: CsvDataset, field: str) -> tuple[_Columns, list[tuple[int, dict[str, str]]]]:
    delimiter = "\t" if dataset.path.suffix.lower() == ".tsv" else ","
    with dataset.path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        columns = _find_columns(dataset, list(reader.fieldnames or ()), field)
        rows = list(_check_rows(reader, columns, f"{field}: {dataset.path.name}"))
    if not rows:
        raise DataError(f"{field}.path = {dataset.path} has no rows")
    return columns, rows


def _find_columns(dataset: CsvDataset, header: list[str], field: str) -> _Columns:
    have = f"; the columns of {dataset.path.name} are {shown(', '.join(header)) or '(none)'}"
    for name in ("filepath", "caption", "group"):
        column = getattr(dataset, name)
        if column is not None and column not in header:
            raise DataError(f"{field}.{name} = {column!r}: there is no such column{have}")
    twice = next((name for name in (dataset.filepath, dataset.label, dataset.caption, dataset.group) if header.count(name or "") > 1), None)
    if twice:
        raise DataError(f"{field}.path = {dataset.path}: the column {twice!r} is there more than once")
    label = dataset.label if dataset.label in header else None
    if label is None and dataset.caption is None:
        raise DataError(f"{field}.label = {dataset.label!r}: there is no such column, and no caption column to read classes off{have}")
    return _Columns(dataset.filepath, label, dataset.caption, dataset.group)


def _check_rows(reader: "csv.DictReader[str]", columns: _Columns, where: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows with the line each ends on, only the columns in use, without surrounding spaces."""
    used = [column for column in (columns.filepath, columns.label, columns.caption, columns.group) if column is not None]
    for row in reader:
        values = {column: (row[column] or "").strip() for column in used}
        empty = next((column for column, value in values.items() if not value), None)
        if empty is not None:
            raise DataError(f"{where} line {reader.line_num}: column {empty!r} is empty")
        yield reader.line_num, values


def _stat_image(below: Below, root: Path, written: str, where: str) -> os.stat_result:
    """Stat an image that a table names. Raises DataError if there is none, or if it lies elsewhere than below the root."""
    try:
        path = below.path(written)
        found = path.stat() if path is not None else None
    except (OSError, ValueError):  # ValueError: a null character in the name
        raise DataError(f"{where}: there is no image {shown(written)!r} in {root}") from None
    if found is None:
        raise DataError(
            f"{where}: {shown(written)!r} leads out of the root folder {root}, by its name or over a link; "
            "if that is meant, set root to a folder that holds all images"
        )
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{where}: {path} is not a file")
    return found
