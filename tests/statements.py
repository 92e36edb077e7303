"""What goes over the wire: the messages of an operation, told by libpq's own trace."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest

from datahound_storage.postgres.deadline import DeadlineConnection
from datahound_storage.postgres.pool import Database

# The server answers each of them at once: a simple query, the end of an extended one or of a COPY.
_ROUND_TRIP = re.compile(rb"\tF\t\d+\t(?:Query|Sync|CopyDone)\b")
_RECEIVED = re.compile(rb"\tB\t(\d+)\t(\w+)\t?(.*)")
_libc = ctypes.CDLL(None)


class Traffic(NamedTuple):
    """What an operation cost: its round trips, the rows that came and all bytes that did."""

    round_trips: int
    rows: list[bytes]
    received: int

    @property
    def tasks(self) -> int:
        """How many of the rows have the text of a task."""
        return sum(b'"task_id": "' in row for row in self.rows)


class Wire:
    """The messages of all connections that are made while it is traced."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def round_trips(self, act: Callable[[], Any]) -> int:
        """How many there are in an operation."""
        return self.during(act).round_trips

    def during(self, act: Callable[[], Any]) -> Traffic:
        """What goes over the wire in an operation."""
        before = len(self._content())
        act()
        content = self._content()[before:]
        received = _RECEIVED.findall(content)
        return Traffic(
            len(_ROUND_TRIP.findall(content)),
            [row for _, kind, row in received if kind == b"DataRow"],
            sum(int(length) for length, _, _ in received),
        )

    def _content(self) -> bytes:
        # The last answer stays in libpq's stream until the next question.
        _libc.fflush(None)
        return self._trace.read_bytes()


@contextmanager
def traced(trace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """Trace the connections that a `Database` makes inside of the block."""
    made: list[tuple[DeadlineConnection, IO[bytes]]] = []
    make = Database._make_connection
    trace.touch()

    def make_traced(database: Database) -> DeadlineConnection:
        connection = make(database)
        # Unbuffered on both sides: libpq writes through a stream of its own, line by line.
        file = trace.open("ab", buffering=0)
        connection.pgconn.trace(file.fileno())
        made.append((connection, file))
        return connection

    monkeypatch.setattr(Database, "_make_connection", make_traced)
    try:
        yield Wire(trace)
    finally:
        for connection, file in made:
            if not connection.closed:
                connection.pgconn.untrace()
            file.close()
