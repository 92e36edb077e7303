"""A streaming standby of an embedded server."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psycopg

from datahound_storage.testing import EmbeddedServer

PRIMARY_SETTINGS = {"wal_level": "replica", "max_wal_senders": "4", "hot_standby": "on"}
_PATIENCE = 30.0


class Standby(EmbeddedServer):
    """A copy of `primary` that follows it until it is promoted, or cut off."""

    def __init__(self, directory: Path, primary: EmbeddedServer) -> None:
        super().__init__(directory, settings={"hot_standby": "on"})
        self._primary = primary

    def _initialise(self) -> None:
        command = [str(self._binaries / "pg_basebackup"), f"--pgdata={self._data}"]
        command += [f"--dbname={self._primary.url}", "--write-recovery-conf", "--checkpoint=fast"]
        subprocess.run(
            [*command, "--no-sync"], check=True, capture_output=True, cwd=self._data,
            **self._identity(),
        )  # fmt: skip

    def wait_for(self, primary_url: str) -> None:
        """Wait until it has applied what the primary has written so far."""
        position = value(primary_url, "SELECT pg_current_wal_flush_lsn()::text")
        query = f"SELECT pg_last_wal_replay_lsn() >= '{position}'::pg_lsn"
        until(lambda: value(self.url, query) is True)

    def cut_off(self) -> None:
        """Let it lag from now on."""
        execute(self.url, "ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()")
        until(lambda: value(self.url, "SELECT count(*) FROM pg_stat_wal_receiver") == 0)

    def promote(self) -> None:
        """Make it a primary."""
        execute(self.url, "SELECT pg_promote()")
        until(lambda: value(self.url, "SELECT pg_is_in_recovery()") is False)


def until(happened: Callable[[], bool]) -> None:
    """Wait for something that has no event to wait for."""
    deadline = time.monotonic() + _PATIENCE
    while not happened():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)


def execute(url: str, *statements: str) -> None:
    """Run statements, each committed by itself."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def value(url: str, query: str) -> object:
    """The one value of a query."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]
