"""The facade's contract for the history, on both stores."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from datahound_storage import SchedulerPersistence
from datahound_storage.errors import InvalidArgumentError
from tests.fix_persistence import MakePersistence
from tests.scheduler import EXAMPLES, TaskType, make_task

SAMPLE = EXAMPLES / "logging/scheduler/task_history.jsonl"


def write_history(base: Path, *lines: str) -> Path:
    file = base / "logging/scheduler/task_history.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def line(days_ago: float, task_id: str = "a", **changes: Any) -> str:
    ended = datetime.now(UTC) - timedelta(days=days_ago)
    entry = {
        "timestamp": ended.isoformat(),
        "task_id": task_id,
        "task_name": "Task",
        "task_type": "download",
        "success": True,
        "message": "",
        "duration_seconds": 1.5,
    }
    return json.dumps({**entry, **changes})


def test_a_run_is_kept_in_the_history_and_in_the_file(persistence: SchedulerPersistence) -> None:
    persistence.log_task_execution("a", False, "it broke\n\x00", 0.1, "Task", "download")
    entry = persistence.get_task_history("a")[0]
    assert list(entry) == [
        "timestamp",
        "task_id",
        "task_name",
        "task_type",
        "success",
        "message",
        "duration_seconds",
        "run_id",
    ]
    assert entry["success"] is False
    assert entry["message"] == "it broke\n\x00"
    assert entry["duration_seconds"] == 0.1
    assert entry["timestamp"].endswith("+00:00")
    assert persistence.history_file.read_text() == json.dumps(entry) + "\n"


def test_the_sample_comes_back_exactly(make: MakePersistence, base: Path) -> None:
    write_history(base)
    shutil.copyfile(SAMPLE, base / "logging/scheduler/task_history.jsonl")
    entries = [json.loads(text) for text in SAMPLE.read_text().splitlines()]
    persistence = make()
    found = persistence.get_task_history(limit=5000)
    assert json.dumps(found) == json.dumps(entries[::-1])
    assert persistence.history_file.read_bytes() == SAMPLE.read_bytes()
    for task_id in {entry["task_id"] for entry in entries}:
        own = [entry for entry in entries if entry["task_id"] == task_id][::-1]
        assert json.dumps(persistence.get_task_history(task_id, 7)) == json.dumps(own[:7])


def test_newest_end_first_then_insertion(make: MakePersistence, base: Path) -> None:
    same = datetime.now(UTC).isoformat()
    texts = [
        line(3, message="old"),
        line(0, message="first", timestamp=same),
        line(0, message="second", timestamp=same),
        line(2, message="late"),
    ]
    write_history(base, *texts)
    messages = [entry["message"] for entry in make().get_task_history()]
    assert messages == ["second", "first", "late", "old"]


def test_limits(persistence: SchedulerPersistence) -> None:
    for number in range(5):
        persistence.log_task_execution("a", True, str(number))
        persistence.log_task_execution("b", True, str(number))
    assert [e["message"] for e in persistence.get_task_history("a", 2)] == ["4", "3"]
    assert persistence.get_task_history("a", 0) == []
    assert len(persistence.get_task_history(limit=100)) == 10
    with pytest.raises(InvalidArgumentError, match="negative"):
        persistence.get_task_history("a", -1)
    with pytest.raises(ValueError, match="negative"):
        persistence.get_task_history("a", -1)


def test_runs_of_unknown_and_deleted_tasks_are_kept(persistence: SchedulerPersistence) -> None:
    persistence.add_task(make_task("a"))
    persistence.log_task_execution("a", True)
    persistence.delete_task("a")
    persistence.log_task_execution("never seen", True)
    assert len(persistence.get_task_history("a")) == 1
    assert len(persistence.get_task_history("never seen")) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("", True),
        (None, True),
        ("x" * 300, True),
        ("a\x00", True),
        ("a", True, "\ud800 half", float("nan")),
        ("a", True, object()),
        ("a", None, None, None, None, None),
        ("a", True, "m", "three seconds"),
        ("a", True, "", 1e300),
        ("a", True, "", -5),
    ],
)
def test_logging_never_raises(
    persistence: SchedulerPersistence, arguments: tuple[Any, ...]
) -> None:
    serving = persistence.health().store
    persistence.log_task_execution(*arguments)
    persistence.log_task_execution("after", True)
    assert len(persistence.get_task_history("after")) == 1
    assert persistence.health().store == serving


def test_an_enumeration_is_logged_as_its_value(persistence: SchedulerPersistence) -> None:
    persistence.log_task_execution("a", True, task_type=TaskType.PREPARE)  # type: ignore[arg-type]
    assert persistence.get_task_history("a")[0]["task_type"] == "prepare"


def test_clearing_trims_by_age_and_keeps_what_it_cannot_parse(
    make: MakePersistence, base: Path
) -> None:
    file = write_history(
        base, line(40), "not json", line(29), '{"task_id": "no time"}', line(31), line(0.5)
    )
    persistence = make()
    assert persistence.clear_old_history() == 2
    assert len(persistence.get_task_history()) == 2
    kept = file.read_text().splitlines()
    assert kept[0] == "not json"
    assert len(kept) == 4
    assert persistence.clear_old_history(1) == 1
    assert persistence.clear_old_history(0) == 1
    assert persistence.get_task_history() == []
    with pytest.raises(InvalidArgumentError):
        persistence.clear_old_history(-1)


def test_the_older_file_with_naive_local_times_is_read_too(
    make: MakePersistence, base: Path
) -> None:
    ended = datetime.now().replace(microsecond=0) - timedelta(hours=1)
    legacy = base / "data/scheduler/task_history.jsonl"
    legacy.parent.mkdir(parents=True)
    legacy.write_text(line(0, message="legacy", timestamp=ended.isoformat()) + "\n")
    write_history(base, line(1, message="older"), line(0, message="newer"))
    persistence = make()
    found = persistence.get_task_history("a")
    assert [entry["message"] for entry in found] == ["newer", "legacy", "older"]
    assert found[1]["timestamp"] == ended.isoformat()
    assert persistence.clear_old_history(0) == 3
    assert legacy.read_text() == ""


def test_equal_lines_are_different_runs(make: MakePersistence, base: Path) -> None:
    write_history(base, *[line(1, timestamp="2026-11-01T00:00:00+00:00")] * 3)
    assert len(make().get_task_history("a")) == 3
    assert len(make().get_task_history("a")) == 3


def test_a_torn_last_line_is_closed_off(make: MakePersistence, base: Path) -> None:
    file = write_history(base, line(1))
    with file.open("a") as opened:
        opened.write('{"timestamp": "2026-11')
    persistence = make()
    persistence.log_task_execution("b", True)
    assert len(persistence.get_task_history("b")) == 1
    assert len(file.read_text().splitlines()) == 3


@pytest.mark.parametrize("task_id", [5, {}, "", "x" * 300, "a\x00", "b\ud800"])
def test_the_history_of_an_impossible_id_is_empty(
    persistence: SchedulerPersistence, task_id: Any
) -> None:
    serving = persistence.health().store
    persistence.log_task_execution("a", True)
    assert persistence.get_task_history(task_id) == []
    assert persistence.health().store == serving


@pytest.mark.parametrize("limit", [True, 2.5, "3", None])
def test_a_limit_that_is_no_number_is_refused(
    persistence: SchedulerPersistence, limit: Any
) -> None:
    serving = persistence.health().store
    with pytest.raises(InvalidArgumentError):
        persistence.get_task_history("a", limit)
    assert persistence.health().store == serving


def test_numbers_without_measure(persistence: SchedulerPersistence) -> None:
    persistence.log_task_execution("a", True)
    assert len(persistence.get_task_history("a", 10**30)) == 1
    assert persistence.clear_old_history(10**9) == 0
    for days in (float("nan"), float("inf")):
        with pytest.raises(InvalidArgumentError):
            persistence.clear_old_history(days)
