"""create tables

Makes the two tables, or adopts those that older code made on demand: rows stay, names and types
become those of new tables, but for what takes long on many runs: 0002 does that while others work.
All of it is SQL, so that it is the same online and with --sql.

Revision ID: 0001
Revises:
"""

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from alembic import context, op
from alembic.util import CommandError

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# What has the name of a table but is none, or is one of several, would be adopted by half. In
# another encoding a text of the files would be an error of the driver, whenever it comes.
_REFUSE_KINDS = """
DO $refuse$
DECLARE
    odd record;
BEGIN
    IF getdatabaseencoding() <> 'UTF8' THEN
        RAISE EXCEPTION USING MESSAGE = format(
            'database %s has the encoding %s, which cannot hold every text of the files. Nothing '
            'was changed: use one that was made with ENCODING ''UTF8'' TEMPLATE template0.',
            current_database(), getdatabaseencoding());
    END IF;
    FOR odd IN
        SELECT c.relname, c.relkind FROM pg_class c
        JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = current_schema()
        WHERE c.relname IN ('scheduler_tasks', 'scheduler_runs') AND (
            c.relkind <> 'r'
            OR EXISTS (SELECT FROM pg_inherits WHERE c.oid IN (inhrelid, inhparent)))
    LOOP
        RAISE EXCEPTION USING MESSAGE = format(
            '%s in schema %s is %s, and only a plain table can be adopted. Nothing was changed: '
            'rename it, or use another schema (options=-csearch_path in the URL).',
            odd.relname, current_schema(), CASE odd.relkind
                WHEN 'p' THEN 'a partitioned table' WHEN 'v' THEN 'a view'
                WHEN 'm' THEN 'a materialized view' WHEN 'f' THEN 'a foreign table'
                WHEN 'r' THEN 'a table that inherits or is inherited from' ELSE 'no table' END);
    END LOOP;
END
$refuse$
"""

# IF NOT EXISTS looks into the schema only in which the table would be made: current_schema().
_TASKS = """
CREATE TABLE IF NOT EXISTS scheduler_tasks (
    id uuid NOT NULL,
    task_key varchar(255) NOT NULL,
    task_type varchar(64) NOT NULL,
    company varchar(255) NOT NULL,
    config_json jsonb NOT NULL,
    schedule_type varchar(32) NOT NULL,
    schedule_expr varchar(255) NOT NULL,
    timezone varchar(64) NOT NULL DEFAULT 'UTC',
    status varchar(32) NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT scheduler_tasks_pkey PRIMARY KEY (id),
    CONSTRAINT scheduler_tasks_task_key_key UNIQUE (task_key)
)
"""
_RUNS = """
CREATE TABLE IF NOT EXISTS scheduler_runs (
    id uuid NOT NULL,
    task_id uuid,
    run_id varchar(255) NOT NULL,
    started_at timestamptz NOT NULL,
    finished_at timestamptz,
    success boolean,
    message text,
    duration_ms bigint,
    metadata_json jsonb,
    CONSTRAINT scheduler_runs_pkey PRIMARY KEY (id),
    CONSTRAINT scheduler_runs_run_id_key UNIQUE (run_id)
)
"""

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

# What a later step would stop at, or would drop, is told before the first one, all of it at once.
# duration_ms becomes another column in 0002, if it is an integer: its default, comment and grants
# are carried over there, other things that hang on it are not. The constraints' kind is that which
# ON CONFLICT needs; the columns that 0002 adds are not there yet, or are as it would make them.
_REFUSE_OTHERS = """
DO $refuse$
DECLARE
    problems text;
BEGIN
    SELECT string_agg(DISTINCT problem, '; ') INTO problems FROM (
        SELECT format('%s hangs on duration_ms, whose type is changed',
            pg_describe_object(d.classid, d.objid, 0)) AS problem
        FROM pg_depend d
        JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
        WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = 'scheduler_runs'::regclass
          AND a.attname = 'duration_ms' AND a.atttypid = 'integer'::regtype
          AND NOT EXISTS (SELECT FROM pg_attrdef f WHERE d.classid = 'pg_attrdef'::regclass
                          AND f.oid = d.objid AND f.adnum = a.attnum)
          AND NOT EXISTS (SELECT FROM pg_class c WHERE d.classid = 'pg_class'::regclass
                          AND c.oid = d.objid AND c.relname ~ '^ix_scheduler_runs_')
          AND NOT EXISTS (SELECT FROM pg_constraint c WHERE d.classid = 'pg_constraint'::regclass
                          AND c.oid = d.objid AND c.contype = 'n')
        UNION ALL
        SELECT format('constraint %s of %s is deferrable', n.conname, n.conrelid::regclass)
        FROM pg_constraint n
        JOIN pg_attribute a ON a.attrelid = n.conrelid AND n.conkey = ARRAY[a.attnum]
        WHERE n.conrelid IN ('scheduler_tasks'::regclass, 'scheduler_runs'::regclass)
          AND n.condeferrable AND n.contype IN ('p', 'u')
          AND a.attname IN ('id', 'task_key', 'run_id')
        UNION ALL
        SELECT format('column %s of %s is %s, not %s',
            w.col, w.tab, format_type(a.atttypid, a.atttypmod), w.type)
        FROM (VALUES
            ('scheduler_tasks', 'position', 'bigint'),
            ('scheduler_tasks', 'task_text', 'text'),
            ('scheduler_tasks', 'edited_columns', 'text[]'),
            ('scheduler_tasks', 'changed_xid', 'xid8'),
            ('scheduler_tasks', 'changed_at', 'timestamp with time zone'),
            ('scheduler_runs', 'task_key', 'character varying(255)'),
            ('scheduler_runs', 'seq', 'bigint'),
            ('scheduler_runs', 'line_text', 'text'),
            ('scheduler_runs', 'duration_ms_wide', 'bigint')
        ) AS w (tab, col, type)
        JOIN pg_attribute a ON a.attrelid = w.tab::regclass AND a.attname = w.col
        WHERE NOT a.attisdropped AND format_type(a.atttypid, a.atttypmod) <> w.type
        UNION ALL
        SELECT format('column %s of %s may not be NULL and has no default, so no row can be added',
            a.attname, a.attrelid::regclass)
        FROM pg_attribute a
        WHERE a.attrelid IN ('scheduler_tasks'::regclass, 'scheduler_runs'::regclass)
          AND a.attnum > 0 AND NOT a.attisdropped AND a.attnotnull AND NOT a.atthasdef
          AND a.attidentity = '' AND a.attname NOT IN (
            'id', 'task_key', 'task_type', 'company', 'config_json', 'schedule_type',
            'schedule_expr', 'timezone', 'status', 'created_at', 'updated_at', 'task_id', 'run_id',
            'started_at', 'finished_at', 'success', 'message', 'duration_ms', 'metadata_json')
    ) AS found;
    IF problems IS NOT NULL THEN
        RAISE EXCEPTION USING MESSAGE = format(
            'the tables in schema %s cannot be adopted as they are: %s. Nothing was changed: drop '
            'or change each of these, run the upgrade, and make again after it what you need.',
            current_schema(), problems);
    END IF;
END
$refuse$
"""

# Whoever has the old tables shall have what comes beside them: else he could not use it.
_SHARE_VERSION = """
DO $share$
DECLARE
    version regclass := to_regclass(quote_ident(current_schema()) || '.datahound_storage_version');
    owner regrole := (SELECT relowner FROM pg_class WHERE oid = 'scheduler_tasks'::regclass);
BEGIN
    IF EXISTS (SELECT FROM pg_class WHERE oid = version AND relowner <> owner
               AND relowner = (SELECT oid FROM pg_roles WHERE rolname = current_user)) THEN
        EXECUTE format('ALTER TABLE %s OWNER TO %s', version, owner);
    END IF;
END
$share$
"""

# A table of the same name with other columns is somebody else's: better to stop than to bend it.
# Only types that older code may have used are changed; a value that does not fit stops it too.
_ADOPT_COLUMNS = """
DO $adopt$
DECLARE
    wanted record;
    found text;
BEGIN
    FOR wanted IN SELECT * FROM (VALUES
        ('scheduler_tasks', 'id', 'uuid', 'uuid'),
        ('scheduler_tasks', 'task_key', 'character varying(255)', 'text'),
        ('scheduler_tasks', 'task_type', 'character varying(64)', 'text'),
        ('scheduler_tasks', 'company', 'character varying(255)', 'text'),
        ('scheduler_tasks', 'config_json', 'jsonb', 'json'),
        ('scheduler_tasks', 'schedule_type', 'character varying(32)', 'text'),
        ('scheduler_tasks', 'schedule_expr', 'character varying(255)', 'text'),
        ('scheduler_tasks', 'timezone', 'character varying(64)', 'text'),
        ('scheduler_tasks', 'status', 'character varying(32)', 'text'),
        ('scheduler_tasks', 'created_at', 'timestamp with time zone', ''),
        ('scheduler_tasks', 'updated_at', 'timestamp with time zone', ''),
        ('scheduler_runs', 'id', 'uuid', ''),
        ('scheduler_runs', 'task_id', 'uuid', ''),
        ('scheduler_runs', 'run_id', 'character varying(255)', 'text'),
        ('scheduler_runs', 'started_at', 'timestamp with time zone', ''),
        ('scheduler_runs', 'finished_at', 'timestamp with time zone', ''),
        ('scheduler_runs', 'success', 'boolean', ''),
        ('scheduler_runs', 'message', 'text', 'text'),
        ('scheduler_runs', 'duration_ms', 'bigint', 'integer'),
        ('scheduler_runs', 'metadata_json', 'jsonb', 'json')
    ) AS w (tab, col, type, also)
    LOOP
        SELECT format_type(atttypid, atttypmod) INTO found FROM pg_attribute
        WHERE attrelid = wanted.tab::regclass AND attname = wanted.col AND NOT attisdropped;
        CONTINUE WHEN found = wanted.type;
        -- It would rewrite all runs under a lock: 0002 widens the column beside the others' work.
        CONTINUE WHEN wanted.col = 'duration_ms' AND found = 'integer';
        IF found IS NULL OR wanted.also NOT IN (
            found, CASE WHEN starts_with(found, 'character varying') THEN 'text' ELSE found END
        ) THEN
            RAISE EXCEPTION USING MESSAGE = format(
                '%s in schema %s is not the table of the scheduler: column %s is %s, not %s. '
                'Rename that table, or use another schema (options=-csearch_path in the URL).',
                wanted.tab, current_schema(), wanted.col, coalesce(found, 'missing'), wanted.type);
        END IF;
        EXECUTE format('ALTER TABLE %I ALTER COLUMN %I TYPE %s',
            wanted.tab, wanted.col, wanted.type);
    END LOOP;
END
$adopt$
"""

_FILL_TASKS = """
UPDATE scheduler_tasks SET
    task_type = coalesce(task_type, ''),
    company = coalesce(company, ''),
    config_json = coalesce(config_json, '{}'),
    schedule_type = coalesce(schedule_type, ''),
    schedule_expr = coalesce(schedule_expr, ''),
    timezone = coalesce(timezone, 'UTC'),
    status = coalesce(status, ''),
    created_at = coalesce(created_at, now()),
    updated_at = coalesce(updated_at, now())
WHERE num_nulls(task_type, company, config_json, schedule_type, schedule_expr, timezone, status,
                created_at, updated_at) > 0
"""

# SET NOT NULL scans the table, so it is done only where it changes something.
_ADOPT_NULLS = """
DO $adopt$
DECLARE
    wanted record;
BEGIN
    FOR wanted IN
        SELECT a.attrelid::regclass AS tab, a.attname AS col,
               c.relname = 'scheduler_tasks' OR a.attname IN ('id', 'run_id', 'started_at') AS must
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        WHERE a.attrelid IN ('scheduler_tasks'::regclass, 'scheduler_runs'::regclass)
          AND a.attnum > 0 AND NOT a.attisdropped AND a.attname IN (
            'id', 'task_key', 'task_type', 'company', 'config_json', 'schedule_type',
            'schedule_expr', 'timezone', 'status', 'created_at', 'updated_at', 'task_id', 'run_id',
            'started_at', 'finished_at', 'success', 'message', 'duration_ms', 'metadata_json')
          AND a.attnotnull <> (
            c.relname = 'scheduler_tasks' OR a.attname IN ('id', 'run_id', 'started_at'))
    LOOP
        EXECUTE format('ALTER TABLE %s ALTER COLUMN %I %s NOT NULL',
            wanted.tab, wanted.col, CASE WHEN wanted.must THEN 'SET' ELSE 'DROP' END);
    END LOOP;
END
$adopt$
"""
_DEFAULTS = """
ALTER TABLE scheduler_tasks
    ALTER COLUMN timezone SET DEFAULT 'UTC',
    ALTER COLUMN created_at SET DEFAULT now(),
    ALTER COLUMN updated_at SET DEFAULT now()
"""

# A run outlives its task: task_id is a logical reference.
_DROP_FOREIGN_KEYS = """
DO $adopt$
DECLARE
    name text;
BEGIN
    FOR name IN
        SELECT conname FROM pg_constraint
        WHERE contype = 'f' AND conrelid = 'scheduler_runs'::regclass
          AND confrelid = 'scheduler_tasks'::regclass
    LOOP
        EXECUTE format('ALTER TABLE scheduler_runs DROP CONSTRAINT %I', name);
    END LOOP;
END
$adopt$
"""

# Keys: take over a constraint or a unique index on the same column, whatever its name; else make
# one. What is double after that goes.
_ADOPT_KEYS = """
DO $adopt$
DECLARE
    wanted record;
    number smallint;
    have text;
    double text;
BEGIN
    FOR wanted IN SELECT * FROM (VALUES
        ('scheduler_tasks', 'scheduler_tasks_pkey', 'PRIMARY KEY', 'id'),
        ('scheduler_tasks', 'scheduler_tasks_task_key_key', 'UNIQUE', 'task_key'),
        ('scheduler_runs', 'scheduler_runs_pkey', 'PRIMARY KEY', 'id'),
        ('scheduler_runs', 'scheduler_runs_run_id_key', 'UNIQUE', 'run_id')
    ) AS w (tab, name, kind, col)
    LOOP
        SELECT attnum INTO number FROM pg_attribute
        WHERE attrelid = wanted.tab::regclass AND attname = wanted.col;
        SELECT conname INTO have FROM pg_constraint
        WHERE conrelid = wanted.tab::regclass AND conkey = ARRAY[number]
          AND contype = CASE wanted.kind WHEN 'UNIQUE' THEN 'u' ELSE 'p' END
        ORDER BY conname = wanted.name DESC, conname LIMIT 1;
        IF have IS NULL THEN
            SELECT i.indexrelid::regclass::text INTO have FROM pg_index i
            WHERE i.indrelid = wanted.tab::regclass AND i.indisunique AND i.indisvalid
              AND i.indkey::text = number::text AND i.indpred IS NULL AND i.indimmediate
              AND i.indoption::text = '0' AND EXISTS (
                SELECT FROM pg_opclass o WHERE o.oid::text = i.indclass::text AND o.opcdefault)
              AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = i.indexrelid)
            ORDER BY 1 LIMIT 1;
            EXECUTE format('ALTER TABLE %I ADD CONSTRAINT %I %s ', wanted.tab, wanted.name,
                wanted.kind) || coalesce('USING INDEX ' || have, format('(%I)', wanted.col));
        ELSIF have <> wanted.name THEN
            EXECUTE format('ALTER TABLE %I RENAME CONSTRAINT %I TO %I',
                wanted.tab, have, wanted.name);
        END IF;
        FOR double IN
            SELECT conname FROM pg_constraint
            WHERE conrelid = wanted.tab::regclass AND conkey = ARRAY[number] AND contype = 'u'
              AND conname <> wanted.name
        LOOP
            EXECUTE format('ALTER TABLE %I DROP CONSTRAINT %I', wanted.tab, double);
        END LOOP;
        FOR double IN
            SELECT i.indexrelid::regclass::text FROM pg_index i
            JOIN pg_class c ON c.oid = i.indexrelid
            JOIN pg_am m ON m.oid = c.relam AND m.amname = 'btree'
            JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = number
            WHERE i.indrelid = wanted.tab::regclass AND i.indkey::text = number::text
              AND i.indpred IS NULL AND i.indoption::text = '0'
              AND i.indcollation::text = a.attcollation::text AND EXISTS (
                SELECT FROM pg_opclass o WHERE o.oid::text = i.indclass::text AND o.opcdefault)
              AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = i.indexrelid)
        LOOP
            EXECUTE 'DROP INDEX ' || double;
        END LOOP;
    END LOOP;
END
$adopt$
"""

# Indexes for look-ups: the same. Others that the older code's library named go too (those of runs
# in 0002, once it has made better ones); those that somebody made by hand, under names of their
# own, stay.
_ADOPT_INDEXES = """
DO $adopt$
DECLARE
    wanted record;
    have text;
    other text;
BEGIN
    FOR wanted IN SELECT * FROM (VALUES
        ('ix_scheduler_tasks_company', 'company'), ('ix_scheduler_tasks_status', 'status')
    ) AS w (name, col)
    LOOP
        have := NULL;
        FOR other IN
            SELECT c.relname FROM pg_index i
            JOIN pg_class c ON c.oid = i.indexrelid
            JOIN pg_am m ON m.oid = c.relam
            JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum::text = i.indkey::text
            WHERE i.indrelid = 'scheduler_tasks'::regclass AND a.attname = wanted.col
              AND m.amname = 'btree' AND i.indisvalid AND NOT i.indisunique AND i.indpred IS NULL
              AND i.indoption::text = '0' AND EXISTS (
                SELECT FROM pg_opclass o WHERE o.oid::text = i.indclass::text AND o.opcdefault)
            ORDER BY c.relname = wanted.name DESC, c.relname
        LOOP
            IF have IS NULL THEN
                have := other;
            ELSE
                EXECUTE format('DROP INDEX %I', other);
            END IF;
        END LOOP;
        IF have IS DISTINCT FROM wanted.name THEN
            EXECUTE format('DROP INDEX IF EXISTS %I.%I', current_schema(), wanted.name);
        END IF;
        IF have IS NULL THEN
            EXECUTE format('CREATE INDEX %I ON scheduler_tasks (%I)', wanted.name, wanted.col);
        ELSIF have <> wanted.name THEN
            EXECUTE format('ALTER INDEX %I RENAME TO %I', have, wanted.name);
        END IF;
    END LOOP;
    FOR other IN
        SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
        WHERE i.indrelid = 'scheduler_tasks'::regclass AND c.relname ~ '^ix_scheduler_tasks_'
          AND c.relname NOT IN ('ix_scheduler_tasks_company', 'ix_scheduler_tasks_status')
          AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = i.indexrelid)
    LOOP
        EXECUTE format('DROP INDEX %I', other);
    END LOOP;
END
$adopt$
"""


def upgrade() -> None:
    for statement in (
        _REFUSE_KINDS,
        _TASKS,
        _RUNS,
        *_LOCK_TABLES,
        _REFUSE_OTHERS,
        _SHARE_VERSION,
        _ADOPT_COLUMNS,
        _FILL_TASKS,
        _ADOPT_NULLS,
        _DEFAULTS,
        _DROP_FOREIGN_KEYS,
        _ADOPT_KEYS,
        _ADOPT_INDEXES,
    ):
        op.execute(statement)


def downgrade() -> None:
    for statement in _LOCK_TABLES:
        op.execute(statement)
    # What came since the way back was begun is lost no more than what was there then.
    refuse_loss()
    for statement in _DROP:
        op.execute(statement)


_DROP = (
    "DROP TABLE scheduler_runs",
    "DROP TABLE scheduler_tasks",
    # What an interrupted 0002 has left. The next upgrade would take its notes for this one's.
    "DROP TABLE IF EXISTS scheduler_task_tombstones, scheduler_storage, scheduler_conflicts",
    "DROP SEQUENCE IF EXISTS scheduler_tasks_position_seq, scheduler_runs_seq_seq",
    """
    DROP FUNCTION IF EXISTS scheduler_tasks_stamp(), scheduler_tasks_bury(),
        scheduler_tasks_bury_old_key(), scheduler_tasks_begin_epoch(),
        scheduler_tasks_note_filling(), scheduler_runs_find_task_key(), scheduler_runs_widen()
    """,
)


def refuse_loss() -> None:
    """Refuse to drop what the files lack; asked also before the first step of a way back to here.

    By then the tables may still be those of any later revision.
    """
    if context.get_x_argument(as_dictionary=True).get("drop") == "yes":
        return
    if context.is_offline_mode():
        op.execute(_REFUSE_ROWS)
    else:
        _refuse_what_the_files_lack()


# Statements that are printed cannot look into files.
_REFUSE_ROWS = """
DO $refuse$
BEGIN
    IF EXISTS (SELECT FROM scheduler_tasks) OR EXISTS (SELECT FROM scheduler_runs) THEN
        RAISE EXCEPTION USING MESSAGE =
            'the tables hold rows, so they are not dropped. Run the downgrade without --sql, '
            'which compares them with the files, or with -x drop=yes.';
    END IF;
END
$refuse$
"""


def _refuse_what_the_files_lack() -> None:
    """Raise while a task or a run is in the tables that the files do not show with equal value."""
    snapshot, history = _paths()
    tasks, runs = _missing_tasks(snapshot), _missing_runs(history)
    if tasks or runs:
        found = f"{_counted(tasks, 'task')} and {_counted(runs, 'run')}"
        places = f"{snapshot} and {', '.join(map(str, history))}"
        raise CommandError(
            f"{found} are in the tables and not, or not equally, in {places}; the first is "
            f"{(tasks or runs)[0]!r}. No task and no run was dropped. Name the right files with "
            "-x snapshot=PATH and -x history=PATH, set DATAHOUND_SCHEDULER_TZ as the scheduler has "
            "it, or give up the rows with -x drop=yes."
        )


def _counted(found: Sequence[Any], noun: str) -> str:
    return f"{len(found)} {noun}{'' if len(found) == 1 else 's'}"


def _paths() -> tuple[Path, list[Path]]:
    given = context.get_x_argument(as_dictionary=True)
    data = Path(os.environ.get("DATAHOUND_DATA_DIR", "").strip() or "data").absolute()
    snapshot = Path(given.get("snapshot") or data / "scheduler" / "scheduled_tasks.json")
    if given.get("history"):
        return snapshot, [Path(given["history"])]
    new = data.parent / "logging" / "scheduler" / "task_history.jsonl"
    return snapshot, [new, data / "scheduler" / "task_history.jsonl"]


def _missing_tasks(snapshot: Path) -> list[str]:
    shown = _tasks_in(snapshot)
    rows = op.get_bind().exec_driver_sql(
        "SELECT task_key, task_type, company, schedule_type, schedule_expr, status, created_at,"
        " updated_at, config_json::text, timezone FROM scheduler_tasks"
    )
    return [row[0] for row in rows if not _is_shown(row, shown.get(row[0]))]


def _tasks_in(snapshot: Path) -> dict[str, Any]:
    try:
        items = json.loads(snapshot.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}
    found = [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    return {str(item.get("task_id")): item for item in found}


def _is_shown(row: Sequence[Any], task: Any) -> bool:
    """Whether a file's task has the value of the row: in config_json and in each column."""
    try:
        if task is None or _canonical(json.loads(row[8])) != _canonical(task):
            return False
    except RecursionError:
        return False  # too deep to be compared
    # A file says none: an import would give it that of the scheduler.
    if row[9] != (os.environ.get("DATAHOUND_SCHEDULER_TZ", "").strip() or "UTC"):
        return False
    config = task.get("task_config") or {}
    own = [
        *(_text(config.get(name)) for name in ("task_type", "company")),
        _text(task.get("schedule_type")),
        _clean(_schedule_expr(task))[:255],
        _text(task.get("status")),
    ]
    times = [_instant(task.get(name)) for name in ("created_at", "updated_at")]
    return own == list(row[1:6]) and all(
        time is None or time == there for time, there in zip(times, row[6:8], strict=True)
    )


def _canonical(value: Any) -> str:
    """The same text for what jsonb makes the same: 1.50 and 1.5, U+FFFD for what it refuses."""
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        # jsonb spells 1e3 as 1000: equal numbers get one spelling.
        finite = value == value and abs(value) != float("inf")
        return (int(value) if value.is_integer() else value) if finite else None
    if isinstance(value, str):
        return _clean(value)
    if isinstance(value, dict):
        return {_clean(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _clean(value: str) -> str:
    return re.sub("[\x00\ud800-\udfff]", "\ufffd", value)


def _text(value: Any) -> str:
    return _clean(value) if isinstance(value, str) else ""


def _schedule_expr(task: dict[str, Any]) -> str:
    kind = task.get("schedule_type")
    if kind == "interval":
        return f"interval:{_number(task.get('interval_minutes'))}"
    if kind == "daily_time":
        time = task.get("daily_time")
        return f"daily:{time if isinstance(time, str) else ''}"
    if kind != "weekly_schedule":
        return ""
    given = task.get("weekly_schedule")
    week = given if isinstance(given, dict) else {}
    days = week.get("days")
    names = [str(day)[:3].lower() for day in days] if isinstance(days, list) else []
    return f"weekly:{','.join(names)}@{_number(week.get('interval_minutes'))}"


def _number(value: Any) -> str:
    return "" if value is None else str(value)[:32]


def _instant(value: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(value).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        return None


_RUN_VALUES = """
SELECT run_id, coalesce(metadata_json ->> 'task_key', (
           SELECT t.task_key FROM scheduler_tasks AS t WHERE t.id = r.task_id)),
       to_char(started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US'),
       to_char(finished_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US'),
       success, message, duration_ms, metadata_json::text
FROM scheduler_runs AS r
"""
_LONGEST = timedelta(days=3650)


def _missing_runs(history: list[Path]) -> list[str]:
    shown = {digest for path in history for digest in _runs_in(path)}
    options = {"yield_per": 10_000}
    with op.get_bind().exec_driver_sql(_RUN_VALUES, execution_options=options) as rows:
        return [row[0] for row in rows if _digest_of_row(row) not in shown]


def _digest_of_row(row: Sequence[Any]) -> bytes | None:
    try:
        return _digest([*row[:7], json.loads(row[7] or "null")])
    except (RecursionError, ValueError):
        return None


def _digest(values: list[Any]) -> bytes:
    """A few bytes for the values of a run: there may be millions."""
    return sha256(_canonical(values).encode()).digest()[:16]


def _runs_in(path: Path) -> Iterator[bytes]:
    """What the rows of a history's lines look like."""
    for run_id, entry in _entries_in(path):
        with contextlib.suppress(RecursionError):
            yield _digest([run_id, *_run_values(entry)])


def _run_values(entry: dict[str, Any]) -> list[Any]:
    """The columns that an import, or the scheduler, gives to a line."""
    ended = _instant(entry["timestamp"])
    seconds = _seconds(entry.get("duration_seconds"))
    try:
        started = ended and ended - timedelta(seconds=seconds)
    except OverflowError:
        started = ended
    names = ("task_name", "task_type", "duration_seconds")
    return [
        entry["task_id"],
        *(
            time and time.replace(tzinfo=None).isoformat("T", "microseconds")
            for time in (started, ended)
        ),
        bool(entry.get("success")),
        _text(entry.get("message")),
        round(seconds * 1000),
        {"task_key": entry["task_id"], **{name: entry[name] for name in names if name in entry}},
    ]


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return 0.0
    return float(min(max(value, 0.0), _LONGEST.total_seconds()))


def _entries_in(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """A history's lines with their ids; one without gets that which an import gives it."""
    equal: Counter[str] = Counter()
    for line in _lines_of(path):
        try:
            text = line.strip().decode("utf-8")
            entry = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if not isinstance(entry, dict) or not _is_key(entry.get("task_id")):
            continue
        if _instant(entry.get("timestamp")) is None:
            continue
        if _is_key(entry.get("run_id")):
            yield entry["run_id"], entry
            continue
        digest = sha256(text.encode("utf-8")).hexdigest()[:32]
        equal[digest] += 1
        yield f"line-{digest}-{equal[digest]}", entry


def _lines_of(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError:
        return  # a file that cannot be read shows nothing


def _is_key(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 255 and _clean(value) == value
