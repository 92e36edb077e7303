"""What somebody added to the old tables by hand is kept, or named before anything was changed."""

from __future__ import annotations

import secrets
from urllib.parse import urlsplit

import pytest

from datahound_storage.errors import SchemaError
from datahound_storage.migrations import SchemaState, status, upgrade
from tests.migrations import support
from tests.migrations.support import query, value
from tests.migrations.test_upgrade import script_of
from tests.servers import TestServer

FOUND = "SELECT relname, relkind, relowner FROM pg_class WHERE relname ~ '^(scheduler|datahound)'"


@pytest.fixture
def old_url(database_url: str) -> str:
    query(database_url, (support.LEGACY + support.LEGACY_ROWS).encode())
    return database_url


RUNS, TASKS = "ALTER TABLE scheduler_runs ", "ALTER TABLE scheduler_tasks "
REFUSED = [
    ("CREATE VIEW v AS SELECT duration_ms FROM scheduler_runs", "rule _RETURN on view v hangs on"),
    ("CREATE INDEX i ON scheduler_runs (success, duration_ms)", "index i hangs on duration_ms"),
    ("CREATE INDEX i ON scheduler_runs (abs(duration_ms))", "index i hangs on duration_ms"),
    (RUNS + "ADD CONSTRAINT c CHECK (duration_ms >= 0)", "constraint c on"),
    ("CREATE STATISTICS s ON success, duration_ms FROM scheduler_runs", "statistics object"),
    (
        RUNS + "ADD s bigint GENERATED ALWAYS AS (duration_ms / 1000) STORED",
        "column s of table scheduler_runs hangs on",
    ),
    (
        RUNS + "DROP CONSTRAINT scheduler_runs_run_id_key, "
        "ADD CONSTRAINT late UNIQUE (run_id) DEFERRABLE",
        "constraint late of scheduler_runs is deferrable",
    ),
    (
        RUNS + "ADD task_key varchar(20)",
        r"column task_key of scheduler_runs is character varying\(20\), not character varying",
    ),
    (TASKS + "ADD position int", "column position of scheduler_tasks is integer, not bigint"),
    (
        RUNS + "ADD owner text NOT NULL DEFAULT 'x'; " + RUNS + "ALTER owner DROP DEFAULT",
        "column owner of scheduler_runs may not",
    ),
    ("CREATE TABLE more () INHERITS (scheduler_runs)", "runs in schema public is a table that inh"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_what_cannot_be_adopted_is_named_first(old_url: str, change: str, words: str) -> None:
    query(old_url, change)
    before, found = support.schema_of(old_url), query(old_url, FOUND)
    with pytest.raises(SchemaError, match=f"{words}.* Nothing was changed"):
        upgrade(old_url)
    assert support.schema_of(old_url) == before
    assert [row for row in query(old_url, FOUND) if "version" not in row[0]] == found
    assert status(old_url).state is SchemaState.MISSING


def test_all_of_it_is_named_at_once(old_url: str) -> None:
    query(old_url, "; ".join(change for change, _ in REFUSED[:2]))
    with pytest.raises(SchemaError, match=r"index i hangs on .*; rule _RETURN on view v hangs on"):
        upgrade(old_url)
    query(old_url, "DROP VIEW v; DROP INDEX i")
    assert upgrade(old_url).state is SchemaState.CURRENT


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("CREATE VIEW scheduler_runs AS SELECT 1 AS id", "a view"),
        ("CREATE TABLE scheduler_runs (id uuid) PARTITION BY HASH (id)", "a partitioned table"),
    ],
)
def test_what_is_no_plain_table_is_told(database_url: str, kind: str, words: str) -> None:
    query(database_url, kind)
    with pytest.raises(SchemaError, match=f"scheduler_runs in schema public is {words}, and only"):
        upgrade(database_url)


def test_what_is_said_of_the_column_is_carried_over(old_url: str) -> None:
    query(old_url, "ALTER TABLE scheduler_runs ALTER duration_ms SET DEFAULT 7;"
          "COMMENT ON COLUMN scheduler_runs.duration_ms IS 'it''s ms';"
          "GRANT SELECT (duration_ms) ON scheduler_runs TO PUBLIC;"
          "GRANT UPDATE (duration_ms) ON scheduler_runs TO pg_monitor"
          " WITH GRANT OPTION")  # fmt: skip
    said = """
        SELECT pg_get_expr(d.adbin, d.adrelid), a.attacl::text,
            col_description(a.attrelid, a.attnum)
        FROM pg_attribute a JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attrelid = 'scheduler_runs'::regclass AND a.attname = 'duration_ms'"""
    before = query(old_url, said)
    support.apply_script(old_url, script_of("upgrade", "head", x=[]))
    assert query(old_url, said) == before
    assert before[0][2] == "it's ms"
    query(old_url, "INSERT INTO scheduler_runs (id, run_id, started_at)"
          " VALUES (gen_random_uuid(), 'r', now())")  # fmt: skip
    assert value(old_url, "SELECT duration_ms FROM scheduler_runs WHERE run_id = 'r'") == 7


@pytest.mark.parametrize(
    "index",
    [
        "scheduler_runs (run_id varchar_pattern_ops)",
        "scheduler_tasks (task_key varchar_pattern_ops)",
        "scheduler_runs USING hash (run_id)",
        'scheduler_runs (run_id COLLATE "POSIX")',
        "scheduler_runs (run_id) WHERE success",
    ],
)
def test_an_index_that_can_do_more_than_the_key_stays(old_url: str, index: str) -> None:
    query(old_url, f"CREATE INDEX mine ON {index}")
    upgrade(old_url)
    assert value(old_url, "SELECT to_regclass('mine') IS NOT NULL")


def test_a_unique_index_that_is_no_key_is_not_taken_for_one(database_url: str) -> None:
    query(database_url, support.LEGACY_BARE.encode())
    query(database_url, "CREATE UNIQUE INDEX mine ON scheduler_runs (run_id text_pattern_ops)")
    assert upgrade(database_url).state is SchemaState.CURRENT


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("VALUES (gen_random_uuid(), 'r', now()), (gen_random_uuid(), 'r', now())",
         r"UniqueViolation 23505 \(table scheduler_runs, constraint scheduler_runs_run_id_key\)"),
        ("VALUES (gen_random_uuid(), NULL, now())",
         r"NotNullViolation 23502 \(table scheduler_runs, column run_id\)"),
    ],
)  # fmt: skip
def test_rows_that_have_no_key_are_told_by_column(database_url: str, rows: str, words: str) -> None:
    query(database_url, support.LEGACY_BARE.encode())
    query(database_url, f"INSERT INTO scheduler_runs (id, run_id, started_at) {rows}")
    with pytest.raises(SchemaError, match=f"{words}. What it had committed before that stays"):
        upgrade(database_url)


def test_a_database_of_another_encoding_is_told(server: TestServer) -> None:
    name = f"datahound_test_{secrets.token_hex(8)}"
    query(server.admin_url, f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C'"
          " TEMPLATE template0")  # fmt: skip
    url = urlsplit(server.admin_url)._replace(path=f"/{name}").geturl()
    try:
        with pytest.raises(SchemaError, match=f"database {name} has the encoding LATIN1"):
            upgrade(url, x=support.IMPORT_SAMPLE)
    finally:
        server.drop_database(url)
