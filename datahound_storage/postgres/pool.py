"""Connections: pooled, in autocommit, each operation under a deadline on this process's clock."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import closing
from typing import Any, Generic, NamedTuple, TypeVar, cast

import psycopg
from psycopg import errors as pg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import PoolProxiedConnection, QueuePool

from datahound_storage.errors import DatabaseUnavailableError
from datahound_storage.postgres.connecting import Connector
from datahound_storage.postgres.deadline import DeadlineConnection, no_answer
from datahound_storage.postgres.errors import (
    ConnectError,
    is_connection_lost,
    is_not_prepared,
    is_transient,
    may_have_been_done,
    translate,
)
from datahound_storage.reporting import Reporter
from datahound_storage.settings import describe_url

log = Reporter("datahound_storage.sql")

T = TypeVar("T")
POOL_SIZE = 5
POOL_OVERFLOW = 20
_CONNECT_SHARE = 0.6
_RETRY_SHARE = 0.5
_QUIET_SHARE = 0.4
_IN_LOCK = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s"
_FIRST_PAUSE = 0.05


class EchoCursor(psycopg.Cursor[Any]):
    """A cursor that logs each statement, without its values: they can be settings."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        """Log, then execute."""
        log.info("%s", " ".join(str(query).split()))
        return super().execute(query, params, **options)


class Outcome(NamedTuple, Generic[T]):
    """The result of an operation, and whether an earlier attempt of it may have taken effect."""

    result: T
    repeated: bool


class Database:
    """A database by its URL: hands out connections and runs operations on them.

    `timeout` bounds a single operation in seconds, waiting for a connection and retries included.
    """

    def __init__(self, url: str, *, timeout: float = 5.0, echo: bool = False) -> None:
        self.url = url
        self.place = describe_url(url)
        self.timeout = timeout
        self._echo = echo
        self._prepares = True
        self._retired = False
        # How many connections broke: the server may have crashed, and counts transactions anew.
        self.losses = 0
        self._of_thread = threading.local()
        self._connector = self._new_connector()
        self._pool = self._new_pool()
        _databases.add(self)

    def __repr__(self) -> str:
        return f"Database({self.place!r})"

    def _new_pool(self) -> QueuePool:
        return QueuePool(
            cast("Callable[[], Any]", self._connect),
            pool_size=POOL_SIZE,
            max_overflow=POOL_OVERFLOW,
            timeout=self.timeout,
            reset_on_return=None,  # autocommit: there is nothing to reset
            use_lifo=True,
        )

    def _new_connector(self) -> Connector[DeadlineConnection]:
        return Connector(self._make_connection, at_once=POOL_SIZE)

    def _connect(self) -> DeadlineConnection:
        # The pool calls this in the thread of the operation.
        allowed = self.timeout * _CONNECT_SHARE
        deadline = getattr(self._of_thread, "deadline", None)
        if deadline is not None:
            allowed = min(allowed, deadline - time.monotonic())
        return self._connector.connect(allowed)

    def _make_connection(self) -> DeadlineConnection:
        parameters = conninfo_to_dict(self.url)
        wait = max(2, round(self.timeout * _CONNECT_SHARE))
        # The URL's own limit is kept, but cannot make an operation longer than promised.
        given = int(str(parameters.get("connect_timeout") or 0))
        try:
            connection = DeadlineConnection.connect(
                self.url,
                autocommit=True,
                # Whatever the role or the URL says: there are texts that others cannot hold.
                client_encoding="UTF8",
                connect_timeout=min(given, wait) if given > 0 else wait,
                application_name=str(parameters.get("application_name") or "datahound-storage"),
            )
        except (psycopg.OperationalError, OSError) as error:
            raise ConnectError(str(error)) from error
        if not self._prepares:
            connection.prepare_threshold = None
        connection.patience = self.timeout * _QUIET_SHARE
        connection.ask = self._ask
        if self._echo:
            connection.cursor_factory = EchoCursor
        return connection

    def _ask(self, session: int, quiet: float) -> None:
        """Raise where a quiet session is in a lock for too long, or nobody gets an answer."""
        deadline = time.monotonic() + self.timeout * _CONNECT_SHARE
        try:
            with closing(self._connector.connect(deadline - time.monotonic())) as connection:
                connection.deadline = deadline
                in_lock = connection.execute(_IN_LOCK, [session]).fetchone() == (True,)
        except psycopg.Error:
            if time.monotonic() >= deadline:
                raise no_answer() from None
            return  # a refusal is an answer
        if in_lock and quiet > self.timeout:
            raise pg.LockNotAvailable("the lock is held by somebody else")

    def run(
        self,
        operation: Callable[[DeadlineConnection], T],
        *,
        bulk: bool = False,
        repeated: bool = False,
        joins: bool = False,
    ) -> Outcome[T]:
        """Run one operation, again where that helps, until it succeeds or the time is over.

        An operation must bear being run twice: a connection that broke leaves the outcome of the
        first attempt unknown, which `Outcome.repeated` tells. `bulk`: bounded by progress instead.
        Raises errors of this package, whatever the database did; they tell whether an attempt may
        have taken effect, one before this operation (`repeated`) included. `joins`: where the
        thread is in the middle of an operation, this one is a part of it, and of its transaction.
        """
        current: DeadlineConnection | None = getattr(self._of_thread, "connection", None)
        if joins and current is not None:
            return Outcome(operation(current), repeated)
        start = time.monotonic()
        deadline = None if bulk else start + self.timeout
        last_retry = start + self.timeout * _RETRY_SHARE
        pause = _FIRST_PAUSE
        while True:
            try:
                if self._retired:
                    raise self._given_up(repeated)
                return Outcome(self._attempt(operation, deadline), repeated)
            except psycopg.Error as error:
                self._heed_pooler(error)
                repeated = repeated or may_have_been_done(error)
                again = is_connection_lost(error) or is_transient(error)
                if not again or time.monotonic() + pause > last_retry:
                    raise translate(error, self.place, repeated) from error
            except PoolTimeoutError as error:
                raise self._exhausted(repeated) from error
            # A server that restarts is back in a moment; the pause grows, the deadline holds.
            time.sleep(pause)
            pause *= 2

    def _heed_pooler(self, error: psycopg.Error) -> None:
        if self._prepares and is_not_prepared(error):
            # A pooler gives sessions that are not ours: no statement is prepared any more.
            self._prepares = False
            self.close()

    def _given_up(self, repeated: bool) -> DatabaseUnavailableError:
        message = f"the connections to {self.place} were given up."
        return DatabaseUnavailableError(message, outcome_unknown=repeated)

    def _exhausted(self, repeated: bool) -> DatabaseUnavailableError:
        return DatabaseUnavailableError(
            f"no free connection to {self.place} within {self.timeout:g} s: this process uses "
            f"all {POOL_SIZE + POOL_OVERFLOW}; look for threads that hang in a statement.",
            outcome_unknown=repeated,
        )

    def _attempt(self, operation: Callable[[DeadlineConnection], T], deadline: float | None) -> T:
        of_thread, pool = self._of_thread, self._pool
        outer = getattr(of_thread, "connection", None)
        of_thread.deadline = deadline
        proxy = pool.connect()
        connection = cast("DeadlineConnection", proxy.dbapi_connection)
        connection.deadline = deadline
        try:
            connection.check_alive()
            of_thread.connection = connection
            return operation(connection)
        finally:
            of_thread.connection = outer
            self._give_back(proxy, connection, pool)

    def _give_back(
        self, proxy: PoolProxiedConnection, connection: DeadlineConnection, pool: QueuePool
    ) -> None:
        if connection.closed:
            self.losses += 1
            proxy.invalidate()
            self._renew(pool)
        elif connection.pgconn.transaction_status != TransactionStatus.IDLE:
            proxy.invalidate()
        proxy.close()
        if self._retired or self._pool is not pool:
            # Nobody would take, or close, what has come back.
            pool.dispose()

    def _renew(self, pool: QueuePool) -> None:
        # The pooled connections led to the same server: they are as dead as the one that broke.
        if self._pool is pool:
            self._pool = self._new_pool()
        pool.dispose()

    def close(self) -> None:
        """Close the pooled connections; the next operation opens new ones."""
        self._renew(self._pool)

    def retire(self) -> None:
        """Close the pooled connections for good: no operation is begun any more."""
        self._retired = True
        self.close()

    def forget_connections(self) -> None:
        """Leave the connections to the parent process (after a fork), without closing them."""
        _inherited.append(self._pool)
        self._connector = self._new_connector()
        self._pool = self._new_pool()


_databases: weakref.WeakSet[Database] = weakref.WeakSet()
# Kept alive: garbage collection would close the parent's connections.
_inherited: list[QueuePool] = []


def _forget_all() -> None:
    for database in list(_databases):
        database.forget_connections()


os.register_at_fork(after_in_child=_forget_all)
