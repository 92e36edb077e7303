"""A way back that would lose something is refused before anything was changed."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from datahound_storage.errors import SchemaError
from datahound_storage.migrations import SchemaState, downgrade, status, upgrade
from tests.fix_persistence import MakePersistence
from tests.migrations import support
from tests.migrations.support import query, value
from tests.migrations.test_upgrade import script_of, wait_for
from tests.scheduler import make_task

KEPT = """
INSERT INTO scheduler_conflicts (task_key, half, kept, lost_text, reason)
VALUES ('a', 'definition', 'database', '{}', 'by hand')"""


@pytest.fixture
def url(database_url: str) -> str:
    """The sample's rows, a deleted task and what was pruned: what earlier revisions do not keep."""
    upgrade(database_url, x=support.IMPORT_SAMPLE)
    query(database_url, "DELETE FROM scheduler_tasks WHERE position = 3")
    query(database_url, "UPDATE scheduler_storage SET history_cutoff = '2001-01-01 00:00+00'")
    return database_url


def all_of(url: str) -> list[list[tuple]]:
    return [
        query(url, f"SELECT t::text FROM {name} AS t ORDER BY 1") for name in support.OUR_TABLES
    ]


def test_the_last_steps_refusal_comes_before_the_first_step(url: str) -> None:
    query(url, "UPDATE scheduler_tasks SET status = 'paused' WHERE position = 1")
    before, schema = all_of(url), support.schema_of(url)
    with pytest.raises(SchemaError, match=r"1 task and 0 runs .* No task and no run was dropped"):
        downgrade(url, "base", x=support.IMPORT_SAMPLE)
    assert (all_of(url), support.schema_of(url)) == (before, schema)
    assert status(url).state is SchemaState.CURRENT


def test_a_script_refuses_before_its_first_step(url: str) -> None:
    before = all_of(url)
    with pytest.raises(psycopg.errors.RaiseException, match="the tables hold rows"):
        support.apply_script(url, script_of("downgrade", "head:base", x=[]))
    assert all_of(url) == before
    assert status(url).state is SchemaState.CURRENT


@pytest.mark.parametrize("target", ["0001", "base"])
def test_kept_versions_are_not_dropped(url: str, target: str) -> None:
    query(url, KEPT)
    before = all_of(url)
    with pytest.raises(SchemaError, match=r"^1 versions of tasks .* `datahound-storage conflicts`"):
        downgrade(url, target, x=support.IMPORT_SAMPLE)
    with pytest.raises(psycopg.errors.RaiseException, match="1 versions of tasks"):
        support.apply_script(url, script_of("downgrade", f"head:{target}", x=[]))
    assert all_of(url) == before
    assert status(url).state is SchemaState.CURRENT
    assert downgrade(url, target, x=["drop=yes"]).usable is False


def test_kept_versions_do_not_stop_a_step_that_keeps_them(url: str) -> None:
    query(url, KEPT)
    assert downgrade(url, "0002").found == "0002"
    assert value(url, "SELECT count(*) FROM scheduler_conflicts") == 1


@pytest.mark.parametrize(
    "change",
    [
        "success = NOT success",
        "message = 'by hand'",
        "finished_at = finished_at + interval '1 us'",
        "finished_at = NULL",
        "started_at = started_at - interval '1 us'",
        "duration_ms = duration_ms + 1",
        'metadata_json = metadata_json || \'{"task_name": "other"}\'',
        "metadata_json = NULL",
    ],
)
def test_a_run_that_the_files_show_differently_is_not_dropped(url: str, change: str) -> None:
    query(url, f"UPDATE scheduler_runs SET {change} WHERE seq = 7")
    with pytest.raises(SchemaError, match="0 tasks and 1 run "):
        downgrade(url, "base", x=support.IMPORT_SAMPLE)


def test_a_timezone_that_an_import_would_not_give_is_not_dropped(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    query(url, "UPDATE scheduler_tasks SET timezone = 'Europe/Paris'")
    with pytest.raises(SchemaError, match=r"39 tasks and 0 runs .* set DATAHOUND_SCHEDULER_TZ"):
        downgrade(url, "base", x=support.IMPORT_SAMPLE)
    monkeypatch.setenv("DATAHOUND_SCHEDULER_TZ", "Europe/Paris")
    assert downgrade(url, "base", x=support.IMPORT_SAMPLE).state is SchemaState.MISSING


def test_what_the_scheduler_wrote_is_in_its_files(
    migrated_url: str, opened: MakePersistence, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = opened(base, url=migrated_url)
    assert scheduler.add_task(make_task("a"))
    for number, seconds in enumerate((0.0, 1.5, 0.0004, 1e-7, 1e9)):
        scheduler.log_task_execution("a", bool(number % 2), f"run {number} \x00 ü", seconds)
    assert value(migrated_url, "SELECT count(*) FROM scheduler_runs") == 5
    found = {path.name: path for path in base.rglob("*") if path.is_file()}
    x = [f"snapshot={found['scheduled_tasks.json']}", f"history={found['task_history.jsonl']}"]
    assert downgrade(migrated_url, "base", x=x).state is SchemaState.MISSING


ODD_LINES = [
    {"timestamp": "2024-03-01T12:00:00", "task_id": "a"},
    {"timestamp": "2024-03-01T12:00:00", "task_id": "a"},
    {"timestamp": "2024-03-01T12:00:00-08:00", "task_id": "a", "run_id": "r", "message": "\x00"},
    {"timestamp": "2024-03-01T12:00:00Z", "task_id": "a", "duration_seconds": float("inf")},
    {"timestamp": "2024-03-01T12:00:00Z", "task_id": "a", "duration_seconds": -3},
    {"timestamp": "0001-01-01T00:00:00+00:00", "task_id": "a", "duration_seconds": 9},
    {"timestamp": "2024-03-01T12:00:00Z", "task_id": "a", "task_name": {"b": [1.50, 1e3]}},
    {"timestamp": "2024-03-01T12:00:00Z", "task_id": "a", "success": "yes", "message": 7},
]


def test_odd_lines_are_equal_to_their_rows(database_url: str, tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in ODD_LINES))
    x = [f"history={path}", f"snapshot={support.SNAPSHOT}"]
    upgrade(database_url, x=x)
    assert value(database_url, "SELECT count(*) FROM scheduler_runs") == len(ODD_LINES)
    assert downgrade(database_url, "base", x=x).state is SchemaState.MISSING


def test_what_is_too_deep_to_be_compared_is_not_dropped(url: str) -> None:
    deep = "[" * 900 + "]" * 900
    query(url, "UPDATE scheduler_tasks SET config_json = jsonb_build_object('deep', %s::jsonb)"
          " WHERE position = 1", [deep])  # fmt: skip
    with pytest.raises(SchemaError, match="1 task and 0 runs"):
        downgrade(url, "base", x=support.IMPORT_SAMPLE)


def test_what_is_added_during_the_last_step_is_not_dropped(url: str) -> None:
    downgrade(url, "0001")
    with psycopg.connect(url) as late, ThreadPoolExecutor(1) as pool:
        late.execute("INSERT INTO scheduler_runs (id, run_id, started_at)"
                     " VALUES (gen_random_uuid(), 'late', now())")  # fmt: skip
        going = pool.submit(downgrade, url, "base", x=support.IMPORT_SAMPLE)
        wait_for(url, "SELECT 1 FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted")
        late.commit()
        with pytest.raises(SchemaError, match="0 tasks and 1 run "):
            going.result(60)
    assert value(url, "SELECT count(*) FROM scheduler_runs WHERE run_id = 'late'") == 1


def test_what_is_kept_during_a_step_is_not_dropped(url: str) -> None:
    downgrade(url, "0002")
    with psycopg.connect(url) as late, ThreadPoolExecutor(1) as pool:
        late.execute(KEPT)
        going = pool.submit(downgrade, url, "0001")
        wait_for(url, "SELECT 1 FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted")
        late.commit()
        with pytest.raises(SchemaError, match="1 versions of tasks"):
            going.result(60)
    assert value(url, "SELECT count(*) FROM scheduler_conflicts") == 1
