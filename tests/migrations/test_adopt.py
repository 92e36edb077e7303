"""Databases of the older code: their tables become ours, rows and all."""

from __future__ import annotations

import psycopg
import pytest

from datahound_storage.errors import SchemaError
from datahound_storage.migrations import SchemaState, inspect, status, upgrade
from tests.migrations import support
from tests.migrations.support import query, value

TASK = "id, task_key, task_type, company, config_json, schedule_type, schedule_expr, status"
RUN = "id, task_id, run_id, started_at, finished_at, success, message, duration_ms, metadata_json"
OTHERS = ("users", "companies", "events", "jobs", "files", "sessions")


@pytest.fixture(params=support.LEGACY_DATABASES)
def legacy_url(request: pytest.FixtureRequest, database_url: str) -> str:
    """A database as the older code left it, with rows, beside six tables of others."""
    with psycopg.connect(database_url) as connection:
        connection.execute(support.LEGACY_DATABASES[request.param].encode())
        connection.execute(support.LEGACY_ROWS.encode())
        for name in OTHERS:
            connection.execute(f"CREATE TABLE {name} (id int); INSERT INTO {name} VALUES (1)")
    return database_url


def rows_of(url: str) -> tuple[list[tuple], list[tuple]]:
    tasks = query(url, f"SELECT {TASK}, created_at FROM scheduler_tasks ORDER BY id")
    return tasks, query(url, f"SELECT {RUN} FROM scheduler_runs ORDER BY id")


def test_such_a_database_counts_as_missing(legacy_url: str) -> None:
    assert status(legacy_url).state is SchemaState.MISSING
    assert status(legacy_url).command == "datahound-storage upgrade"


def test_all_rows_stay_as_they_are(legacy_url: str) -> None:
    before = rows_of(legacy_url)
    assert upgrade(legacy_url).state is SchemaState.CURRENT
    assert rows_of(legacy_url) == before
    assert len(before[0]) == len(before[1]) == 3


def test_tables_of_others_are_left_alone(legacy_url: str) -> None:
    upgrade(legacy_url)
    for name in OTHERS:
        assert query(legacy_url, f"SELECT * FROM {name}") == [(1,)]


def test_tasks_are_numbered_by_their_creation_then_by_key(legacy_url: str) -> None:
    upgrade(legacy_url)
    listed = query(legacy_url, "SELECT task_key FROM scheduler_tasks ORDER BY position")
    assert listed == [("first",), ("Third",), ("second",)]
    query(legacy_url, "INSERT INTO scheduler_tasks SELECT gen_random_uuid(), 'new', t.task_type,"
          " company, config_json, schedule_type, schedule_expr, timezone, status FROM"
          " scheduler_tasks t WHERE task_key = 'first'")  # fmt: skip
    assert value(legacy_url, "SELECT max(position) = 4 FROM scheduler_tasks")


def test_runs_get_a_key_and_the_order_of_their_ends(legacy_url: str) -> None:
    upgrade(legacy_url)
    found = query(legacy_url, "SELECT run_id, task_key FROM scheduler_runs ORDER BY seq")
    assert found == [("r1", "first"), ("r2", "second"), ("r3", "by-metadata")]


def test_an_adopted_table_was_filled(legacy_url: str) -> None:
    upgrade(legacy_url)
    assert value(legacy_url, "SELECT filled_at IS NOT NULL FROM scheduler_storage")
    assert query(legacy_url, "SELECT task_text FROM scheduler_tasks") == [(None,)] * 3


def test_a_task_with_runs_can_be_deleted(legacy_url: str) -> None:
    upgrade(legacy_url)
    query(legacy_url, "DELETE FROM scheduler_tasks WHERE task_key = 'first'")
    assert value(legacy_url, "SELECT count(*) FROM scheduler_runs") == 3


def test_a_long_run_fits(legacy_url: str) -> None:
    upgrade(legacy_url)
    query(legacy_url, "UPDATE scheduler_runs SET duration_ms = 2147483648, task_id = NULL")


def test_an_index_made_by_hand_stays(database_url: str) -> None:
    query(database_url, support.LEGACY.encode())
    query(database_url, "CREATE INDEX dashboard ON scheduler_runs (success)")
    upgrade(database_url)
    names = [name for name, _ in support.tables_of(database_url)["indexes"]]
    assert "dashboard" in names
    assert "ix_scheduler_runs_task_id" not in names


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("ALTER TABLE scheduler_tasks DROP COLUMN status", "column status is missing"),
        (
            "ALTER TABLE scheduler_runs ALTER started_at TYPE text",
            "column started_at is text, not timestamp with time zone",
        ),
    ],
)
def test_a_table_of_somebody_else_is_refused(database_url: str, change: str, words: str) -> None:
    query(database_url, support.LEGACY.encode())
    query(database_url, change)
    before = support.schema_of(database_url)
    with pytest.raises(SchemaError, match=words):
        upgrade(database_url)
    assert support.schema_of(database_url) == before
    assert status(database_url).state is SchemaState.MISSING


def test_a_table_further_on_in_the_search_path_is_not_ours(database_url: str) -> None:
    query(database_url, support.LEGACY.encode())
    query(database_url, support.LEGACY_ROWS.encode())
    query(database_url, "CREATE SCHEMA mine")
    before = support.schema_of(database_url)
    mine = support.with_search_path(database_url, "mine,public")
    upgrade(mine)
    assert support.schema_of(database_url) == before
    assert value(mine, "SELECT count(*) FROM scheduler_tasks") == 0
    with psycopg.connect(database_url) as connection:
        assert inspect(connection).state is SchemaState.MISSING


def test_values_that_were_never_set_are_filled(database_url: str) -> None:
    query(database_url, support.LEGACY_BARE.encode())
    query(database_url, "INSERT INTO scheduler_tasks (id, task_key)"
          " VALUES (gen_random_uuid(), 'bare')")  # fmt: skip
    upgrade(database_url)
    row = "SELECT task_type, company, config_json, schedule_type, schedule_expr, timezone, status,"
    assert query(database_url, f"{row} created_at = updated_at FROM scheduler_tasks") == [
        ("", "", {}, "", "", "UTC", "", True)
    ]


MANY = """
INSERT INTO scheduler_runs (id, task_id, run_id, started_at, finished_at)
SELECT gen_random_uuid(), '00000000-0000-0000-0000-000000000001', 'many' || n,
       timestamptz '2025-01-01 00:00+00' + (n * 7919 % 25000) * interval '1 minute', NULL
FROM generate_series(1, 25000) AS n"""
IN_ORDER = """
SELECT count(*), count(DISTINCT seq), bool_and(task_key IS NOT NULL),
       bool_and(ended_at >= previous IS NOT FALSE)
FROM (SELECT seq, task_key, coalesce(finished_at, started_at) AS ended_at,
             lag(coalesce(finished_at, started_at)) OVER (ORDER BY seq) AS previous
      FROM scheduler_runs) AS numbered"""


@pytest.fixture
def many_url(database_url: str) -> str:
    """More runs than one batch holds."""
    query(database_url, (support.LEGACY + support.LEGACY_ROWS).encode())
    query(database_url, MANY)
    return database_url


def test_many_runs_are_numbered_in_batches(many_url: str) -> None:
    upgrade(many_url)
    assert query(many_url, IN_ORDER) == [(25003, 25003, True, True)]
    # What comes later is numbered after them.
    assert value(many_url, "SELECT max(seq) <= 0 AND nextval('scheduler_runs_seq_seq') > 0 "
                 "FROM scheduler_runs")  # fmt: skip


def test_an_interrupted_upgrade_goes_on_where_it_was(many_url: str) -> None:
    upgrade(many_url, "0002")
    wanted = query(many_url, "SELECT run_id, seq FROM scheduler_runs ORDER BY seq")
    schema = support.schema_of(many_url)
    # As it is when the process died in the second batch, and with an index half made.
    query(many_url, "UPDATE scheduler_runs SET seq = NULL, task_key = NULL WHERE seq > -15003")
    query(many_url, "UPDATE datahound_storage_version SET version_num = '0001'")
    query(many_url, "UPDATE pg_index SET indisvalid = false"
          " WHERE indexrelid = 'ix_scheduler_runs_ended_at'::regclass")  # fmt: skip
    upgrade(many_url, "0002")
    assert query(many_url, "SELECT run_id, seq FROM scheduler_runs ORDER BY seq") == wanted
    assert query(many_url, IN_ORDER) == [(25003, 25003, True, True)]
    assert support.schema_of(many_url) == schema
    assert value(many_url, "SELECT bool_and(indisvalid) FROM pg_index")
