"""Reading what changed since a known state, and the database's account of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from datahound_storage.errors import SchemaError
from datahound_storage.postgres.deadline import DeadlineConnection
from datahound_storage.postgres.stored import (
    STORED_COLUMNS,
    StoredTask,
    stored_columns,
    stored_from_row,
)
from datahound_storage.postgres.watermark import Watermark


class DatabaseState(NamedTuple):
    """Which database this is, and the state of it that was read.

    `incarnation` changes where transaction ids start anew: another cluster, a restored dump, and
    a promoted standby (another timeline), which may use ids again that it has not heard of.
    """

    identity: str
    incarnation: str
    epoch: int
    filled: bool
    watermark: Watermark


class Changes(NamedTuple):
    """A reading: all tasks if `full`, else the changed ones and the keys of the deleted ones."""

    state: DatabaseState
    full: bool
    tasks: list[StoredTask]
    deleted: list[tuple[str, int]]
    newest_us: int


class OwnWrites(NamedTuple):
    """What a transaction of this process wrote: its stamp, and the text of each task."""

    stamp: int
    texts: Mapping[str, str]


_STATE = """
    s.identity::text, s.of_table, s.epoch, s.filled_at IS NOT NULL, pg_current_snapshot()::text"""
_STORAGE = """
(SELECT identity, tableoid::bigint AS of_table, epoch, filled_at FROM scheduler_storage LIMIT 1)"""

# Later than any transaction. With an upper end the planner thinks that the range is a small one,
# though it does not know where it begins: so one plan for all is as good as one for each watermark,
# and is kept. Planning takes three times as long as the rest.
_NO_XID = "'9223372036854775807'::xid8"
_SINCE = f"""
SELECT {_STATE}, c.* FROM {_STORAGE} AS s LEFT JOIN (
    SELECT {{columns}}, false FROM scheduler_tasks
    WHERE changed_xid >= pg_snapshot_xmin(%(watermark)s::pg_snapshot)
      AND changed_xid < {_NO_XID}
      AND NOT pg_visible_in_snapshot(changed_xid, %(watermark)s::pg_snapshot)
    UNION ALL
    SELECT task_key, NULL, deleted_xid::text,
           (extract(epoch FROM deleted_at) * 1000000)::bigint, NULL, NULL, true
    FROM scheduler_task_tombstones
    WHERE deleted_xid >= pg_snapshot_xmin(%(watermark)s::pg_snapshot)
      AND deleted_xid < {_NO_XID}
      AND NOT pg_visible_in_snapshot(deleted_xid, %(watermark)s::pg_snapshot)
) AS c ON true"""

_ALL = f"""
SELECT {_STATE}, c.* FROM {_STORAGE} AS s LEFT JOIN (
    SELECT {{columns}}, false FROM scheduler_tasks
) AS c ON true"""

_NEWEST = """
SELECT (extract(epoch FROM greatest(
    (SELECT max(changed_at) FROM scheduler_tasks),
    (SELECT max(deleted_at) FROM scheduler_task_tombstones))) * 1000000)::bigint"""

_STATE_WIDTH = 5
# Where the text is in a row of STORED_COLUMNS.
_TEXT = 4
# Who has written a text need not be sent it. No JSON object begins like that.
_OWN = "="
_LESS = stored_columns(f"""
    CASE WHEN changed_xid = %(own)s::xid8 AND task_text IS NOT NULL THEN '{_OWN}'
    ELSE task_text END""")
_STATEMENTS = {
    (full, own): (_ALL if full else _SINCE)
    .format(columns=_LESS if own else STORED_COLUMNS)
    .encode()
    for full in (False, True)
    for own in (False, True)
}


def read_since(
    connection: DeadlineConnection, known: DatabaseState, own: OwnWrites | None = None
) -> Changes:
    """What changed since `known`; everything where a difference cannot tell it."""
    changes = _changes(connection, known, own)
    fresh = changes.state
    continues = (
        (fresh.identity, fresh.incarnation, fresh.epoch)
        == (known.identity, known.incarnation, known.epoch)
    ) and fresh.watermark.xmax >= known.watermark.xmax
    return changes if continues else read_all(connection, own)


def read_all_since(
    connection: DeadlineConnection, known: DatabaseState, tasks: Mapping[str, StoredTask]
) -> Changes:
    """As `read_all`, where `tasks` are those of the known state or of later ones.

    Only what changed is fetched; the time of the newest change is that of the newest in it.
    """
    since = read_since(connection, known)
    if since.full:
        return since
    gone = dict(since.deleted)
    kept = {key: task for key, task in tasks.items() if key not in gone}
    kept.update((task.task_key, task) for task in since.tasks)
    return since._replace(full=True, tasks=list(kept.values()), deleted=[])


def read_all(connection: DeadlineConnection, own: OwnWrites | None = None) -> Changes:
    """All tasks, with the state of the database that they show."""
    changes = _changes(connection, None, own)
    newest = connection.execute(_NEWEST).fetchone()
    return changes._replace(newest_us=(newest and newest[0]) or 0)


def _changes(
    connection: DeadlineConnection, known: DatabaseState | None, own: OwnWrites | None
) -> Changes:
    values = {} if known is None else {"watermark": str(known.watermark)}
    if own is not None:
        values["own"] = str(own.stamp)
    statement = _STATEMENTS[known is None, own is not None]
    rows = connection.execute(statement, values).fetchall()
    if not rows:
        raise SchemaError(
            "the table scheduler_storage has lost its row: run `datahound-storage upgrade`."
        )
    state = _state(connection, rows[0])
    found = [row[_STATE_WIDTH:] for row in rows if row[_STATE_WIDTH] is not None]
    if own is not None:
        completed = [_completed(row, own) for row in found]
        if None in completed:
            return _changes(connection, known, None)
        found = [row for row in completed if row is not None]
    tasks = [stored_from_row(row[:-1]) for row in found if not row[-1]]
    present = {stored.task_key for stored in tasks}
    gone = [(row[0], int(row[2])) for row in found if row[-1] and row[0] not in present]
    return Changes(state, known is None, tasks, gone, max((row[3] for row in found), default=0))


def _completed(row: tuple[Any, ...], own: OwnWrites) -> tuple[Any, ...] | None:
    """A row with its text; None where it was not written as was thought."""
    if row[_TEXT] != _OWN:
        return row
    written = own.texts.get(row[0])
    return None if written is None else (*row[:_TEXT], written, *row[_TEXT + 1 :])


def _state(connection: DeadlineConnection, row: tuple[Any, ...]) -> DatabaseState:
    identity, table, epoch, filled, watermark = row[:_STATE_WIDTH]
    incarnation = f"{cluster_of(connection)}/{table}"
    return DatabaseState(identity, incarnation, epoch, filled, Watermark.parse(watermark))


_CLUSTER = """
SELECT (SELECT system_identifier FROM pg_control_system())::text || '/' ||
       (SELECT oid FROM pg_database WHERE datname = current_database())::text || '/' ||
       CASE WHEN pg_is_in_recovery() THEN ''
            ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END"""


def cluster_of(connection: DeadlineConnection) -> str:
    """The identity of the cluster and database that a connection leads to; asked once for each."""
    if connection.cluster is None:
        row = connection.execute(_CLUSTER).fetchone()
        connection.cluster = str(row[0]) if row else ""
    return connection.cluster
