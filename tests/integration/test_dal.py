"""The data-access object that existing code calls."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from datahound_storage import SchedulerPersistence
from datahound_storage.bootstrap import get_storage_dal_from_env
from datahound_storage.dal import StorageDAL
from datahound_storage.errors import (
    DatabaseUnavailableError,
    DuplicateTaskError,
    InvalidArgumentError,
    InvalidTaskError,
    TaskNotFoundError,
)
from datahound_storage.records import (
    SchedulerRunRecord,
    SchedulerTaskFilter,
    SchedulerTaskRecord,
)
from tests.scheduler import make_task

NOW = datetime.now(UTC)


@pytest.fixture
def dal(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("DATAHOUND_STORAGE_URL", database_url)
    monkeypatch.setenv("DATAHOUND_SCHEDULER_TZ", "US/Pacific")
    made = get_storage_dal_from_env()
    assert made is not None
    yield made
    made.close()


def task_record(key: str, **changes: Any) -> SchedulerTaskRecord:
    task = make_task(key)
    record = SchedulerTaskRecord(
        id=uuid4(),
        task_key=key,
        task_type="download",
        company="Acme",
        config_json=task,
        schedule_type="interval",
        schedule_expr="interval:15",
        timezone="US/Pacific",
        status="active",
    )
    return replace(record, **changes)


def run_record(run_id: str, **changes: Any) -> SchedulerRunRecord:
    record = SchedulerRunRecord(
        id=uuid4(),
        task_id=uuid4(),
        run_id=run_id,
        started_at=NOW - timedelta(seconds=2),
        finished_at=NOW,
        success=True,
        message="ok",
        duration_ms=2000,
        metadata_json={"task_key": "a", "task_name": "Task a", "task_type": "download"},
    )
    return replace(record, **changes)


def test_no_url_no_dal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert get_storage_dal_from_env() is None
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/db")
    monkeypatch.setenv("DATAHOUND_STORAGE_URL", "")
    assert get_storage_dal_from_env() is None
    monkeypatch.delenv("DATAHOUND_STORAGE_URL")
    with pytest.raises(DatabaseUnavailableError, match=r"127\.0\.0\.1:1/db"):
        get_storage_dal_from_env()


def test_a_task_is_created_read_and_listed(dal: StorageDAL) -> None:
    record = task_record("a")
    stored = dal.create_task(record)
    assert stored.id == record.id
    assert stored.config_json == make_task("a")
    assert stored.created_at is not None
    assert stored.position is not None
    assert dal.get_task("a") == stored
    assert dal.get_task("b") is None
    assert dal.list_tasks() == [stored]


def test_a_duplicate_is_an_error(dal: StorageDAL) -> None:
    dal.create_task(task_record("a"))
    with pytest.raises(DuplicateTaskError, match="'a'"):
        dal.create_task(task_record("a"))


def test_the_columns_of_a_record_win(dal: StorageDAL) -> None:
    stored = dal.create_task(task_record("a"))
    paused = dal.update_task(replace(stored, status="paused"))
    assert paused.status == paused.config_json["status"] == "paused"
    assert list(paused.config_json) == list(make_task("a"))
    again = dal.get_task("a")
    assert again == paused


def test_updating_a_missing_task_is_an_error(dal: StorageDAL) -> None:
    with pytest.raises(TaskNotFoundError, match="'a'"):
        dal.update_task(task_record("a"))


def test_deleting(dal: StorageDAL) -> None:
    dal.create_task(task_record("a"))
    assert dal.delete_task("a") is True
    assert dal.delete_task("a") is False


def test_filters(dal: StorageDAL) -> None:
    dal.create_task(task_record("a"))
    dal.create_task(task_record("b", status="paused"))
    dal.create_task(task_record("c", company="Bolt"))
    assert [r.task_key for r in dal.list_tasks()] == ["a", "b", "c"]
    assert [r.task_key for r in dal.list_tasks(SchedulerTaskFilter())] == ["a", "c"]
    assert [r.task_key for r in dal.list_tasks(SchedulerTaskFilter(status=None))] == [
        "a",
        "b",
        "c",
    ]
    only = SchedulerTaskFilter(company="Bolt", status=None)
    assert [r.task_key for r in dal.list_tasks(only)] == ["c"]


@pytest.mark.parametrize(
    "record",
    [
        task_record("x" * 300),
        task_record(""),
        task_record("a", status="x" * 33),
        task_record("a", company="x" * 256),
        task_record("a", config_json={**make_task("a"), "x": float("nan")}),
    ],
)
def test_what_does_not_fit_is_refused(dal: StorageDAL, record: SchedulerTaskRecord) -> None:
    with pytest.raises(InvalidTaskError):
        dal.create_task(record)
    assert dal.list_tasks() == []


def test_runs_newest_first(dal: StorageDAL) -> None:
    for number in range(3):
        ended = NOW - timedelta(minutes=number)
        dal.record_task_run(run_record(str(number), finished_at=ended))
    other = {"task_key": "b"}
    dal.record_task_run(run_record("other", metadata_json=other))
    assert [run.run_id for run in dal.list_task_runs(task_key="a")] == ["0", "1", "2"]
    assert [run.run_id for run in dal.list_task_runs(task_key="a", limit=1)] == ["0"]
    assert {run.run_id for run in dal.list_task_runs()} == {"0", "1", "2", "other"}
    assert dal.list_task_runs(limit=0) == []
    with pytest.raises(InvalidArgumentError):
        dal.list_task_runs(limit=-1)


def test_a_run_comes_back_as_it_was(dal: StorageDAL) -> None:
    dal.create_task(task_record("a"))
    run = run_record("1")
    assert dal.record_task_run(run) == run
    found = dal.list_task_runs(task_key="a")[0]
    task = dal.get_task("a")
    assert task is not None
    assert replace(found, task_id=run.task_id) == run


def test_recording_again_is_harmless_and_an_open_run_gets_its_end(dal: StorageDAL) -> None:
    dal.record_task_run(run_record("1", finished_at=None, success=None, duration_ms=None))
    assert dal.list_task_runs()[0].success is None
    dal.record_task_run(run_record("1", message="done"))
    dal.record_task_run(run_record("1", message="sent again"))
    runs = dal.list_task_runs()
    assert [(run.success, run.message) for run in runs] == [(True, "done")]


def test_purging(dal: StorageDAL) -> None:
    for days in (1, 10, 20):
        ended = NOW - timedelta(days=days)
        dal.record_task_run(run_record(str(days), finished_at=ended))
    hanging = NOW - timedelta(days=30)
    dal.record_task_run(run_record("hangs", started_at=hanging, finished_at=None, success=None))
    assert dal.purge_task_runs(older_than=NOW - timedelta(days=5)) == 3
    assert [run.run_id for run in dal.list_task_runs()] == ["1"]
    assert dal.purge_task_runs(older_than=NOW - timedelta(days=5)) == 0


@pytest.mark.parametrize("time", ["infinity", "-infinity", "20000-01-01", "4000-01-01 BC"])
def test_times_that_python_does_not_have_stop_no_reader(
    dal: StorageDAL, database_url: str, tmp_path: Path, time: str
) -> None:
    dal.create_task(task_record("t"))
    dal.record_task_run(run_record("r"))
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "UPDATE scheduler_runs SET finished_at = %s, started_at = %s", [time] * 2
        )
        connection.execute(
            "UPDATE scheduler_tasks SET created_at = %s, updated_at = %s", [time] * 2
        )
    assert [stored.run_id for stored in dal.list_task_runs()] == ["r"]
    assert [stored.task_key for stored in dal.list_tasks()] == ["t"]
    persistence = SchedulerPersistence(tmp_path / "data", url=database_url)
    try:
        assert len(persistence.get_task_history()) == 1
        assert persistence.health().store == "database"
    finally:
        persistence.close()
