"""Each kind of difference between files and database is found, and nothing else is."""

from __future__ import annotations

import fcntl
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from datahound_storage import SchedulerPersistence, verify
from datahound_storage.dal import StorageDAL
from datahound_storage.errors import FileStoreError, LockTimeoutError
from datahound_storage.files.paths import StatePaths
from datahound_storage.postgres.pool import Database
from datahound_storage.verify import KEY_ORDER, TaskDifference, VerifyReport
from tests.fix_persistence import MakePersistence
from tests.scheduler import EXAMPLES

TASKS, RUNS = 40, 1500


@dataclass
class Sides:
    """The sample in files and database, equal at first."""

    url: str
    dal: StorageDAL
    paths: StatePaths
    persistence: SchedulerPersistence

    def compare(self, **options: Any) -> VerifyReport:
        return verify.compare(self.dal, self.paths, **{"pause": 0.01, **options})

    def sql(self, statement: str, *values: Any) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            done = connection.execute(statement.encode(), values)
            assert done.rowcount > 0

    def tasks(self) -> list[dict[str, Any]]:
        tasks: list[dict[str, Any]] = json.loads(self.paths.tasks_file.read_text())
        return tasks

    def write_tasks(self, tasks: list[dict[str, Any]]) -> None:
        self.paths.tasks_file.write_text(json.dumps(tasks, indent=2))

    def lines(self) -> list[str]:
        return self.paths.history_file.read_text().splitlines()

    def write_lines(self, lines: list[str]) -> None:
        self.paths.history_file.write_text("".join(f"{line}\n" for line in lines))

    def newest_run_id(self) -> str:
        self.persistence.log_task_execution("logged", True, "fine", 1.5, "name", "download")
        return str(self.persistence.get_task_history("logged")[0]["run_id"])


@pytest.fixture
def sides(base: Path, migrated_url: str, opened: MakePersistence) -> Iterator[Sides]:
    shutil.copytree(EXAMPLES / "data", base / "data")
    shutil.copytree(EXAMPLES / "logging", base / "logging")
    persistence = opened(base, url=migrated_url)
    dal = StorageDAL(Database(migrated_url))
    yield Sides(migrated_url, dal, StatePaths.below(base / "data"), persistence)
    dal.close()


def test_equal_sides_are_equal_and_counted(sides: Sides) -> None:
    report = sides.compare()
    assert report.equal
    assert report == VerifyReport(TASKS, TASKS, RUNS, RUNS)


def test_a_task_only_in_the_database(sides: Sides) -> None:
    first, *others = sides.tasks()
    sides.write_tasks(others)
    report = sides.compare()
    assert not report.equal
    assert report.tasks_only_in_database == (first["task_id"],)
    assert (report.tasks_in_database, report.tasks_in_snapshot) == (TASKS, TASKS - 1)
    assert not report.order_differs


def test_a_task_only_in_the_snapshot(sides: Sides) -> None:
    key = sides.tasks()[7]["task_id"]
    sides.sql("DELETE FROM scheduler_tasks WHERE task_key = %s", key)
    report = sides.compare()
    assert not report.equal
    assert report.tasks_only_in_snapshot == (key,)
    assert not report.order_differs


def _set(name: str, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda task: {**task, name: value}


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        (_set("name", "another"), ("name",)),
        (_set("run_count", 720.0), ("run_count",)),
        (_set("consecutive_errors", False), ("consecutive_errors",)),
        (_set("new_key", None), ("new_key",)),
        (lambda task: {k: v for k, v in task.items() if k != "last_error"}, ("last_error",)),
        (lambda task: {**task, "status": "paused", "name": "x"}, ("name", "status")),
        (lambda task: dict(reversed(task.items())), (KEY_ORDER,)),
        (
            lambda task: {
                **task,
                "task_config": {**task["task_config"], "settings": {"api_key": "hush"}},
            },
            ("task_config",),
        ),
    ],
)
def test_a_different_task_is_named_with_its_fields_and_without_their_values(
    sides: Sides, change: Callable[[dict[str, Any]], dict[str, Any]], fields: tuple[str, ...]
) -> None:
    tasks = sides.tasks()
    assert tasks[0]["run_count"] == 720
    key = tasks[0]["task_id"]
    tasks[0] = change(tasks[0])
    sides.write_tasks(tasks)
    report = sides.compare()
    assert not report.equal
    assert report.tasks_different == (TaskDifference(key, fields),)
    assert "hush" not in json.dumps(report.as_json())


def test_a_row_that_was_edited_by_hand_differs_until_the_next_listing(sides: Sides) -> None:
    key = sides.tasks()[0]["task_id"]
    sides.sql("UPDATE scheduler_tasks SET status = 'paused' WHERE task_key = %s", key)
    assert sides.compare().tasks_different == (TaskDifference(key, ("status",)),)
    sides.persistence.load_tasks()
    assert sides.compare().equal


def test_another_spelling_of_the_same_values_is_equal(sides: Sides) -> None:
    compact = json.dumps(sides.tasks(), ensure_ascii=False)
    sides.paths.tasks_file.write_text(compact, encoding="utf-8")
    assert sides.compare().equal


def test_another_order(sides: Sides) -> None:
    tasks = sides.tasks()
    sides.write_tasks([tasks[1], tasks[0], *tasks[2:]])
    report = sides.compare()
    assert not report.equal
    assert report.order_differs
    assert not report.tasks_different


@pytest.mark.parametrize(
    ("damage", "readable"),
    [
        (lambda text: text[: len(text) // 2], range(1, TASKS)),
        (lambda _: "", [0]),
        (lambda text: '{"tasks": ' + text + "}", [0]),
        (lambda text: text[:-2] + "," + text[1:], [TASKS]),
    ],
)
def test_a_damaged_snapshot_is_never_equal(
    sides: Sides, damage: Callable[[str], str], readable: range | list[int]
) -> None:
    text = sides.paths.tasks_file.read_text()
    sides.paths.tasks_file.write_text(damage(text))
    report = sides.compare()
    assert not report.equal
    assert report.snapshot_problems
    assert report.tasks_in_snapshot in readable


def test_a_missing_snapshot_is_an_empty_one(sides: Sides) -> None:
    sides.paths.tasks_file.unlink()
    report = sides.compare()
    assert not report.equal
    assert len(report.tasks_only_in_database) == TASKS


def test_a_snapshot_that_cannot_be_read_is_an_error(sides: Sides) -> None:
    sides.paths.tasks_file.unlink()
    sides.paths.tasks_file.mkdir()
    with pytest.raises(FileStoreError, match=r"scheduled_tasks\.json"):
        sides.compare()


def test_a_run_only_in_the_table(sides: Sides) -> None:
    run_id = sides.newest_run_id()
    assert sides.compare() == VerifyReport(TASKS, TASKS, RUNS + 1, RUNS + 1)
    sides.write_lines(sides.lines()[:-1])
    report = sides.compare()
    assert not report.equal
    assert report.runs_only_in_table == (run_id,)
    assert (report.runs_in_table, report.runs_in_file) == (RUNS + 1, RUNS)


def test_a_run_only_in_the_file(sides: Sides) -> None:
    run_id = sides.newest_run_id()
    sides.sql("DELETE FROM scheduler_runs WHERE run_id = %s", run_id)
    report = sides.compare()
    assert not report.equal
    assert report.runs_only_in_file == (run_id,)


@pytest.mark.parametrize(
    ("side", "edit"),
    [("file", ("1.5", "1.50001")), ("file", ("true", "1")), ("table", ("", ""))],
)
def test_a_different_run(sides: Sides, side: str, edit: tuple[str, str]) -> None:
    run_id = sides.newest_run_id()
    if side == "file":
        *lines, last = sides.lines()
        assert edit[0] in last
        sides.write_lines([*lines, last.replace(*edit)])
    else:
        sides.sql("UPDATE scheduler_runs SET success = false WHERE run_id = %s", run_id)
    report = sides.compare()
    assert not report.equal
    assert report.runs_different == (run_id,)


def test_old_lines_without_an_id_are_told_apart_by_their_text(sides: Sides) -> None:
    first, *others = sides.lines()
    assert "run_id" not in first
    sides.write_lines([first.replace('"success": true', '"success": false'), *others])
    report = sides.compare()
    assert len(report.runs_only_in_file) == len(report.runs_only_in_table) == 1
    sides.write_lines(others)
    report = sides.compare()
    assert (len(report.runs_only_in_file), len(report.runs_only_in_table)) == (0, 1)


def test_equal_lines_are_as_many_runs(sides: Sides) -> None:
    lines = sides.lines()
    sides.write_lines([lines[0], *lines])
    report = sides.compare()
    assert report.runs_in_file == RUNS + 1
    assert len(report.runs_only_in_file) == 1


def test_the_older_history_file_counts_too(sides: Sides) -> None:
    first, *others = sides.lines()
    sides.write_lines(others)
    assert not sides.compare().equal
    sides.paths.legacy_history_file.write_text(f"{first}\n")
    assert sides.compare().equal


def test_lines_that_cannot_be_used_are_counted_and_nothing_else(sides: Sides) -> None:
    sides.write_lines([*sides.lines(), '{"task_id": "a"}', "torn {", "[]"])
    report = sides.compare()
    assert report.equal
    assert report.lines_unusable == 3


def test_a_run_that_goes_on_is_not_missing_in_the_file(sides: Sides) -> None:
    sides.sql(
        "INSERT INTO scheduler_runs (id, run_id, task_key, started_at) "
        "VALUES (gen_random_uuid(), 'goes on', 'a', now())"
    )
    assert sides.compare() == VerifyReport(TASKS, TASKS, RUNS, RUNS)


def test_lines_of_pruned_runs_are_trimmed_not_different(sides: Sides) -> None:
    lines = sides.lines()
    middle = sides.persistence.get_task_history(limit=RUNS)[RUNS // 2]["timestamp"]
    sides.sql("UPDATE scheduler_storage SET history_cutoff = %s", middle)
    sides.sql("DELETE FROM scheduler_runs WHERE finished_at < %s", middle)
    report = sides.compare()
    assert report.equal
    assert report.runs_trimmed == report.runs_in_file - report.runs_in_table > 0
    sides.sql("UPDATE scheduler_storage SET history_cutoff = NULL")
    sides.write_lines(lines)
    report = sides.compare()
    assert not report.equal
    assert (len(report.runs_only_in_file), report.runs_trimmed) == (RUNS - report.runs_in_table, 0)


def test_a_change_on_its_way_to_the_snapshot_is_no_difference(
    sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = sides.tasks()[0]["task_id"]
    sides.sql("UPDATE scheduler_tasks SET status = 'paused' WHERE task_key = %s", key)
    monkeypatch.setattr(
        "datahound_storage.verify.time.sleep", lambda _: sides.persistence.load_tasks()
    )
    report = sides.compare()
    assert report.equal
    assert report.in_motion == 1


def test_a_difference_that_is_another_one_a_moment_later_is_in_motion(
    sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = sides.tasks()[0]["task_id"]
    rename = "UPDATE scheduler_tasks SET company = %s WHERE task_key = %s"
    sides.sql(rename, "One", key)
    monkeypatch.setattr(
        "datahound_storage.verify.time.sleep", lambda _: sides.sql(rename, "Two", key)
    )
    assert sides.compare().in_motion == 1


def test_a_writing_scheduler_makes_no_differences(sides: Sides) -> None:
    done = threading.Event()

    def write(number: int) -> None:
        task = sides.persistence.load_tasks()[number]
        while not done.is_set():
            task["run_count"] += 1
            assert sides.persistence.update_task(task)
            sides.persistence.log_task_execution(task["task_id"], True, "", 0.5)

    with ThreadPoolExecutor() as pool:
        writers = [pool.submit(write, number) for number in range(3)]
        try:
            reports = [sides.compare(pause=0.5) for _ in range(3)]
        finally:
            done.set()
        for writer in writers:
            writer.result()
    assert [report.equal for report in reports] == [True] * 3
    assert sides.compare().runs_in_table > RUNS + 3


def test_a_lock_that_somebody_holds_is_waited_for_in_vain_only_for_so_long(sides: Sides) -> None:
    with sides.paths.lock_file.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(LockTimeoutError):
            sides.compare(patience=0.1)


def test_nothing_is_written(sides: Sides) -> None:
    sides.paths.lock_file.unlink()
    before = {path: path.stat().st_mtime_ns for path in _files(sides.paths)}
    assert sides.compare().equal
    assert {path: path.stat().st_mtime_ns for path in _files(sides.paths)} == before


def _files(paths: StatePaths) -> list[Path]:
    return [path for path in paths.data_dir.parent.rglob("*") if path.is_file()]


def test_the_report_is_plain_json(sides: Sides) -> None:
    sides.write_tasks(sides.tasks()[1:])
    value = sides.compare().as_json()
    assert json.loads(json.dumps(value)) == {
        **{name: list(v) if isinstance(v, tuple) else v for name, v in value.items()}
    }
    assert value["equal"] is False
    assert len(value["tasks_only_in_database"]) == 1
