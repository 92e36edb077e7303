from __future__ import annotations

from typing import Any

import pytest

from datahound_storage.merge import half_of, merge
from tests.unit import make_task


def merged(base: dict[str, Any], submitted: dict[str, Any], stored: dict[str, Any]) -> Any:
    """What comes of changes of a common task."""
    task = make_task(**base)
    return merge(task, task | submitted, task | stored)


def test_what_nobody_else_changed_becomes_what_was_submitted() -> None:
    task = make_task()
    submitted = make_task(name="new", extra=1)
    del submitted["description"]
    assert merge(task, submitted, task) == (submitted, ())


def test_what_the_caller_did_not_change_stays_as_others_made_it() -> None:
    result = merged({}, {"name": "new"}, {"description": "theirs", "extra": 1})
    assert result == (make_task(name="new", description="theirs", extra=1), ())


def test_a_field_that_others_removed_stays_away() -> None:
    task = make_task(extra=1)
    stored = make_task()
    assert merge(task, task | {"name": "new"}, stored) == (make_task(name="new"), ())


def test_the_same_change_twice_is_no_collision() -> None:
    assert merged({}, {"name": "new"}, {"name": "new"}) == (make_task(name="new"), ())


def test_of_two_changes_of_a_field_the_later_wins_and_is_named() -> None:
    assert merged({}, {"name": "mine"}, {"name": "theirs"}) == (make_task(name="mine"), ("name",))


@pytest.mark.parametrize("types", [(1, 1.0), (True, 1), ("1", 1)])
def test_another_type_is_another_value(types: tuple[Any, Any]) -> None:
    old, new = types
    assert merged({"extra": old}, {"extra": new}, {"name": "theirs"}).task["extra"] is new


def test_objects_are_merged_inside() -> None:
    config = {"company": "A", "settings": {"depth": 1, "width": 1, "keep": 1}}
    mine = {"company": "B", "settings": {"depth": 2, "width": 1, "keep": 1, "new": 1}}
    theirs = {"company": "A", "settings": {"depth": 3, "width": 9}}
    result = merged({"task_config": config}, {"task_config": mine}, {"task_config": theirs})
    assert result.task["task_config"] == {
        "company": "B",
        "settings": {"depth": 2, "width": 9, "new": 1},
    }
    assert result.collided == ("task_config.settings.depth",)


def test_an_object_against_another_value_collides_as_a_whole() -> None:
    result = merged({"extra": {}}, {"extra": {"a": 1}}, {"extra": None})
    assert (result.task["extra"], result.collided) == ({"a": 1}, ("extra",))


@pytest.mark.parametrize(("submitted", "stored", "total"), [(6, 7, 8), (6, 6, 7), (5, 7, 7)])
def test_run_counts_add_up(submitted: int, stored: int, total: int) -> None:
    result = merged({"run_count": 5}, {"run_count": submitted}, {"run_count": stored})
    assert (result.task["run_count"], result.collided) == (total, ())


@pytest.mark.parametrize("counts", [(5, None, 7), (None, 6, 7), (5, 6, "7"), (5, 6, True)])
def test_counts_that_are_no_numbers_collide(counts: tuple[Any, Any, Any]) -> None:
    old, mine, theirs = ({"run_count": count} for count in counts)
    result = merged(old, mine, theirs)
    assert (result.task["run_count"], result.collided) == (counts[1], ("run_count",))


def test_the_stamp_is_that_of_the_update_and_never_collides() -> None:
    result = merged({"updated_at": "1"}, {"updated_at": "3"}, {"updated_at": "2"})
    assert (result.task["updated_at"], result.collided) == ("3", ())


STATES = [
    # What the caller had, what it submits, what is stored: what comes of it.
    ("running", "active", "paused", "paused", False),  # a run ends after the operator paused
    ("active", "running", "disabled", "disabled", False),
    ("active", "paused", "running", "paused", False),  # the operator pauses during a run
    ("paused", "active", "paused", "active", False),  # the operator resumes
    ("paused", "active", "running", "running", False),  # two resumed it, and it runs already
    ("paused", "active", "disabled", "active", True),  # two operators
    ("active", "paused", "disabled", "paused", True),
    ("paused", "disabled", "active", "disabled", True),
    ("running", "active", "error", "active", True),  # two schedulers
    ("running", "active", "running", "active", False),
    ("active", "active", "paused", "paused", False),
]


@pytest.mark.parametrize(("base", "submitted", "stored", "result", "collides"), STATES)
def test_states(base: str, submitted: str, stored: str, result: str, collides: bool) -> None:
    outcome = merged({"status": base}, {"status": submitted}, {"status": stored})
    assert outcome.task["status"] == result
    assert outcome.collided == (("status",) if collides else ())


@pytest.mark.parametrize(
    "schedule",
    [
        {"interval_minutes": 60},
        {"schedule_type": "daily_time", "daily_time": "01:00:00"},
        {"weekly_schedule": {"days": ["monday"]}},
    ],
)
def test_a_next_run_computed_from_the_old_schedule_loses(schedule: dict[str, Any]) -> None:
    run = {"next_run": "from the old schedule", "run_count": 2}
    change = {**schedule, "next_run": "from the new schedule"}
    for stored in (change, schedule):
        result = merged({"next_run": "old"}, run, stored)
        assert result.task["next_run"] == stored.get("next_run", "old")
        assert (result.task["run_count"], result.collided) == (2, ())
    result = merged({"next_run": "old"}, change, run)
    assert (result.task["next_run"], result.collided) == ("from the new schedule", ())


def test_two_runs_collide_in_their_next_run() -> None:
    result = merged({"next_run": "1"}, {"next_run": "2"}, {"next_run": "3"})
    assert (result.task["next_run"], result.collided) == ("2", ("next_run",))


def test_the_order_of_keys_is_the_callers() -> None:
    task = make_task()
    submitted = {name: task[name] for name in reversed(task)}
    result = merge(task, submitted, task | {"name": "theirs", "extra": 1})
    assert list(result.task) == [*submitted, "extra"]


def test_halves() -> None:
    names = ("name", "task_config.settings.run_count", "status", "run_count", "next_run")
    assert [half_of(name) for name in names] == ["operator"] * 2 + ["scheduler"] * 3
