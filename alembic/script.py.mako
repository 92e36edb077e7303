"""${message}

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}
"""

# Rules for tables that are in use. Strike each out when it is met, then delete this list.
# - Nothing of the package is imported: a revision is frozen history, the package moves on.
# - A column is added nullable or with a constant default; code of the previous version that still
#   runs must be able to insert without it. Fill it in batches, outside of the transaction that
#   altered the table (op.get_context().autocommit_block()), and write that part so that it can run
#   a second time.
# - An index on scheduler_runs is made CONCURRENTLY, in an autocommit block.
# - SET NOT NULL on scheduler_runs goes by a CHECK ... NOT VALID that is validated before it.
# - No rename and no drop of what the previous version still reads: that is for a later release.
# - What code of the previous version cannot work with is marked, in this very revision:
#   UPDATE scheduler_storage SET breaking_since = '${up_revision}', and back in the downgrade.
# - squawk finds nothing (tests/migrations/test_squawk.py), or the statement says why it may.
# - Locks are waited for two seconds at most, then the revision starts again: keep it short.
# - The downgrade loses no task and no run; a test goes up, down and up again with rows in place.
#   What it would lose it refuses in refuse_loss(), which is asked before the first step, too.
# - `alembic upgrade ... --sql` works: no reading of rows in Python, or another way when offline.
# - datahound_storage/postgres/schema.py says the same (make drift).

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision: str = ${repr(up_revision)}
down_revision: str | None = ${repr(down_revision)}
branch_labels: str | Sequence[str] | None = ${repr(branch_labels)}
depends_on: str | Sequence[str] | None = ${repr(depends_on)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
