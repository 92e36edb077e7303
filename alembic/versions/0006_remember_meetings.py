"""remember meetings

What a meeting of files and database carried over, for as long as the snapshot could not be written
after it (a full disk, a crash): until then its sidecar tells of the state before, and the same
would be carried over again. One text, replaced by each meeting that carries something over.

Revision ID: 0006
Revises: 0005
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# Nullable and without a default: the catalogue alone changes. Code from before it carries over
# without remembering, as it always did.
_ADD = "ALTER TABLE scheduler_storage ADD COLUMN IF NOT EXISTS carried_over text"
_DROP = "ALTER TABLE scheduler_storage DROP COLUMN IF EXISTS carried_over"


def upgrade() -> None:
    op.execute(_ADD)


def downgrade() -> None:
    op.execute(_DROP)
