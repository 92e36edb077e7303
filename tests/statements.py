"""What goes over the wire: the round trips of an operation, counted by libpq's own trace."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from datahound_storage.postgres.deadline import DeadlineConnection
from datahound_storage.postgres.pool import Database

# The server answers each of them at once: a simple query, or the end of an extended one.
_ROUND_TRIP = re.compile(rb"\tF\t\d+\t(?:Query|Sync)\b")


class Wire:
    """The messages of all connections that are made while it is traced."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def round_trips(self, act: Callable[[], Any]) -> int:
        """How many there are in an operation."""
        before = self._count()
        act()
        return self._count() - before

    def _count(self) -> int:
        return len(_ROUND_TRIP.findall(self._trace.read_bytes()))


@contextmanager
def traced(trace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """Trace the connections that a `Database` makes inside of the block."""
    made: list[tuple[DeadlineConnection, IO[bytes]]] = []
    make = Database._make_connection

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
