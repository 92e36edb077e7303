"""The way back loses no task and no run, unless it is told to."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest

from datahound_storage.errors import SchemaError
from datahound_storage.migrations import SchemaState, downgrade, status, upgrade
from tests.migrations import support
from tests.migrations.support import query, value
from tests.migrations.test_back_and_forth import TRACES
from tests.migrations.test_live import as_far_as_the_numbering

ROWS = ("scheduler_tasks", "scheduler_runs")


@pytest.fixture
def url(database_url: str) -> str:
    """A database with the sample's rows."""
    upgrade(database_url, x=support.IMPORT_SAMPLE)
    return database_url


def contract_rows(url: str) -> list[list[tuple]]:
    """What both the first revision and the head have of each row."""
    tasks = (
        "id, task_key, task_type, company, config_json, schedule_type, schedule_expr, timezone,"
        " status, created_at, updated_at"
    )
    runs = "id, task_id, run_id, started_at, finished_at, success, message, duration_ms"
    return [
        query(url, f"SELECT {tasks} FROM scheduler_tasks ORDER BY id"),
        query(url, f"SELECT {runs}, metadata_json FROM scheduler_runs ORDER BY id"),
    ]


def test_down_to_the_first_and_up_keeps_every_row(url: str) -> None:
    query(url, "UPDATE scheduler_tasks SET status = 'paused'")
    before, schema = contract_rows(url), support.schema_of(url)
    assert downgrade(url, "0001").found == "0001"
    assert contract_rows(url) == before
    names = {name.split(".")[1] for name, *_ in support.tables_of(url)["columns"]}
    assert not names & {"task_text", "seq", "line_text", "changed_xid"}
    assert query(url, "SELECT proname FROM pg_proc WHERE proname LIKE 'scheduler%'") == []
    assert upgrade(url).state is SchemaState.CURRENT
    assert contract_rows(url) == before
    assert support.schema_of(url) == schema


def test_down_to_nothing_while_the_files_show_it_all(url: str) -> None:
    assert downgrade(url, "base", x=support.IMPORT_SAMPLE).state is SchemaState.MISSING
    assert support.tables_of(url)["columns"] == []
    relations = query(url, "SELECT relname FROM pg_class WHERE relname LIKE 'scheduler%'")
    assert relations == []
    upgrade(url, x=support.IMPORT_SAMPLE)
    assert value(url, "SELECT count(*) FROM scheduler_tasks") == 40


def test_the_files_of_the_data_directory_are_the_default(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATAHOUND_DATA_DIR", str(support.ROOT / "examples" / "data"))
    assert downgrade(url, "base").state is SchemaState.MISSING


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UPDATE scheduler_tasks SET status = 'paused' WHERE position = 1", "1 task and 0 runs"),
        ("UPDATE scheduler_tasks SET company = 'B' WHERE position = 2", "1 task and 0 runs"),
        (
            "UPDATE scheduler_tasks SET updated_at = updated_at + interval '1 ms' "
            "WHERE position < 4",
            "3 tasks and 0 runs",
        ),
        (
            "UPDATE scheduler_tasks SET config_json = config_json || '{\"run_count\": 1.5}' "
            "WHERE position = 1",
            "1 task and 0 runs",
        ),
        (
            "INSERT INTO scheduler_runs (id, run_id, started_at) "
            "VALUES (gen_random_uuid(), 'new', now())",
            "0 tasks and 1 run .* the first is 'new'",
        ),
    ],
)
def test_what_the_files_lack_is_not_dropped(url: str, change: str, words: str) -> None:
    query(url, change)
    downgrade(url, "0001")
    before = contract_rows(url)
    with pytest.raises(SchemaError, match=words):
        downgrade(url, "base", x=support.IMPORT_SAMPLE)
    assert contract_rows(url) == before
    assert status(url).found == "0001"


def test_without_files_nothing_is_dropped(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SchemaError, match=r"40 tasks and 1500 runs .*-x drop=yes"):
        downgrade(url, "base")
    assert value(url, "SELECT count(*) FROM scheduler_tasks") == 40
    assert downgrade(url, "base", x=["drop=yes"]).state is SchemaState.MISSING
    assert support.tables_of(url)["columns"] == []


def test_other_spellings_of_the_same_values_are_equal(database_url: str, tmp_path: Path) -> None:
    tasks = [
        {"task_id": "nul", "name": "\x00 \ud800", "task_config": {"company": "\x00"}},
        {"task_id": "nan", "a": float("nan"), "b": [1.0, 1e5, 1.50, True, None]},
        {"task_id": "daily", "schedule_type": "daily_time", "daily_time": "01:00:00"},
        {"task_id": "weekly", "schedule_type": "weekly_schedule",
         "weekly_schedule": {"days": ["monday"], "interval_minutes": 5}},
        {"task_id": "times", "created_at": "2024-01-01T00:00:00", "updated_at": "soon"},
    ]  # fmt: skip
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps(tasks))
    x = [f"snapshot={path}"]
    upgrade(database_url, x=x)
    path.write_text(json.dumps([dict(reversed(task.items())) for task in tasks]))
    assert downgrade(database_url, "base", x=x).state is SchemaState.MISSING


def test_one_is_not_true(database_url: str, tmp_path: Path) -> None:
    path = tmp_path / "tasks.json"
    path.write_text('[{"task_id": "a", "flag": 1}]')
    upgrade(database_url, x=[f"snapshot={path}"])
    path.write_text('[{"task_id": "a", "flag": true}]')
    with pytest.raises(SchemaError, match="1 task"):
        downgrade(database_url, "base", x=[f"snapshot={path}"])


def test_a_downgrade_finds_no_tables_further_on_in_the_search_path(database_url: str) -> None:
    upgrade(database_url, x=support.IMPORT_SAMPLE)
    query(database_url, "CREATE SCHEMA mine")
    mine = support.with_search_path(database_url, "mine,public")
    upgrade(mine)
    query(mine, "DROP TABLE mine.scheduler_conflicts")
    downgrade(mine, "base")
    names = query(database_url, "SELECT relnamespace::regnamespace::text FROM pg_class"
                  " WHERE relname LIKE 'scheduler%' AND relkind = 'r'")  # fmt: skip
    assert names == [("public",)] * 5
    assert value(database_url, "SELECT count(*) FROM scheduler_tasks") == 40


def test_an_unknown_revision_cannot_be_left(url: str) -> None:
    query(url, "UPDATE datahound_storage_version SET version_num = '9999'")
    with pytest.raises(SchemaError, match="9999, which this version does not know"):
        downgrade(url, "0001")


def test_the_locks_of_a_downgrade_are_short(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("SELECT count(*) FROM scheduler_tasks")
        with pytest.raises(TimeoutError, match="in use by a long transaction"):
            downgrade(url, "0001", lock_wait=0.1)
    assert status(url).found == "0002"


def test_an_interrupted_upgrade_leaves_nothing_behind_a_downgrade(database_url: str) -> None:
    as_far_as_the_numbering(database_url)
    query(database_url, "INSERT INTO scheduler_tasks (id, task_key, task_type, company,"
          " config_json, schedule_type, schedule_expr, status)"
          " VALUES (gen_random_uuid(), 'a', '', '', '{}', '', '', '')")  # fmt: skip
    assert status(database_url).found == "0001"
    downgrade(database_url, "base", x=["drop=yes"])
    assert query(database_url, TRACES) == []
    upgrade(database_url, x=support.IMPORT_SAMPLE)
    assert value(database_url, "SELECT count(*) FROM scheduler_tasks") == 40
