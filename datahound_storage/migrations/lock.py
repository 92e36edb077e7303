"""The lock that lets one process migrate while the others wait and find it done.

It is an advisory lock of a transaction on a connection of its own, and it is polled for. Waiting
inside the server would hold a snapshot, for which CREATE INDEX CONCURRENTLY waits in turn; a lock
of the session does not survive PgBouncer; one inside the migration's transaction ends with the
first revision that is committed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from hashlib import blake2b
from types import TracebackType
from typing import Any, Self, cast

import psycopg
from psycopg.rows import tuple_row

from datahound_storage.errors import LockTimeoutError, SchemaError

_NAMESPACE = "datahound-storage:upgrade:"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 0.5
# An idle transaction is what this connection is for: no limit may end it.
_UNBOUNDED = "SET LOCAL idle_in_transaction_session_timeout = 0"
_UNBOUNDED_SINCE_17 = "SET LOCAL transaction_timeout = 0"
_IDENTITY = """
SELECT current_schema(), current_user, has_schema_privilege(current_schema(), 'CREATE'),
       pg_backend_pid()
"""


def lock_key(schema: str) -> int:
    """The advisory key for a schema; advisory locks are told apart by database already."""
    digest = blake2b((_NAMESPACE + schema).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


class UpgradeLock:
    """Held from `with` on; `connect` makes its connection, `wait` bounds the waiting in seconds.

    `schema` is the one in which tables are made, `role` the user, `may_create` whether that user
    may make tables there, `pooled` whether a pooler stands in between, whose sessions are not ours.
    """

    schema: str
    role: str
    may_create: bool
    pooled: bool

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]], wait: float) -> None:
        self._connect = connect
        self._wait = wait
        self._connection: psycopg.Connection[Any]

    def __enter__(self) -> Self:
        self._connection = self._connect()
        try:
            # A prepared statement would leave a snapshot in the idle transaction, and so does each
            # statement where the role's default is another isolation.
            self._connection.prepare_threshold = None
            self._connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
            self._identify()
            self._acquire()
        except BaseException:
            self._connection.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(psycopg.Error):
            self._connection.rollback()
        self._connection.close()

    def probe(self) -> None:
        """Raise SchemaError if the lock is gone: the transaction under way is rolled back then."""
        try:
            self._connection.execute("SELECT 1")
        except psycopg.Error as error:
            raise SchemaError(
                "the connection that holds the upgrade lock broke, so the transaction under way "
                "was rolled back: run `datahound-storage upgrade` again, which goes on from there."
            ) from error

    def _identify(self) -> None:
        with self._connection.cursor(row_factory=tuple_row) as cursor:
            row = cast("tuple[Any, ...]", cursor.execute(_IDENTITY).fetchone())
        self._connection.rollback()
        schema, self.role, may_create, server_process = row
        # A pooler makes up the number that it tells its clients.
        self.pooled = server_process != self._connection.info.backend_pid
        if schema is None:
            raise SchemaError(
                "the search path names no schema that exists: create the schema, or correct "
                "options=-csearch_path=... in the URL."
            )
        self.schema, self.may_create = schema, bool(may_create)

    def _acquire(self) -> None:
        deadline, pause = time.monotonic() + self._wait, _FIRST_PAUSE
        while not self._try():
            if time.monotonic() + pause > deadline:
                raise LockTimeoutError(self._patience_lost())
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _try(self) -> bool:
        connection = self._connection
        connection.execute(_UNBOUNDED)
        if connection.info.server_version >= 170000:
            connection.execute(_UNBOUNDED_SINCE_17)
        with connection.cursor(row_factory=tuple_row) as cursor:
            query = f"SELECT pg_try_advisory_xact_lock({lock_key(self.schema)})"
            row = cursor.execute(query.encode()).fetchone()
        if row and row[0]:
            return True
        connection.rollback()
        return False

    def _patience_lost(self) -> str:
        key = lock_key(self.schema) % 2**64
        holder = (
            "SELECT a.* FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE "
            f"l.locktype = 'advisory' AND (l.classid, l.objid) = ({key >> 32}, {key & 0xFFFFFFFF})"
        )
        return (
            f"another process has been upgrading schema {self.schema} for over {self._wait:g} s: "
            f"wait for it and run the upgrade again, or look for it with: {holder}"
        )
