"""A disk without room: nothing is lost or torn, it is told, and once there is room all goes on."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from datahound_storage import SchedulerPersistence
from datahound_storage.errors import FileStoreError
from tests.fault.disks import SmallDisk, small_disk
from tests.fix_persistence import MakePersistence
from tests.scheduler import make_task
from tests.unit import files_limited_to

PAGE = 4096
# A task of some pages: a little room that is left must not be enough.
LONG = "x" * 20_000
TWO_MONTHS = timedelta(days=60)


@pytest.fixture
def disk() -> Iterator[SmallDisk]:
    with small_disk() as disk:
        yield disk


@pytest.fixture
def base(disk: SmallDisk) -> Path:
    return disk.path / "base"


def names_in(base: Path) -> dict[str, str]:
    """What a dashboard reads."""
    tasks = json.loads((base / "data/scheduler/scheduled_tasks.json").read_bytes())
    return {task["task_id"]: task["name"] for task in tasks}


def history_file(base: Path) -> Path:
    return base / "logging/scheduler/task_history.jsonl"


def messages_in(base: Path) -> list[str]:
    """The messages of the runs; fails for a line that is torn or glued to another one."""
    return [json.loads(line)["message"] for line in history_file(base).read_bytes().splitlines()]


def temporary_files(base: Path) -> list[Path]:
    return [path for path in base.rglob("*") if path.name.endswith(".tmp")]


def line(number: int) -> str:
    """A line of a run: the even ones are old."""
    ended_at = (datetime.now(UTC) - (number + 1) % 2 * TWO_MONTHS).isoformat()
    return json.dumps({"timestamp": ended_at, "task_id": "a", "message": str(number)}) + "\n"


WRITES: list[Callable[[SchedulerPersistence], object]] = [
    lambda p: p.add_task(make_task("b")),
    lambda p: p.update_task(make_task("a", name="changed")),
    lambda p: p.delete_task("a"),
    lambda p: p.save_tasks([make_task("c", description=LONG)]),
    lambda p: p.clear_old_history(30),
]


@pytest.mark.parametrize("spare", [0, PAGE, 3 * PAGE])
def test_files_refuse_each_write_and_keep_the_old_state(
    disk: SmallDisk, base: Path, spare: int, opened: MakePersistence
) -> None:
    persistence = opened(base)
    persistence.save_tasks([make_task("a"), make_task("long", description=LONG)])
    history_file(base).write_text("".join(map(line, range(300))))
    before = names_in(base), messages_in(base)
    disk.fill(spare)
    for write in WRITES:
        with pytest.raises(
            FileStoreError, match=r"cannot write /.*free space on that disk"
        ) as told:
            write(persistence)
        assert str(base) in str(told.value)
        assert (names_in(base), messages_in(base)) == before
        assert [task["task_id"] for task in persistence.load_tasks()] == ["a", "long"]
        assert temporary_files(base) == []
    disk.free()
    assert persistence.add_task(make_task("b"))
    assert persistence.clear_old_history(30) == 150
    assert list(names_in(base)) == ["a", "long", "b"]
    assert len(messages_in(base)) == 150


@pytest.mark.parametrize("spare", [0, PAGE])
def test_files_report_a_run_that_finds_no_room_and_tear_no_line(
    disk: SmallDisk,
    base: Path,
    spare: int,
    opened: MakePersistence,
    caplog: pytest.LogCaptureFixture,
) -> None:
    persistence = opened(base)
    persistence.log_task_execution("a", True, message="before")
    disk.fill(spare)
    persistence.log_task_execution("a", True, message=LONG)
    assert "could not be kept" in caplog.text
    assert messages_in(base) == ["before"]
    disk.free()
    persistence.log_task_execution("a", True, message="after")
    assert messages_in(base) == ["before", "after"]
    assert [run["message"] for run in persistence.get_task_history()] == ["after", "before"]


def test_a_torn_line_that_could_not_be_cut_off_is_closed(
    disk: SmallDisk, base: Path, opened: MakePersistence
) -> None:
    persistence = opened(base)
    torn = line(0)[:-30]
    history_file(base).write_text(torn)
    disk.fill(PAGE)
    persistence.log_task_execution("a", True, message=LONG)
    assert history_file(base).read_text() == torn
    disk.free()
    persistence.log_task_execution("a", True, message="after")
    assert history_file(base).read_text().startswith(f"{torn}\n")
    assert [run["message"] for run in persistence.get_task_history()] == ["after"]


def reports(caplog: pytest.LogCaptureFixture, what: str) -> int:
    return sum(what in record.getMessage() for record in caplog.records)


@contextmanager
def watched(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "datahound_storage"):
        yield


@pytest.mark.parametrize("by", ["call", "listing"])
@pytest.mark.parametrize("spare", [0, PAGE])
def test_the_database_goes_on_and_the_snapshot_follows_when_there_is_room(
    disk: SmallDisk,
    base: Path,
    migrated_url: str,
    spare: int,
    by: str,
    opened: MakePersistence,
    caplog: pytest.LogCaptureFixture,
) -> None:
    persistence = opened(base, url=migrated_url)
    persistence.add_task(make_task("a", description=LONG))
    before = (base / "data/scheduler/scheduled_tasks.json").read_bytes()
    disk.fill(spare)
    with watched(caplog):
        assert persistence.add_task(make_task("b", description=LONG))
        assert persistence.update_task(make_task("a", name="changed", description=LONG * 2))
        assert persistence.get_task("a")["name"] == "changed"
        assert [task["task_id"] for task in persistence.load_tasks()] == ["a", "b"]
        assert persistence.delete_task("a")
    health = persistence.health()
    assert health.store == "database"
    assert health.backup_problem is not None
    assert "free space on that disk" in health.backup_problem
    assert reports(caplog, "the snapshot could not be refreshed") == 1
    assert (base / "data/scheduler/scheduled_tasks.json").read_bytes() == before
    assert temporary_files(base) == []
    disk.free()
    if by == "call":
        assert persistence.add_task(make_task("c"))
    else:
        persistence.load_tasks()
    assert persistence.health().backup_problem is None
    added = {"c": "Task c"} if by == "call" else {}
    assert names_in(base) == {"b": "Task b"} | added


def test_a_start_without_room_goes_on_with_the_database(
    disk: SmallDisk,
    base: Path,
    tmp_path: Path,
    migrated_url: str,
    opened: MakePersistence,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = opened(base, url=migrated_url)
    first.add_task(make_task("a", description=LONG))
    first.close()
    elsewhere = opened(tmp_path, url=migrated_url)
    elsewhere.add_task(make_task("b", description=LONG))
    for number in range(100):
        elsewhere.log_task_execution("a", True, f"run {number}")
    disk.fill()
    with watched(caplog):
        persistence = opened(base, url=migrated_url)
        assert persistence.add_task(make_task("c", description=LONG))
    health = persistence.health()
    assert (health.store, health.backup_problem is None) == ("database", False)
    assert reports(caplog, "the history file could not follow") == 1
    assert names_in(base) == {"a": "Task a"}
    disk.free()
    persistence.load_tasks()
    assert persistence.health().backup_problem is None
    assert names_in(base) == {"a": "Task a", "b": "Task b", "c": "Task c"}


def test_a_start_without_room_writes_the_snapshot_when_there_is(
    disk: SmallDisk, base: Path, tmp_path: Path, migrated_url: str, opened: MakePersistence
) -> None:
    """Also where nothing is changed after it that would call for it."""
    opened(base, url=migrated_url).close()
    elsewhere = opened(tmp_path, url=migrated_url)
    elsewhere.add_task(make_task("b", description=LONG))
    disk.fill()
    persistence = opened(base, url=migrated_url)
    disk.free()
    persistence.load_tasks()
    assert names_in(base) == {"b": "Task b"}


def test_whatever_room_is_left_the_snapshot_is_the_old_one_or_the_new_one(
    disk: SmallDisk, base: Path, make: MakePersistence
) -> None:
    """Some room is enough for the snapshot and not for the sidecar."""
    persistence = make()
    persistence.add_task(make_task("a", name="old", description=LONG))
    outcomes = set()
    for pages in range(10):
        disk.fill(pages * PAGE)
        try:
            persistence.update_task(make_task("a", name="new", description=LONG))
            is_written = persistence.health().backup_problem is None
        except FileStoreError:
            is_written = False
        assert names_in(base) == {"a": "new" if is_written else "old"}
        assert temporary_files(base) == []
        outcomes.add(is_written)
        disk.free()
        persistence.update_task(make_task("a", name="old", description=LONG))
        assert (persistence.health().backup_problem, names_in(base)) == (None, {"a": "old"})
    assert outcomes == {True, False}


def test_runs_that_found_no_room_are_in_the_table_and_later_in_the_file(
    disk: SmallDisk, base: Path, migrated_url: str, opened: MakePersistence
) -> None:
    persistence = opened(base, url=migrated_url)
    persistence.log_task_execution("a", True, message="before")
    disk.fill()
    for number in range(3):
        persistence.log_task_execution("a", True, message=LONG + str(number))
    assert messages_in(base) == ["before"]
    disk.free()
    persistence.log_task_execution("a", True, message="after")
    expected = ["before", *(LONG + str(number) for number in range(3)), "after"]
    assert [run["message"] for run in persistence.get_task_history()] == expected[::-1]
    assert messages_in(base) == ["before", "after"]
    persistence.close()
    persistence = opened(base, url=migrated_url)
    assert sorted(messages_in(base)) == sorted(expected)
    assert [run["message"] for run in persistence.get_task_history()] == expected[::-1]


def test_what_was_trimmed_without_room_is_not_carried_back(
    disk: SmallDisk, base: Path, migrated_url: str, opened: MakePersistence
) -> None:
    opened(base).close()
    history_file(base).write_text("".join(map(line, range(0, 300, 2))))
    persistence = opened(base, url=migrated_url)
    persistence.log_task_execution("a", True, message="new")
    disk.fill()
    before = messages_in(base)
    assert persistence.clear_old_history(30) == 150
    assert messages_in(base) == before
    assert temporary_files(base) == []
    assert [run["message"] for run in persistence.get_task_history()] == ["new"]
    disk.free()
    persistence.close()
    persistence = opened(base, url=migrated_url)
    assert [run["message"] for run in persistence.get_task_history()] == ["new"]
    persistence.clear_old_history(30)
    assert messages_in(base) == ["new"]


def test_files_that_may_not_grow_are_named_with_what_helps(
    tmp_path: Path, opened: MakePersistence
) -> None:
    """The same without root, by a limit of the process."""
    base = tmp_path / "base"
    persistence = opened(base)
    persistence.add_task(make_task("a"))
    with files_limited_to(1000):
        with pytest.raises(FileStoreError, match=r"scheduled_tasks\.json.*ulimit -f"):
            persistence.add_task(make_task("b"))
        persistence.log_task_execution("a", True, message=LONG)
    assert temporary_files(base) == []
    assert names_in(base) == {"a": "Task a"}
    assert persistence.add_task(make_task("b"))
    persistence.log_task_execution("a", True, message="after")
    assert messages_in(base) == ["after"]
