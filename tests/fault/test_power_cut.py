"""The power fails right after an answer, or in the middle of a call: what was acknowledged stays.

The disk is a real ext4 that loses whatever was not synced, and comes up by replaying its journal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from datahound_storage import SchedulerPersistence
from datahound_storage.testing import EmbeddedServer
from tests.fault.disks import PowerDisk, power_disk
from tests.fault.writers import writing
from tests.fix_persistence import MakePersistence
from tests.scheduler import OldCode, make_task


@pytest.fixture
def disk() -> Iterator[PowerDisk]:
    with power_disk() as disk:
        yield disk


@pytest.fixture
def base(disk: PowerDisk) -> Path:
    """The scheduler's base directory is on the disk that fails; the database is elsewhere."""
    return disk.path / "base"


def names_in(base: Path) -> dict[str, str]:
    """What the old code reads from the snapshot."""
    tasks = json.loads((base / "data/scheduler/scheduled_tasks.json").read_bytes())
    assert isinstance(tasks, list)
    return {task["task_id"]: task["name"] for task in tasks}


def history_file(base: Path) -> Path:
    return base / "logging/scheduler/task_history.jsonl"


def messages_in(base: Path) -> list[str]:
    """The messages of the runs, as a dashboard reads them."""
    return [json.loads(line)["message"] for line in history_file(base).read_text().splitlines()]


def old_line(message: str, days: int = 60) -> str:
    ended_at = datetime.now(UTC) - timedelta(days=days)
    return json.dumps({"timestamp": ended_at.isoformat(), "task_id": "a", "message": message})


Step = tuple[Callable[[SchedulerPersistence], object], dict[str, str]]


def named(**names: str) -> list[dict[str, Any]]:
    return [make_task(key, name=name) for key, name in names.items()]


STEPS: list[Step] = [
    (lambda p: p.add_task(make_task("a", name="1")), {"a": "1"}),
    (lambda p: p.add_task(make_task("b", name="1")), {"a": "1", "b": "1"}),
    (lambda p: p.update_task(make_task("a", name="2")), {"a": "2", "b": "1"}),
    (lambda p: p.delete_task("b"), {"a": "2"}),
    (lambda p: p.save_tasks(named(a="3", c="1")), {"a": "3", "c": "1"}),
    (lambda p: p.save_tasks([]), {}),
]


def test_every_acknowledged_change_is_in_the_snapshot(
    disk: PowerDisk, base: Path, make: MakePersistence
) -> None:
    persistence = make()
    for change, expected in STEPS:
        assert change(persistence)
        disk.cut()
        assert names_in(base) == expected
    assert persistence.load_tasks() == []


def test_what_comes_up_is_recognised_as_our_own(
    disk: PowerDisk, base: Path, migrated_url: str, opened: MakePersistence
) -> None:
    persistence = opened(base, url=migrated_url)
    for change, expected in STEPS[:4]:
        assert change(persistence)
        disk.cut()
        persistence.close()
        persistence = opened(base, url=migrated_url)
        assert {task["task_id"]: task["name"] for task in persistence.load_tasks()} == expected
        assert persistence.health().backup_problem is None


def test_a_run_that_only_the_files_keep_is_on_disk(
    disk: PowerDisk, base: Path, opened: MakePersistence
) -> None:
    persistence = opened(base)
    for number in range(3):
        persistence.log_task_execution("a", True, message=str(number))
        disk.cut()
        assert messages_in(base) == [str(n) for n in range(number + 1)]


def test_trimmed_runs_do_not_come_back_and_the_others_stay(
    disk: PowerDisk, base: Path, opened: MakePersistence
) -> None:
    persistence = opened(base)
    persistence.log_task_execution("a", True, message="new")
    with history_file(base).open("a") as file:
        file.write(old_line("old") + "\n")
    assert persistence.clear_old_history(30) == 1
    disk.cut()
    assert messages_in(base) == ["new"]
    persistence.log_task_execution("a", True, message="newer")
    disk.cut()
    assert messages_in(base) == ["new", "newer"]


def test_a_cutoff_is_on_disk_before_the_trim_is_acknowledged(
    disk: PowerDisk, base: Path, migrated_url: str, opened: MakePersistence
) -> None:
    """Else the runs that were trimmed without the database stay in its table."""
    persistence = opened(base, url=migrated_url)
    history_file(base).write_text(old_line("old") + "\n")
    persistence.close()
    persistence = opened(base, url=migrated_url)
    assert [run["message"] for run in persistence.get_task_history()] == ["old"]
    persistence.close()
    opened(base).clear_old_history(30)
    disk.cut()
    persistence = opened(base, url=migrated_url)
    assert persistence.get_task_history() == []


def test_a_run_in_the_table_is_in_the_file_after_the_next_start(
    disk: PowerDisk, base: Path, migrated_url: str, opened: MakePersistence
) -> None:
    persistence = opened(base, url=migrated_url)
    for message in ("1", "2"):
        persistence.log_task_execution("a", True, message=message)
        disk.cut()
        assert persistence.get_task_history()[0]["message"] == message
    persistence.close()
    persistence = opened(base, url=migrated_url)
    assert messages_in(base) == ["1", "2"]
    disk.cut()
    assert messages_in(base) == ["1", "2"]


def test_what_falls_to_the_files_is_on_disk(
    disk: PowerDisk, base: Path, embedded_directory: Path, opened: MakePersistence
) -> None:
    with EmbeddedServer(embedded_directory) as server:
        persistence = opened(base, url=server.url)
        persistence.add_task(make_task("a", name="1"))
        disk.cut()
        server.stop()
        persistence.log_task_execution("a", True, message="fell")
        disk.cut()
        assert messages_in(base) == ["fell"]
        assert persistence.health().store == "files"
        assert persistence.update_task(make_task("a", name="2"))
        disk.cut()
        assert names_in(base) == {"a": "2"}
        persistence.close()
        server.start()
        persistence = opened(base, url=server.url)
        assert persistence.get_task("a")["name"] == "2"
        assert [run["message"] for run in persistence.get_task_history()] == ["fell"]
        assert messages_in(base) == ["fell"]


def test_a_damaged_snapshot_that_was_kept_aside_is_whole(
    disk: PowerDisk, base: Path, make: MakePersistence
) -> None:
    """Whoever damaged it did not sync it."""
    OldCode(base).save([make_task("a"), make_task("b")])
    tasks_file = OldCode(base).tasks_file
    damaged = tasks_file.read_bytes()[:-10]
    tasks_file.write_bytes(damaged)
    assert make().add_task(make_task("c"))
    disk.cut()
    (kept,) = tasks_file.parent.glob("*.damaged-*")
    assert kept.read_bytes() == damaged
    assert names_in(base) == {"a": "Task a", "c": "Task c"}


def test_a_state_that_the_old_code_had_written_already_is_on_disk_once_acknowledged(
    disk: PowerDisk, base: Path, make: MakePersistence
) -> None:
    tasks = named(a="1", b="1")
    OldCode(base).save(tasks)
    assert make().save_tasks(tasks)
    disk.cut()
    assert names_in(base) == {"a": "1", "b": "1"}


@pytest.mark.parametrize("lines", [1, 2, 9, 14, 32, 43])
def test_a_cut_in_the_middle_of_a_call_leaves_the_old_state_or_the_new_one(
    disk: PowerDisk, base: Path, store_url: str | None, lines: int, opened: MakePersistence
) -> None:
    with writing(base, "w", store_url) as writer:
        writer.wait_for(lines)
        disk.stop()
        told = writer.end(counts=False)
    disk.start()
    tasks = json.loads(OldCode(base).tasks_file.read_bytes()) if told.tasks else []
    assert told.misses(tasks) == []
    if store_url is None:
        assert not told.runs or told.runs <= set(messages_in(base))
    persistence = opened(base, url=store_url)
    assert told.misses(persistence.load_tasks()) == []
    assert told.runs <= {run["message"] for run in persistence.get_task_history()}
