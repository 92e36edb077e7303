"""A change of a task is two round trips, and what was at hand already does not come again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from datahound_storage import SchedulerPersistence
from tests.fix_persistence import MakePersistence, as_another
from tests.scheduler import OldCode, make_task
from tests.statements import Wire, traced

# Until then the driver prepares a statement, which takes one more.
PREPARED_AFTER = 10
TASKS = 300
# BEGIN, the wait for the lock, the lock, the mark of the change, what changed since, the table to
# copy to (dropped and made), COPY and its end, the UPDATE, COMMIT; then what changed since.
BULK = 12
Filled = Callable[[int], SchedulerPersistence]


@pytest.fixture
def wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    with traced(tmp_path / "trace", monkeypatch) as made:
        yield made


def tasks_of(count: int, **changes: Any) -> list[dict[str, Any]]:
    return [make_task(f"task {number}", **changes) for number in range(count)]


@pytest.fixture
def filled(wire: Wire, opened: MakePersistence, base: Path, migrated_url: str) -> Filled:
    """Makes a facade with so many tasks, whose statements are prepared."""

    def make(count: int) -> SchedulerPersistence:
        persistence = opened(base, url=migrated_url)
        assert persistence.save_tasks(tasks_of(count))
        for number in range(PREPARED_AFTER):
            assert persistence.add_task(make_task("new"))
            assert persistence.update_task(make_task("new", run_count=number))
            assert persistence.get_task("new")
            assert persistence.delete_task("new")
            persistence.load_tasks()
        return persistence

    return make


def save_all_changed(persistence: SchedulerPersistence, number: int) -> Callable[[], bool]:
    """A save of all tasks, each with a change."""
    tasks = persistence.load_tasks()
    for task in tasks:
        task["run_count"] = number
    return lambda: persistence.save_tasks(tasks)


def prepare_saving(persistence: SchedulerPersistence) -> None:
    for number in range(PREPARED_AFTER):
        assert save_all_changed(persistence, number)()


def test_a_task_is_added_changed_and_deleted_in_two_round_trips_each(
    wire: Wire, filled: Filled
) -> None:
    persistence = filled(TASKS)
    for number in range(3):
        added = wire.during(lambda: persistence.add_task(make_task("new")))
        loaded = persistence.get_task("new") | {"run_count": number + 1}
        updated = wire.during(lambda: persistence.update_task(loaded))  # noqa: B023
        deleted = wire.during(lambda: persistence.delete_task("new"))
        assert [op.round_trips for op in (added, updated, deleted)] == [2, 2, 2]
        # The answer to the change, and the one task or tombstone that is new.
        assert [len(op.rows) for op in (added, updated, deleted)] == [2, 2, 2]
        assert [op.tasks for op in (added, updated, deleted)] == [1, 1, 0]


def test_a_loaded_task_is_changed_without_being_read_again(wire: Wire, filled: Filled) -> None:
    persistence = filled(TASKS)
    tasks = persistence.load_tasks()
    for task in tasks[:3]:
        task["run_count"] += 1
        assert wire.round_trips(lambda: persistence.update_task(task)) == 2  # noqa: B023


def test_a_task_comes_in_one_round_trip(wire: Wire, filled: Filled) -> None:
    persistence = filled(TASKS)
    for key, found in (("task 7", 1), ("none", 0)):
        got = wire.during(lambda: persistence.get_task(key))  # noqa: B023
        assert (got.round_trips, got.tasks, len(got.rows)) == (1, found, found)


@pytest.mark.parametrize(
    "listing",
    [
        SchedulerPersistence.load_tasks,
        SchedulerPersistence.get_active_tasks,
        lambda persistence: persistence.get_tasks_by_type("download"),
        lambda persistence: persistence.get_tasks_by_company("Acme"),
    ],
    ids=["all", "active", "type", "company"],
)
def test_a_listing_of_what_is_known_is_one_round_trip_without_a_task(
    wire: Wire, filled: Filled, listing: Callable[[SchedulerPersistence], list[Any]]
) -> None:
    persistence = filled(TASKS)
    listed: list[Any] = []
    for _ in range(3):
        got = wire.during(lambda: listed.append(listing(persistence)))
        # The one row is the state of the database.
        assert (got.round_trips, got.tasks, len(got.rows)) == (1, 0, 1)
    assert [len(tasks) for tasks in listed] == [TASKS] * 3


@pytest.mark.parametrize("files", ["of its own", "the same"])
def test_what_somebody_else_changed_comes_in_the_listings_one_round_trip(
    wire: Wire,
    filled: Filled,
    opened: MakePersistence,
    base: Path,
    tmp_path: Path,
    migrated_url: str,
    files: str,
) -> None:
    persistence = filled(TASKS)
    elsewhere = base if files == "the same" else tmp_path / "elsewhere"
    peer = opened(elsewhere, url=as_another(migrated_url, "peer"))
    for number in range(3):
        for key in ("task 1", "task 2"):
            assert peer.update_task(make_task(key, name=f"theirs {number}"))
        assert peer.delete_task(f"task {10 + number}")
        got = wire.during(persistence.load_tasks)
        # Two tasks, and a tombstone.
        assert (got.round_trips, got.tasks, len(got.rows)) == (1, 2, 3)
        names = {task["task_id"]: task["name"] for task in persistence.load_tasks()}
        assert (names["task 1"], names["task 3"]) == (f"theirs {number}", "Task task 3")
        assert len(names) == TASKS - number - 1


@pytest.mark.parametrize("count", [100, TASKS])
def test_a_save_of_all_takes_the_same_round_trips_however_many_tasks_there_are(
    wire: Wire, filled: Filled, count: int
) -> None:
    persistence = filled(count)
    prepare_saving(persistence)
    for number in range(100, 103):
        saved = wire.during(save_all_changed(persistence, number))
        assert saved.round_trips == BULK
        # The place and the stamp of each task, but none of the texts that were just sent.
        assert saved.tasks == 0
        assert sum(b"task " in row for row in saved.rows) == count
    assert {task["run_count"] for task in persistence.load_tasks()} == {102}


def test_a_save_that_changes_one_task_sees_nothing_of_the_others(
    wire: Wire, filled: Filled
) -> None:
    persistence = filled(TASKS)
    prepare_saving(persistence)
    tasks = persistence.load_tasks()
    tasks[7]["run_count"] = 100
    saved = wire.during(lambda: persistence.save_tasks(tasks))
    assert (saved.round_trips, saved.tasks) == (BULK, 0)
    assert sum(b"task " in row for row in saved.rows) == 1


def test_a_save_reads_what_somebody_else_changed_and_nothing_more(
    wire: Wire, filled: Filled, opened: MakePersistence, tmp_path: Path, migrated_url: str
) -> None:
    persistence = filled(TASKS)
    prepare_saving(persistence)
    peer = opened(tmp_path / "elsewhere", url=as_another(migrated_url, "peer"))
    save = save_all_changed(persistence, 100)
    assert peer.update_task(make_task("task 3", name="theirs", run_count=PREPARED_AFTER - 1))
    saved = wire.during(save)
    # To decide; that it changed again by the save is no news.
    assert (saved.round_trips, saved.tasks) == (BULK, 1)


def test_an_update_receives_the_same_however_many_tasks_there_are(
    wire: Wire, opened: MakePersistence, base: Path, tmp_path: Path, migrated_url: str
) -> None:
    received: list[list[int]] = []
    persistence = opened(base, url=migrated_url)
    for count in (100, 1000):
        assert persistence.save_tasks(tasks_of(count))
        for _ in range(PREPARED_AFTER):
            assert persistence.update_task(make_task("task 50"))
            assert persistence.add_task(make_task("new"))
            assert persistence.delete_task("new")
            persistence.load_tasks()
        operations: list[Callable[[], Any]] = [
            lambda: persistence.update_task(make_task("task 50")),
            lambda: persistence.add_task(make_task("new")),
            lambda: persistence.delete_task("new"),
            persistence.load_tasks,
        ]
        received.append([wire.during(operation).received for operation in operations])
    few, many = received
    # The numbers of transactions and positions may have another digit or two.
    assert all(abs(after - before) <= 10 for before, after in zip(few, many, strict=True))


def test_the_first_start_takes_the_same_round_trips_however_many_tasks_are_imported(
    wire: Wire, opened: MakePersistence, server: Any, migrated_template: str, tmp_path: Path
) -> None:
    trips: list[int] = []
    for count in (0, 1, 100, TASKS):
        base = tmp_path / str(count)
        OldCode(base).save(tasks_of(count))
        url = server.create_database(migrated_template)
        try:
            made: list[SchedulerPersistence] = []
            start = wire.during(lambda: made.append(opened(base, url=url)))  # noqa: B023
            assert len(made[0].load_tasks()) == count
            made[0].close()
        finally:
            server.drop_database(url)
        trips.append(start.round_trips)
        assert start.tasks == 0
    assert trips[1] == trips[2] == trips[3]
    assert trips[1] - trips[0] == 3
    assert trips[1] < 60
