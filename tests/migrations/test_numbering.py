"""Old runs get their numbers: in small steps, beside others, and by one session after all."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from datahound_storage.errors import LockTimeoutError
from datahound_storage.migrations import SchemaState, environment, upgrade
from tests.migrations import support
from tests.migrations.support import query, value
from tests.migrations.test_adopt import IN_ORDER, MANY
from tests.migrations.test_live import as_far_as_the_numbering, revision
from tests.migrations.test_upgrade import BY_API, start, wait_for

# Somewhere in the second batch.
HELD = "SELECT id FROM scheduler_runs ORDER BY coalesce(finished_at, started_at), id"
NUMBERING = "query ~ 'DO .number' AND datname = current_database() AND pid <> pg_backend_pid()"
STANDS = f"SELECT pid FROM pg_stat_activity WHERE {NUMBERING} AND query_start < now() - '0.3 s'::"
STANDS += "interval"


@pytest.fixture
def url(database_url: str) -> str:
    """Old tables with many runs."""
    query(database_url, (support.LEGACY + support.LEGACY_ROWS).encode())
    query(database_url, MANY)
    query(database_url, "DELETE FROM scheduler_runs WHERE run_id ~ 'many[0-9]{5}'")
    return database_url


# As if somebody held one run, who comes when the tables are no longer locked.
HOLD = """
CREATE FUNCTION held() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_advisory_xact_lock_shared(4711); RETURN NEW; END';
DO $hold$ BEGIN
    EXECUTE format('CREATE TRIGGER held BEFORE UPDATE ON scheduler_runs FOR EACH ROW'
        ' WHEN (OLD.id = %L) EXECUTE FUNCTION held()', ({held} OFFSET 700 LIMIT 1));
END $hold$"""


@pytest.fixture
def holder(url: str) -> Iterator[psycopg.Connection]:
    """Somebody who holds one run of the second batch."""
    query(url, HOLD.format(held=HELD))
    with psycopg.connect(url) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(4711)")
        yield connection


def gone(pid: int) -> str:
    return f"SELECT 1 WHERE NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = {pid})"


def test_the_server_does_not_go_on_for_a_process_that_was_killed(
    url: str, holder: psycopg.Connection
) -> None:
    killed = start(url, "-c", BY_API, url)
    ((orphan,),) = wait_for(url, STANDS)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=30)
    wait_for(url, gone(orphan))
    holder.rollback()
    assert upgrade(url).state is SchemaState.CURRENT
    assert query(url, IN_ORDER) == [(10002, 10002, True, True)]


def number(url: str) -> str:
    with psycopg.connect(url, autocommit=True) as connection:
        try:
            connection.execute(revision._NUMBER_RUNS.encode())
        except psycopg.errors.RaiseException as error:
            return str(error.diag.message_primary)
    return ""


def test_of_two_sessions_that_number_one_stops(url: str, holder: psycopg.Connection) -> None:
    as_far_as_the_numbering(url)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(number, url)
        wait_for(url, STANDS)
        # The second one counts another number of runs.
        query(url, "DELETE FROM scheduler_runs WHERE run_id IN ('many9998', 'many9999')")
        second = pool.submit(number, url)
        wait_for(url, f"{STANDS} OFFSET 1")
        holder.rollback()
        told = sorted([first.result(60), second.result(60)])
    assert told[0] == ""
    assert "being numbered by another session" in told[1]
    assert query(url, "SELECT count(*), count(DISTINCT seq) FROM scheduler_runs") == [
        (10000, 10000)
    ]


def test_whoever_wants_another_run_does_not_wait_for_the_one_that_is_held(
    url: str, holder: psycopg.Connection
) -> None:
    with (
        psycopg.connect(url, autocommit=True) as bystander,
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(upgrade, url)
        wait_for(url, STANDS)
        bystander.execute("SET lock_timeout = '1s'")
        bystander.execute(
            "UPDATE scheduler_runs SET message = 'changed' WHERE id IN ("
            f"({HELD} OFFSET 600 LIMIT 100) UNION ({HELD} OFFSET 701 LIMIT 99))".encode()
        )
        assert not waiting.done()
        holder.rollback()
        assert waiting.result(60).state is SchemaState.CURRENT
    assert query(url, IN_ORDER) == [(10002, 10002, True, True)]


def test_a_run_is_not_waited_for_for_ever(
    url: str, holder: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "LOCK_TIMEOUT_ALONE", "300ms")
    with pytest.raises(LockTimeoutError, match="in use by a long transaction"):
        upgrade(url, lock_wait=0.0)
    assert value(url, "SELECT count(*) FROM scheduler_runs WHERE seq IS NOT NULL") == 600
    holder.rollback()
    assert upgrade(url).state is SchemaState.CURRENT
    assert query(url, IN_ORDER) == [(10002, 10002, True, True)]
