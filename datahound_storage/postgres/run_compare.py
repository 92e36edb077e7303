"""The statements that tell which runs only a table has, and which only the history files.

A temporary table holds what the files show. All is one transaction, so that it works through a
pooler that gives a session for no longer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import psycopg

from datahound_storage.postgres.run_table import (
    ENDED,
    ROW,
    StoredRun,
    ended_runs,
    stored_run,
    streamed,
)

Connection = psycopg.Connection[Any]

# The transaction is open for as long as it takes to read all files, which may be long ones. All
# that it finds is wanted.
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


_IDS = b"SELECT run_id FROM scheduler_runs WHERE run_id IS NOT NULL"
_NULL = b"\\N"
# As COPY spells what a text may hold.
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_ESCAPED = {b"n": b"\n", b"t": b"\t", b"r": b"\r"}


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


class Compared(NamedTuple):
    """What the comparison found; `only_stored` is streamed, in the transaction of the caller."""

    only_shown: list[tuple[int, int, str]]
    only_stored: Iterator[StoredRun]


def compare_here(connection: Connection, blocks: Iterable[bytes]) -> Compared:
    """As the statements do it, without a temporary table: the ids are in memory meanwhile.

    The blocks are in UTF-8.
    """
    stored = {row[0] for row in connection.execute(_IDS)}
    found, named, numbers = [], set(), Counter[tuple[bytes, bytes]]()
    for line in chain.from_iterable(block.rstrip(b"\n").split(b"\n") for block in blocks if block):
        file, place, run_id, digest = line.split(b"\t")
        if digest != _NULL:
            numbers[file, digest] += 1
            run_id = b"%b-%d" % (digest, numbers[file, digest])
        if run_id == _NULL:
            continue
        name = _ESCAPE.sub(lambda m: _ESCAPED.get(m[1], m[1]), run_id).decode()
        named.add(name)
        if name not in stored:
            found.append((int(file), int(place), name))
    missing = (run for run in ended_runs(connection) if run.row.run_id not in named)
    return Compared(found, missing)


def only_shown(connection: Connection) -> Iterator[tuple[Any, ...]]:
    """(file, place, run_id) of the lines that the table lacks, streamed."""
    return streamed(connection, ONLY_SHOWN)


def only_stored(connection: Connection) -> Iterator[StoredRun]:
    """The runs that ended and that no line shows, oldest first, streamed."""
    return map(stored_run, streamed(connection, ONLY_STORED))
