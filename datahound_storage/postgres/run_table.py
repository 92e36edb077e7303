"""The statements on `scheduler_runs`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from types import NoneType
from typing import Any, NamedTuple

import orjson
import psycopg

from datahound_storage.codec import loads
from datahound_storage.postgres.times import clamped
from datahound_storage.runs import (
    HistoryEntry,
    RunRow,
    entry_from,
    entry_of,
    line_text,
    unknown_task_id,
)

Connection = psycopg.Connection[Any]

# How many are inserted at once, and how many are in memory at a time where they are streamed.
BATCH = 10_000
FETCHED = 2000
# The end of a run; of one that goes on (or that died without saying so), its start.
ENDED = "coalesce(r.finished_at, r.started_at)"
ROW = (
    f"r.id, r.run_id, coalesce(r.task_key, ''), {clamped('r.started_at')}, "
    f"{clamped('r.finished_at')}, r.success, r.message, r.duration_ms, r.metadata_json, r.line_text"
)


class StoredRun(NamedTuple):
    """A row of the table. `row.metadata_text` is empty: `metadata` has the value."""

    row: RunRow
    metadata: dict[str, Any]
    task_id: Any


def entry_of_stored(stored: StoredRun) -> HistoryEntry:
    """The history entry that a row stands for: what its line said."""
    entry = entry_of_text(stored.row.line_text)
    return entry_of(stored.row.run_id, stored.row, stored.metadata) if entry is None else entry


def entry_of_text(text: str | None) -> HistoryEntry | None:
    """The history entry of a line's text; None without one, or for what somebody else put there."""
    if text is None:
        return None
    try:
        entry = loads(text)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def line_of(stored: StoredRun) -> str:
    """The history line of a row, without its end."""
    return stored.row.line_text or line_text(entry_of_stored(stored))


def line_of_columns(stored: StoredRun) -> str:
    """The history line that the columns of a row say."""
    return line_text(entry_of(stored.row.run_id, stored.row, stored.metadata))


_INSERT = """
INSERT INTO scheduler_runs AS r (
    id, run_id, task_key, started_at, finished_at, success, message, duration_ms, metadata_json,
    line_text, task_id)
SELECT v.*, coalesce((SELECT id FROM scheduler_tasks WHERE task_key = v.task_key), %s::uuid)
FROM (VALUES (%s::uuid, %s::text, %s::text, %s::timestamptz, %s::timestamptz, %s::boolean,
              %s::text, %s::bigint, %s::jsonb, %s::text))
    AS v (id, run_id, task_key, started_at, finished_at, success, message, duration_ms,
          metadata_json, line_text)
ON CONFLICT (run_id) DO UPDATE SET
    finished_at = excluded.finished_at, success = excluded.success, message = excluded.message,
    duration_ms = excluded.duration_ms, metadata_json = excluded.metadata_json
WHERE r.finished_at IS NULL AND excluded.finished_at IS NOT NULL"""


def insert(connection: Connection, row: RunRow) -> None:
    """Record a run; harmless when sent again. A row that had no end yet gets it."""
    connection.execute(_INSERT, (unknown_task_id(row.task_key), *row))


_INCOMING = """
CREATE TEMP TABLE incoming_runs (
    ordinal bigint, unknown_task_id uuid, id uuid, run_id text, task_key text,
    started_at timestamptz, finished_at timestamptz, success boolean, message text,
    duration_ms bigint, metadata_json jsonb, line_text text
) ON COMMIT DROP"""
# What was trimmed while they were on their way stays away.
_INSERT_MANY = """
INSERT INTO scheduler_runs (
    id, task_id, run_id, started_at, finished_at, success, message, duration_ms, metadata_json,
    task_key, line_text)
SELECT i.id, coalesce(t.id, i.unknown_task_id), i.run_id, i.started_at, i.finished_at, i.success,
       i.message, i.duration_ms, i.metadata_json, i.task_key, i.line_text
FROM incoming_runs AS i LEFT JOIN scheduler_tasks AS t ON t.task_key = i.task_key
WHERE i.finished_at >= coalesce((SELECT history_cutoff FROM scheduler_storage), '-infinity')
ORDER BY i.ordinal
ON CONFLICT (run_id) DO NOTHING"""


def insert_many(connection: Connection, rows: Sequence[RunRow]) -> int:
    """Record a batch of runs in a transaction of its own; return how many were new."""
    with connection.transaction():
        connection.execute(_INCOMING)
        with connection.cursor().copy("COPY incoming_runs FROM STDIN") as copy:
            for ordinal, row in enumerate(rows):
                copy.write_row((ordinal, unknown_task_id(row.task_key), *row))
        return connection.execute(_INSERT_MANY).rowcount


# What an entry is made of; jsonb as text: it is parsed faster than by the driver.
_ENTRY = f"""
r.line_text, r.run_id, coalesce(r.task_key, ''), {clamped("r.finished_at")}, r.success, r.message,
r.duration_ms, r.metadata_json::text"""
_NEWEST = f"""
SELECT {{columns}} FROM scheduler_runs AS r
WHERE true {{condition}}
ORDER BY {ENDED} DESC, r.seq DESC LIMIT %(limit)s"""
_OF_TASK = "AND r.task_key = %(task_key)s"
_ENDED_ONLY = "AND r.finished_at IS NOT NULL"


def newest_statement(*, of_task: bool, ended_only: bool, columns: str = f"{ROW}, r.task_id") -> str:
    """The statement of `newest`; public so that a test can look at its plan."""
    condition = f"{_OF_TASK if of_task else ''} {_ENDED_ONLY if ended_only else ''}"
    return _NEWEST.format(columns=columns, condition=condition)


def entries_statement(*, of_task: bool) -> str:
    """The statement of `newest_entries`; public for the same reason."""
    return newest_statement(of_task=of_task, ended_only=True, columns=_ENTRY)


# Put together once: by task, and of all.
_NEWEST_ENTRIES = {
    of_task: entries_statement(of_task=of_task).encode() for of_task in (True, False)
}


def newest_entries(connection: Connection, task_key: str | None, limit: int) -> list[HistoryEntry]:
    """The history entries of the newest runs that ended (of one task), newest first."""
    values = {"task_key": task_key, "limit": limit}
    rows = connection.execute(_NEWEST_ENTRIES[task_key is not None], values).fetchall()
    return list(map(_entry, rows))


def _entry(row: tuple[Any, ...]) -> HistoryEntry:
    text, run_id, task_key, ended_at, success, message, duration_ms, metadata_text = row
    if (entry := entry_of_text(text)) is not None:
        return entry
    metadata = _loads_metadata(metadata_text)
    return entry_from(run_id, task_key, ended_at, success, message, duration_ms, metadata)


# Beyond it orjson may have made a float of what is an integer.
_EXACT = 2.0**53
_EXACT_TYPES = frozenset((str, int, bool, NoneType))


def _loads_metadata(text: str | None) -> dict[str, Any]:
    """The value of a jsonb, {} for anything but an object: by hand, anything can be put there."""
    try:
        value = orjson.loads(text or "{}")
        is_exact = all(
            type(item) in _EXACT_TYPES or (type(item) is float and -_EXACT < item < _EXACT)
            for item in value.values()
        )
        if not is_exact:
            value = json.loads(text or "{}")
    except (orjson.JSONDecodeError, RecursionError, AttributeError):
        return {}  # nested too deeply, or no object
    given: dict[str, Any] = value
    return given


def newest(
    connection: Connection, task_key: str | None, limit: int | None, *, ended_only: bool = False
) -> list[StoredRun]:
    """The newest runs (of one task), newest first: by end, then insertion. None: all of them."""
    statement = newest_statement(of_task=task_key is not None, ended_only=ended_only)
    cursor = connection.execute(statement.encode(), {"task_key": task_key, "limit": limit})
    return [stored_run(row) for row in cursor]


def stored_run(row: tuple[Any, ...]) -> StoredRun:
    """The run of a row of ROW and its task's id."""
    return StoredRun(_run_row(row), _metadata(row), row[10])


def _run_row(row: tuple[Any, ...]) -> RunRow:
    return RunRow._make((*row[:8], "", row[9]))


def _metadata(row: tuple[Any, ...]) -> dict[str, Any]:
    # By hand, anything can be put there.
    return row[8] if isinstance(row[8], dict) else {}


_IDS = "SELECT run_id FROM scheduler_runs WHERE finished_at IS NOT NULL"


def run_ids(connection: Connection) -> set[str]:
    """The ids of all runs that ended."""
    return {row[0] for row in connection.execute(_IDS)}


_IDS_BEFORE = f"SELECT r.run_id FROM scheduler_runs AS r WHERE {ENDED} < %s"


def ids_before(connection: Connection, cutoff: datetime) -> set[str]:
    """The ids of the runs that ended (or, without an end, started) before a time."""
    return {row[0] for row in connection.execute(_IDS_BEFORE.encode(), (cutoff,))}


_ENDED_RUNS = f"""
SELECT {ROW}, r.task_id FROM scheduler_runs AS r WHERE r.finished_at IS NOT NULL
ORDER BY {ENDED}, r.seq"""


def ended_runs(connection: Connection) -> Iterator[StoredRun]:
    """All runs that ended, oldest first, streamed. Needs a transaction around it."""
    return map(stored_run, streamed(connection, _ENDED_RUNS))


def streamed(connection: Connection, query: str) -> Iterator[tuple[Any, ...]]:
    """The rows of a query, some at a time. Needs a transaction around it, and is read to its end.

    By hand: the driver's own cursor warns where a connection breaks before it is closed.
    """
    connection.execute(f"DECLARE streamed CURSOR FOR {query}".encode(), prepare=False)
    fetch = f"FETCH FORWARD {FETCHED} FROM streamed".encode()
    while rows := connection.execute(fetch, prepare=False).fetchall():
        yield from rows
    connection.execute(b"CLOSE streamed", prepare=False)


_CUTOFF = """
UPDATE scheduler_storage SET history_cutoff = greatest(history_cutoff, %s)"""


def remember_cutoff(connection: Connection, cutoff: datetime) -> None:
    """Keep runs that ended before `cutoff` from being carried back from a file."""
    connection.execute(_CUTOFF, (cutoff,))


def history_cutoff(connection: Connection) -> datetime | None:
    """The time before which runs are gone for good, None if none ever were trimmed."""
    row = connection.execute("SELECT history_cutoff FROM scheduler_storage").fetchone()
    return row[0] if row else None


def clock(connection: Connection) -> datetime:
    """The time on the database's clock, in UTC."""
    row = connection.execute("SELECT clock_timestamp()").fetchone()
    now: datetime = row[0] if row else datetime.now(UTC)
    return now.astimezone(UTC)


def batches(rows: Iterable[RunRow]) -> Iterator[list[RunRow]]:
    """The rows in batches that bound memory and the length of a transaction."""
    batch: list[RunRow] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
