"""The triggers: they see every change, whoever makes it and under whatever search path."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest

from datahound_storage.migrations import upgrade
from tests.migrations.support import query, value, with_search_path

INSERT = """
INSERT INTO scheduler_tasks (id, task_key, task_type, company, config_json, schedule_type,
                             schedule_expr, timezone, status, created_at, updated_at)
VALUES (gen_random_uuid(), %s, 'download', 'A', '{"name": "x"}', 'interval', 'interval:5', 'UTC',
        'active', now(), now())"""
INSERT_RUN = """
INSERT INTO scheduler_runs (id, task_id, run_id, started_at, metadata_json)
VALUES (gen_random_uuid(), %s, %s, now(), %s)"""


@pytest.fixture
def url(migrated_url: str) -> str:
    """A database with one task that has a text."""
    query(migrated_url, INSERT, ["one"])
    query(migrated_url, "UPDATE scheduler_tasks SET task_text = '{}'")
    return migrated_url


def edited(url: str) -> Any:
    return value(url, "SELECT edited_columns FROM scheduler_tasks WHERE task_text IS NOT NULL")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ("status = 'paused'", ["status"]),
        ("company = 'B', task_type = 'custom'", ["company", "task_type"]),
        ("config_json = '{\"name\": \"y\"}'", ["config_json"]),
        ("schedule_type = 'daily_time', schedule_expr = 'daily:01:00:00'",
         ["schedule_expr", "schedule_type"]),
        ("created_at = now() - interval '1 day', updated_at = now() + interval '1 day'",
         ["created_at", "updated_at"]),
        ("task_key = 'two'", ["task_key"]),
        ("position = 77", []),
        ("timezone = 'CET'", []),
        ("status = status", []),
        ("config_json = '{ \"name\" : \"x\" }'", []),
    ],
)  # fmt: skip
def test_an_edit_by_hand_is_noted_and_the_text_stays(url: str, change: str, names: Any) -> None:
    query(url, f"UPDATE scheduler_tasks SET {change}")
    assert edited(url) == names
    assert value(url, "SELECT task_text FROM scheduler_tasks") == "{}"


def test_edits_add_up(url: str) -> None:
    query(url, "UPDATE scheduler_tasks SET status = 'paused'")
    query(url, "UPDATE scheduler_tasks SET status = 'active', company = 'B'")
    query(url, "UPDATE scheduler_tasks SET position = 3")
    assert edited(url) == ["company", "status"]


def test_a_new_text_says_everything(url: str) -> None:
    query(url, "UPDATE scheduler_tasks SET status = 'paused'")
    query(url, "UPDATE scheduler_tasks SET status = 'error', task_text = '{\"a\": 1}'")
    assert edited(url) == []


def test_the_same_text_can_be_renewed(url: str) -> None:
    query(url, "UPDATE scheduler_tasks SET status = 'paused'")
    query(url, "UPDATE scheduler_tasks SET status = 'active', task_text = '{}',"
               " edited_columns = '{}'")  # fmt: skip
    assert edited(url) == []


def test_rows_of_older_code_have_no_text(migrated_url: str) -> None:
    query(migrated_url, INSERT, ["old"])
    row = query(migrated_url, "SELECT task_text, edited_columns, position > 0, changed_at <= now() "
                "FROM scheduler_tasks")  # fmt: skip
    assert row == [(None, [], True, True)]


@pytest.mark.parametrize(
    "change",
    ["SET status = 'paused'", "SET position = 9", "SET task_text = 'x'", "SET changed_xid = '3'"],
)
def test_every_change_is_stamped(url: str, change: str) -> None:
    before = query(url, "SELECT changed_xid::text::bigint, changed_at FROM scheduler_tasks")[0]
    with psycopg.connect(url) as connection:
        connection.execute(f"UPDATE scheduler_tasks {change}")
        now = connection.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()
    after = query(url, "SELECT changed_xid::text::bigint, changed_at FROM scheduler_tasks")[0]
    assert now == (after[0],)
    assert after[0] > before[0]
    assert after[1] > before[1]


def test_a_stamp_cannot_be_given_at_an_insert(migrated_url: str) -> None:
    query(migrated_url, INSERT.replace("updated_at)", "updated_at, changed_xid)").replace(
        "now(), now())", "now(), now(), '3')"), ["one"])  # fmt: skip
    assert value(migrated_url, "SELECT changed_xid <> '3' FROM scheduler_tasks")


TOMBSTONES = "SELECT task_key FROM scheduler_task_tombstones ORDER BY 1"


def test_deletes_leave_tombstones(url: str) -> None:
    for key in ("two", "three"):
        query(url, INSERT, [key])
    query(url, "DELETE FROM scheduler_tasks WHERE task_key <> 'one'")
    assert query(url, TOMBSTONES) == [("three",), ("two",)]


@pytest.mark.parametrize(
    "change", ["DELETE FROM scheduler_tasks", "UPDATE scheduler_tasks SET task_key = 'two'"]
)
def test_a_tombstone_is_renewed(url: str, change: str) -> None:
    look = "SELECT deleted_xid::text::bigint FROM scheduler_task_tombstones"
    query(url, "DELETE FROM scheduler_tasks")
    first = value(url, look)
    query(url, INSERT, ["one"])
    with psycopg.connect(url) as connection:
        connection.execute(change.encode())
        now = connection.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()
    assert now == (value(url, look),)
    assert value(url, look) > first


def test_a_delete_of_nothing_leaves_none(url: str) -> None:
    query(url, "DELETE FROM scheduler_tasks WHERE task_key = 'none'")
    assert query(url, TOMBSTONES) == []


def test_a_changed_key_leaves_the_old_one_buried(url: str) -> None:
    query(url, "UPDATE scheduler_tasks SET task_key = 'renamed'")
    assert query(url, TOMBSTONES) == [("one",)]


BURIED = "SELECT task_text FROM scheduler_task_tombstones WHERE task_key = 'one'"


def test_a_tombstone_tells_the_text_that_was_deleted(url: str) -> None:
    for text in ('{"task_id": "one"}', '{"task_id": "one", "name": "again"}'):
        query(url, "UPDATE scheduler_tasks SET task_text = %s", [text])
        query(url, "DELETE FROM scheduler_tasks")
        assert value(url, BURIED) == text
        query(url, INSERT, ["one"])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("SET status = 'paused'", "{}"),
        ("SET task_text = NULL", None),
        ("SET task_key = 'renamed'", "{}"),
    ],
)
def test_a_tombstone_tells_the_text_under_later_edits(
    url: str, change: str, text: str | None
) -> None:
    query(url, "DELETE FROM scheduler_tasks")
    query(url, INSERT, ["one"])
    query(url, "UPDATE scheduler_tasks SET task_text = '{}'")
    query(url, f"UPDATE scheduler_tasks {change}")
    query(url, "DELETE FROM scheduler_tasks")
    assert query(url, BURIED) == [(text,)]


def test_truncate_begins_an_epoch(url: str) -> None:
    query(url, "TRUNCATE scheduler_tasks")
    assert value(url, "SELECT epoch FROM scheduler_storage") == 1
    assert value(url, "SELECT filled_at IS NOT NULL FROM scheduler_storage")


FILLED = "SELECT filled_at FROM scheduler_storage"


def test_the_first_task_fills_the_table_once(migrated_url: str) -> None:
    assert value(migrated_url, FILLED) is None
    query(migrated_url, INSERT, ["one"])
    filled_at = value(migrated_url, FILLED)
    assert filled_at is not None
    query(migrated_url, INSERT, ["two"])
    assert value(migrated_url, FILLED) == filled_at


def test_an_insert_of_nothing_does_not_fill_it(migrated_url: str) -> None:
    query(migrated_url, "INSERT INTO scheduler_tasks SELECT * FROM scheduler_tasks")
    assert value(migrated_url, FILLED) is None


def test_later_inserts_do_not_wait_for_each_other(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(INSERT, ["open"])
        other = threading.Thread(target=query, args=(url, INSERT, ["other"]))
        other.start()
        other.join(5)
        assert not other.is_alive()


def test_a_run_of_older_code_gets_its_key(url: str) -> None:
    task_id = value(url, "SELECT id FROM scheduler_tasks")
    query(url, INSERT_RUN, [task_id, "by-metadata", '{"task_key": "named"}'])
    query(url, INSERT_RUN, [task_id, "by-task", None])
    query(url, INSERT_RUN, [task_id, "odd", '["no object"]'])
    query(url, INSERT_RUN, ["00000000-0000-0000-0000-000000000000", "unknown", "{}"])
    query(url, INSERT_RUN, [None, "none", "{}"])
    query(url, INSERT_RUN, [None, "long", f'{{"task_key": "{"k" * 300}"}}'])
    found = dict(query(url, "SELECT run_id, task_key FROM scheduler_runs"))
    assert found == {
        "by-metadata": "named",
        "by-task": "one",
        "odd": "one",
        "unknown": None,
        "none": None,
        "long": "k" * 255,
    }
    assert value(url, "SELECT array_agg(run_id ORDER BY seq) FROM scheduler_runs") == list(found)


def test_a_key_that_is_given_is_kept(url: str) -> None:
    columns = "id, run_id, started_at, task_key, metadata_json"
    values = """gen_random_uuid(), 'r', now(), 'given', '{"task_key": "other"}'"""
    query(url, f"INSERT INTO scheduler_runs ({columns}) VALUES ({values})")
    assert value(url, "SELECT task_key FROM scheduler_runs") == "given"


def test_the_search_path_of_the_caller_plays_no_part(database_url: str) -> None:
    query(database_url, "CREATE SCHEMA here; CREATE SCHEMA elsewhere")
    here = with_search_path(database_url, "here")
    upgrade(here)
    far = with_search_path(database_url, "elsewhere")
    query(far, INSERT.replace("scheduler_tasks", "here.scheduler_tasks"), ["one"])
    query(far, INSERT_RUN.replace("scheduler_runs", "here.scheduler_runs"),
          [value(here, "SELECT id FROM scheduler_tasks"), "r", None])  # fmt: skip
    query(far, "UPDATE here.scheduler_tasks SET task_key = 'two'")
    query(far, "DELETE FROM here.scheduler_tasks")
    query(far, "TRUNCATE here.scheduler_tasks")
    assert query(here, TOMBSTONES) == [("one",), ("two",)]
    assert value(here, "SELECT task_key FROM scheduler_runs") == "one"
    assert query(here, "SELECT epoch, filled_at IS NOT NULL FROM scheduler_storage") == [(1, True)]


def test_rights_on_the_two_tables_are_enough(url: str) -> None:
    with psycopg.connect(url) as connection:
        role = f"datahound_test_{value(url, 'SELECT md5(random()::text)')}"
        connection.execute(f"CREATE ROLE {role}")
        connection.execute(f"GRANT ALL ON scheduler_tasks, scheduler_runs TO {role}")
        connection.execute(f"SET LOCAL ROLE {role}")
        connection.execute(INSERT, ["by-role"])
        connection.execute("UPDATE scheduler_tasks SET task_key = 'by-role-too' "
                           "WHERE task_key = 'by-role'")  # fmt: skip
        connection.execute(INSERT_RUN, [None, "r", "{}"])
        connection.execute("DELETE FROM scheduler_tasks")
        connection.execute("TRUNCATE scheduler_tasks")
        connection.execute("CREATE TEMP TABLE trap (task_key text)")
        for forbidden in (
            "SELECT * FROM scheduler_storage",
            "CREATE TRIGGER t AFTER DELETE ON trap REFERENCING OLD TABLE AS deleted"
            " EXECUTE FUNCTION scheduler_tasks_bury()",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
                connection.execute(forbidden)
        connection.rollback()
