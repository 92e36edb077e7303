"""The statements that prune runs: a batch each, under a time limit, by one pruner at a time."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

import psycopg
from psycopg import errors as pg
from psycopg.rows import tuple_row

Connection = psycopg.Connection[Any]

# What one statement looks at. Whoever wants one of its rows waits for as long as it takes.
BATCH = 8000
# Where the newest of each task are to be found as well.
BATCH_KEEPING = 2000
# A statement that takes longer is cancelled, and tried with fewer rows.
STATEMENT_SECONDS = 5.0
# How long a batch waits for a row that somebody holds, before it is tried without such rows.
LOCK_MILLISECONDS = 20
_ENDED = "coalesce(r.finished_at, r.started_at)"


class Place(NamedTuple):
    """Where a batch ended, so that the next one need not look at what is deleted or kept."""

    ended_at: str = "-infinity"
    seq: int | None = -(2**63)


class Batch(NamedTuple):
    """What became of a batch: rows looked at, deleted, and left as somebody was changing them."""

    seen: int
    deleted: int
    in_use: int
    place: Place


# The oldest run that is kept of each task that the batch has runs of: found once for a task, not
# once for a run. A task without so many runs has none, and keeps them all.
_OLDEST_KEPT = """
kept AS MATERIALIZED (
    SELECT k.task_key, oldest.ended_at, oldest.seq
    FROM (SELECT DISTINCT task_key FROM old WHERE task_key IS NOT NULL) AS k
    CROSS JOIN LATERAL (
        SELECT coalesce(n.finished_at, n.started_at) AS ended_at, n.seq
        FROM ONLY scheduler_runs AS n WHERE n.task_key = k.task_key
        ORDER BY coalesce(n.finished_at, n.started_at) DESC, n.seq DESC
        OFFSET %(keep_last)s::bigint - 1 LIMIT 1) AS oldest),"""
_NOT_KEPT = """
    WHERE old.task_key IS NULL OR EXISTS (
        SELECT FROM kept WHERE kept.task_key = old.task_key
          AND (old.ended_at, old.seq) < (kept.ended_at, kept.seq))"""
_PRUNE = f"""
WITH old AS MATERIALIZED (
    SELECT r.ctid AS place, r.task_key, {_ENDED} AS ended_at, r.seq FROM ONLY scheduler_runs AS r
    WHERE {_ENDED} < %(cutoff)s
      AND ({_ENDED}, r.seq) > (%(ended_at)s::timestamptz, %(seq)s::bigint)
    ORDER BY {_ENDED}, r.seq
    -- the next batch begins after them all: those that somebody gave no seq have no order
    FETCH FIRST (%(size)s::bigint) ROWS WITH TIES),
{{oldest_kept}}
-- By their place, which is one in this table: nothing else gets it while this statement can see the
-- row. One that was changed meanwhile has another place, and is left.
wanted AS MATERIALIZED (SELECT old.place FROM old {{not_kept}}),
{{free}}
gone AS (
    DELETE FROM ONLY scheduler_runs AS r WHERE r.ctid = ANY(ARRAY(SELECT place FROM {{chosen}}))
      AND {_ENDED} < %(cutoff)s -- it may have got its end since
    RETURNING 1),
last AS (SELECT ended_at, seq FROM old ORDER BY ended_at DESC, seq DESC LIMIT 1)
SELECT (SELECT count(*) FROM old), (SELECT count(*) FROM gone),
       (SELECT count(*) FROM wanted) - (SELECT count(*) FROM gone),
       (SELECT ended_at::text FROM last), (SELECT seq FROM last)"""


# Those of them that nobody holds, which costs as much as the deletion itself.
_FREE = f"""
free AS MATERIALIZED (
    SELECT r.ctid AS place FROM ONLY scheduler_runs AS r
    WHERE r.ctid = ANY(ARRAY(SELECT place FROM wanted)) AND {_ENDED} < %(cutoff)s
    FOR UPDATE SKIP LOCKED),"""


def prune_statement(keep_last: int, *, careful: bool) -> str:
    """The statement of a batch; public so that a test can look at its plan.

    `careful`: leave the rows that somebody holds, instead of waiting for them.
    """
    return _PRUNE.format(
        oldest_kept=_OLDEST_KEPT if keep_last else "",
        not_kept=_NOT_KEPT if keep_last else "",
        free=_FREE if careful else "",
        chosen="free" if careful else "wanted",
    )


def prune_batch(
    connection: Connection, cutoff: datetime, keep_last: int, place: Place, size: int
) -> Batch:
    """Delete those of the next `size` runs before `cutoff` that are not to be kept.

    Committed when it returns. Raises QueryCanceled where it takes over STATEMENT_SECONDS.
    """
    values = {**place._asdict(), "cutoff": cutoff, "keep_last": keep_last, "size": size}
    try:
        row = _prune(
            connection, prune_statement(keep_last, careful=False), values, LOCK_MILLISECONDS
        )
    except pg.LockNotAvailable:
        # It leaves the rows that somebody holds: what it waits for is the table.
        longest = round(STATEMENT_SECONDS * 1000)
        row = _prune(connection, prune_statement(keep_last, careful=True), values, longest)
    seen, deleted, in_use, ended_at, seq = row or (0, 0, 0, None, None)
    return Batch(seen, deleted, in_use, Place(ended_at, seq) if ended_at else place)


def _prune(connection: Connection, statement: str, values: dict[str, Any], patience: int) -> Any:
    # In another isolation a run that somebody has just changed would be an error.
    begin = (
        "SET TRANSACTION ISOLATION LEVEL READ COMMITTED;"
        f"SET LOCAL lock_timeout = {patience};"
        f"SET LOCAL statement_timeout = {round(STATEMENT_SECONDS * 1000)}"
    )
    with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
        cursor.execute(begin.encode(), prepare=False)
        return cursor.execute(statement.encode(), values).fetchone()


_TRY_LOCK = b"""
SELECT pg_try_advisory_xact_lock(
    hashtextextended('datahound-storage:prune:' || current_schema(), 0))
"""


def begin_pruning(connection: Connection) -> None:
    """Open the transaction that holds a pruner's lock, on a connection that does nothing else.

    Such a lock works through PgBouncer too and ends with the process. The open transaction holds no
    snapshot, so nothing waits for it.
    """
    connection.prepare_threshold = None
    # Whatever the role's default is: in another isolation the transaction would hold a snapshot.
    connection.execute(b"BEGIN ISOLATION LEVEL READ COMMITTED")
    connection.execute(b"SET LOCAL idle_in_transaction_session_timeout = 0")
    if connection.info.server_version >= 170000:
        connection.execute(b"SET LOCAL transaction_timeout = 0")


def try_prune_lock(connection: Connection) -> bool:
    """Whether nobody else prunes, nor begins to until the transaction ends."""
    row = connection.execute(_TRY_LOCK).fetchone()
    return row is not None and bool(row[0])


_ANY_BEFORE = f"""
SELECT EXISTS (SELECT FROM ONLY scheduler_runs AS r WHERE {_ENDED} < %s)"""


def any_before(connection: Connection, cutoff: datetime) -> bool:
    """Whether there is a run that ended (or, without an end, started) before."""
    row = connection.execute(_ANY_BEFORE.encode(), (cutoff,)).fetchone()
    return row is not None and bool(row[0])
