"""A connection that waits for the server on this process's own clock."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

import psycopg
from psycopg import errors as pg
from psycopg.abc import PQGen

from datahound_storage.postgres.errors import ConnectError

T = TypeVar("T")
# Bulk work (import, save of thousands, prune) is bounded by progress: how long a server that
# answers others may be busy without a word.
BULK_STALL = 60.0


class DeadlineConnection(psycopg.Connection[Any]):
    """A connection that gives up waiting at a deadline.

    Neither a statement timeout nor keepalives fire when the server's process is frozen while its
    kernel still answers: only the client's own clock does. After it, the connection is closed.
    """

    deadline: float | None = None
    cluster: str | None = None
    # Where there is no deadline: after so many quiet seconds ask whether to wait on. It gets the
    # session's process id and the quiet seconds so far, and raises where that is no use.
    patience: float = BULK_STALL
    ask: Callable[[int, float], None] | None = None
    _waiting: select.poll | None = None

    def check_alive(self) -> None:
        """Raise ConnectError where the session was ended while nobody used it: nothing was sent.

        What the server has said since then waits in the socket, so that this costs no round trip.
        """
        try:
            if self._waiting is None:
                self._waiting = select.poll()
                self._waiting.register(self.pgconn.socket, select.POLLIN)
            if self._waiting.poll(0):
                self.pgconn.consume_input()
        except (psycopg.OperationalError, OSError) as error:
            self.pgconn.finish()
            raise ConnectError(str(error)) from error

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Wait for the server, at most until the deadline; without one, while it makes progress."""
        try:
            if self.deadline is None:
                return super().wait(self._watched(gen), interval, timeout)
            allowed = max(self.deadline - time.monotonic(), 0.0)
            timeout = allowed if timeout is None else min(allowed, timeout)
            return super().wait(gen, interval, timeout)
        except pg._WaitTimeout:
            self.pgconn.finish()
            raise no_answer() from None
        except OSError as error:
            # The waiting itself failed; a statement that may still run makes this one unusable.
            self.pgconn.finish()
            raise psycopg.OperationalError(f"cannot wait for an answer: {error.strerror}") from None

    def _watched(self, gen: PQGen[T]) -> PQGen[T]:
        """Do what `gen` does, and give up where the server is frozen."""
        heard = asked = time.monotonic()
        ready = None
        while True:
            try:
                wanted = next(gen) if ready is None else gen.send(ready)
            except StopIteration as done:
                return cast("T", done.value)
            ready = yield wanted
            now = time.monotonic()
            if ready:
                heard = asked = now
            elif now - asked > self.patience:
                self._ask(now - heard)
                asked = time.monotonic()

    def _ask(self, quiet: float) -> None:
        try:
            if quiet > BULK_STALL:
                raise no_answer()
            if self.ask is not None:
                self.ask(self.info.backend_pid, quiet)
        except psycopg.Error:
            self.pgconn.finish()
            raise


def no_answer() -> psycopg.OperationalError:
    """The error of a server that keeps silent."""
    return psycopg.OperationalError("no answer within the time allowed")
