"""Old tables are upgraded while others use them: nothing is rewritten, nobody stands in line."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import psycopg
import pytest

from datahound_storage.migrations import SchemaState, SchemaStatus, downgrade, upgrade
from datahound_storage.migrations.state import revisions
from tests.migrations import support
from tests.migrations.support import query, value
from tests.migrations.test_upgrade import wait_for

revision = support.load_revision("0002_track_changes")

RUN = """
INSERT INTO scheduler_runs (id, task_id, run_id, started_at, finished_at, success, message,
                            duration_ms, metadata_json)
VALUES (gen_random_uuid(), '00000000-0000-0000-0000-000000000001', %s, now(), NULL, NULL, NULL,
        %s, NULL)"""


@pytest.fixture
def old_url(database_url: str) -> str:
    """A database as older installations left it."""
    query(database_url, (support.LEGACY + support.LEGACY_ROWS).encode())
    return database_url


def test_no_table_is_written_anew(old_url: str) -> None:
    files = "SELECT pg_relation_filenode('scheduler_runs'), pg_relation_filenode('scheduler_tasks')"
    before = query(old_url, files)
    upgrade(old_url)
    assert query(old_url, files) == before
    downgrade(old_url, "0001")
    upgrade(old_url)
    assert query(old_url, files) == before


def test_indexes_of_runs_are_made_while_others_work() -> None:
    made = [text for text in revision._RUN_INDEXES if "CREATE INDEX" in text]
    assert len(made) == 2
    assert all("CREATE INDEX CONCURRENTLY" in text for text in made)


def go(url: str, step: tuple[str, str]) -> SchemaStatus:
    """One revision up or down."""
    return (upgrade if step[0] < step[1] else downgrade)(url, step[1])


STEPS = list(pairwise(revisions()))


@pytest.mark.parametrize("step", [("", revisions()[0]), *STEPS, *((b, a) for a, b in STEPS)])
def test_nobody_waits_behind_a_revision_that_waits(old_url: str, step: tuple[str, str]) -> None:
    # A transaction that has only looked stops a change of the table; those who come after it must
    # not stand in line behind that change. What waits for a second here waits for two without care.
    if step[0]:
        upgrade(old_url, step[0])
    there = ", ".join(name for name in support.OUR_TABLES if value(
        old_url, "SELECT to_regclass(%s) IS NOT NULL", [name]))  # fmt: skip
    with (
        psycopg.connect(old_url) as looker,
        psycopg.connect(old_url, autocommit=True) as bystander,
        ThreadPoolExecutor(1) as pool,
    ):
        looker.execute(f"SELECT FROM {there}".encode())
        bystander.execute("SET lock_timeout = '1s'")
        waiting = pool.submit(go, old_url, step)
        for attempt in range(30):
            if waiting.done():
                break
            bystander.execute(f"SELECT FROM {there} LIMIT 1".encode())
            bystander.execute("UPDATE scheduler_tasks SET status = 'running'")
            bystander.execute(RUN, (f"meanwhile {attempt}", 5))
            time.sleep(0.1)  # the revision comes to its next attempt
        looker.commit()
        assert waiting.result(60).found == step[1]


def as_far_as_the_numbering(url: str) -> None:
    """What the second revision has committed when the long part begins."""
    upgrade(url, "0001")
    for statement in (*revision._SEQUENCES, *revision._TABLES, *revision._FUNCTIONS,
                      *revision._TASKS, *revision._TASK_TRIGGERS, *revision._RUNS):  # fmt: skip
        query(url, statement)


def test_what_the_old_code_writes_while_durations_are_widened_is_kept(old_url: str) -> None:
    as_far_as_the_numbering(old_url)
    query(old_url, RUN, ("open", None))
    query(old_url, RUN, ("ended", 7))
    query(old_url, "UPDATE scheduler_runs SET duration_ms = 9 WHERE run_id IN ('open', 'r1')")
    assert upgrade(old_url).state is SchemaState.CURRENT
    assert query(old_url, "SELECT run_id, duration_ms FROM scheduler_runs ORDER BY run_id") == [
        ("ended", 7), ("open", 9), ("r1", 9), ("r2", 60000), ("r3", 60000)
    ]  # fmt: skip
    assert value(old_url, "SELECT pg_typeof(duration_ms)::text FROM scheduler_runs LIMIT 1") == (
        "bigint"
    )
    left = "SELECT count(*) FROM pg_proc WHERE proname = 'scheduler_runs_widen'"
    assert value(old_url, left) == 0


def test_the_old_indexes_serve_until_there_are_better_ones(old_url: str) -> None:
    as_far_as_the_numbering(old_url)
    names = "SELECT indexname FROM pg_indexes WHERE indexname ~ '^ix_scheduler_runs' ORDER BY 1"
    assert query(old_url, names) == [("ix_scheduler_runs_task_id",)]
    upgrade(old_url)
    assert query(old_url, names) == [
        ("ix_scheduler_runs_ended_at",),
        ("ix_scheduler_runs_task_key_ended_at",),
    ]


@pytest.mark.parametrize("target", ["0001", "0002"])
def test_whoever_vacuums_is_waited_for_until_it_gives_way(old_url: str, target: str) -> None:
    # An autovacuum ends only for who has waited for a second: the short attempts never have.
    if target == "0002":
        upgrade(old_url, "0001")
    with psycopg.connect(old_url) as vacuum, ThreadPoolExecutor(1) as pool:
        vacuum.execute("LOCK TABLE scheduler_runs IN SHARE UPDATE EXCLUSIVE MODE")
        waiting = pool.submit(upgrade, old_url, target)
        try:
            wait_for(old_url, "SELECT 1 FROM pg_locks WHERE mode = 'ShareUpdateExclusiveLock'"
                     " AND NOT granted AND now() - waitstart > '1 s'")  # fmt: skip
        finally:
            vacuum.rollback()
        assert waiting.result(60).found == target
