"""What was run, what it scored and where its weights are: our own tables, beside Optuna's and apart from them.

    values.py      what is recorded, as plain values
    names.py       schema `autoft` in Postgres, the prefix `autoft_` in SQLite
    tables.py      the tables as SQLAlchemy models
    schema.py      made and migrated by Alembic, whose version table is `autoft_alembic_version`
    migrations/    one file a revision
    store.py       recording and listing
    check.py       what a database has, lacks and allows
"""

from storage.records.check import DatabaseState, TableState, check
from storage.records.schema import RecordsDenied, downgrade, init_records, upgrade
from storage.records.store import list_runs, record_run
from storage.records.values import CheckpointRecord, EvaluationRecord, RunRecord, RunState

__all__ = [
    "CheckpointRecord",
    "DatabaseState",
    "EvaluationRecord",
    "RecordsDenied",
    "RunRecord",
    "RunState",
    "TableState",
    "check",
    "downgrade",
    "init_records",
    "list_runs",
    "record_run",
    "upgrade",
]
