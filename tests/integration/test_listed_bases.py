"""What a listed task is a version of: it is merged with what others did, and only in its store."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datahound_storage import SchedulerPersistence
from tests.fix_persistence import MakePersistence, as_another
from tests.scheduler import Task, TaskType, make_task
from tests.servers import TestServer

Listing = Callable[[SchedulerPersistence], list[Any]]
LISTINGS: dict[str, Listing] = {
    "all": SchedulerPersistence.load_tasks,
    "active": SchedulerPersistence.get_active_tasks,
    "type": lambda persistence: persistence.get_tasks_by_type("download"),
    "enumeration": lambda persistence: persistence.get_tasks_by_type(TaskType.DOWNLOAD),
    "company": lambda persistence: persistence.get_tasks_by_company("Acme"),
}
listings = pytest.mark.parametrize("listing", LISTINGS.values(), ids=LISTINGS)
classes = pytest.mark.parametrize("task_class", [None, Task], ids=["dicts", "objects"])
OTHERS = [
    make_task("before", status="paused", task_config={"task_type": "prepare", "company": "Bolt"}),
    make_task("a", extra={"kept": 1.0}),
    make_task("after"),
]


@pytest.fixture
def peer(opened: MakePersistence, base: Path, store_url: str | None) -> SchedulerPersistence:
    """Another process on the same store, which has filled it."""
    made = opened(base, url=store_url and as_another(store_url, "ui"))
    for task in OTHERS:
        assert made.add_task(task)
    return made


def the_one(tasks: list[Any]) -> Any:
    [task] = [task for task in tasks if key_of(task) == "a"]
    return task


def key_of(task: Any) -> str:
    return str(task["task_id"] if isinstance(task, dict) else task.task_id)


def change(task: Any, **fields: Any) -> None:
    for name, value in fields.items():
        if isinstance(task, dict):
            task[name] = value
        else:
            setattr(task, name, value)


def theirs(peer: SchedulerPersistence, **fields: Any) -> None:
    assert peer.update_task(peer.get_task("a") | fields)


@classes
@listings
def test_a_listed_task_is_merged_field_by_field_with_what_a_peer_changed(
    make: MakePersistence, peer: SchedulerPersistence, listing: Listing, task_class: Any
) -> None:
    persistence = make(task_class=task_class)
    for number in range(1, 4):
        task = the_one(listing(persistence))
        theirs(peer, name=f"theirs {number}", description=f"theirs {number}", run_count=number * 10)
        config = task["task_config"] if task_class is None else task.task_config
        settings = {"depth": 1, "mine": number}
        if task_class is None:
            config["settings"] = settings
        else:
            config.settings = settings
        assert persistence.update_task(task)
        found = peer.get_task("a")
        assert found["task_config"]["settings"] == settings
        assert (found["name"], found["description"]) == (f"theirs {number}", f"theirs {number}")
        assert (found["run_count"], found["extra"]) == (number * 10, {"kept": 1.0})


@classes
@listings
def test_a_listed_task_is_merged_by_a_save_as_well(
    make: MakePersistence, peer: SchedulerPersistence, listing: Listing, task_class: Any
) -> None:
    persistence = make(task_class=task_class)
    listed = {key_of(task): task for task in persistence.load_tasks()}
    listed |= {key_of(task): task for task in listing(persistence)}
    theirs(peer, name="theirs", description="theirs")
    change(listed["a"], run_count=7)
    assert persistence.save_tasks(listed.values())
    found = peer.get_task("a")
    assert (found["name"], found["description"], found["run_count"]) == ("theirs", "theirs", 7)
    assert found["extra"] == {"kept": 1.0}
    assert [task["task_id"] for task in peer.load_tasks()] == ["before", "a", "after"]


@listings
def test_an_older_list_stays_the_version_that_it_showed(
    make: MakePersistence, peer: SchedulerPersistence, listing: Listing
) -> None:
    """Each list has objects of its own; the newer one does not tell what the older one shows."""
    persistence = make()
    old = the_one(listing(persistence))
    theirs(peer, name="theirs")
    new = the_one(listing(persistence))
    assert (old["name"], new["name"]) == ("Task a", "theirs")
    old["run_count"] = 5
    assert persistence.update_task(old)
    assert peer.get_task("a")["name"] == "theirs"
    new["description"] = "mine"
    assert persistence.update_task(new)
    found = peer.get_task("a")
    assert (found["name"], found["description"], found["run_count"]) == ("theirs", "mine", 5)


COPIES: dict[str, Callable[[Any], Any]] = {
    "dict": dict,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda task: pickle.loads(pickle.dumps(task)),
    "display": lambda task: {**task},
    "json": lambda task: json.loads(json.dumps(task)),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@listings
def test_a_copy_of_a_listed_task_is_merged_as_the_task_itself(
    make: MakePersistence,
    peer: SchedulerPersistence,
    listing: Listing,
    copied: Callable[[Any], Any],
) -> None:
    persistence = make()
    task = the_one(listing(persistence))
    theirs(peer, name="theirs")
    mine = copied(task)
    assert mine == task
    assert mine is not task
    mine["run_count"] = 5
    assert persistence.update_task(mine)
    found = peer.get_task("a")
    assert (found["name"], found["run_count"]) == ("theirs", 5)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, COPIES["pickle"]])
def test_a_copy_is_not_the_object_that_was_listed(
    make: MakePersistence, peer: SchedulerPersistence, copied: Callable[[Any], Any]
) -> None:
    """It says nothing of the version that another list in this thread has shown meanwhile."""
    persistence = make()
    task = the_one(persistence.load_tasks())
    mine = copied(task)
    assert type(mine) is type(task)
    theirs(peer, name="theirs")
    persistence.load_tasks()
    # With another `updated_at` than this thread saw last it replaces the task as given.
    assert persistence.update_task(mine)
    assert peer.get_task("a")["name"] == "Task a"
    # While the object itself is known.
    theirs(peer, name="theirs again")
    assert persistence.update_task(task)
    assert peer.get_task("a")["name"] == "theirs again"


@classes
@listings
@pytest.mark.parametrize("by", ["update", "save"])
def test_a_task_that_another_store_listed_replaces_the_one_here_as_given(
    opened: MakePersistence,
    server: TestServer,
    migrated_template: str,
    base: Path,
    tmp_path: Path,
    listing: Listing,
    task_class: Any,
    by: str,
) -> None:
    """What it showed there says nothing of what changed here."""
    urls = [server.create_database(migrated_template) for _ in range(2)]
    try:
        here, there = (
            opened(tmp_path / name, url=url, task_class=task_class)
            for name, url in zip(("here", "there"), urls, strict=True)
        )
        for name, store in (("here", here), ("there", there)):
            for task in OTHERS:
                stored = task | {"name": f"{name} {task['task_id']}", "where": name}
                assert store.add_task(Task.from_dict(stored) if task_class else stored)
        task = the_one(listing(there))
        change(task, run_count=5)
        others = [other for other in here.load_tasks() if key_of(other) != "a"]
        if by == "update":
            assert here.update_task(task)
        else:
            assert here.save_tasks([others[0], task, *others[1:]])
        found = the_one(here.load_tasks())
        shown = found if task_class is None else vars(found)
        assert (shown["name"], shown["run_count"]) == ("there a", 5)
        # There it is still known as what was listed.
        changed = the_one(there.load_tasks())
        change(changed, name="changed there")
        assert there.update_task(changed)
        change(task, run_count=6)
        assert there.update_task(task)
        found = the_one(there.load_tasks())
        shown = found if task_class is None else vars(found)
        assert (shown["name"], shown["run_count"]) == ("changed there", 6)
        for store in (here, there):
            store.close()
    finally:
        for url in urls:
            server.drop_database(url)


def test_a_task_that_goes_back_and_forth_between_two_stores_is_known_in_both(
    opened: MakePersistence, tmp_path: Path, migrated_url: str
) -> None:
    here = opened(tmp_path / "here", url=migrated_url)
    there = opened(tmp_path / "there")
    for store in (here, there):
        assert store.add_task(make_task("a"))
    task = here.get_task("a")
    for number in range(1, 4):
        for store in (here, there):
            other = store.get_task("a") | {"name": f"theirs {number}"}
            task["run_count"] = number
            if number > 1:
                assert store.update_task(other)
            assert store.update_task(task)
            found = store.get_task("a")
            assert found["run_count"] == number
            assert found["name"] == ("Task a" if number == 1 else f"theirs {number}")
