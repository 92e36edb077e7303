"""remember meetings

What meetings of files and database carried over, for as long as the snapshot could not be written
after them (a full disk, a crash): until then its sidecar tells of the state before, and the same
would be carried over again. A text for each mark of the files that were met.

And the tokens of the last bulk changes, so that one whose answer got lost can tell whether it was
committed: a server that crashes may give its transaction's number to another one.

Revision ID: 0006
Revises: 0005
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# Whoever waits for this lock makes all others wait behind it, those who have only to read too: so
# it is tried for a moment only, as in 0002.
_LOCK = """
DO $lock$
DECLARE
    patience interval := current_setting('lock_timeout')::interval;
    started timestamptz := clock_timestamp();
BEGIN
    LOOP
        BEGIN
            SET LOCAL lock_timeout = '50ms';
            LOCK TABLE scheduler_storage IN ACCESS EXCLUSIVE MODE;
            RETURN;
        EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
            IF patience > '0' AND clock_timestamp() > started + patience THEN
                RAISE;
            END IF;
            PERFORM pg_sleep(0.1);
        END;
    END LOOP;
END
$lock$
"""

# One row, and constant defaults: the catalogue alone changes. Code from before it carries over
# without remembering, as it always did.
_ADD = """
    ALTER TABLE scheduler_storage
        ADD COLUMN IF NOT EXISTS carried_over jsonb NOT NULL DEFAULT '{}',
        ADD COLUMN IF NOT EXISTS recent_changes uuid[] NOT NULL DEFAULT '{}'
    """
_DROP = """
    ALTER TABLE scheduler_storage
        DROP COLUMN IF EXISTS carried_over,
        DROP COLUMN IF EXISTS recent_changes
    """


def upgrade() -> None:
    op.execute(_LOCK)
    op.execute(_ADD)


def downgrade() -> None:
    op.execute(_LOCK)
    op.execute(_DROP)
