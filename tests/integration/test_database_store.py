"""What only the database store has: operators' SQL, the snapshot that follows, peers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from datahound_storage import BackupEvent, SchedulerPersistence
from tests.fix_persistence import MakePersistence, as_another
from tests.scheduler import OldCode, make_task


@pytest.fixture
def store_url(migrated_url: str) -> str:
    """These run on the database only."""
    return migrated_url


@pytest.fixture
def sql(migrated_url: str) -> Any:
    """An operator at a prompt."""
    with psycopg.connect(migrated_url, autocommit=True) as connection:
        yield connection.execute


def snapshot(persistence: SchedulerPersistence) -> list[dict[str, Any]]:
    tasks: list[dict[str, Any]] = json.loads(persistence.tasks_file.read_text())
    return tasks


def test_the_columns_mirror_the_task(persistence: SchedulerPersistence, sql: Any) -> None:
    week = {"days": ["monday", "wednesday"], "time_window": None, "interval_minutes": 60}
    persistence.add_task(make_task("a"))
    persistence.add_task(make_task("b", schedule_type="daily_time", daily_time="01:00:00"))
    persistence.add_task(make_task("c", schedule_type="weekly_schedule", weekly_schedule=week))
    rows = sql(
        "SELECT task_key, task_type, company, schedule_type, schedule_expr, timezone, status, "
        "config_json ->> 'task_id' FROM scheduler_tasks ORDER BY position"
    ).fetchall()
    assert rows == [
        ("a", "download", "Acme", "interval", "interval:15", "UTC", "active", "a"),
        ("b", "download", "Acme", "daily_time", "daily:01:00:00", "UTC", "active", "b"),
        ("c", "download", "Acme", "weekly_schedule", "weekly:mon,wed@60", "UTC", "active", "c"),
    ]


def test_times_in_the_columns_are_instants(
    persistence: SchedulerPersistence, sql: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task("a", created_at="2026-10-30T15:11:00-07:00")
    persistence.add_task(task)
    utc = "SELECT created_at AT TIME ZONE 'UTC' FROM scheduler_tasks"
    assert sql(utc).fetchone()[0].isoformat() == "2026-10-30T22:11:00"


EDITS: list[tuple[str, dict[str, Any]]] = [
    ("status = 'paused'", {"status": "paused"}),
    ("schedule_expr = 'interval:30'", {"interval_minutes": 30}),
    ("company = 'Bolt'", {"task_config": {"company": "Bolt"}}),
    ("task_type = 'prepare'", {"task_config": {"task_type": "prepare"}}),
    (
        "config_json = jsonb_set(config_json, '{name}', '\"by hand\"')",
        {"name": "by hand"},
    ),
    ("config_json = config_json - 'description'", {"description": None}),
    (
        "config_json = jsonb_set(config_json, '{status}', '\"paused\"')",
        {},  # the column says active, and columns win
    ),
]


@pytest.mark.parametrize(("assignment", "expected"), EDITS)
def test_what_an_operator_edits_is_what_everybody_sees(
    persistence: SchedulerPersistence, sql: Any, assignment: str, expected: dict[str, Any]
) -> None:
    task = make_task("a", odd="\x00\ud800", number=1.0, order={"z": 1, "a": 2})
    persistence.add_task(task)
    sql(f"UPDATE scheduler_tasks SET {assignment}")
    wanted = dict(task)
    for name, value in expected.items():
        if isinstance(value, dict):
            wanted[name] = {**wanted[name], **value}
        elif value is None:
            del wanted[name]
        else:
            wanted[name] = value
    assert json.dumps(persistence.get_task("a")) == json.dumps(wanted)
    assert json.dumps(persistence.load_tasks()) == json.dumps([wanted])
    assert persistence.tasks_file.read_text() == json.dumps([wanted], indent=2)
    wanted["name"] = "by the scheduler"
    assert persistence.update_task(wanted)
    assert sql("SELECT edited_columns FROM scheduler_tasks").fetchone()[0] == []
    assert persistence.get_task("a") == wanted


def test_an_edited_schedule_keeps_the_time_window(
    persistence: SchedulerPersistence, sql: Any
) -> None:
    week = {"days": ["monday"], "time_window": {"start_time": "08:00:00", "end_time": "18:00:00"}}
    task = make_task("a", schedule_type="weekly_schedule", weekly_schedule=week)
    persistence.add_task(task)
    sql("UPDATE scheduler_tasks SET schedule_expr = 'weekly:tue,sun@30'")
    assert persistence.get_task("a")["weekly_schedule"] == {
        "days": ["tuesday", "sunday"],
        "time_window": week["time_window"],
        "interval_minutes": 30,
    }


def test_rows_that_an_operator_adds_and_deletes(
    persistence: SchedulerPersistence, sql: Any
) -> None:
    persistence.add_task(make_task("a"))
    persistence.load_tasks()
    config = json.dumps(make_task("hand"))
    sql(
        "INSERT INTO scheduler_tasks (id, task_key, task_type, company, config_json, "
        "schedule_type, schedule_expr, timezone, status) VALUES (gen_random_uuid(), 'hand', "
        "'download', 'Acme', %s, 'interval', 'interval:15', 'UTC', 'active')",
        (config,),
    )
    assert json.dumps(persistence.load_tasks()) == json.dumps([make_task("a"), make_task("hand")])
    assert snapshot(persistence) == persistence.load_tasks()
    sql("DELETE FROM scheduler_tasks WHERE task_key = 'a'")
    assert [task["task_id"] for task in persistence.load_tasks()] == ["hand"]
    assert [task["task_id"] for task in snapshot(persistence)] == ["hand"]


def test_a_truncated_table_stays_empty(
    persistence: SchedulerPersistence, make: MakePersistence, sql: Any
) -> None:
    persistence.add_task(make_task("a"))
    persistence.load_tasks()
    sql("TRUNCATE scheduler_tasks")
    assert persistence.load_tasks() == []
    assert snapshot(persistence) == []
    persistence.add_task(make_task("b"))
    sql("TRUNCATE scheduler_tasks")
    persistence.close()
    assert make().load_tasks() == []


def test_deleting_a_task_keeps_its_runs(persistence: SchedulerPersistence, sql: Any) -> None:
    persistence.add_task(make_task("a"))
    persistence.log_task_execution("a", True, duration_seconds=2.5)
    task_id = sql("SELECT id FROM scheduler_tasks").fetchone()[0]
    persistence.delete_task("a")
    row = sql(
        "SELECT task_id, task_key, success, duration_ms, metadata_json ->> 'task_key', "
        "finished_at - started_at = interval '2.5 s' FROM scheduler_runs"
    ).fetchone()
    assert row == (task_id, "a", True, 2500, "a", True)


def test_a_listing_writes_only_when_something_changed(persistence: SchedulerPersistence) -> None:
    persistence.add_task(make_task("a"))
    persistence.load_tasks()
    inode = persistence.tasks_file.stat().st_ino
    persistence.load_tasks()
    persistence.get_active_tasks()
    assert persistence.tasks_file.stat().st_ino == inode


def test_a_peer_in_another_process_keeps_the_same_snapshot(
    persistence: SchedulerPersistence, base: Path, migrated_url: str
) -> None:
    persistence.add_task(make_task("mine"))
    peer = (
        "import sys, json; from datahound_storage import SchedulerPersistence\n"
        "p = SchedulerPersistence(sys.argv[1])\n"
        "p.add_task(json.loads(sys.argv[2]))\n"
    )
    subprocess.run(
        [sys.executable, "-c", peer, str(base / "data"), json.dumps(make_task("theirs"))],
        check=True,
        env={**os.environ, "DATAHOUND_STORAGE_URL": migrated_url},
    )
    assert [task["task_id"] for task in snapshot(persistence)] == ["mine", "theirs"]
    inode = persistence.tasks_file.stat().st_ino
    assert [task["task_id"] for task in persistence.load_tasks()] == ["mine", "theirs"]
    assert persistence.tasks_file.stat().st_ino == inode, "the peer's snapshot was current"
    persistence.update_task(make_task("mine", name="new"))
    assert snapshot(persistence)[0]["name"] == "new"
    assert len(snapshot(persistence)) == 2


def test_what_the_old_code_writes_beside_us_is_carried_over(
    persistence: SchedulerPersistence, base: Path
) -> None:
    persistence.add_task(make_task("a"))
    persistence.add_task(make_task("b"))
    old = OldCode(base)
    old.save([{**make_task("a"), "name": "by the old code"}, make_task("c")])
    tasks = persistence.load_tasks()
    assert [(task["task_id"], task["name"]) for task in tasks] == [
        ("a", "by the old code"),
        ("c", "Task c"),
    ]
    assert snapshot(persistence) == tasks


def test_a_task_that_is_committed_but_cannot_be_backed_up_is_acknowledged_and_retried(
    persistence: SchedulerPersistence, caplog: pytest.LogCaptureFixture
) -> None:
    persistence.add_task(make_task("a"))
    blocker = persistence.scheduler_dir / ".scheduled_tasks.json.tmp"
    blocker.mkdir()
    assert persistence.add_task(make_task("b"))
    assert persistence.health().store == "database"
    assert persistence.health().backup_problem is not None
    assert "scheduled_tasks" in caplog.text
    assert [task["task_id"] for task in snapshot(persistence)] == ["a"]
    blocker.rmdir()
    assert len(persistence.load_tasks()) == 2
    assert persistence.health().backup_problem is None
    assert [task["task_id"] for task in snapshot(persistence)] == ["a", "b"]


class Recorder:
    """A hook that remembers; a broken one."""

    def __init__(self, error: Exception | None = None) -> None:
        self.events: list[tuple[str, tuple[str, ...]]] = []
        self.error = error

    def refresh(self, event: BackupEvent) -> None:
        shown = {task["task_id"] for task in json.loads(event.snapshot.read_text())}
        assert event.watermark
        assert event.reason == "listing" or set(event.task_keys) <= shown
        self.events.append((event.reason, event.task_keys))
        if self.error is not None:
            raise self.error


def test_hooks_are_called_after_the_snapshot_and_cannot_fail_a_write(
    make: MakePersistence, caplog: pytest.LogCaptureFixture
) -> None:
    broken, recorder = Recorder(RuntimeError("no")), Recorder()
    persistence = make(hooks=[broken, recorder])
    assert persistence.add_task(make_task("a"))
    persistence.load_tasks()
    assert recorder.events == broken.events == [("commit", ("a",)), ("listing", ())]
    assert "Recorder" in caplog.text


def test_a_forked_child_makes_its_own_connections(persistence: SchedulerPersistence) -> None:
    persistence.add_task(make_task("a"))
    child = os.fork()
    if child == 0:
        try:
            done = persistence.add_task(make_task("b")) and len(persistence.load_tasks()) == 2
        finally:
            os._exit(0 if done else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert persistence.health().store == "database"
    assert persistence.update_task(make_task("a", name="parent"))
    assert [task["task_id"] for task in persistence.load_tasks()] == ["a", "b"]


@pytest.mark.parametrize("edit", ["created_at = 'infinity'", "updated_at = '20000-01-01'"])
def test_a_time_that_only_postgres_knows_costs_nobody_anything(
    persistence: SchedulerPersistence, sql: Any, edit: str
) -> None:
    persistence.add_task(make_task("a"))
    sql(f"UPDATE scheduler_tasks SET {edit}")
    assert persistence.load_tasks() == [make_task("a")]
    assert persistence.add_task(make_task("b"))
    assert snapshot(persistence) == [make_task("a"), make_task("b")]


def test_what_a_peer_added_and_this_process_deleted_leaves_the_snapshot(
    opened: MakePersistence, base: Path, migrated_url: str
) -> None:
    first, second = (opened(base, url=as_another(migrated_url, name)) for name in ("a", "b"))
    first.add_task(make_task("kept"))
    first.add_task(make_task("deleted"))
    # It never listed the task, nor saw it in any other way.
    assert second.delete_task("deleted")
    assert snapshot(second) == [make_task("kept")]


def test_what_is_again_as_this_process_saw_it_first_is_shown_so(
    opened: MakePersistence, base: Path, migrated_url: str, sql: Any
) -> None:
    first, second = (opened(base, url=as_another(migrated_url, name)) for name in ("a", "b"))
    first.add_task(make_task("a"))
    second.load_tasks()
    text = sql("SELECT task_text FROM scheduler_tasks").fetchone()[0]
    assert first.update_task({**first.get_task("a"), "name": "another"})
    sql("UPDATE scheduler_tasks SET task_text = %s", [text])
    assert second.load_tasks() == snapshot(second) == [make_task("a")]
