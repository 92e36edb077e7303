"""Connecting under a deadline of the caller's own, look-up of the host's name included.

A resolver cannot be told to hurry, and libpq's `connect_timeout` counts for each host of a URL
anew: so the work is done by a thread, and the caller waits for it only as long as it wants to.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, Generic, TypeVar

import psycopg

from datahound_storage.postgres.errors import ConnectError

C = TypeVar("C", bound=psycopg.Connection[Any])


class Connector(Generic[C]):
    """Makes connections with `make`, at most `at_once` at the same time.

    A thread whose caller has given up ends when the resolver and the hosts have; it holds its
    place until then, so that threads cannot pile up.
    """

    def __init__(self, make: Callable[[], C], at_once: int) -> None:
        self._make = make
        self._places = threading.BoundedSemaphore(at_once)

    def connect(self, allowed: float) -> C:
        """A connection within `allowed` seconds; raises ConnectError, or what `make` raises."""
        if not self._places.acquire(timeout=max(allowed, 0)):
            raise ConnectError("earlier attempts to connect hang")
        future: Future[C] = Future()
        try:
            threading.Thread(
                target=self._deliver, args=(future,), name="datahound-connect", daemon=True
            ).start()
        except RuntimeError:
            # No more threads, or the interpreter is shutting down: without a bound, but it works.
            self._deliver(future)
        return _taken(future, allowed)

    def _deliver(self, future: Future[C]) -> None:
        try:
            connection = self._make()
        except BaseException as error:  # noqa: BLE001 - it is raised where the caller waits
            with suppress(InvalidStateError):
                future.set_exception(error)
        else:
            try:
                future.set_result(connection)
            except InvalidStateError:
                connection.close()  # too late: nobody waits for it
        finally:
            self._places.release()


def _taken(future: Future[C], allowed: float) -> C:
    try:
        return future.result(max(allowed, 0))
    except TimeoutError:
        if not future.cancel():
            return future.result()  # it came in this very moment
        raise ConnectError("no answer within the time allowed") from None
    except BaseException:
        future.cancel()  # Ctrl-C: what comes later is closed
        raise
