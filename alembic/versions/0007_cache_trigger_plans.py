"""cache trigger plans

What the triggers do at each insert and delete of a task was planned anew each time, as its text was
made with the schema's name: about half of the time of an insert of one task, and most of that of a
delete. Now the schema is put into the function's search path, and the statements are static: a
session plans them once. With the schema's name in the function's text they would be a little faster
still (5 us), but wrong as soon as somebody renames the schema.

What seldom runs stays as it is: the functions for TRUNCATE, and for runs that older code adds
without a key. No table is locked or changed: functions are replaced, and those keep their owners,
their grants and their triggers.

Revision ID: 0007
Revises: 0006
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# What 0002 says of these functions holds on: their owner's rights, the schema of the trigger's own
# table. The path that the function has by itself, in which there are only functions of the server,
# is there to begin with; and because of it the one that is set here ends with the function.
#
# In the new path pg_catalog is the first, so that nothing in the schema stands in for a function or
# an operator of the server. pg_temp is named as it would be the first else; as the last it could
# still give a table of the caller's where ours is missing, whose triggers would have the owner's
# rights. So the table is looked up by its full name as well: then it is an error, as it was.
_BURY = """
    CREATE OR REPLACE FUNCTION scheduler_tasks_bury() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $function$
    BEGIN
        PERFORM (quote_ident(TG_TABLE_SCHEMA) || '.scheduler_task_tombstones')::regclass,
            set_config('search_path',
                'pg_catalog, ' || quote_ident(TG_TABLE_SCHEMA) || ', pg_temp', true);
        INSERT INTO scheduler_task_tombstones (task_key, task_text)
        SELECT task_key, task_text FROM deleted ORDER BY task_key
        ON CONFLICT (task_key) DO UPDATE
            SET deleted_xid = pg_current_xact_id(), deleted_at = clock_timestamp(),
                task_text = excluded.task_text;
        RETURN NULL;
    END
    $function$
    """
_BURY_OLD_KEY = """
    CREATE OR REPLACE FUNCTION scheduler_tasks_bury_old_key() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $function$
    BEGIN
        PERFORM (quote_ident(TG_TABLE_SCHEMA) || '.scheduler_task_tombstones')::regclass,
            set_config('search_path',
                'pg_catalog, ' || quote_ident(TG_TABLE_SCHEMA) || ', pg_temp', true);
        INSERT INTO scheduler_task_tombstones (task_key, task_text)
        VALUES (OLD.task_key, OLD.task_text)
        ON CONFLICT (task_key) DO UPDATE
            SET deleted_xid = pg_current_xact_id(), deleted_at = clock_timestamp(),
                task_text = excluded.task_text;
        RETURN NULL;
    END
    $function$
    """
# From the second insert on the look is enough: it locks no row and writes nothing. The filling is
# what it was, with its look at the table of tasks; its plan is not worth keeping, as it comes once.
_NOTE_FILLING = """
    CREATE OR REPLACE FUNCTION scheduler_tasks_note_filling() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $function$
    BEGIN
        PERFORM (quote_ident(TG_TABLE_SCHEMA) || '.scheduler_storage')::regclass,
            set_config('search_path',
                'pg_catalog, ' || quote_ident(TG_TABLE_SCHEMA) || ', pg_temp', true);
        IF EXISTS (SELECT FROM scheduler_storage WHERE filled_at IS NULL) THEN
            -- Of two who come first the second one waits here, and finds it done, or does it.
            EXECUTE format($sql$
                UPDATE %1$I.scheduler_storage SET filled_at = clock_timestamp()
                WHERE filled_at IS NULL AND EXISTS (SELECT FROM %1$I.scheduler_tasks)
                $sql$, TG_TABLE_SCHEMA);
        END IF;
        RETURN NULL;
    END
    $function$
    """
# As 0004 and 0002 made them.
_BURY_ANEW = """
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
_BURY_OLD_KEY_ANEW = """
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
_NOTE_FILLING_ANEW = """
    CREATE OR REPLACE FUNCTION scheduler_tasks_note_filling() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $function$
    BEGIN
        -- Once: later inserts find no row to update, so they do not wait for each other.
        EXECUTE format($sql$
            UPDATE %1$I.scheduler_storage SET filled_at = clock_timestamp()
            WHERE filled_at IS NULL AND EXISTS (SELECT FROM %1$I.scheduler_tasks)
            $sql$, TG_TABLE_SCHEMA);
        RETURN NULL;
    END
    $function$
    """


def upgrade() -> None:
    for statement in (_BURY, _BURY_OLD_KEY, _NOTE_FILLING):
        op.execute(statement)


def downgrade() -> None:
    for statement in (_BURY_ANEW, _BURY_OLD_KEY_ANEW, _NOTE_FILLING_ANEW):
        op.execute(statement)
