from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from datahound_storage import halves, tasks
from datahound_storage.errors import InvalidTaskError
from datahound_storage.records import TaskStatus
from tests.unit import make_task


@pytest.fixture
def pacific(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process's local time is eight hours behind UTC."""
    monkeypatch.setenv("TZ", "PST8")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    "key", [None, 1, True, "", " ", "\n\t", [], {}, "a\x00b", "\ud800", "k" * 256, "k" * 300]
)
def test_an_unusable_key_is_refused(key: object) -> None:
    with pytest.raises(InvalidTaskError, match="task_id"):
        tasks.check({"task_id": key})


@pytest.mark.parametrize("key", ["k", "k" * 255, "日本", " padded ", "a\nb", "'; DROP TABLE x; --"])
def test_a_usable_key_is_taken_as_it_is(key: str) -> None:
    assert tasks.check_key(key) is key


@pytest.mark.parametrize("task", [None, [], "t", 1, [("task_id", "t")]])
def test_a_task_that_is_no_object_is_refused(task: object) -> None:
    with pytest.raises(InvalidTaskError, match="must be an object"):
        tasks.check(task)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"task_config": []}, "task_config"),
        ({"task_config": "x"}, "task_config"),
        ({"task_config": {"task_type": 1}}, "task_type"),
        ({"task_config": {"task_type": "x" * 65}}, "task_type has 65 characters; 64"),
        ({"task_config": {"company": "x" * 256}}, "company has 256 characters; 255"),
        ({"task_config": {"company": ["x"]}}, "company"),
        ({"schedule_type": "x" * 33}, "schedule_type has 33 characters; 32"),
        ({"schedule_type": 1}, "schedule_type"),
        ({"status": "x" * 33}, "status has 33 characters; 32"),
        ({"status": True}, "status"),
    ],
)
def test_a_value_that_no_column_holds_is_refused_by_name(
    fields: dict[str, object], named: str
) -> None:
    with pytest.raises(InvalidTaskError, match=named) as caught:
        tasks.check(make_task(**fields))
    assert "'t1'" in str(caught.value)


def test_a_refusal_does_not_show_the_value() -> None:
    with pytest.raises(InvalidTaskError) as caught:
        tasks.check(make_task(task_config={"company": "hunter2" * 60}))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("status", ["unknown", "", "ACTIVE", "paused "])
def test_an_unknown_status_is_refused_unless_it_is_stored_already(status: str) -> None:
    task = make_task(status=status)
    for stored in (None, make_task()):
        with pytest.raises(InvalidTaskError, match=r"status must be one of active, paused"):
            tasks.check_status(task, stored)
    tasks.check_status(task, make_task(status=status, name="other"))
    assert tasks.check(task) is task


@pytest.mark.parametrize("status", [*TaskStatus, *map(str, TaskStatus), None])
def test_a_known_or_missing_status_is_taken_from_callers(status: object) -> None:
    tasks.check_status(make_task(status=status))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "interval:15"),
        ({"interval_minutes": None}, "interval:"),
        ({"schedule_type": "daily_time", "daily_time": "01:00:00"}, "daily:01:00:00"),
        ({"schedule_type": "daily_time"}, "daily:"),
        (
            {
                "schedule_type": "weekly_schedule",
                "weekly_schedule": {"days": ["monday", "wednesday"], "interval_minutes": 60},
            },
            "weekly:mon,wed@60",
        ),
        ({"schedule_type": "weekly_schedule"}, "weekly:@"),
        ({"schedule_type": "weekly_schedule", "weekly_schedule": [1]}, "weekly:@"),
        ({"schedule_type": "weekly_schedule", "weekly_schedule": {"days": 5}}, "weekly:@"),
        ({"schedule_type": "cron"}, ""),
        ({"schedule_type": None}, ""),
    ],
)
def test_the_schedule_in_short(fields: dict[str, object], expected: str) -> None:
    assert tasks.schedule_expr(make_task(**fields)) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"interval_minutes": 10**4000},
        {"interval_minutes": {"a": "b" * 300}},
        {"schedule_type": "daily_time", "daily_time": "x" * 300},
        {
            "schedule_type": "weekly_schedule",
            "weekly_schedule": {"days": ["monday"] * 200, "interval_minutes": 1},
        },
    ],
)
def test_a_schedule_of_any_size_fits_its_column(fields: dict[str, object]) -> None:
    assert len(tasks.columns_of(make_task(**fields)).schedule_expr) <= 255


def test_an_integer_too_long_to_be_written_is_the_callers_mistake() -> None:
    with pytest.raises(InvalidTaskError, match=r"interval_minutes|JSON"):
        tasks.columns_of(tasks.check(make_task(interval_minutes=10**5000)))


def test_columns_hold_nothing_that_postgres_refuses() -> None:
    task = make_task(task_config={"task_type": "a\x00", "company": "\ud800"}, status="x\x00")
    columns = tasks.columns_of(task)
    assert (columns.task_type, columns.company, columns.status) == ("a\ufffd", "\ufffd", "x\ufffd")


def test_a_task_without_anything_but_its_key_has_columns() -> None:
    columns = tasks.columns_of({"task_id": "t"})
    assert columns == tasks.TaskColumns("t", "", "", "", "", "", None, None)


def test_a_time_with_an_offset_is_an_instant(pacific: None) -> None:
    expected = datetime(2026, 1, 1, 7, tzinfo=UTC)
    assert tasks.parse_time("2026-01-01T00:00:00-07:00") == expected
    assert tasks.parse_time("2026-01-01T07:00:00Z") == expected


def test_a_naive_time_is_the_processs_local_time(pacific: None) -> None:
    assert tasks.parse_time("2026-01-01T00:00:00") == datetime(2026, 1, 1, 8, tzinfo=UTC)


@pytest.mark.parametrize(
    "value",
    [None, 5, True, "", "soon", "2026-13-01", [], "\ud800", "0001-01-01T00:00:00+14:00"],
)
def test_a_time_that_cannot_be_read_is_none(value: object) -> None:
    assert tasks.parse_time(value) is None


@pytest.mark.parametrize("value", ["0001-01-01T00:00:00", "9999-12-31T23:59:59"])
def test_a_naive_time_at_the_end_of_the_calendar_is_no_failure(pacific: None, value: str) -> None:
    assert tasks.parse_time(value) in (None, datetime(1, 1, 1, 8, tzinfo=UTC))


class TestApplyColumns:
    def test_columns_that_say_the_same_change_nothing(self) -> None:
        task = make_task()
        assert tasks.apply_columns(task, tasks.columns_of(task)._asdict()) == task

    def test_a_changed_status_is_written_into_the_task(self) -> None:
        task = make_task(unknown={"keep": 1.0})
        result = tasks.apply_columns(task, {"status": "paused"})
        assert result == task | {"status": "paused"}
        assert list(result) == list(task)
        assert task["status"] == "active"

    def test_company_and_type_are_written_into_the_config_and_the_rest_of_it_is_kept(self) -> None:
        result = tasks.apply_columns(make_task(), {"company": "B", "task_type": "prepare"})
        expected = {"task_type": "prepare", "company": "B", "settings": {}}
        assert result["task_config"] == expected

    def test_a_missing_config_is_made(self) -> None:
        result = tasks.apply_columns({"task_id": "t", "task_config": None}, {"company": "B"})
        assert result["task_config"] == {"company": "B"}

    @pytest.mark.parametrize(
        ("expr", "fields"),
        [
            ("interval:30", {"schedule_type": "interval", "interval_minutes": 30}),
            ("daily:02:00:00", {"schedule_type": "daily_time", "daily_time": "02:00:00"}),
            (
                "weekly:tue, SUN@45",
                {
                    "schedule_type": "weekly_schedule",
                    "weekly_schedule": {
                        "days": ["tuesday", "sunday"],
                        "time_window": None,
                        "interval_minutes": 45,
                    },
                },
            ),
            ("weekly:nosuchday@45", {}),
            ("interval:soon", {}),
            ("garbage", {}),
            ("", {}),
        ],
    )
    def test_an_edited_schedule_becomes_the_fields_that_it_stands_for(
        self, expr: str, fields: dict[str, object]
    ) -> None:
        task = make_task()
        assert tasks.apply_columns(task, {"schedule_expr": expr}) == task | fields

    def test_an_edited_weekly_schedule_keeps_what_the_column_does_not_show(self) -> None:
        window = {"start_time": "08:00:00", "end_time": "17:00:00"}
        week = {"days": ["monday"], "time_window": window, "interval_minutes": 60}
        task = make_task(schedule_type="weekly_schedule", weekly_schedule=week)
        result = tasks.apply_columns(task, {"schedule_expr": "weekly:fri@5"})
        assert result["weekly_schedule"] == {
            "days": ["friday"],
            "time_window": window,
            "interval_minutes": 5,
        }
        assert week["days"] == ["monday"]

    @pytest.mark.parametrize("week", ["text", [1], 7])
    def test_an_edited_schedule_replaces_a_weekly_schedule_that_is_no_object(
        self, week: object
    ) -> None:
        task = make_task(weekly_schedule=week)
        result = tasks.apply_columns(task, {"schedule_expr": "weekly:mon@5"})
        assert result["weekly_schedule"]["days"] == ["monday"]

    def test_an_edited_time_is_spelled_like_the_old_one(self, pacific: None) -> None:
        instant = datetime(2026, 1, 1, 20, tzinfo=UTC)
        task = make_task(created_at="2025-01-01T00:00:00-07:00", updated_at="2025-01-01T00:00:00")
        result = tasks.apply_columns(task, {"created_at": instant, "updated_at": instant})
        assert result["created_at"] == "2026-01-01T13:00:00-07:00"
        assert result["updated_at"] == "2026-01-01T12:00:00"


class TestHalves:
    def test_every_key_is_in_one_half_and_nothing_is_lost(self) -> None:
        task = make_task(unknown=1)
        operator, scheduler = halves.halves_of(task)
        assert not operator.keys() & scheduler.keys()
        assert operator | scheduler == task

    @pytest.mark.parametrize("status", ["paused", "disabled"])
    def test_what_the_operator_set_is_in_the_operators_half(self, status: str) -> None:
        split = halves.halves_of(make_task(status=status))
        assert split.operator["status"] == status
        assert "status" not in split.scheduler

    @pytest.mark.parametrize("status", ["active", "running", "error"])
    def test_what_the_scheduler_set_is_in_the_schedulers_half(self, status: str) -> None:
        split = halves.halves_of(make_task(status=status))
        assert split.scheduler["status"] == status
        assert "status" not in split.operator

    @pytest.mark.parametrize(
        "fields",
        [
            {"name": "x"},
            {"unknown": None},
            {"interval_minutes": 15.0},
            {
                "task_config": {
                    "task_type": "download",
                    "company": "Acme",
                    "settings": {"a": "\x00"},
                }
            },
        ],
    )
    def test_an_operators_change_changes_the_operators_hash_only(
        self, fields: dict[str, object]
    ) -> None:
        before, after = halves.hashes_of(make_task()), halves.hashes_of(make_task(**fields))
        assert before[0] != after[0]
        assert before[1] == after[1]

    @pytest.mark.parametrize(
        "fields", [{"run_count": 2}, {"last_error": "x"}, {"next_run": None}, {"status": "running"}]
    )
    def test_a_schedulers_change_changes_the_schedulers_hash_only(
        self, fields: dict[str, object]
    ) -> None:
        before, after = halves.hashes_of(make_task()), halves.hashes_of(make_task(**fields))
        assert before[0] == after[0]
        assert before[1] != after[1]

    def test_the_order_of_keys_does_not_change_a_hash(self) -> None:
        task = make_task()
        assert halves.hashes_of(task) == halves.hashes_of(dict(reversed(task.items())))

    @pytest.mark.parametrize("task", [make_task(), {"task_id": "t"}, {"b": 1, "task_id": "t"}])
    def test_a_task_joined_with_itself_is_itself(self, task: dict[str, object]) -> None:
        joined = halves.join_halves(task, task)
        assert list(joined.items()) == list(task.items())

    def test_each_half_comes_from_its_side(self) -> None:
        edited = make_task(name="new", extra=1)
        ran = make_task(run_count=9, last_error="x", status="error")
        expected = edited | {"run_count": 9, "last_error": "x", "status": "error"}
        joined = halves.join_halves(edited, ran)
        assert joined == expected
        assert list(joined) == list(edited)

    def test_a_next_run_of_the_old_schedule_loses_to_a_new_schedule(self) -> None:
        edited = make_task(interval_minutes=5, next_run="2026-01-01T00:05:00")
        ran = make_task(run_count=2, next_run="2026-01-01T00:15:00")
        joined = halves.join_halves(edited, ran)
        assert (joined["next_run"], joined["run_count"]) == ("2026-01-01T00:05:00", 2)

    def test_a_next_run_of_the_old_schedule_does_not_come_where_there_was_none(self) -> None:
        edited = make_task(interval_minutes=5)
        del edited["next_run"]
        ran = make_task(next_run="2026-01-01T00:15:00")
        assert halves.join_halves(edited, ran).get("next_run") is None

    @pytest.mark.parametrize("theirs", ["paused", "disabled"])
    @pytest.mark.parametrize("ours", ["active", "running", "error", None])
    def test_a_run_does_not_undo_what_the_operator_set(self, theirs: str, ours: object) -> None:
        joined = halves.join_halves(make_task(status=theirs), make_task(status=ours))
        assert joined["status"] == theirs

    @pytest.mark.parametrize("ours", ["paused", "disabled"])
    @pytest.mark.parametrize("theirs", ["active", "running", "error"])
    def test_a_resumed_task_stays_resumed(self, theirs: str, ours: str) -> None:
        joined = halves.join_halves(make_task(status=theirs), make_task(status=ours))
        assert joined["status"] == theirs


def test_a_row_without_text_is_listed_in_the_schedulers_order() -> None:
    task = make_task(zzz=1, aaa=2)
    shuffled = dict(sorted(task.items()))
    assert list(tasks.in_field_order(shuffled)) == [*tasks.FIELD_ORDER, "aaa", "zzz"]
