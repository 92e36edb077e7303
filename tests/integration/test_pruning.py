"""Old runs go in batches, by one process at a time, and nothing about it is silent."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from datahound_storage import SchedulerPersistence, pruning
from datahound_storage.dal import StorageDAL
from datahound_storage.errors import (
    DatabaseError,
    DatabaseUnavailableError,
    InvalidArgumentError,
    PruneRunningError,
)
from datahound_storage.postgres import pruning as statements
from datahound_storage.postgres.pool import Database
from tests.migrations.support import query, value
from tests.migrations.test_upgrade import wait_for

NOW = datetime.now(UTC)
CUTOFF = NOW - timedelta(days=30)
DAY = timedelta(days=1)
COUNT = "SELECT count(*) FROM scheduler_runs"


@pytest.fixture
def other(migrated_url: str) -> Iterator[StorageDAL]:
    """Another process."""
    made = StorageDAL(Database(migrated_url))
    yield made
    made.close()


@pytest.fixture
def in_pauses(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], list[float]]:
    """Do something in each pause after 1000 rows, instead of waiting; gives the list of pauses."""
    monkeypatch.setattr(statements, "BATCH", 1000)

    def install(act: Callable[[], None]) -> list[float]:
        pauses: list[float] = []

        def sleep(seconds: float) -> None:
            pauses.append(seconds)
            act()

        monkeypatch.setattr(pruning.time, "sleep", sleep)
        return pauses

    return install


def add(url: str, count: int, days_ago: float, task_key: str | None = "a") -> None:
    """So many runs that ended a second after each other, the newest of them so many days ago."""
    query(
        url,
        "INSERT INTO scheduler_runs (id, run_id, task_key, started_at, finished_at)"
        " SELECT gen_random_uuid(), %s || n, %s, ended, ended FROM"
        " (SELECT n, %s - (%s - n) * interval '1 s' AS ended FROM generate_series(1, %s) AS n) s",
        [f"{task_key}-{days_ago}-", task_key, NOW - timedelta(days=days_ago), count, count],
    )


def names(url: str) -> list[str]:
    return [name for (name,) in query(url, "SELECT run_id FROM scheduler_runs ORDER BY run_id")]


def test_each_batch_is_committed_and_followed_by_a_pause(
    dal: StorageDAL, migrated_url: str, in_pauses: Any
) -> None:
    add(migrated_url, 2500, 40)
    add(migrated_url, 7, 1)
    left: list[int] = []
    pauses = in_pauses(lambda: left.append(value(migrated_url, COUNT)))
    assert dal.purge_task_runs(older_than=CUTOFF) == 2500
    assert left == [1507, 507]
    assert all(0 < pause <= pruning.LONGEST_PAUSE for pause in pauses)
    assert value(migrated_url, COUNT) == 7


def slow_deletes(url: str, seconds: float) -> None:
    query(url, "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
          f" 'BEGIN PERFORM pg_sleep({seconds}); RETURN OLD; END'")  # fmt: skip
    query(url, "CREATE TRIGGER slow BEFORE DELETE ON scheduler_runs"
          " FOR EACH ROW EXECUTE FUNCTION slow()")  # fmt: skip


def test_a_statement_that_takes_too_long_is_tried_with_fewer_rows(
    dal: StorageDAL, migrated_url: str, in_pauses: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statements, "STATEMENT_SECONDS", 1.0)
    add(migrated_url, 1000, 40)
    slow_deletes(migrated_url, 0.002)
    pauses = in_pauses(lambda: None)
    assert dal.purge_task_runs(older_than=CUTOFF) == 1000
    assert len(pauses) >= 3


def test_a_table_that_cannot_be_pruned_is_an_error(
    dal: StorageDAL, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statements, "STATEMENT_SECONDS", 0.1)
    add(migrated_url, 200, 40)
    slow_deletes(migrated_url, 0.01)
    with pytest.raises(DatabaseUnavailableError, match="ran into its timeout: look for locks"):
        dal.purge_task_runs(older_than=CUTOFF)
    assert value(migrated_url, COUNT) == 200


def test_an_error_in_the_middle_says_how_far_it_came(
    dal: StorageDAL, migrated_url: str, in_pauses: Any, caplog: pytest.LogCaptureFixture
) -> None:
    add(migrated_url, 1500, 40)
    in_pauses(lambda: query(migrated_url, "REVOKE ALL ON scheduler_runs FROM CURRENT_USER; "
              "ALTER TABLE scheduler_runs RENAME TO gone"))  # fmt: skip
    with pytest.raises(DatabaseError, match="do not fit"):
        dal.purge_task_runs(older_than=CUTOFF)
    assert "pruning stopped after 1,000 runs: " in caplog.text


def test_one_prunes_at_a_time_and_the_others_say_so(
    dal: StorageDAL, other: StorageDAL, migrated_url: str, in_pauses: Any
) -> None:
    add(migrated_url, 1500, 40)
    refused: list[str] = []

    def prune_too() -> None:
        with pytest.raises(PruneRunningError) as caught:
            other.purge_task_runs(older_than=CUTOFF)
        refused.append(str(caught.value))

    in_pauses(prune_too)
    assert dal.purge_task_runs(older_than=CUTOFF) == 1500
    assert [text[:44] for text in refused] == ["another process is pruning the runs: wait un"]
    # It is free again.
    add(migrated_url, 3, 50)
    assert other.purge_task_runs(older_than=CUTOFF) == 3


def holds_lock(url: str) -> psycopg.Connection:
    connection = psycopg.connect(url, autocommit=True)
    statements.begin_pruning(connection)
    assert statements.try_prune_lock(connection)
    return connection


def test_waiting_for_the_other_one(dal: StorageDAL, migrated_url: str, in_pauses: Any) -> None:
    add(migrated_url, 3, 40)
    with holds_lock(migrated_url) as rival:
        in_pauses(rival.close)
        assert dal.purge_task_runs(older_than=CUTOFF, patience=60) == 3


def test_where_nothing_is_old_nobody_is_in_the_way(dal: StorageDAL, migrated_url: str) -> None:
    add(migrated_url, 3, 1)
    with holds_lock(migrated_url):
        assert dal.purge_task_runs(older_than=CUTOFF) == 0


def test_the_facade_says_that_another_process_is_at_it(
    migrated_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add(migrated_url, 3, 40)
    persistence = SchedulerPersistence(tmp_path / "data", url=migrated_url)
    try:
        before = persistence.history_file.read_bytes()
        with holds_lock(migrated_url):
            assert persistence.clear_old_history() == 0
        assert "was not trimmed by this call: another process is pruning" in caplog.text
        assert persistence.history_file.read_bytes() == before
        assert persistence.health().store == "database"
        assert persistence.clear_old_history() == 3
    finally:
        persistence.close()


def test_a_start_waits_for_a_pruner_only_so_long(
    migrated_url: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATAHOUND_STORAGE_TIMEOUT_SECONDS", "0.5")
    add(migrated_url, 3, 40)
    alone = SchedulerPersistence(tmp_path / "data", url="")
    alone.clear_old_history()  # the files remember what was trimmed
    alone.close()
    with holds_lock(migrated_url):
        persistence = SchedulerPersistence(tmp_path / "data", url=migrated_url)
        assert persistence.health().store == "database"
        persistence.close()
    assert "may stay for now: another process is pruning" in caplog.text


def test_the_lock_keeps_no_snapshot_and_is_taken_again_when_it_is_lost(
    dal: StorageDAL, migrated_url: str, in_pauses: Any
) -> None:
    add(migrated_url, 2500, 40)
    idle = (
        "FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()"
    )
    seen: list[Any] = []

    def look_and_end() -> None:
        seen.append(query(migrated_url, f"SELECT backend_xmin, backend_xid {idle}"))
        query(migrated_url, f"SELECT pg_terminate_backend(pid, 5000) {idle}")

    in_pauses(look_and_end)
    assert dal.purge_task_runs(older_than=CUTOFF) == 2500
    assert seen[0] == [(None, None)]


# ---- What is kept


@pytest.fixture(params=[1000, 3], ids=["one batch", "batches of three"])
def batch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statements, "BATCH", request.param)
    monkeypatch.setattr(statements, "BATCH_KEEPING", request.param)


@pytest.mark.usefixtures("batch")
def test_the_newest_of_each_task_are_kept_on_request(dal: StorageDAL, migrated_url: str) -> None:
    add(migrated_url, 5, 40, "a")
    add(migrated_url, 2, 50, "b")
    add(migrated_url, 1, 1, "b")
    add(migrated_url, 1, 60, "c")
    add(migrated_url, 4, 45, None)
    assert dal.purge_task_runs(older_than=CUTOFF, keep_last=2) == 8
    assert names(migrated_url) == ["a-40-4", "a-40-5", "b-1-1", "b-50-2", "c-60-1"]
    assert dal.purge_task_runs(older_than=CUTOFF, keep_last=2) == 0
    assert dal.purge_task_runs(older_than=CUTOFF, keep_last=1) == 2
    assert names(migrated_url) == ["a-40-5", "b-1-1", "c-60-1"]
    assert dal.purge_task_runs(older_than=CUTOFF) == 2


def test_of_runs_with_the_same_end_the_last_one_in_is_the_newest(
    dal: StorageDAL, migrated_url: str
) -> None:
    add(migrated_url, 3, 40)
    query(migrated_url, "UPDATE scheduler_runs SET finished_at = %s", [CUTOFF - timedelta(1)])
    assert dal.purge_task_runs(older_than=CUTOFF, keep_last=1) == 2
    assert names(migrated_url) == ["a-40-3"]


@pytest.mark.usefixtures("batch")
def test_a_run_without_an_end_counts_by_its_start(dal: StorageDAL, migrated_url: str) -> None:
    for name, days in (("dead", 31), ("dead too", 400), ("goes on", 29)):
        query(
            migrated_url,
            "INSERT INTO scheduler_runs (id, run_id, task_key, started_at)"
            " VALUES (gen_random_uuid(), %s, 'a', %s)",
            [name, NOW - timedelta(days=days)],
        )
    # It began before, and ended after.
    query(migrated_url, "INSERT INTO scheduler_runs (id, run_id, task_key, started_at, finished_at)"
          " VALUES (gen_random_uuid(), 'long', 'a', %s, %s)",
          [NOW - timedelta(days=31), NOW - timedelta(days=29.5)])  # fmt: skip
    assert dal.purge_task_runs(older_than=CUTOFF, keep_last=3) == 1
    assert names(migrated_url) == ["dead", "goes on", "long"]
    assert dal.purge_task_runs(older_than=CUTOFF) == 1
    assert names(migrated_url) == ["goes on", "long"]


def test_a_run_that_is_being_changed_is_left_to_the_next_pruning_and_told(
    dal: StorageDAL, migrated_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    add(migrated_url, 3, 40)
    with psycopg.connect(migrated_url) as rival:
        rival.execute("UPDATE scheduler_runs SET message = 'x' WHERE run_id = 'a-40-2'")
        with caplog.at_level(logging.WARNING):
            assert dal.purge_task_runs(older_than=CUTOFF) == 2
        assert "1 old run in use: the next pruning takes what it left" in caplog.text
        rival.commit()
    assert dal.purge_task_runs(older_than=CUTOFF) == 1


@pytest.mark.parametrize("time", ["-infinity", "4000-01-01 BC"])
def test_times_that_python_does_not_have(dal: StorageDAL, migrated_url: str, time: str) -> None:
    add(migrated_url, 3, 40)
    query(migrated_url, "UPDATE scheduler_runs SET finished_at = %s::timestamptz", [time])
    assert dal.purge_task_runs(older_than=CUTOFF) == 3


def test_no_negative_number_is_kept(dal: StorageDAL) -> None:
    with pytest.raises(InvalidArgumentError, match="keep_last must not be negative, it is -1"):
        dal.purge_task_runs(older_than=CUTOFF, keep_last=-1)


def test_runs_that_were_given_no_order_are_all_pruned(
    dal: StorageDAL, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statements, "BATCH", 1000)
    add(migrated_url, 2500, 40)
    query(migrated_url, "UPDATE scheduler_runs SET seq = NULL, finished_at = %s", [CUTOFF - DAY])
    add(migrated_url, 5, 35)
    assert dal.purge_task_runs(older_than=CUTOFF) == 2505


def test_a_run_that_gets_its_end_just_then_stays(
    migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(migrated_url, 2, 40)
    # Somebody is faster between the choice of the runs and their locks.
    chosen = "FROM old, pg_advisory_xact_lock_shared(4711) {not_kept}"
    slow = statements._PRUNE.replace("FROM old {not_kept}", chosen)
    assert chosen in slow
    monkeypatch.setattr(statements, "_PRUNE", slow)
    with (
        psycopg.connect(migrated_url) as holder,
        psycopg.connect(migrated_url) as pruner,
        ThreadPoolExecutor(1) as pool,
    ):
        holder.execute("SELECT pg_advisory_xact_lock(4711)")
        going = pool.submit(statements.prune_batch, pruner, CUTOFF, 0, statements.Place(), 10)
        wait_for(migrated_url, "SELECT 1 FROM pg_locks WHERE NOT granted")
        query(migrated_url, "UPDATE scheduler_runs SET finished_at = now() WHERE run_id ~ '-1$'")
        holder.rollback()
        assert going.result(30)[:3] == (2, 1, 1)
    assert names(migrated_url) == ["a-40-1"]
