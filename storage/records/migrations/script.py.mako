"""${message}

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}
"""

import sqlalchemy as sa
from alembic import op

from storage.records.names import place_in
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    place = place_in(op.get_bind().dialect.name)
    ${upgrades if upgrades else "raise NotImplementedError"}


def downgrade() -> None:
    place = place_in(op.get_bind().dialect.name)
    ${downgrades if downgrades else "raise NotImplementedError"}
