"""keep deleted texts

A tombstone keeps the text that was deleted: where files and database meet again it tells whether
the deletion has seen a change that was done to both sides while an answer got lost. The columns may
have said something newer than the text. NULL where there was none; then nothing is concluded.

Revision ID: 0004
Revises: 0003
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
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
            LOCK TABLE scheduler_task_tombstones IN ACCESS EXCLUSIVE MODE;
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

# Nullable and without a default: the catalogue alone changes.
_ADD = "ALTER TABLE scheduler_task_tombstones ADD COLUMN IF NOT EXISTS task_text text"
_DROP = "ALTER TABLE scheduler_task_tombstones DROP COLUMN IF EXISTS task_text"

# What 0002 says of these functions holds on: their owner's rights, the schema of the table.
_BURY = """
    CREATE OR REPLACE FUNCTION scheduler_tasks_bury() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $function$
    BEGIN
        EXECUTE format($sql$
            INSERT INTO %I.scheduler_task_tombstones (task_key, task_text)
            SELECT task_key, task_text FROM deleted ORDER BY task_key
            ON CONFLICT (task_key) DO UPDATE
                SET deleted_xid = pg_current_xact_id(), deleted_at = clock_timestamp(),
                    task_text = excluded.task_text
            $sql$, TG_TABLE_SCHEMA);
        RETURN NULL;
    END
    $function$
    """
_BURY_OLD_KEY = """
    CREATE OR REPLACE FUNCTION scheduler_tasks_bury_old_key() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $function$
    BEGIN
        EXECUTE format($sql$
            INSERT INTO %I.scheduler_task_tombstones (task_key, task_text) VALUES ($1, $2)
            ON CONFLICT (task_key) DO UPDATE
                SET deleted_xid = pg_current_xact_id(), deleted_at = clock_timestamp(),
                    task_text = excluded.task_text
            $sql$, TG_TABLE_SCHEMA) USING OLD.task_key, OLD.task_text;
        RETURN NULL;
    END
    $function$
    """
# As 0002 made them.
_BURY_WITHOUT_TEXT = """
    CREATE OR REPLACE FUNCTION scheduler_tasks_bury() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $function$
    BEGIN
        EXECUTE format($sql$
            INSERT INTO %I.scheduler_task_tombstones (task_key)
            SELECT task_key FROM deleted ORDER BY task_key
            ON CONFLICT (task_key) DO UPDATE
                SET deleted_xid = pg_current_xact_id(), deleted_at = clock_timestamp()
            $sql$, TG_TABLE_SCHEMA);
        RETURN NULL;
    END
    $function$
    """
_BURY_OLD_KEY_WITHOUT_TEXT = """
    CREATE OR REPLACE FUNCTION scheduler_tasks_bury_old_key() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $function$
    BEGIN
        EXECUTE format($sql$
            INSERT INTO %I.scheduler_task_tombstones (task_key) VALUES ($1)
            ON CONFLICT (task_key) DO UPDATE
                SET deleted_xid = pg_current_xact_id(), deleted_at = clock_timestamp()
            $sql$, TG_TABLE_SCHEMA) USING OLD.task_key;
        RETURN NULL;
    END
    $function$
    """


def upgrade() -> None:
    for statement in (_LOCK, _ADD, _BURY, _BURY_OLD_KEY):
        op.execute(statement)


def downgrade() -> None:
    for statement in (_LOCK, _BURY_WITHOUT_TEXT, _BURY_OLD_KEY_WITHOUT_TEXT, _DROP):
        op.execute(statement)
