"""The statements that change many rows of `scheduler_tasks`, in the caller's transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from psycopg.types.json import Jsonb

from datahound_storage.codec import for_jsonb
from datahound_storage.postgres.task_table import COLUMNS, Connection, TaskRow
from datahound_storage.writes import PreparedTask


class Beside(Protocol):
    """Work on the tasks of a bulk change, for when there is nothing to do but to wait."""

    def look(self, prepared: PreparedTask) -> None:
        """Work on a task now."""

    def note(self, prepared: PreparedTask) -> None:
        """Take note of a task, to work on it while `looking`."""

    def looking(self) -> AbstractContextManager[None]:
        """Work on what was noted, in a thread, as long as this lasts."""


def _jsonb(text: str) -> Jsonb:
    return Jsonb(for_jsonb(text), dumps=_as_it_is)


def _as_it_is(text: str) -> str:
    return text


def lock_for_bulk_change(connection: Connection, patience: float) -> None:
    """Keep all other writers out until the transaction ends; readers go on.

    One lock for the whole table: those who change many rows at once cannot deadlock. Waits for
    `patience` seconds at most.
    """
    connection.execute(f"SET LOCAL lock_timeout = {round(patience * 1000)}")
    connection.execute("LOCK TABLE scheduler_tasks IN SHARE ROW EXCLUSIVE MODE")


_INCOMING = """
CREATE TEMP TABLE incoming_tasks (
    task_key text, task_type text, company text, schedule_type text,
    schedule_expr text, status text, created_at timestamptz, updated_at timestamptz,
    config_json jsonb, task_text text
) ON COMMIT DROP"""
_COPY_CHANGED = f"""
COPY incoming_tasks ({COLUMNS}, config_json, task_text) FROM STDIN (FORMAT BINARY)"""
_NEW_COLUMNS = f"id, {COLUMNS}, config_json, task_text, timezone"
_COPY_NEW = f"COPY {{table}} ({_NEW_COLUMNS}) FROM STDIN (FORMAT BINARY)"
_HOW_TO_ADD = """
SELECT now(), row_security_active('scheduler_tasks') OR relhasrules
FROM pg_class WHERE oid = 'scheduler_tasks'::regclass"""
_NEW = """
CREATE TEMP TABLE new_tasks (
    ordinal bigint GENERATED ALWAYS AS IDENTITY, id uuid, task_key text, task_type text,
    company text, schedule_type text, schedule_expr text, status text, created_at timestamptz,
    updated_at timestamptz, config_json jsonb, task_text text, timezone text
) ON COMMIT DROP"""
_INSERT_NEW = f"""
INSERT INTO scheduler_tasks ({_NEW_COLUMNS}) SELECT {_NEW_COLUMNS} FROM new_tasks
ORDER BY ordinal"""
_CHANGED_TYPES = [*["text"] * 6, *["timestamptz"] * 2, "jsonb", "text"]
_NEW_TYPES = ["uuid", *_CHANGED_TYPES, "text"]
_UPDATE_MANY = """
UPDATE scheduler_tasks AS t SET
    task_type = i.task_type, company = i.company, schedule_type = i.schedule_type,
    schedule_expr = i.schedule_expr, status = i.status,
    created_at = coalesce(i.created_at, t.created_at),
    updated_at = coalesce(i.updated_at, t.updated_at),
    config_json = i.config_json, task_text = i.task_text,
    edited_columns = '{}'
FROM incoming_tasks AS i
WHERE t.task_key = i.task_key
  AND (t.task_text IS DISTINCT FROM i.task_text OR t.edited_columns <> '{}')"""


def insert_many(connection: Connection, rows: Iterable[TaskRow]) -> None:
    """Add tasks in the given order, inside the caller's transaction, with `lock_for_bulk_change`.

    None of them may be there yet.
    """
    now, must_insert = connection.execute(_HOW_TO_ADD).fetchone() or (None, False)
    if not must_insert:
        _copy_new(connection, "scheduler_tasks", rows, now)
        return
    # COPY is refused where row-level security decides who may add what, and heeds no rules.
    connection.execute(_NEW)
    _copy_new(connection, "new_tasks", rows, now)
    connection.execute(_INSERT_NEW)


def _copy_new(connection: Connection, table: str, rows: Iterable[TaskRow], now: Any) -> None:
    with connection.cursor().copy(_COPY_NEW.format(table=table).encode()) as copy:
        copy.set_types(_NEW_TYPES)
        for row in rows:
            key, *middle, created_at, updated_at = row.columns
            times = (created_at or now, updated_at or now)
            copy.write_row((row.id, key, *middle, *times, _jsonb(row.text), row.text, row.timezone))


def update_many(
    connection: Connection, prepared: Iterable[PreparedTask], beside: Beside | None = None
) -> None:
    """Change many tasks inside the caller's transaction; one that is not there is left out."""
    connection.execute("DROP TABLE IF EXISTS pg_temp.incoming_tasks")
    connection.execute(_INCOMING)
    with connection.cursor().copy(_COPY_CHANGED) as copy:
        copy.set_types(_CHANGED_TYPES)
        for one in prepared:
            copy.write_row((*one.columns, _jsonb(one.text), one.text))
            if beside is not None:
                beside.note(one)
    with beside.looking() if beside is not None else nullcontext():
        connection.execute(_UPDATE_MANY)


def delete_many(connection: Connection, task_keys: Sequence[str]) -> None:
    """Delete tasks inside the caller's transaction."""
    connection.execute("DELETE FROM scheduler_tasks WHERE task_key = ANY(%s)", (list(task_keys),))


_REORDER = """
UPDATE scheduler_tasks AS t SET position = p.position
FROM (
    SELECT task_key, nextval('scheduler_tasks_position_seq') AS position
    FROM unnest(%s::text[]) WITH ORDINALITY AS wanted(task_key, ordinal) ORDER BY ordinal
) AS p
WHERE t.task_key = p.task_key"""


def reorder(connection: Connection, task_keys: Sequence[str]) -> None:
    """Give the tasks new positions, in this order, inside the caller's transaction."""
    connection.execute(_REORDER, (list(task_keys),))
