"""track changes

What the storage layer needs beside the contract's columns: the exact text and the order of tasks,
a stamp on every change whoever makes it, tombstones of deleted tasks, and what the database knows
about itself. Everything has a default or is filled by a trigger, so that code of the previous
version keeps working on the tables.

A part of it runs outside of a transaction. Therefore each statement can run a second time.

Revision ID: 0002
Revises: 0001
"""

from collections.abc import Sequence

from alembic import context, op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_SEQUENCES = (
    "CREATE SEQUENCE IF NOT EXISTS scheduler_tasks_position_seq",
    "CREATE SEQUENCE IF NOT EXISTS scheduler_runs_seq_seq",
)

_TABLES = (
    """
    CREATE TABLE IF NOT EXISTS scheduler_task_tombstones (
        task_key varchar(255) NOT NULL,
        deleted_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
        deleted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        CONSTRAINT scheduler_task_tombstones_pkey PRIMARY KEY (task_key)
    )
    """,
    """
    CREATE INDEX IF NOT EXISTS ix_scheduler_task_tombstones_deleted_xid
        ON scheduler_task_tombstones (deleted_xid)
    """,
    """
    CREATE TABLE IF NOT EXISTS scheduler_storage (
        only_row boolean NOT NULL DEFAULT true,
        identity uuid NOT NULL DEFAULT gen_random_uuid(),
        epoch bigint NOT NULL DEFAULT 0,
        filled_at timestamptz,
        history_cutoff timestamptz,
        CONSTRAINT scheduler_storage_pkey PRIMARY KEY (only_row),
        CONSTRAINT ck_scheduler_storage_only_row CHECK (only_row)
    )
    """,
    """
    INSERT INTO scheduler_storage (filled_at)
    SELECT CASE WHEN EXISTS (SELECT FROM scheduler_tasks) THEN clock_timestamp() END
    ON CONFLICT DO NOTHING
    """,
    """
    CREATE TABLE IF NOT EXISTS scheduler_conflicts (
        -- The grant below needs the sequence's name.
        -- squawk-ignore prefer-identity
        id bigserial NOT NULL,
        task_key varchar(255) NOT NULL,
        half varchar(32) NOT NULL,
        kept varchar(32) NOT NULL,
        lost_text text NOT NULL,
        reason text NOT NULL,
        noticed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        CONSTRAINT scheduler_conflicts_pkey PRIMARY KEY (id)
    )
    """,
    # A column's default must not need a grant that its table does not need.
    """
    GRANT USAGE ON SEQUENCE scheduler_tasks_position_seq, scheduler_runs_seq_seq,
        scheduler_conflicts_id_seq TO PUBLIC
    """,
)

# Whoever waits for this lock makes all others wait behind it, so it is tried for a moment only,
# again and again, for as long as the session's lock_timeout says. The weaker lock before it stops
# nobody who reads or writes; it ends an autovacuum, which does not give way to waits so short.
_LOCK_TABLES = (
    "LOCK TABLE scheduler_tasks, scheduler_runs IN SHARE UPDATE EXCLUSIVE MODE",
    """
    DO $lock$
    DECLARE
        patience interval := current_setting('lock_timeout')::interval;
        started timestamptz := clock_timestamp();
    BEGIN
        LOOP
            BEGIN
                SET LOCAL lock_timeout = '50ms';
                LOCK TABLE scheduler_tasks, scheduler_runs IN ACCESS EXCLUSIVE MODE;
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
    """,
)

# Whoever has the tables gets what comes beside them, whoever upgrades: else he could not use it,
# and a sequence must have the owner of its table. Nothing is taken away from a third one.
_SHARE = """
DO $share$
DECLARE
    mine oid := (SELECT oid FROM pg_roles WHERE rolname = current_user);
    wanted record;
    statement text;
BEGIN
    FOR wanted IN
        SELECT w.name, t.relowner::regrole AS owner FROM (VALUES
            ('scheduler_tasks_position_seq', 'scheduler_tasks'),
            ('scheduler_runs_seq_seq', 'scheduler_runs'),
            ('scheduler_task_tombstones', 'scheduler_tasks'),
            ('scheduler_storage', 'scheduler_tasks'),
            ('scheduler_conflicts', 'scheduler_tasks')
        ) AS w (name, tab)
        JOIN pg_class t ON t.oid = w.tab::regclass
        JOIN pg_class c ON c.oid = w.name::regclass
        WHERE c.relowner = mine AND t.relowner <> mine
    LOOP
        EXECUTE format('ALTER TABLE %I OWNER TO %s', wanted.name, wanted.owner);
    END LOOP;
    FOR statement IN
        SELECT format('ALTER FUNCTION %s OWNER TO %s', p.oid::regprocedure, t.relowner::regrole)
        FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
        JOIN pg_class t ON t.oid = CASE WHEN starts_with(p.proname, 'scheduler_runs_')
            THEN 'scheduler_runs'::regclass ELSE 'scheduler_tasks'::regclass END
        WHERE n.nspname = current_schema() AND p.proname IN (
            'scheduler_tasks_stamp', 'scheduler_tasks_bury', 'scheduler_tasks_bury_old_key',
            'scheduler_tasks_begin_epoch', 'scheduler_tasks_note_filling',
            'scheduler_runs_find_task_key', 'scheduler_runs_widen')
          AND p.proowner = mine AND t.relowner <> mine
    LOOP
        EXECUTE statement;
    END LOOP;
END
$share$
"""

# The table of tasks is small: it is filled and made NOT NULL on the spot.
_TASKS = (
    """
    ALTER TABLE scheduler_tasks
        ADD COLUMN IF NOT EXISTS position bigint,
        ADD COLUMN IF NOT EXISTS task_text text,
        ADD COLUMN IF NOT EXISTS edited_columns text[] NOT NULL DEFAULT '{}',
        ADD COLUMN IF NOT EXISTS changed_xid xid8,
        ADD COLUMN IF NOT EXISTS changed_at timestamptz
    """,
    "ALTER SEQUENCE scheduler_tasks_position_seq OWNED BY scheduler_tasks.position",
    """
    UPDATE scheduler_tasks SET
        position = numbered.n, changed_xid = pg_current_xact_id(), changed_at = clock_timestamp()
    FROM (
        SELECT id, nextval('scheduler_tasks_position_seq') AS n
        FROM (SELECT id FROM scheduler_tasks WHERE position IS NULL
              ORDER BY created_at, task_key COLLATE "C") AS ordered
    ) AS numbered
    WHERE numbered.id = scheduler_tasks.id
    """,
    """
    ALTER TABLE scheduler_tasks
        ALTER COLUMN position SET DEFAULT nextval('scheduler_tasks_position_seq'),
        ALTER COLUMN changed_xid SET DEFAULT pg_current_xact_id(),
        ALTER COLUMN changed_at SET DEFAULT clock_timestamp(),
        -- scheduler_tasks is small: thousands of rows, scanned in milliseconds.
        -- squawk-ignore adding-not-nullable-field
        ALTER COLUMN position SET NOT NULL,
        -- squawk-ignore adding-not-nullable-field
        ALTER COLUMN changed_xid SET NOT NULL,
        -- squawk-ignore adding-not-nullable-field
        ALTER COLUMN changed_at SET NOT NULL
    """,
    """
    -- scheduler_tasks is small: thousands of rows, scanned in milliseconds.
    -- squawk-ignore require-concurrent-index-creation
    CREATE INDEX IF NOT EXISTS ix_scheduler_tasks_changed_xid ON scheduler_tasks (changed_xid)
    """,
)

# SECURITY DEFINER: who may delete tasks needs no rights on the tables beside them. The caller's
# search path plays no part: the tables are looked up in the schema of the trigger's own table.
_FUNCTIONS = (
    """
    CREATE OR REPLACE FUNCTION scheduler_tasks_stamp() RETURNS trigger
    LANGUAGE plpgsql AS $function$
    BEGIN
        NEW.changed_xid := pg_current_xact_id();
        NEW.changed_at := clock_timestamp();
        IF TG_OP = 'INSERT' THEN
            RETURN NEW;
        END IF;
        IF NEW.task_text IS DISTINCT FROM OLD.task_text THEN
            -- A new text says everything.
            NEW.edited_columns := '{}';
        ELSIF NEW.edited_columns IS NOT DISTINCT FROM OLD.edited_columns THEN
            -- The text stays, as it alone knows the order of keys and the spelling of numbers of
            -- what was not edited; these columns have the newer values.
            NEW.edited_columns := ARRAY(
                SELECT unnest(OLD.edited_columns)
                UNION SELECT 'task_key' WHERE NEW.task_key IS DISTINCT FROM OLD.task_key
                UNION SELECT 'task_type' WHERE NEW.task_type IS DISTINCT FROM OLD.task_type
                UNION SELECT 'company' WHERE NEW.company IS DISTINCT FROM OLD.company
                UNION SELECT 'config_json' WHERE NEW.config_json IS DISTINCT FROM OLD.config_json
                UNION SELECT 'schedule_type'
                    WHERE NEW.schedule_type IS DISTINCT FROM OLD.schedule_type
                UNION SELECT 'schedule_expr'
                    WHERE NEW.schedule_expr IS DISTINCT FROM OLD.schedule_expr
                UNION SELECT 'status' WHERE NEW.status IS DISTINCT FROM OLD.status
                UNION SELECT 'created_at' WHERE NEW.created_at IS DISTINCT FROM OLD.created_at
                UNION SELECT 'updated_at' WHERE NEW.updated_at IS DISTINCT FROM OLD.updated_at
                ORDER BY 1
            );
        END IF;
        RETURN NEW;
    END
    $function$
    """,
    """
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
    """,
    """
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
    """,
    """
    CREATE OR REPLACE FUNCTION scheduler_tasks_begin_epoch() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $function$
    BEGIN
        EXECUTE format('UPDATE %I.scheduler_storage SET epoch = epoch + 1', TG_TABLE_SCHEMA);
        RETURN NULL;
    END
    $function$
    """,
    """
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
    """,
    """
    CREATE OR REPLACE FUNCTION scheduler_runs_find_task_key() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $function$
    BEGIN
        NEW.task_key := left(NEW.metadata_json ->> 'task_key', 255);
        IF NEW.task_key IS NULL AND NEW.task_id IS NOT NULL THEN
            EXECUTE format('SELECT task_key FROM %I.scheduler_tasks WHERE id = $1', TG_TABLE_SCHEMA)
                INTO NEW.task_key USING NEW.task_id;
        END IF;
        RETURN NEW;
    END
    $function$
    """,
    # The older code made duration_ms an integer. A change of the type would rewrite all rows under
    # a lock: a second column follows the first one until every row has both.
    """
    CREATE OR REPLACE FUNCTION scheduler_runs_widen() RETURNS trigger
    LANGUAGE plpgsql AS $function$
    BEGIN
        NEW.duration_ms_wide := NEW.duration_ms;
        RETURN NEW;
    END
    $function$
    """,
    # Nobody else may hang a function with the owner's rights on a table of his own.
    """
    REVOKE ALL ON FUNCTION scheduler_tasks_bury(), scheduler_tasks_bury_old_key(),
        scheduler_tasks_begin_epoch(), scheduler_tasks_note_filling(),
        scheduler_runs_find_task_key() FROM PUBLIC
    """,
)

_TASK_TRIGGERS = (
    """
    CREATE OR REPLACE TRIGGER scheduler_tasks_stamp BEFORE INSERT OR UPDATE ON scheduler_tasks
        FOR EACH ROW EXECUTE FUNCTION scheduler_tasks_stamp()
    """,
    """
    CREATE OR REPLACE TRIGGER scheduler_tasks_bury AFTER DELETE ON scheduler_tasks
        REFERENCING OLD TABLE AS deleted
        FOR EACH STATEMENT EXECUTE FUNCTION scheduler_tasks_bury()
    """,
    """
    CREATE OR REPLACE TRIGGER scheduler_tasks_bury_old_key AFTER UPDATE ON scheduler_tasks
        FOR EACH ROW WHEN (OLD.task_key IS DISTINCT FROM NEW.task_key)
        EXECUTE FUNCTION scheduler_tasks_bury_old_key()
    """,
    """
    CREATE OR REPLACE TRIGGER scheduler_tasks_begin_epoch AFTER TRUNCATE ON scheduler_tasks
        FOR EACH STATEMENT EXECUTE FUNCTION scheduler_tasks_begin_epoch()
    """,
    """
    CREATE OR REPLACE TRIGGER scheduler_tasks_note_filling AFTER INSERT ON scheduler_tasks
        FOR EACH STATEMENT EXECUTE FUNCTION scheduler_tasks_note_filling()
    """,
)

# The table of runs may be large: these change the catalogue only. Its rows are filled later.
_RUNS = (
    """
    ALTER TABLE scheduler_runs
        ADD COLUMN IF NOT EXISTS task_key varchar(255),
        ADD COLUMN IF NOT EXISTS seq bigint,
        ADD COLUMN IF NOT EXISTS line_text text,
        ALTER COLUMN seq SET DEFAULT nextval('scheduler_runs_seq_seq')
    """,
    "ALTER SEQUENCE scheduler_runs_seq_seq OWNED BY scheduler_runs.seq",
    """
    CREATE OR REPLACE TRIGGER scheduler_runs_find_task_key BEFORE INSERT ON scheduler_runs
        FOR EACH ROW WHEN (NEW.task_key IS NULL) EXECUTE FUNCTION scheduler_runs_find_task_key()
    """,
    """
    DO $widen$
    BEGIN
        IF EXISTS (
            SELECT FROM pg_attribute WHERE attrelid = 'scheduler_runs'::regclass
              AND attname = 'duration_ms' AND atttypid = 'integer'::regtype
        ) THEN
            ALTER TABLE scheduler_runs ADD COLUMN IF NOT EXISTS duration_ms_wide bigint;
            CREATE OR REPLACE TRIGGER scheduler_runs_widen BEFORE INSERT OR UPDATE
                ON scheduler_runs FOR EACH ROW EXECUTE FUNCTION scheduler_runs_widen();
        END IF;
    END
    $widen$
    """,
    # What an interrupted CREATE INDEX CONCURRENTLY leaves.
    """
    DO $invalid$
    DECLARE
        name text;
    BEGIN
        FOR name IN
            SELECT indexrelid::regclass::text FROM pg_index
            WHERE indrelid = 'scheduler_runs'::regclass AND NOT indisvalid
        LOOP
            EXECUTE 'DROP INDEX ' || name;
        END LOOP;
    END
    $invalid$
    """,
)

# Old rows get numbers up to 0, before all that are inserted meanwhile, 200 in a transaction:
# whoever changes one of them waits for a moment only, and the pauses leave the disk to others. The
# trigger fills their other duration. An interrupted run has given the lowest numbers: the next one
# continues after them.
#
# A row that somebody holds is tried for a moment, again and again, as the tables are (above): a
# batch that waits for one row would keep all others that it has.
#
# The server may still be at it after the process that asked for it has died. Two of them take
# turns, so that whoever finds a row of its batch numbered knows of the other, and stops.
_NUMBER_RUNS = """
DO $number$
DECLARE
    patience interval := current_setting('lock_timeout')::interval;
    turn bigint := hashtextextended('datahound-storage:number:' || current_schema(), 0);
    started timestamptz;
    batch uuid[];
    first bigint;
    done boolean;
BEGIN
    -- The role's default may be another one. In it the second batch sees what the first one saw.
    COMMIT;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    PERFORM pg_advisory_xact_lock(turn);
    FOR batch, first IN
        SELECT array_agg(id ORDER BY n), min(n) - max(total) FROM (
            SELECT id, count(*) OVER () AS total,
                   row_number() OVER (ORDER BY coalesce(finished_at, started_at), id) AS n
            FROM scheduler_runs WHERE seq IS NULL
        ) AS numbered GROUP BY (n - 1) / 200 ORDER BY (n - 1) / 200
    LOOP
        started := clock_timestamp();
        done := false;
        WHILE NOT done LOOP
            BEGIN
                -- What a crash of the server forgets is numbered again.
                SET LOCAL lock_timeout = '50ms';
                PERFORM pg_advisory_xact_lock(turn);
                IF EXISTS (
                    SELECT FROM scheduler_runs WHERE id = ANY (batch) AND seq IS NOT NULL
                ) THEN
                    RAISE EXCEPTION 'the runs are being numbered by another session: when it is '
                        'done, run the upgrade again.';
                END IF;
                UPDATE scheduler_runs AS run SET
                    seq = first + old.n - 1,
                    task_key = coalesce(run.task_key, left(run.metadata_json ->> 'task_key', 255),
                        (SELECT task_key FROM scheduler_tasks AS task WHERE task.id = run.task_id))
                FROM unnest(batch) WITH ORDINALITY AS old (id, n)
                WHERE run.id = old.id AND run.seq IS NULL;
                done := true;
            EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
                IF patience > '0' AND clock_timestamp() > started + patience THEN
                    RAISE;
                END IF;
            END;
            COMMIT;
            SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
            PERFORM pg_sleep(CASE WHEN done THEN 0.008 ELSE 0.1 END);
        END LOOP;
    END LOOP;
END
$number$
"""
_RUN_INDEXES = (
    """
    CREATE INDEX CONCURRENTLY IF NOT EXISTS ix_scheduler_runs_task_key_ended_at
        ON scheduler_runs (task_key, coalesce(finished_at, started_at) DESC, seq DESC)
    """,
    """
    CREATE INDEX CONCURRENTLY IF NOT EXISTS ix_scheduler_runs_ended_at
        ON scheduler_runs (coalesce(finished_at, started_at) DESC, seq DESC)
    """,
)

# Every row has both durations now: the old column goes, with the older code's indexes, for which
# there are better ones. The catalogue alone is changed. What somebody has said of the column, and
# whom he has let see it, is said of the new one.
_FINISH_RUNS = """
DO $finish$
DECLARE
    name text;
    said record;
    permission record;
BEGIN
    IF EXISTS (
        SELECT FROM pg_attribute WHERE attrelid = 'scheduler_runs'::regclass
          AND attname = 'duration_ms_wide' AND NOT attisdropped
    ) THEN
        DROP TRIGGER scheduler_runs_widen ON scheduler_runs;
        SELECT pg_get_expr(d.adbin, d.adrelid) AS value, a.attacl AS permissions,
            col_description(a.attrelid, a.attnum) AS description INTO said
        FROM pg_attribute a
        LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attrelid = 'scheduler_runs'::regclass AND a.attname = 'duration_ms';
        ALTER TABLE scheduler_runs DROP COLUMN duration_ms;
        ALTER TABLE scheduler_runs RENAME COLUMN duration_ms_wide TO duration_ms;
        IF said.value IS NOT NULL THEN
            EXECUTE 'ALTER TABLE scheduler_runs ALTER COLUMN duration_ms SET DEFAULT '
                || said.value;
        END IF;
        IF said.description IS NOT NULL THEN
            EXECUTE format('COMMENT ON COLUMN scheduler_runs.duration_ms IS %L', said.description);
        END IF;
        FOR permission IN SELECT * FROM aclexplode(said.permissions) LOOP
            EXECUTE format('GRANT %s (duration_ms) ON scheduler_runs TO %s%s',
                permission.privilege_type,
                CASE WHEN permission.grantee = 0 THEN 'PUBLIC'
                    ELSE permission.grantee::regrole::text END,
                CASE WHEN permission.is_grantable THEN ' WITH GRANT OPTION' END);
        END LOOP;
    END IF;
    DROP FUNCTION scheduler_runs_widen();
    FOR name IN
        SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
        WHERE i.indrelid = 'scheduler_runs'::regclass AND c.relname ~ '^ix_scheduler_runs_'
          AND c.relname NOT IN ('ix_scheduler_runs_task_key_ended_at', 'ix_scheduler_runs_ended_at')
          AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = i.indexrelid)
    LOOP
        EXECUTE format('DROP INDEX %I', name);
    END LOOP;
END
$finish$
"""

# An index waits for older transactions, while nobody waits for it: so it may take longer than a
# lock, yet not for ever. A script that is printed says so itself, and not by RESET, as it has set a
# timeout for all that follows. Else `environment.py` does, which knows whether the session is ours.
_WAIT_LONGER = (
    """
    SELECT set_config('datahound_storage.lock_timeout', current_setting('lock_timeout'), false)
    """,
    "SET lock_timeout = '60s'",
)
_WAIT_AS_BEFORE = (
    """
    SELECT set_config('lock_timeout', current_setting('datahound_storage.lock_timeout'), false)
    """,
)


def upgrade() -> None:
    for statement in (*_SEQUENCES, *_TABLES, *_FUNCTIONS, *_LOCK_TABLES, _SHARE):
        op.execute(statement)
    for statement in (*_TASKS, *_TASK_TRIGGERS, *_RUNS):
        op.execute(statement)
    concurrent: tuple[str, ...] = (_NUMBER_RUNS, *_RUN_INDEXES)
    if op.get_context().as_sql:
        concurrent = (*_WAIT_LONGER, *concurrent, *_WAIT_AS_BEFORE)
    with op.get_context().autocommit_block():
        for statement in concurrent:
            op.execute(statement)
    for statement in (*_LOCK_TABLES, _FINISH_RUNS):
        op.execute(statement)


# It is known nowhere else. The table may be missing: then nothing is lost.
_REFUSE_CONFLICTS = """
DO $refuse$
DECLARE
    kept regclass := to_regclass(quote_ident(current_schema()) || '.scheduler_conflicts');
    number bigint := 0;
BEGIN
    IF kept IS NOT NULL THEN
        EXECUTE format('SELECT count(*) FROM %s', kept) INTO number;
    END IF;
    IF number > 0 THEN
        RAISE EXCEPTION USING MESSAGE = format(
            '%s versions of tasks that lost to others are in scheduler_conflicts only, so it is '
            'not dropped. Look at them with `datahound-storage conflicts`, or give them up with '
            '-x drop=yes.', number);
    END IF;
END
$refuse$
"""


def refuse_loss() -> None:
    """Refuse to drop kept versions; asked also before the first step of a way back to here."""
    if context.get_x_argument(as_dictionary=True).get("drop") != "yes":
        op.execute(_REFUSE_CONFLICTS)


# The same for all that is there, so that nothing comes between the look and the drop.
_LOCK_ALL = """
DO $lock$
DECLARE
    patience interval := current_setting('lock_timeout')::interval;
    started timestamptz := clock_timestamp();
    tables text := (
        SELECT string_agg(c.oid::regclass::text, ', ' ORDER BY c.relname DESC)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = current_schema() AND c.relname IN ('scheduler_tasks', 'scheduler_runs',
            'scheduler_task_tombstones', 'scheduler_storage', 'scheduler_conflicts'));
BEGIN
    LOOP
        BEGIN
            SET LOCAL lock_timeout = '50ms';
            EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', tables);
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


def downgrade() -> None:
    for statement in (_LOCK_TABLES[0], _LOCK_ALL):
        op.execute(statement)
    refuse_loss()
    # Indexes and sequences go with the columns.
    for statement in (
        "DROP TRIGGER IF EXISTS scheduler_runs_find_task_key ON scheduler_runs",
        """
        ALTER TABLE scheduler_runs
            DROP COLUMN IF EXISTS task_key,
            DROP COLUMN IF EXISTS seq,
            DROP COLUMN IF EXISTS line_text
        """,
        "DROP TRIGGER IF EXISTS scheduler_tasks_stamp ON scheduler_tasks",
        "DROP TRIGGER IF EXISTS scheduler_tasks_bury ON scheduler_tasks",
        "DROP TRIGGER IF EXISTS scheduler_tasks_bury_old_key ON scheduler_tasks",
        "DROP TRIGGER IF EXISTS scheduler_tasks_begin_epoch ON scheduler_tasks",
        "DROP TRIGGER IF EXISTS scheduler_tasks_note_filling ON scheduler_tasks",
        """
        DROP FUNCTION IF EXISTS scheduler_tasks_stamp(), scheduler_tasks_bury(),
            scheduler_tasks_bury_old_key(), scheduler_tasks_begin_epoch(),
            scheduler_tasks_note_filling(), scheduler_runs_find_task_key()
        """,
        """
        ALTER TABLE scheduler_tasks
            DROP COLUMN IF EXISTS position,
            DROP COLUMN IF EXISTS task_text,
            DROP COLUMN IF EXISTS edited_columns,
            DROP COLUMN IF EXISTS changed_xid,
            DROP COLUMN IF EXISTS changed_at
        """,
        "DROP TABLE IF EXISTS scheduler_task_tombstones, scheduler_storage, scheduler_conflicts",
    ):
        op.execute(statement)
