from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from datahound_storage.codec import Task, decode, encode
from datahound_storage.halves import hashes_of
from datahound_storage.last_equal import Base
from datahound_storage.plan import Plan, Version
from datahound_storage.reconcile import Meeting
from tests.unit import make_task

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
EARLIER = (NOW - timedelta(hours=2)).isoformat()
LATER = (NOW - timedelta(hours=1)).isoformat()

OLD = make_task(updated_at=EARLIER)
# What the web UI writes when somebody edits a task, and the scheduler when a run ended.
EDITED: dict[str, Any] = {"name": "edited", "updated_at": LATER}
RAN: dict[str, Any] = {
    "run_count": 2,
    "last_run": LATER,
    "next_run": (NOW + timedelta(minutes=5)).isoformat(),
    "updated_at": LATER,
}


def version(task: Task) -> Version:
    return Version(task["task_id"], encode(task))


def versions(*tasks: Task) -> dict[str, Version]:
    return {task["task_id"]: version(task) for task in tasks}


def base_of(*tasks: Task) -> Base:
    return Base({task["task_id"]: hashes_of(task) for task in tasks})


def meet(base: Base | None, files: list[Task], database: list[Task], **more: Any) -> Plan:
    return Meeting(base, versions(*files), versions(*database), now=NOW, **more).plan()


def result(plan: Plan, database: list[Task]) -> dict[str, Task]:
    """The tasks of the database after the plan was carried out."""
    tasks = {task["task_id"]: task for task in database}
    for key in plan.delete:
        del tasks[key]
    return tasks | {p.task_key: decode(p.text) for p in plan.write}


def test_equal_sides_need_nothing() -> None:
    assert meet(base_of(OLD), [OLD], [OLD]) == Plan()
    assert meet(None, [OLD], [OLD]) == Plan()
    assert meet(None, [], []) == Plan()


@pytest.mark.parametrize("change", [EDITED, RAN, EDITED | RAN, {"status": "paused"}])
def test_what_changed_in_the_database_only_stays(change: dict[str, Any]) -> None:
    assert meet(base_of(OLD), [OLD], [OLD | change]) == Plan()


def test_a_new_order_in_the_files_is_carried_over_and_only_that() -> None:
    a, b, c, new, other = (make_task(key) for key in ("a", "b", "c", "new", "other"))
    base, database = base_of(a, b, c), [a, b, c, other]
    assert meet(base, [c, a, new, b], database).order == ["c", "a", "new", "b", "other"]
    assert meet(base, [new, a, b, c], database).order == ["new", "a", "b", "c", "other"]
    assert meet(base, [a, c, new], database).order is None
    assert meet(base, [c, b, a], database, files_complete=False).order is None
    assert meet(None, [c, b, a], database).order is None


@pytest.mark.parametrize("change", [EDITED, RAN, EDITED | RAN, {"status": "paused"}])
def test_what_changed_in_the_files_only_is_applied_as_written(change: dict[str, Any]) -> None:
    plan = meet(base_of(OLD), [OLD | change], [OLD])
    assert [p.text for p in plan.write] == [encode(OLD | change)]
    assert (plan.delete, plan.conflicts, plan.reports) == ([], [], [])


def test_the_columns_of_what_is_written_are_those_of_the_file() -> None:
    (written,) = meet(base_of(OLD), [OLD | {"status": "paused"}], [OLD]).change.write
    assert written.columns.status == "paused"


def test_a_task_added_in_the_files_is_added() -> None:
    added = make_task("new")
    plan = meet(base_of(OLD), [added, OLD], [OLD])
    assert [p.text for p in plan.write] == [encode(added)]
    assert (plan.delete, plan.conflicts) == ([], [])


def test_a_task_added_in_the_database_stays() -> None:
    assert meet(base_of(OLD), [OLD], [OLD, make_task("new")]) == Plan()


def test_a_task_deleted_in_the_files_is_deleted() -> None:
    other = make_task("other")
    plan = meet(base_of(OLD, other), [other], [OLD, other])
    assert (plan.write, plan.delete, plan.conflicts) == ([], ["t1"], [])


def test_the_only_task_is_deleted_and_kept() -> None:
    """As old code deletes it that could not read the file."""
    plan = meet(base_of(OLD), [], [OLD])
    assert (plan.write, plan.delete) == ([], ["t1"])
    assert [(c.task_key, c.half, c.kept) for c in plan.conflicts] == [("t1", "task", "files")]


def test_a_task_deleted_in_the_database_stays_deleted() -> None:
    assert meet(base_of(OLD), [OLD], []) == Plan()


def test_a_task_missing_from_files_that_could_not_be_read_is_not_deleted() -> None:
    assert meet(base_of(OLD), [], [OLD], files_complete=False) == Plan()


def test_a_run_in_the_files_does_not_revive_a_task_deleted_in_the_database() -> None:
    assert meet(base_of(OLD), [OLD | RAN], []).write == []


def test_a_run_in_the_database_does_not_save_a_task_deleted_in_the_files() -> None:
    assert meet(base_of(OLD), [], [OLD | RAN]).delete == ["t1"]


@pytest.mark.parametrize("change", [EDITED, {"status": "paused"}, {"unknown": 1}])
def test_an_operators_change_survives_a_deletion_and_is_reported(change: dict[str, Any]) -> None:
    in_files = meet(base_of(OLD), [OLD | change], [])
    assert [p.text for p in in_files.write] == [encode(OLD | change)]
    in_database = meet(base_of(OLD), [], [OLD | change])
    assert in_database.delete == []
    for plan in (in_files, in_database):
        assert len(plan.reports) == 1
        assert "'t1'" in plan.reports[0]


def test_an_edit_in_the_files_and_a_run_in_the_database_are_both_kept() -> None:
    files = OLD | {"name": "edited"}
    database = OLD | {"run_count": 2, "last_error": "x"}
    plan = meet(base_of(OLD), [files], [database])
    expected = OLD | {"name": "edited", "run_count": 2, "last_error": "x"}
    assert result(plan, [database])["t1"] == expected
    assert plan.conflicts == []


@pytest.mark.parametrize("edit_ends", ["before the run", "after the run", "with the run"])
def test_an_edit_and_a_run_that_both_stamp_the_task_are_both_kept(edit_ends: str) -> None:
    """Every write sets `updated_at`; that alone makes no conflict of two other halves."""
    minutes = {"before the run": -1, "after the run": 1, "with the run": 0}[edit_ends]
    stamp = (datetime.fromisoformat(LATER) + timedelta(minutes=minutes)).isoformat()
    edited, ran = OLD | EDITED | {"updated_at": stamp}, OLD | RAN
    for files, database in ((edited, ran), (ran, edited)):
        plan = meet(base_of(OLD), [files], [database])
        after = result(plan, [database])["t1"]
        assert (after["name"], after["run_count"]) == ("edited", 2)
        assert plan.conflicts == []


@pytest.mark.parametrize("status", ["paused", "disabled"])
def test_pausing_on_one_side_and_a_run_on_the_other_are_both_kept(status: str) -> None:
    paused, ran = OLD | {"status": status}, OLD | {"run_count": 2, "last_run": LATER}
    for files, database in ((paused, ran), (ran, paused)):
        plan = meet(base_of(OLD), [files], [database])
        after = result(plan, [database])["t1"]
        assert (after["status"], after["run_count"]) == (status, 2)
        assert plan.conflicts == []


def test_resuming_on_one_side_and_a_late_run_on_the_other_are_both_kept() -> None:
    paused = OLD | {"status": "paused"}
    resumed, ran = paused | {"status": "active"}, paused | {"run_count": 2}
    for files, database in ((resumed, ran), (ran, resumed)):
        plan = meet(base_of(paused), [files], [database])
        after = result(plan, [database])["t1"]
        assert (after["status"], after["run_count"]) == ("active", 2)
        assert plan.conflicts == []


def test_a_new_schedule_in_the_files_keeps_its_next_run_against_a_run_in_the_database() -> None:
    files = OLD | {"interval_minutes": 5, "next_run": "2026-11-01T12:05:00+00:00"}
    database = OLD | {"run_count": 2}
    after = result(meet(base_of(OLD), [files], [database]), [database])["t1"]
    assert after["interval_minutes"] == 5
    assert after["run_count"] == 2


@pytest.mark.parametrize(
    ("files_at", "database_at", "kept"),
    [
        (LATER, EARLIER, "files"),
        (EARLIER, LATER, "database"),
        (LATER, LATER, "database"),
        ("soon", LATER, "database"),
        (None, LATER, "database"),
        ((NOW + timedelta(hours=1)).isoformat(), LATER, "database"),
    ],
)
def test_of_two_edits_the_newer_is_kept_and_the_other_one_is_not_lost(
    files_at: object, database_at: str, kept: str
) -> None:
    files = OLD | {"name": "files", "updated_at": files_at}
    database = OLD | {"name": "database", "updated_at": database_at}
    plan = meet(base_of(OLD), [files], [database])
    assert result(plan, [database])["t1"]["name"] == kept
    lost = files if kept == "database" else database
    (conflict,) = [c for c in plan.conflicts if c.half == "operator"]
    assert conflict.task_key == "t1"
    assert encode(lost) in conflict
    assert any("'t1'" in report for report in plan.reports)


def test_a_change_back_to_what_the_other_side_has_is_no_conflict() -> None:
    both = OLD | {"name": "same edit"}
    assert meet(base_of(OLD), [both], [both]) == Plan()


class TestStrangers:
    """Sides that never met: nothing is deleted, the union is kept."""

    def test_every_task_of_the_files_is_imported_in_their_order(self) -> None:
        tasks = [make_task(key) for key in ("b", "a", "c")]
        plan = meet(None, tasks, [])
        assert [p.text for p in plan.write] == [encode(task) for task in tasks]

    def test_the_union_is_kept(self) -> None:
        database = [make_task("d")]
        plan = meet(None, [make_task("f")], database)
        assert plan.delete == []
        assert set(result(plan, database)) == {"d", "f"}

    @pytest.mark.parametrize(
        ("files_at", "database_at", "kept"),
        [(LATER, EARLIER, "files"), (EARLIER, LATER, "database"), (LATER, LATER, "database")],
    )
    def test_differences_are_settled_by_updated_at_and_reported(
        self, files_at: str, database_at: str, kept: str
    ) -> None:
        files = OLD | {"name": "files", "run_count": 7, "updated_at": files_at}
        database = OLD | {"name": "database", "run_count": 8, "updated_at": database_at}
        plan = meet(None, [files], [database])
        after = result(plan, [database])["t1"]
        assert after == (files if kept == "files" else database)
        assert plan.reports

    def test_a_row_without_text_gets_the_files_order_and_spelling(self) -> None:
        shuffled = dict(sorted(OLD.items()))
        plan = meet(None, [OLD], [shuffled])
        assert [p.text for p in plan.write] == [encode(OLD)]
        assert plan.conflicts == []

    def test_a_task_that_the_database_deleted_later_stays_deleted(self) -> None:
        plan = meet(None, [OLD], [], deleted_at={"t1": NOW})
        assert plan.write == []
        assert [encode(OLD) in conflict for conflict in plan.conflicts] == [True]
        assert plan.reports

    def test_a_task_that_the_files_changed_after_its_deletion_is_kept(self) -> None:
        plan = meet(None, [OLD], [], deleted_at={"t1": NOW - timedelta(days=1)})
        assert [p.task_key for p in plan.write] == ["t1"]
