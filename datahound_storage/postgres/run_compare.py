"""The statements that tell which runs only a table has, and which only the history files.

A temporary table holds what the files show. All is one transaction, so that it works through a
pooler that gives a session for no longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import psycopg

from datahound_storage.postgres.run_table import ENDED, ROW, StoredRun, stored_run, streamed

Connection = psycopg.Connection[Any]

# Others may be at work on the server for minutes while what was found is inserted by another
# connection; this one then waits with its transaction open. All that it finds is wanted.
_BEGIN = b"""
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
SET LOCAL idle_in_transaction_session_timeout = 0;
SET LOCAL cursor_tuple_fraction = 1.0;
SET LOCAL work_mem = '64MB';
CREATE TEMP TABLE shown_runs (file smallint, place bigint, run_id text, digest text) ON COMMIT DROP
"""
_NO_LIMIT = b"SET LOCAL transaction_timeout = 0"
# The number of a line among equal ones of its file, by which `identify` names it too.
_NAME = b"""
INSERT INTO shown_runs (file, place, run_id)
SELECT file, place, digest || '-' || row_number() OVER (
    PARTITION BY file, digest COLLATE "C" ORDER BY place)
FROM shown_runs WHERE digest IS NOT NULL"""
ONLY_SHOWN = """
SELECT s.file, s.place, s.run_id FROM shown_runs AS s
WHERE s.run_id IS NOT NULL
  AND NOT EXISTS (SELECT FROM scheduler_runs AS r WHERE r.run_id = s.run_id)
ORDER BY s.file, s.place"""
ONLY_STORED = f"""
SELECT {ROW}, r.task_id FROM scheduler_runs AS r
WHERE r.finished_at IS NOT NULL
  AND NOT EXISTS (SELECT FROM shown_runs AS s WHERE s.run_id = r.run_id)
ORDER BY {ENDED}, r.seq"""


def load_shown(connection: Connection, blocks: Iterable[bytes]) -> None:
    """Fill the temporary table, in the transaction that the caller has begun."""
    connection.execute(_BEGIN, prepare=False)
    if connection.info.server_version >= 170000:
        connection.execute(_NO_LIMIT)
    with connection.cursor().copy(b"COPY shown_runs FROM STDIN") as copy:
        for block in blocks:
            copy.write(block)


def name_unnamed(connection: Connection) -> None:
    """Give ids to the lines that have none."""
    connection.execute(_NAME)


def analyze(connection: Connection) -> None:
    """Tell the planner how much was loaded."""
    connection.execute(b"ANALYZE shown_runs")


def only_shown(connection: Connection) -> Iterator[tuple[Any, ...]]:
    """(file, place, run_id) of the lines that the table lacks, streamed."""
    return streamed(connection, ONLY_SHOWN)


def only_stored(connection: Connection) -> Iterator[StoredRun]:
    """The runs that ended and that no line shows, oldest first, streamed."""
    return map(stored_run, streamed(connection, ONLY_STORED))
