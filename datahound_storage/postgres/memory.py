"""What the database remembers for those who change many tasks at once."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from datahound_storage.postgres.deadline import DeadlineConnection

# Entries that nobody came back for: a directory that is gone, a process that died after writing.
_MOST_MARKS = 16
_MOST_TOKENS = 32

_REMEMBER = f"""
UPDATE scheduler_storage SET carried_over = coalesce(kept.others, '{{}}') || jsonb_build_object(
    %(mark)s::text, jsonb_build_array(extract(epoch FROM clock_timestamp()), %(text)s::text))
FROM (SELECT jsonb_object_agg(key, value) AS others FROM (
    SELECT key, value FROM scheduler_storage, jsonb_each(carried_over - %(mark)s::text)
    ORDER BY value -> 0 DESC NULLS LAST LIMIT {_MOST_MARKS - 1}) AS newest) AS kept"""


def carried_over(connection: DeadlineConnection, mark: str) -> str | None:
    """What a meeting with the files of this mark has carried over, None where that is not kept."""
    query = "SELECT carried_over -> %s ->> 1 FROM scheduler_storage"
    row = connection.execute(query, (mark,)).fetchone()
    return row[0] if row else None


def remember_carried_over(connection: DeadlineConnection, mark: str, text: str | None) -> None:
    """Keep what a meeting carries over, in its transaction; None: nothing any more."""
    if text is None:
        forget_carried_over(connection, mark)
    else:
        connection.execute(_REMEMBER, {"mark": mark, "text": text})


def forget_carried_over(connection: DeadlineConnection, mark: str) -> None:
    """Forget it: the snapshot shows it."""
    statement = "UPDATE scheduler_storage SET carried_over = carried_over - %s::text"
    connection.execute(f"{statement} WHERE carried_over ? %s", (mark, mark))


_BEGIN = f"""
UPDATE scheduler_storage SET recent_changes = (%s || recent_changes)[1:{_MOST_TOKENS}]
RETURNING pg_current_xact_id()::text, pg_backend_pid(), (
    SELECT relhasrules FROM pg_class WHERE oid = 'scheduler_tasks'::regclass) OR EXISTS (
    SELECT FROM pg_trigger WHERE tgrelid = 'scheduler_tasks'::regclass AND NOT tgisinternal
      AND tgname <> ALL (%s))"""
# Others could change a row on its way into the table.
_OUR_TRIGGERS = [
    f"scheduler_tasks_{name}"
    for name in ("stamp", "bury", "bury_old_key", "begin_epoch", "note_filling")
]


class Begun(NamedTuple):
    """A transaction: its stamp, its session, and whether somebody else's triggers or rules may
    change what it writes.
    """

    stamp: int
    session: int
    is_meddled_with: bool


def begin_change(connection: DeadlineConnection, token: UUID) -> Begun:
    """Sign the caller's transaction."""
    row = connection.execute(_BEGIN, (token, _OUR_TRIGGERS)).fetchone()
    return Begun(int(row[0]), *row[1:]) if row else Begun(0, 0, True)


def is_committed(connection: DeadlineConnection, token: UUID) -> bool:
    """Whether the transaction that was signed so is committed, once it has ended."""
    query = "SELECT %s = ANY (recent_changes) FROM scheduler_storage"
    return connection.execute(query, (token,)).fetchone() == (True,)
