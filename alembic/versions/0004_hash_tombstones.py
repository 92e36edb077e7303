"""hash tombstones

A tombstone tells which text was deleted, by its hash: where files and database meet again and the
files show exactly that text, the deletion has seen it. NULL where the columns said something else
than the text, or there was none; then nothing is concluded.

Revision ID: 0004
Revises: 0003
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# Nullable and without a default: the catalogue alone changes.
_ADD = "ALTER TABLE scheduler_task_tombstones ADD COLUMN IF NOT EXISTS text_hash bytea"
_DROP = "ALTER TABLE scheduler_task_tombstones DROP COLUMN IF EXISTS text_hash"

# What 0002 says of these functions holds on: their owner's rights, the schema of the table.
_BURY = """
    CREATE OR REPLACE FUNCTION scheduler_tasks_bury() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $function$
    BEGIN
        EXECUTE format($sql$
            INSERT INTO %I.scheduler_task_tombstones (task_key, text_hash)
            SELECT task_key, CASE WHEN edited_columns = '{}' THEN
                sha256(convert_to(task_text, 'UTF8')) END
            FROM deleted ORDER BY task_key
            ON CONFLICT (task_key) DO UPDATE
                SET deleted_xid = pg_current_xact_id(), deleted_at = clock_timestamp(),
                    text_hash = excluded.text_hash
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
            INSERT INTO %I.scheduler_task_tombstones (task_key) VALUES ($1)
            ON CONFLICT (task_key) DO UPDATE
                SET deleted_xid = pg_current_xact_id(), deleted_at = clock_timestamp(),
                    text_hash = NULL
            $sql$, TG_TABLE_SCHEMA) USING OLD.task_key;
        RETURN NULL;
    END
    $function$
    """
# As 0002 made them.
_BURY_WITHOUT_HASH = """
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
_BURY_OLD_KEY_WITHOUT_HASH = """
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
    for statement in (_ADD, _BURY, _BURY_OLD_KEY):
        op.execute(statement)


def downgrade() -> None:
    for statement in (_BURY_WITHOUT_HASH, _BURY_OLD_KEY_WITHOUT_HASH, _DROP):
        op.execute(statement)
