"""Faults in the middle of a call: at one of its effects on the disk or the server."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import psycopg
import pytest

from datahound_storage.files import atomic, history
from datahound_storage.postgres import deadline, pool
from datahound_storage.postgres.deadline import DeadlineConnection

T = TypeVar("T")
KILL_BEFORE, KILL_AFTER = "kill before", "kill after"
OUTAGE, NO_ANSWER, DISK_FULL = "outage", "no answer", "disk full"
KINDS = (KILL_BEFORE, KILL_AFTER, OUTAGE, NO_ANSWER, DISK_FULL)
_TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"


class Crash(BaseException):
    """The process is killed here: nothing that it would do afterwards has an effect."""


class Fault(NamedTuple):
    """What happens, and at which effect of the call."""

    kind: str
    at: int


class Effects:
    """Counts what a call does to the disk and the server, and strikes at one of them.

    Nothing waits for the disk, as no test here cuts the power.
    """

    def __init__(self, begin_outage: Callable[[], None]) -> None:
        self._begin_outage = begin_outage
        self._fault: Fault | None = None
        self._left = -1
        self._dead = False

    @contextmanager
    def during(self, fault: Fault | None) -> Iterator[None]:
        """Let a fault happen during the calls inside."""
        self._fault, self._left, self._dead = fault, fault.at if fault else -1, False
        try:
            yield
        finally:
            self._fault, self._left, self._dead = None, -1, False

    def _next(self) -> str:
        """The kind of the fault that strikes now."""
        if self._dead:
            raise Crash
        if self._fault is None:
            return ""
        self._left -= 1
        return self._fault.kind if self._left == -1 else ""

    def _die(self) -> Crash:
        self._dead = True
        return Crash()

    def on_file(self, effect: Callable[[], T], partly: Callable[[], object] | None = None) -> T:
        kind = self._next()
        if kind == KILL_BEFORE:
            if partly is not None:
                partly()
            raise self._die()
        if kind == DISK_FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if kind == OUTAGE:
            self._begin_outage()
        result = effect()
        if kind == KILL_AFTER:
            raise self._die()
        return result

    def on_wait(self, connection: DeadlineConnection, effect: Callable[[], T]) -> T:
        kind = self._next()
        if kind == KILL_BEFORE:
            raise self._die()
        result = effect()
        if kind == KILL_AFTER:
            raise self._die()
        if kind in (OUTAGE, NO_ANSWER):
            if kind == OUTAGE:
                self._begin_outage()
            connection.pgconn.finish()
            raise psycopg.OperationalError("the answer got lost")
        return result


class _Os:
    """The module `os` for the modules that write files."""

    def __init__(self, effects: Effects) -> None:
        self._effects = effects

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def replace(self, source: Any, target: Any) -> None:
        self._effects.on_file(lambda: os.replace(source, target))

    def fsync(self, descriptor: int) -> None:
        self._effects.on_file(lambda: None)

    def write(self, descriptor: int, data: bytes) -> int:
        half = data[: len(data) // 2]
        return self._effects.on_file(
            lambda: os.write(descriptor, data), lambda: os.write(descriptor, half)
        )


class _Clock:
    """The module `time` for the connections: a pause only moves the clock."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self._ahead

    def sleep(self, seconds: float) -> None:
        self._ahead += seconds


class Server:
    """A database that can be out of reach, and is then back."""

    def __init__(self, url: str, admin_url: str) -> None:
        self.url = url
        self.is_out = False
        self._name = urlsplit(url).path.removeprefix("/")
        self._admin = psycopg.connect(admin_url, autocommit=True)

    def begin_outage(self) -> None:
        if not self.is_out:
            self.is_out = True
            self._admin.execute(f'ALTER DATABASE "{self._name}" ALLOW_CONNECTIONS false'.encode())
            # The server's own waiting for their end takes steps of 100 ms.
            while self._admin.execute(_TERMINATE, (self._name,)).rowcount:
                time.sleep(0.0005)

    def end_outage(self) -> None:
        if self.is_out:
            self._admin.execute(f'ALTER DATABASE "{self._name}" ALLOW_CONNECTIONS true'.encode())
            self.is_out = False

    def close(self) -> None:
        self.end_outage()
        self._admin.close()


def install(effects: Effects, patch: pytest.MonkeyPatch) -> None:
    """Have the package's effects counted, and its pauses between retries take no time."""
    really_wait = DeadlineConnection.wait

    def wait(connection: DeadlineConnection, *args: Any, **options: Any) -> Any:
        return effects.on_wait(connection, lambda: really_wait(connection, *args, **options))

    patch.setattr(DeadlineConnection, "wait", wait)
    patch.setattr(atomic, "os", _Os(effects))
    patch.setattr(history, "os", _Os(effects))
    clock = _Clock()
    for module in (deadline, pool):
        patch.setattr(module, "time", clock)
