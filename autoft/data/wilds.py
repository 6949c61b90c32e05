"""iWildCam (v2.0) and FMoW (v1.1) as WILDS distributes them (Koh et al. 2021): labels, splits and groups as its package 2.0 has them."""

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autoft.config import WildsDataset
from autoft.data.files import Below, encoded_listing, files_signature, read_bytes, stat_file
from autoft.data.official import check_official_size
from autoft.data.sets import Listing
from autoft.errors import DataError
from autoft.inputs import shown

IWILDCAM_CLASSES = 182

# The rows of each split of FMoW: its own split, and the years from first to before last.
_FMOW_ROWS = {
    "train": ("train", 0, 2013),
    "id_val": ("val", 0, 2013),
    "id_test": ("test", 0, 2013),
    "val": ("val", 2013, 2016),
    "test": ("test", 2016, 10_000),
}


def list_iwildcam(dataset: WildsDataset, field: str) -> Listing:
    """Examples of a split in the order of metadata.csv; the label is `y`, 0 to 181, the group is the camera's location.

    The label's name is in categories.csv; the built-in class names are in the same order.

    Raises:
        DataError: a file, column or image is missing, a row is wrong, or the number of rows is not the published one.
    """
    table = dataset.path / "metadata.csv"
    ids, labels, groups = [], [], []
    for line, split, location, y, filename in _read_table(table, ("split", "location_remapped", "y", "filename"), field):
        if split != dataset.split:
            continue
        if not y.isdecimal() or len(y) > 9 or int(y) >= IWILDCAM_CLASSES:
            raise DataError(f"{field}: {table.name} line {line}: y = {shown(y)!r} is no class; there are 0 to {IWILDCAM_CLASSES - 1}")
        ids.append(filename)
        labels.append(int(y))
        groups.append(location)
    return _listing(dataset, field, [table], dataset.path / "train", ids, labels, groups)


def list_fmow(dataset: WildsDataset, field: str) -> Listing:
    """Examples of a split in the order of rgb_metadata.csv; the label is the category, the group is the region of the country.

    Images before 2013 are in distribution, those of 2013 to 2015 of FMoW's val are val, those from 2016 on of its test are test. An
    image's number is that of its row, counting the rows of the `seq` split too. A country without a region counts in no group, as
    WILDS leaves its region "Other" out of the worst-region accuracy.

    Raises:
        DataError: a file, column or image is missing, a row is wrong, or the number of rows is not the published one.
    """
    table, countries = dataset.path / "rgb_metadata.csv", dataset.path / "country_code_mapping.csv"
    regions = {code: region for _, code, region in _read_table(countries, ("alpha-3", "region"), field) if region != "Other"}
    columns = ("split", "timestamp", "category", "country_code")
    own_split, first, last = _FMOW_ROWS[dataset.split]
    ids, labels, groups = [], [], []
    for number, (line, split, timestamp, category, country) in enumerate(_read_table(table, columns, field)):
        if split == own_split and first <= _year(timestamp, f"{field}: {table.name} line {line}") < last:
            ids.append(f"rgb_img_{number}.png")
            labels.append(category)
            groups.append(regions.get(country, ""))
    return _listing(dataset, field, [table, countries], dataset.path / "images", ids, labels, groups)


def _year(timestamp: str, where: str) -> int:
    """The year in UTC. Raises DataError naming `where`."""
    try:
        moment = datetime.fromisoformat(timestamp)
        return (moment.astimezone(UTC) if moment.tzinfo else moment).year
    except (ValueError, OverflowError):
        raise DataError(f"{where}: timestamp {timestamp!r} is not a date and time, such as 2014-06-16T10:19:03Z") from None


def _listing(
    dataset: WildsDataset,
    field: str,
    tables: Iterable[Path],
    images: Path,
    ids: Sequence[str],
    labels: Sequence[str | int],
    groups: Sequence[str],
) -> Listing:
    check_official_size(dataset, field, len(ids))
    if not ids:
        raise DataError(f"{field}.path = {dataset.path}: the table has no rows of split {dataset.split}")
    stats = {str(table): stat_file(table, field, "table") for table in tables} | _stat_images(images, ids, field)

    def read(index: int) -> bytes:
        return read_bytes(images / ids[index], field, ids[index])

    return encoded_listing(field, ids, read, files_signature(stats.items()), labels=labels, groups=groups)


def _stat_images(folder: Path, names: Sequence[str], field: str) -> dict[str, os.stat_result]:
    below, stats, missing = Below(folder), {}, []
    for name in names:
        try:
            path = below.path(name)
            if path is not None:
                stats[name] = path.stat()
        except (OSError, ValueError):
            missing.append(name)
        else:
            if path is None:
                raise DataError(f"{field}: the table names the image {shown(name)!r}, which leads out of {folder}, by its name or over a link")
    if missing:
        raise DataError(f"{field}: {len(missing):,} of the {len(names):,} images in the table are not in {folder}; the first is {missing[0]}")
    return stats


def _read_table(path: Path, columns: Sequence[str], field: str) -> Iterator[tuple[Any, ...]]:
    """(line number, then the named columns as text) of each row; blank lines are no rows."""
    stat_file(path, field, "table")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            missing = [column for column in columns if column not in header]
            if missing:
                raise DataError(f"{field}: {path} has no column {missing[0]!r}; its columns are {', '.join(header) or '(none)'}")
            positions = [header.index(column) for column in columns]
            for row in reader:
                if row and len(row) != len(header):
                    raise DataError(f"{field}: {path.name} line {reader.line_num} has {len(row)} columns, the header {len(header)}")
                if row:
                    yield reader.line_num, *(row[position].strip() for position in positions)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{field}: cannot read {path}: {error}") from None
