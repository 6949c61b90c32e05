"""The first tables: runs, their evaluations and their checkpoints. Spelled out, so that later changes of the models leave it alone."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from storage.records.names import Place, place_in

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_DOCUMENT = sa.JSON().with_variant(JSONB(), "postgresql")
_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the three tables."""
    place = place_in(op.get_bind().dialect.name)
    runs = place.table("runs")
    op.create_table(
        runs,
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("namespace", sa.String(63), nullable=False),
        sa.Column("study", sa.Text, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("seed", sa.BigInteger),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("started", _MOMENT, nullable=False),
        sa.Column("ended", _MOMENT),
        sa.Column("metric", sa.Text),
        sa.Column("hyperparameters", _DOCUMENT),
        sa.Column("cost", _DOCUMENT),
        sa.Column("code_version", sa.Text, nullable=False),
        sa.Column("versions", _DOCUMENT, nullable=False),
        sa.Column("folder", sa.Text, nullable=False),
        sa.Column("artifacts", sa.Text),
        sa.Column("failure", sa.Text),
        sa.UniqueConstraint("key", name=f"uq_{runs}_key"),
        sa.CheckConstraint("state IN ('running', 'complete', 'failed', 'interrupted')", name=op.f(f"ck_{runs}_state")),
        sa.PrimaryKeyConstraint("id", name=f"pk_{runs}"),
        schema=place.schema,
    )
    op.create_index(f"ix_{runs}_study", runs, ["study"], schema=place.schema)
    _make_of_run(
        place,
        "evaluations",
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("seed", sa.BigInteger),
        sa.Column("dataset", sa.Text, nullable=False),
        sa.Column("split", sa.String(16), nullable=False),
        sa.Column("metric", sa.Text, nullable=False),
        sa.Column("value", sa.Double),
        sa.Column("ci_low", sa.Double),
        sa.Column("ci_high", sa.Double),
        sa.Column("n", sa.BigInteger, nullable=False),
        unique=("run_id", "model", "seed", "dataset", "split", "metric"),
    )
    _make_of_run(
        place,
        "checkpoints",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("location", sa.Text, nullable=False),
        unique=("run_id", "name"),
    )


def _make_of_run(place: Place, name: str, *columns: "sa.Column[object]", unique: tuple[str, ...]) -> None:
    """A table whose rows belong to a run and go with it."""
    table = place.table(name)
    op.create_table(
        table,
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("run_id", sa.Integer, nullable=False),
        *columns,
        sa.PrimaryKeyConstraint("id", name=f"pk_{table}"),
        sa.ForeignKeyConstraint(["run_id"], [place.column("runs", "id")], name=f"fk_{table}_run_id", ondelete="CASCADE"),
        sa.UniqueConstraint(*unique, name=f"uq_{table}_run_id"),
        schema=place.schema,
    )
    op.create_index(f"ix_{table}_run_id", table, ["run_id"], schema=place.schema)


def downgrade() -> None:
    """Drop them, with everything that was recorded."""
    place = place_in(op.get_bind().dialect.name)
    for name in ("checkpoints", "evaluations", "runs"):
        op.drop_table(place.table(name), schema=place.schema)
