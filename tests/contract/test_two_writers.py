"""Two processes that change the same task, on both stores."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from datahound_storage import SchedulerPersistence
from datahound_storage.files import conflicts
from datahound_storage.files.paths import StatePaths
from tests.fix_persistence import MakePersistence, as_another
from tests.scheduler import Status, Task, make_task

Writers = tuple[SchedulerPersistence, SchedulerPersistence]


@pytest.fixture
def writers(opened: MakePersistence, base: Path, store_url: str | None) -> Writers:
    """The scheduler and the web UI, each as in a process of its own."""
    other = store_url and as_another(store_url, "ui")
    return opened(base, url=store_url), opened(base, url=other)


@pytest.fixture
def lost(base: Path, store_url: str | None) -> Callable[[], list[tuple[str, str, Any]]]:
    """What is kept of the versions that lost: task, half, and the version."""

    def read() -> list[tuple[str, str, Any]]:
        noted = conflicts.read(StatePaths.below(base / "data").conflicts_file)
        rows = [(n.conflict.task_key, n.conflict.half, n.conflict.lost_text) for n in noted]
        if store_url is not None:
            with psycopg.connect(store_url) as connection:
                query = "SELECT task_key, half, lost_text FROM scheduler_conflicts ORDER BY id"
                rows += connection.execute(query).fetchall()
        return [(key, half, json.loads(text)) for key, half, text in rows]

    return read


def change(persistence: SchedulerPersistence, **fields: Any) -> None:
    """What somebody else does in the meantime: load, change, store."""
    task = persistence.get_task("a")
    task.update(fields)
    assert persistence.update_task(task)


def end_run(task: dict[str, Any]) -> None:
    task.update(status="active", run_count=task["run_count"] + 1, last_run="2026-11-01T10:00:00Z")


def test_an_operators_changes_during_a_run_stand(writers: Writers) -> None:
    scheduler, ui = writers
    scheduler.add_task(make_task("a"))
    task = scheduler.get_active_tasks()[0]
    task["status"] = "running"
    assert scheduler.update_task(task)
    new = {"schedule_type": "daily_time", "daily_time": "01:00:00", "interval_minutes": None}
    change(ui, status="paused", name="renamed", next_run="2026-11-02T01:00:00Z", **new)
    end_run(task)
    task["next_run"] = "2026-11-01T10:15:00Z"
    assert scheduler.update_task(task)
    # The scheduler goes on with its old object, which still says active and its old name.
    for _ in range(2):
        task["status"] = "running"
        assert scheduler.update_task(task)
        end_run(task)
        assert scheduler.update_task(task)
    found = ui.get_task("a")
    assert (found["status"], found["name"], found["run_count"]) == ("paused", "renamed", 3)
    assert {name: found[name] for name in new} == new
    assert found["next_run"] == "2026-11-02T01:00:00Z"
    assert found["last_run"] == "2026-11-01T10:00:00Z"


def test_a_pause_during_a_run_stands_with_the_schedulers_own_class(
    opened: MakePersistence, base: Path, writers: Writers, store_url: str | None
) -> None:
    scheduler = opened(base, url=store_url, task_class=Task)
    _, ui = writers
    ui.add_task(make_task("a", extra={"kept": 1.0}))
    task = scheduler.load_tasks()[0]
    task.status = Status.RUNNING
    assert scheduler.update_task(task)
    change(ui, status="paused", name="renamed")
    for _ in range(2):
        task.status, task.run_count = Status.ACTIVE, task.run_count + 1
        assert scheduler.update_task(task)
    found = ui.get_task("a")
    assert (found["status"], found["name"], found["run_count"]) == ("paused", "renamed", 2)
    assert found["extra"] == {"kept": 1.0}
    assert found["updated_at"] == task.updated_at.isoformat()


def test_a_delete_during_a_run_stands_and_the_run_is_kept(writers: Writers) -> None:
    scheduler, ui = writers
    scheduler.add_task(make_task("a"))
    task = scheduler.get_task("a")
    assert ui.delete_task("a")
    for _ in range(2):
        end_run(task)
        assert not scheduler.update_task(task)
        scheduler.log_task_execution("a", True, "done", 1.5, "Task a", "download")
    assert ui.load_tasks() == []
    assert len(ui.get_task_history("a")) == 2


def test_runs_of_two_processes_add_up(writers: Writers) -> None:
    scheduler, ui = writers
    scheduler.add_task(make_task("a", run_count=5))
    mine, theirs = scheduler.get_task("a"), ui.get_task("a")
    for persistence, task in ((scheduler, mine), (ui, theirs), (scheduler, mine)):
        task["run_count"] += 1
        assert persistence.update_task(task)
    assert ui.get_task("a")["run_count"] == 8


def test_the_later_of_two_changes_wins_and_the_other_is_kept(
    writers: Writers, lost: Callable[[], list[tuple[str, str, Any]]]
) -> None:
    scheduler, ui = writers
    scheduler.add_task(make_task("a", task_config={"task_type": "download", "settings": {"n": 1}}))
    task = scheduler.get_task("a")
    change(ui, name="theirs", description="theirs alone")
    task["name"] = "mine"
    assert scheduler.update_task(task)
    found = ui.get_task("a")
    assert (found["name"], found["description"]) == ("mine", "theirs alone")
    [(key, half, version)] = lost()
    assert (key, half, version["name"]) == ("a", "operator", "theirs")


def test_nothing_is_kept_where_nothing_was_lost(
    writers: Writers, lost: Callable[[], list[tuple[str, str, Any]]]
) -> None:
    scheduler, ui = writers
    scheduler.add_task(make_task("a"))
    task = scheduler.get_task("a")
    change(ui, status="paused")
    end_run(task)
    assert scheduler.update_task(task)
    assert lost() == []


def test_an_object_that_nobody_knows_replaces_the_task_as_given(writers: Writers) -> None:
    scheduler, ui = writers
    scheduler.add_task(make_task("a"))
    change(ui, name="theirs", status="paused")
    given = make_task("a", name="given", run_count=9)
    assert scheduler.update_task(given)
    assert ui.get_task("a") == given


def test_an_added_object_is_known(writers: Writers) -> None:
    scheduler, ui = writers
    task = make_task("a")
    scheduler.add_task(task)
    change(ui, status="paused")
    task["run_count"] = 1
    assert scheduler.update_task(task)
    found = ui.get_task("a")
    assert (found["status"], found["run_count"]) == ("paused", 1)


def test_a_copy_is_known(writers: Writers) -> None:
    scheduler, ui = writers
    scheduler.add_task(make_task("a"))
    task = {**scheduler.load_tasks()[0], "description": "edited in a form"}
    change(ui, status="paused")
    assert scheduler.update_task(task)
    found = ui.get_task("a")
    assert (found["status"], found["description"]) == ("paused", "edited in a form")


def test_saving_all_keeps_what_others_changed(writers: Writers) -> None:
    scheduler, ui = writers
    for key in "abcd":
        scheduler.add_task(make_task(key))
    tasks = scheduler.load_tasks()
    change(ui, status="paused")
    assert ui.delete_task("b")
    ui.add_task(make_task("new"))
    tasks[0]["run_count"] = 1
    tasks[2]["name"] = "renamed"
    assert scheduler.save_tasks(tasks[:3])
    found = {task["task_id"]: task for task in ui.load_tasks()}
    assert list(found) == ["a", "c", "new"]
    assert (found["a"]["status"], found["a"]["run_count"]) == ("paused", 1)
    assert found["c"]["name"] == "renamed"
    # Once more with the old objects: they have not seen the pause.
    tasks[0]["run_count"] = 2
    assert scheduler.save_tasks(tasks[:3])
    found = {task["task_id"]: task for task in ui.load_tasks()}
    assert (found["a"]["status"], found["a"]["run_count"]) == ("paused", 2)


def test_what_its_user_deleted_can_be_saved_and_added_again(writers: Writers) -> None:
    scheduler, _ = writers
    for key in "ab":
        scheduler.add_task(make_task(key))
    tasks = scheduler.load_tasks()
    assert scheduler.delete_task("a")
    assert scheduler.save_tasks(tasks)
    assert len(scheduler.load_tasks()) == 2
    assert scheduler.save_tasks(tasks[:1])
    assert scheduler.save_tasks(tasks)
    assert len(scheduler.load_tasks()) == 2


@pytest.mark.parametrize(
    ("changes", "is_kept"),
    [({"name": "edited"}, True), ({"run_count": 1}, False), ({}, False)],
    ids=["edited", "run", "unchanged"],
)
def test_an_edit_of_a_task_that_somebody_else_deleted_is_kept_by_saving(
    writers: Writers, lost: Callable[[], list[Any]], changes: dict[str, Any], is_kept: bool
) -> None:
    scheduler, ui = writers
    scheduler.save_tasks([make_task("a"), make_task("b")])
    tasks = scheduler.load_tasks()
    assert ui.delete_task("a")
    tasks[0].update(changes)
    assert scheduler.save_tasks(tasks)
    assert ui.load_tasks() == scheduler.load_tasks() == [make_task("b")]
    assert lost() == ([("a", "task", make_task("a", **changes))] if is_kept else [])


def test_what_somebody_else_adds_anew_is_not_deleted_by_saving(writers: Writers) -> None:
    scheduler, ui = writers
    for key in "ab":
        scheduler.add_task(make_task(key))
    tasks = scheduler.load_tasks()
    assert scheduler.delete_task("b")
    ui.add_task(make_task("b", name="another one"))
    assert scheduler.save_tasks(tasks[:1])
    assert [task["name"] for task in ui.load_tasks()] == ["Task a", "another one"]


@pytest.mark.parametrize("notice", ["update_task", "delete_task"])
def test_what_somebody_else_deletes_and_adds_anew_is_not_deleted_by_saving(
    writers: Writers, notice: str
) -> None:
    scheduler, ui = writers
    for key in "ab":
        scheduler.add_task(make_task(key))
    tasks = scheduler.load_tasks()
    assert ui.delete_task("b")
    # From here on the scheduler knows that it is gone.
    assert not getattr(scheduler, notice)(tasks[1] if notice == "update_task" else "b")
    ui.add_task(make_task("b", name="another one"))
    assert scheduler.save_tasks(tasks[:1])
    assert [task["name"] for task in ui.load_tasks()] == ["Task a", "another one"]


def test_tasks_of_one_store_can_be_saved_to_another(
    opened: MakePersistence, writers: Writers, tmp_path: Path
) -> None:
    scheduler, _ = writers
    scheduler.add_task(make_task("a"))
    elsewhere = opened(tmp_path / "elsewhere")
    assert elsewhere.save_tasks(scheduler.load_tasks())
    assert elsewhere.load_tasks() == scheduler.load_tasks()


def test_a_status_that_only_the_store_knows_does_not_stop_saving(
    writers: Writers, base: Path
) -> None:
    scheduler, ui = writers
    ui.add_task(make_task("a"))
    path = scheduler.tasks_file
    path.write_text(path.read_text().replace('"active"', '"retired"'))
    tasks = scheduler.load_tasks()
    assert tasks[0]["status"] == "retired"
    tasks[0]["name"] = "renamed"
    assert scheduler.save_tasks(tasks)
    assert scheduler.update_task(tasks[0])
    assert ui.get_task("a")["status"] == "retired"
