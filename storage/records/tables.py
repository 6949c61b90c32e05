"""Our tables as SQLAlchemy models. Columns are declared once; each kind of database has its own names for the tables (see names.py).

What is here must equal what the migrations make: tests/storage/test_migrations.py compares them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, declared_attr, mapped_column
from sqlalchemy.types import TypeDecorator

from storage.records.names import POSTGRES, SQLITE, Place

Document = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


class UTCDateTime(TypeDecorator[datetime]):
    """A moment, always in UTC: SQLite keeps no time zone, so one is put back when it is read."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class _Base(DeclarativeBase):
    __abstract__ = True
    place: ClassVar[Place]
    called: ClassVar[str]  # the table, without a prefix

    @declared_attr.directive
    def __tablename__(cls) -> str:
        return cls.place.table(cls.called)


_NAMING = {
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "ix": "ix_%(table_name)s_%(column_0_name)s",
}


class PostgresBase(_Base):
    __abstract__ = True
    metadata = MetaData(schema=POSTGRES.schema, naming_convention=_NAMING)
    place = POSTGRES


class SQLiteBase(_Base):
    __abstract__ = True
    metadata = MetaData(schema=SQLITE.schema, naming_convention=_NAMING)
    place = SQLITE


class Run:
    """One run of a command, or one training of a comparison. `key` says which: recording it again updates the row."""

    called = "runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(64), unique=True)
    namespace: Mapped[str] = mapped_column(String(63))  # the schema its study is in
    study: Mapped[str] = mapped_column(Text, index=True)
    kind: Mapped[str] = mapped_column(String(32))
    method: Mapped[str] = mapped_column(Text)
    seed: Mapped[int | None] = mapped_column(BigInteger)
    fingerprint: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    started: Mapped[datetime] = mapped_column(UTCDateTime())
    ended: Mapped[datetime | None] = mapped_column(UTCDateTime())
    metric: Mapped[str | None] = mapped_column(Text)
    hyperparameters: Mapped[dict[str, Any] | None] = mapped_column(Document)
    cost: Mapped[dict[str, Any] | None] = mapped_column(Document)
    code_version: Mapped[str] = mapped_column(Text)
    versions: Mapped[dict[str, Any]] = mapped_column(Document)
    folder: Mapped[str] = mapped_column(Text)  # HOST:PATH
    artifacts: Mapped[str | None] = mapped_column(Text)  # URL, without credentials
    failure: Mapped[str | None] = mapped_column(Text)

    @declared_attr.directive
    def __table_args__(cls) -> tuple[CheckConstraint, ...]:
        return (CheckConstraint("state IN ('running', 'complete', 'failed', 'interrupted')", name="state"),)


class _OfRun:
    place: ClassVar[Place]

    id: Mapped[int] = mapped_column(primary_key=True)

    @declared_attr
    def run_id(cls) -> Mapped[int]:
        return mapped_column(ForeignKey(cls.place.column("runs", "id"), ondelete="CASCADE"), index=True)


class Evaluation(_OfRun):
    """One metric of one model on one data set."""

    called = "evaluations"

    model: Mapped[str] = mapped_column(Text)
    seed: Mapped[int | None] = mapped_column(BigInteger)
    dataset: Mapped[str] = mapped_column(Text)
    split: Mapped[str] = mapped_column(String(16))
    metric: Mapped[str] = mapped_column(Text)
    value: Mapped[float | None] = mapped_column(Double)  # NULL: not a finite number
    ci_low: Mapped[float | None] = mapped_column(Double)
    ci_high: Mapped[float | None] = mapped_column(Double)
    n: Mapped[int] = mapped_column(BigInteger)

    @declared_attr.directive
    def __table_args__(cls) -> tuple[UniqueConstraint, ...]:
        return (UniqueConstraint("run_id", "model", "seed", "dataset", "split", "metric"),)


class Checkpoint(_OfRun):
    """One folder of weights. sha256: over its safetensors files, see `autoft.file_hashes.content_hash`."""

    called = "checkpoints"

    name: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str] = mapped_column(String(64))
    bytes: Mapped[int] = mapped_column(BigInteger)
    location: Mapped[str] = mapped_column(Text)

    @declared_attr.directive
    def __table_args__(cls) -> tuple[UniqueConstraint, ...]:
        return (UniqueConstraint("run_id", "name"),)


class PostgresRun(Run, PostgresBase): ...


class PostgresEvaluation(Evaluation, PostgresBase): ...


class PostgresCheckpoint(Checkpoint, PostgresBase): ...


class SQLiteRun(Run, SQLiteBase): ...


class SQLiteEvaluation(Evaluation, SQLiteBase): ...


class SQLiteCheckpoint(Checkpoint, SQLiteBase): ...


@dataclass(frozen=True)
class Tables:
    """The tables of one kind of database."""

    metadata: MetaData
    runs: Table
    evaluations: Table
    checkpoints: Table


def tables_in(place: Place) -> Tables:
    """The tables at a place."""
    base: type[_Base] = SQLiteBase if place is SQLITE else PostgresBase
    found = {table.name.removeprefix(place.prefix): table for table in base.metadata.tables.values()}
    return Tables(base.metadata, found["runs"], found["evaluations"], found["checkpoints"])
