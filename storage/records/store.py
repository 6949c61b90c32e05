"""Runs written to our tables and read from them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, TypeVar

import sqlalchemy
from sqlalchemy import Select, Table, delete, insert, select
from sqlalchemy.dialects import postgresql, sqlite

from storage.records.names import place_of
from storage.records.schema import check_revision, denied, init_records, reading, revision_in, writing
from storage.records.tables import Tables, tables_in
from storage.records.values import CheckpointRecord, EvaluationRecord, RunRecord
from storage.seam import storage_errors
from storage.tables import first_schema
from storage.urls import StorageURL

Part = TypeVar("Part", EvaluationRecord, CheckpointRecord)

_PARTS = ("evaluations", "checkpoints")
_IDENTITY = ("study", "kind", "method", "seed", "fingerprint")
_KEPT_WHERE_NONE = ("metric", "hyperparameters", "cost", "artifacts")


def record_run(url: StorageURL, *records: RunRecord) -> None:
    """Write runs, all or none. A run that is recorded already is updated.

    Raises:
        RecordsDenied, StorageError: nothing was written.
    """
    init_records(url)
    tables = tables_in(place_of(url))
    with storage_errors(url), denied(url), writing(url) as connection:
        for record in records:
            _write(connection, tables, record, _namespace(connection, url))


def list_runs(url: StorageURL, study: str | None = None) -> tuple[RunRecord, ...]:
    """The recorded runs of all studies or of one, in the order they were started. Makes nothing; empty where there are no tables.

    Raises:
        StorageError: the tables are older or newer than this program.
    """
    tables = tables_in(place_of(url))
    with storage_errors(url), denied(url), reading(url) as connection:
        revision = None if connection is None else revision_in(connection, url)
        if connection is None or revision is None:
            return ()
        check_revision(url, revision)
        runs = tables.runs
        wanted = runs.c.namespace == _namespace(connection, url)
        if study is not None:
            wanted &= runs.c.study == study
        rows = connection.execute(select(runs).where(wanted).order_by(runs.c.started, runs.c.id)).mappings().all()
        ids = select(runs.c.id).where(wanted)
        evaluations = _parts_of(connection, tables.evaluations, EvaluationRecord, ids)
        checkpoints = _parts_of(connection, tables.checkpoints, CheckpointRecord, ids)
    return tuple(_record({str(name): value for name, value in row.items()}, evaluations[row["id"]], checkpoints[row["id"]]) for row in rows)


def _write(connection: sqlalchemy.Connection, tables: Tables, record: RunRecord, namespace: str) -> None:
    """One statement that makes or updates the run, and thereby locks it; then its parts anew."""
    values = {field.name: _clean(getattr(record, field.name)) for field in fields(record) if field.name not in ("id", *_PARTS)}
    key = record.key(namespace)
    upsert = (sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert)(tables.runs)
    kept = {name for name in _KEPT_WHERE_NONE if values[name] is None}
    update = {name: value for name, value in values.items() if name not in (*_IDENTITY, "started", *kept)}
    if record.ended is not None:  # recorded again as it was: it ended then
        same = tables.runs.c.state == record.state
        update["ended"] = sqlalchemy.case((same, sqlalchemy.func.coalesce(tables.runs.c.ended, upsert.excluded.ended)), else_=upsert.excluded.ended)
    statement = upsert.values(key=key, namespace=namespace, **values).on_conflict_do_update(index_elements=[tables.runs.c.key], set_=update)
    run_id = connection.execute(statement.returning(tables.runs.c.id)).scalar_one()
    if record.evaluations is not None:
        unique = {(row.model, row.seed, row.dataset, row.split, row.metric): row for row in record.evaluations}
        _replace(connection, tables.evaluations, run_id, list(unique.values()))
    if record.checkpoints is not None:
        _replace(connection, tables.checkpoints, run_id, list({row.name: row for row in record.checkpoints}.values()))


def _replace(connection: sqlalchemy.Connection, table: Table, run_id: int, parts: Sequence[EvaluationRecord | CheckpointRecord]) -> None:
    connection.execute(delete(table).where(table.c.run_id == run_id))
    if parts:
        connection.execute(insert(table), [{"run_id": run_id, **_clean(asdict(part))} for part in parts])


def _parts_of(connection: sqlalchemy.Connection, table: Table, kind: type[Part], ids: Select[tuple[int]]) -> Mapping[int, list[Part]]:
    found: dict[int, list[Part]] = defaultdict(list)
    for row in connection.execute(select(table).where(table.c.run_id.in_(ids)).order_by(table.c.id)).mappings():
        found[row["run_id"]].append(kind(**{name: value for name, value in row.items() if name not in ("id", "run_id")}))
    return found


def _record(row: Mapping[str, Any], evaluations: Sequence[EvaluationRecord], checkpoints: Sequence[CheckpointRecord]) -> RunRecord:
    values = {name: value for name, value in row.items() if name not in ("key", "namespace")}
    return RunRecord(**values, evaluations=tuple(evaluations), checkpoints=tuple(checkpoints))


def _namespace(connection: sqlalchemy.Connection, url: StorageURL) -> str:
    """The schema the studies are in; studies of one name in two schemas are two studies."""
    return "" if url.is_sqlite else first_schema(connection) or ""


def _clean(value: Any) -> Any:
    """A value that both databases can keep: no NUL, no half of a character as undecodable file names have, no NaN or infinity."""
    match value:
        case str():
            return value.encode("utf-8", "replace").decode().replace("\0", "")
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {_clean(str(name)): _clean(item) for name, item in value.items()}
        case list() | tuple():
            return [_clean(item) for item in value]
    return value
