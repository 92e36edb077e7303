"""Upgrades and pruning under defaults that somebody has set for the database or the role."""

from __future__ import annotations

import fcntl
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from datahound_storage.migrations import SchemaState, environment, upgrade
from datahound_storage.migrations.lock import UpgradeLock
from datahound_storage.postgres import pruning as statements
from tests.migrations import support
from tests.migrations.support import query, value
from tests.migrations.test_upgrade import HOLDERS, script_of, wait_for


def set_default(url: str, name: str, given: str) -> None:
    database = value(url, "SELECT current_database()")
    query(url, f"ALTER DATABASE \"{database}\" SET {name} = '{given}'")


def version(url: str) -> int:
    return int(value(url, "SHOW server_version_num"))


@pytest.fixture(params=["repeatable read", "serializable"])
def isolated_url(request: pytest.FixtureRequest, database_url: str) -> str:
    """Old tables in a database with another isolation."""
    query(database_url, (support.LEGACY + support.LEGACY_ROWS).encode())
    set_default(database_url, "default_transaction_isolation", request.param)
    return database_url


def test_no_index_waits_for_our_own_lock(
    isolated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "LOCK_TIMEOUT_ALONE", "1s")
    assert upgrade(isolated_url, lock_wait=0).state is SchemaState.CURRENT


def test_what_came_while_a_lock_was_waited_for_is_adopted_too(isolated_url: str) -> None:
    upgrade(isolated_url, "0001")
    with psycopg.connect(isolated_url) as late, ThreadPoolExecutor(1) as pool:
        late.execute("INSERT INTO scheduler_tasks SELECT gen_random_uuid(), 'late', task_type,"
                     " company, config_json, schedule_type, schedule_expr, timezone, status FROM"
                     " scheduler_tasks WHERE task_key = 'first'")  # fmt: skip
        going = pool.submit(upgrade, isolated_url)
        wait_for(isolated_url, "SELECT 1 FROM pg_locks WHERE mode = 'AccessExclusiveLock'"
                 " AND NOT granted")  # fmt: skip
        late.commit()
        assert going.result(30).state is SchemaState.CURRENT
    assert value(isolated_url, "SELECT count(position) FROM scheduler_tasks") == 4


def test_a_script_says_its_isolation_and_lifts_what_ends_it(isolated_url: str) -> None:
    names = ["idle_in_transaction_session_timeout"]
    names += ["transaction_timeout"] if version(isolated_url) >= 170000 else []
    for name in names:
        set_default(isolated_url, name, "10min")
    with psycopg.connect(isolated_url, autocommit=True) as connection:
        for statement in support.statements(script_of("upgrade", "head", x=[])):
            connection.execute(statement.encode())
        shown = connection.execute("SHOW default_transaction_isolation").fetchone()
        assert shown == ("read committed",)
        for name in names:
            assert connection.execute(f"SHOW {name}".encode()).fetchone() == ("0",)
    assert upgrade(isolated_url).state is SchemaState.CURRENT


def test_a_pruner_holds_no_snapshot(isolated_url: str) -> None:
    upgrade(isolated_url)
    seen = "SELECT backend_xmin FROM pg_stat_activity WHERE pid = %s"
    with psycopg.connect(isolated_url) as holder:
        statements.begin_pruning(holder)
        assert statements.try_prune_lock(holder)
        assert query(isolated_url, seen, [holder.info.backend_pid]) == [(None,)]


def test_a_pruning_sees_what_has_just_been_changed(isolated_url: str) -> None:
    upgrade(isolated_url)
    with psycopg.connect(isolated_url) as connection:
        seen = "SELECT current_setting('transaction_isolation')"
        query(isolated_url, f"CREATE TABLE seen AS {seen} AS isolation WITH NO DATA")
        query(isolated_url, f"CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
              f" INSERT INTO seen {seen}; RETURN OLD; END $$")  # fmt: skip
        query(isolated_url, "CREATE TRIGGER see AFTER DELETE ON scheduler_runs FOR EACH ROW"
              " EXECUTE FUNCTION see()")  # fmt: skip
        statements.prune_batch(connection, datetime.now(UTC), 0, statements.Place(), 10)
    assert query(isolated_url, "SELECT DISTINCT isolation FROM seen") == [("read committed",)]


def test_reading_files_ends_no_transaction(database_url: str, tmp_path: Path) -> None:
    upgrade(database_url, "0002")
    set_default(database_url, "idle_in_transaction_session_timeout", "50ms")
    if version(database_url) >= 170000:
        set_default(database_url, "transaction_timeout", "1s")
    snapshot = tmp_path / "tasks.json"
    snapshot.write_text(json.dumps([{"task_id": "a"}]))
    lock = (tmp_path / ".scheduler.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    # The import waits for the file while its transaction is open.
    release = threading.Timer(1.5, lock.close)
    release.start()
    try:
        upgrade(database_url, x=[f"snapshot={snapshot}"])
    finally:
        release.join()
    assert value(database_url, "SELECT count(*) FROM scheduler_tasks") == 1


def test_an_index_may_wait_longer_than_a_transaction_may_take(database_url: str) -> None:
    if version(database_url) < 170000:
        pytest.skip("transaction_timeout came with PostgreSQL 17")
    upgrade(database_url, "0001")
    with psycopg.connect(database_url) as old, ThreadPoolExecutor(1) as pool:
        old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        old.execute("SELECT 1")
        set_default(database_url, "transaction_timeout", "200ms")
        going = pool.submit(upgrade, database_url)
        wait_for(database_url, "SELECT 1 FROM pg_stat_activity WHERE query ~ 'CONCURRENTLY'"
                 " AND wait_event_type = 'Lock' AND now() - query_start > '0.5 s'")  # fmt: skip
        old.rollback()
        assert going.result(30).state is SchemaState.CURRENT


def test_the_upgrade_lock_outlives_what_ends_other_transactions(database_url: str) -> None:
    query(database_url, support.LEGACY.encode())
    with psycopg.connect(database_url) as busy, ThreadPoolExecutor(1) as pool:
        set_default(database_url, "idle_in_transaction_session_timeout", "100ms")
        if version(database_url) >= 170000:
            set_default(database_url, "transaction_timeout", "100ms")
        busy.execute("SELECT FROM scheduler_runs")
        going = pool.submit(upgrade, database_url)
        wait_for(database_url, f"{HOLDERS} AND waitstart IS NULL AND pid IN (SELECT pid FROM"
                 " pg_stat_activity WHERE xact_start < now() - interval '0.5 s')")  # fmt: skip
        busy.rollback()
        assert going.result(30).state is SchemaState.CURRENT


def test_the_upgrade_lock_holds_no_snapshot(database_url: str) -> None:
    def connect() -> psycopg.Connection:
        return psycopg.connect(database_url, prepare_threshold=0)

    with UpgradeLock(connect, 1.0):
        seen = "SELECT backend_xmin FROM pg_stat_activity WHERE pid = %s"
        ((holder,),) = query(database_url, HOLDERS)
        assert query(database_url, seen, [holder]) == [(None,)]
