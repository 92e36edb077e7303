"""The statements on `scheduler_tasks`, one function each.

They take a connection in autocommit and are one round trip each, but for the bulk ones, which run
in the caller's transaction. Each bears being sent twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import psycopg

from datahound_storage.codec import for_jsonb
from datahound_storage.postgres.stored import (
    STORED_COLUMNS,
    TEXT_COLUMNS,
    StoredTask,
    stored_from_row,
    text_from_row,
)
from datahound_storage.postgres.times import clamped
from datahound_storage.tasks import TaskColumns
from datahound_storage.writes import Conflict

Connection = psycopg.Connection[Any]

COLUMNS = (
    "task_key, task_type, company, schedule_type, schedule_expr, status, created_at, updated_at"
)


class TaskRow(NamedTuple):
    """A task, ready for the table."""

    id: UUID
    columns: TaskColumns
    text: str
    timezone: str


class Written(NamedTuple):
    """What a change left in the table: the stamp of its transaction, and the task's place."""

    stamp: int
    position: int


def new_row(columns: TaskColumns, text: str, timezone: str) -> TaskRow:
    """The row of a task, with a new id."""
    return TaskRow(uuid4(), columns, text, timezone)


_INSERT = f"""
INSERT INTO scheduler_tasks (id, {COLUMNS}, config_json, task_text, timezone)
VALUES (%s, %s, %s, %s, %s, %s, %s, coalesce(%s, now()), coalesce(%s, now()), %s, %s, %s)
ON CONFLICT (task_key) DO NOTHING
RETURNING changed_xid::text, position"""


def insert(connection: Connection, row: TaskRow) -> Written | None:
    """Add a task; None if the key exists (with another id)."""
    values = (row.id, *row.columns, for_jsonb(row.text), row.text, row.timezone)
    return _written(connection.execute(_INSERT, values).fetchone())


_OWN = "SELECT changed_xid::text, position FROM scheduler_tasks WHERE task_key = %s AND id = %s"


def inserted(connection: Connection, row: TaskRow) -> Written | None:
    """What an earlier attempt to insert this very row left, None if it left nothing."""
    return _written(connection.execute(_OWN, (row.columns.task_key, row.id)).fetchone())


_UPDATE = """
UPDATE scheduler_tasks SET
    task_type = %s, company = %s, schedule_type = %s, schedule_expr = %s, status = %s,
    created_at = coalesce(%s, created_at), updated_at = coalesce(%s, updated_at),
    config_json = %s, task_text = %s, timezone = coalesce(%s, timezone), edited_columns = '{}'
WHERE task_key = %s AND changed_xid = %s::xid8
RETURNING changed_xid::text, position"""


def update(
    connection: Connection,
    row: TaskRow,
    *,
    expected: int,
    timezone: str | None = None,
    conflicts: Sequence[Conflict] = (),
) -> Written | None:
    """Change a task that is as its reader saw it; None if it is gone or was changed since.

    What loses by it is kept in the same transaction.
    """
    target = (row.columns.task_key, str(expected))
    values = (*row.columns[1:], for_jsonb(row.text), row.text, timezone, *target)
    if not conflicts:
        return _written(connection.execute(_UPDATE, values).fetchone())
    with connection.transaction():
        written = _written(connection.execute(_UPDATE, values).fetchone())
        if written is not None:
            insert_conflicts(connection, conflicts)
        return written


def _written(found: tuple[Any, ...] | None) -> Written | None:
    return None if found is None else Written(int(found[0]), found[1])


_DELETE = """
DELETE FROM scheduler_tasks WHERE task_key = %s RETURNING pg_current_xact_id()::text"""
_TOMBSTONE = "SELECT deleted_xid::text FROM scheduler_task_tombstones WHERE task_key = %s"


def delete(connection: Connection, task_key: str) -> int | None:
    """Delete a task; return the stamp of the transaction, None if there was no such task."""
    found = connection.execute(_DELETE, (task_key,)).fetchone()
    return None if found is None else int(found[0])


def deleted(connection: Connection, task_key: str) -> int | None:
    """The stamp of the transaction that deleted a key, None if it never was deleted."""
    found = connection.execute(_TOMBSTONE, (task_key,)).fetchone()
    return None if found is None else int(found[0])


_FETCH = f"SELECT {STORED_COLUMNS} FROM scheduler_tasks WHERE task_key = %s"


def fetch(connection: Connection, task_key: str) -> StoredTask | None:
    """A task by its key."""
    found = connection.execute(_FETCH, (task_key,)).fetchone()
    return None if found is None else stored_from_row(found)


_FETCH_TEXT = f"SELECT {TEXT_COLUMNS} FROM scheduler_tasks WHERE task_key = %s"


def fetch_text(connection: Connection, task_key: str) -> str | None:
    """A task's text by its key."""
    found = connection.execute(_FETCH_TEXT, (task_key,)).fetchone()
    return None if found is None else text_from_row(*found)


_MIRRORS = (
    "task_key, task_type, company, schedule_type, schedule_expr, status, "
    f"{clamped('created_at')}, {clamped('updated_at')}"
)
_LIST = f"""
SELECT id, {_MIRRORS}, timezone, {STORED_COLUMNS} FROM scheduler_tasks
WHERE (%(company)s::text IS NULL OR company = %(company)s)
  AND (%(status)s::text IS NULL OR status = %(status)s)
  AND (%(task_key)s::text IS NULL OR task_key = %(task_key)s)
ORDER BY position, task_key"""


class ListedTask(NamedTuple):
    """A task with its columns, for those who want the row."""

    row: TaskRow
    stored: StoredTask


def list_rows(
    connection: Connection,
    *,
    company: str | None = None,
    status: str | None = None,
    task_key: str | None = None,
) -> list[ListedTask]:
    """The tasks that fit, in their order."""
    values = {"company": company, "status": status, "task_key": task_key}
    return [_listed(row) for row in connection.execute(_LIST, values)]


def _listed(row: tuple[Any, ...]) -> ListedTask:
    stored = stored_from_row(row[10:])
    return ListedTask(TaskRow(row[0], TaskColumns(*row[1:9]), stored.text, row[9]), stored)


_CONFLICT = """
INSERT INTO scheduler_conflicts (task_key, half, kept, lost_text, reason)
SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[])"""


def insert_conflicts(connection: Connection, conflicts: Sequence[Conflict]) -> None:
    """Keep versions that lost."""
    # One statement: executemany would open a pipeline, which writes to the log where it breaks.
    connection.execute(_CONFLICT, [list(column) for column in zip(*conflicts, strict=True)])


class KeptConflict(NamedTuple):
    """A version that lost, as it was kept."""

    id: int
    conflict: Conflict
    noticed_at: datetime


_CONFLICTS = """
SELECT id, noticed_at, task_key, half, kept, lost_text, reason
FROM scheduler_conflicts ORDER BY id"""


def conflicts(connection: Connection) -> list[KeptConflict]:
    """The versions that lost, oldest first."""
    rows = connection.execute(_CONFLICTS)
    return [KeptConflict(row[0], Conflict(*row[2:]), row[1]) for row in rows]


def delete_conflicts(connection: Connection, ids: Sequence[int]) -> int:
    """Delete kept versions; return how many there were."""
    query = "DELETE FROM scheduler_conflicts WHERE id = ANY(%s)"
    return connection.execute(query, (list(ids),)).rowcount


class Tombstone(NamedTuple):
    """When a key was deleted, and the text that it then had, where that is known."""

    deleted_at: datetime
    task_text: str | None


_TOMBSTONES = "SELECT task_key, deleted_at, task_text FROM scheduler_task_tombstones"


def tombstones(connection: Connection) -> dict[str, Tombstone]:
    """The tombstone of each deleted key."""
    return {key: Tombstone(*rest) for key, *rest in connection.execute(_TOMBSTONES)}
