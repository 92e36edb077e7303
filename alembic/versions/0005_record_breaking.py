"""record breaking

The database records the newest revision that code from before it cannot work with. So code that
meets a newer revision than it knows can tell whether it may go on (see
docs/adr/0009-breaking-since.md).

Revision ID: 0005
Revises: 0004
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
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

# One row, and a constant default: the catalogue alone changes. Code that does not know 0005 does
# not read the column either, so it matters which revisions break only from here on.
_ADD = """
    ALTER TABLE scheduler_storage
        ADD COLUMN IF NOT EXISTS breaking_since varchar(32) NOT NULL DEFAULT '0001'
    """
_DROP = "ALTER TABLE scheduler_storage DROP COLUMN IF EXISTS breaking_since"


def upgrade() -> None:
    op.execute(_LOCK)
    op.execute(_ADD)


def downgrade() -> None:
    op.execute(_LOCK)
    op.execute(_DROP)
