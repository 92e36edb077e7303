"""A meeting is committed, and the snapshot cannot show it: what is done since is not undone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from datahound_storage.files.paths import StatePaths
from datahound_storage.migrations import upgrade
from tests.fault.fix_faults import fill, impatient, secret_task
from tests.fault.proxy import Proxy
from tests.fault.test_lost_answers import no_room_for_snapshots
from tests.fix_persistence import MakePersistence
from tests.scheduler import OldCode

Tasks = list[dict[str, Any]]


def statuses(tasks: Tasks) -> dict[str, str]:
    return {task["task_id"]: task["status"] for task in tasks}


def conflicts(url: str) -> list[tuple[str, str]]:
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT task_key, half FROM scheduler_conflicts").fetchall()


class Hosts:
    """One whose disk is full, and another one beside it on the same database."""

    def __init__(self, opened: MakePersistence, base: Path, url: str) -> None:
        self._opened, self._base, self._url = opened, base, url
        self.here = opened(base, url=url)
        fill(self.here)
        self.there = opened(base.parent / "elsewhere", url=url)

    def restart(self) -> None:
        self.here.close()
        self.here = self._opened(self._base, url=self._url)

    def edit(self, change: Callable[[Tasks], Tasks]) -> None:
        """What old code makes of the snapshot."""
        OldCode(self._base).save(change(OldCode(self._base).load()))

    def set_there(self, **changes: Any) -> None:
        assert self.there.update_task({**self.there.get_task("a"), **changes})

    @property
    def shown(self) -> Tasks:
        return OldCode(self._base).load()


@pytest.fixture
def hosts(opened: MakePersistence, base: Path, migrated_url: str) -> Hosts:
    return Hosts(opened, base, migrated_url)


@contextmanager
def unshown(hosts: Hosts, again: str) -> Iterator[None]:
    """Around what is done since a meeting; then the sides meet again in one of three ways."""
    with no_room_for_snapshots():
        hosts.here.load_tasks()
        yield
        if again == "the same process":
            hosts.here.load_tasks()
        elif again == "another process":
            hosts.restart()
    hosts.restart()
    hosts.here.load_tasks()
    assert hosts.shown == hosts.here.load_tasks()


each_way = pytest.mark.parametrize("again", ["the same process", "another process", "with room"])


def paused(tasks: Tasks) -> Tasks:
    return [{**t, "status": "paused"} if t["task_id"] == "a" else t for t in tasks]


@each_way
def test_an_edit_that_was_carried_over_is_not_made_again(
    hosts: Hosts, again: str, migrated_url: str
) -> None:
    hosts.edit(paused)
    with unshown(hosts, again):
        assert statuses(hosts.there.load_tasks())["a"] == "paused"
        hosts.set_there(status="active")
    assert statuses(hosts.shown)["a"] == "active"
    assert conflicts(migrated_url) == []


@each_way
def test_a_task_that_was_carried_over_can_be_deleted(hosts: Hosts, again: str) -> None:
    hosts.edit(lambda tasks: [*tasks, secret_task("c")])
    with unshown(hosts, again):
        assert hosts.there.delete_task("c")
    assert [task["task_id"] for task in hosts.shown] == ["a", "b"]


@each_way
def test_a_deletion_that_was_carried_over_is_not_made_again(hosts: Hosts, again: str) -> None:
    task = hosts.there.get_task("a")
    hosts.edit(lambda tasks: tasks[1:])
    with unshown(hosts, again):
        assert hosts.there.add_task(task)
    assert [task["task_id"] for task in hosts.shown] == ["b", "a"]


@each_way
def test_an_order_that_was_carried_over_is_not_made_again(
    hosts: Hosts, again: str, migrated_url: str
) -> None:
    hosts.edit(lambda tasks: tasks[::-1])
    with unshown(hosts, again):
        assert list(statuses(hosts.there.load_tasks())) == ["b", "a"]
        with psycopg.connect(migrated_url) as connection:
            connection.execute("UPDATE scheduler_tasks SET position = -1 WHERE task_key = 'a'")
    assert list(statuses(hosts.shown)) == ["a", "b"]


@each_way
def test_what_lost_is_kept_once(hosts: Hosts, again: str, migrated_url: str) -> None:
    hosts.edit(lambda tasks: [{**t, "name": "here"} for t in tasks if t["task_id"] == "a"])
    hosts.set_there(name="there")
    with unshown(hosts, again):
        pass
    assert [task["name"] for task in hosts.shown] == ["there"]
    assert sorted(conflicts(migrated_url)) == [("a", "operator")]


@pytest.mark.parametrize("again", [True, False])
def test_without_a_sidecar(hosts: Hosts, base: Path, again: bool) -> None:
    """The first start of an installation whose database has tasks of its own."""
    hosts.here.close()
    hosts.edit(lambda tasks: [*paused(tasks), secret_task("c")])
    StatePaths.below(base / "data").sidecar_file.unlink()
    with no_room_for_snapshots():
        hosts.restart()
        hosts.set_there(status="active", updated_at=None)
        assert hosts.there.delete_task("c")
        if again:
            hosts.restart()
    hosts.restart()
    assert statuses(hosts.shown)["a"] == "active"
    assert "c" not in statuses(hosts.shown)


def test_the_same_edit_is_carried_over_again_once_the_snapshot_was_written(hosts: Hosts) -> None:
    for _ in range(2):
        hosts.edit(paused)
        with no_room_for_snapshots():
            assert statuses(hosts.here.load_tasks())["a"] == "paused"
        hosts.here.load_tasks()
        hosts.set_there(status="active")
        assert statuses(hosts.here.load_tasks())["a"] == "active"


def test_a_later_edit_is_carried_over(hosts: Hosts) -> None:
    hosts.edit(paused)
    with no_room_for_snapshots():
        hosts.here.load_tasks()
        hosts.edit(lambda tasks: [{**task, "name": "later"} for task in tasks])
        found = {task["task_id"]: task for task in hosts.here.load_tasks()}
    assert {task["name"] for task in found.values()} == {"later"}
    assert found["a"]["status"] == "paused"


def test_a_database_that_is_new_to_the_files(
    opened: MakePersistence, base: Path, database_url: str, migrated_url: str
) -> None:
    """They moved here from another one; what is done here since does not make it a stranger."""
    first = opened(base, url=migrated_url)
    fill(first)
    first.close()
    upgrade(database_url, import_files=False)
    with no_room_for_snapshots():
        opened(base, url=database_url).close()
    elsewhere = opened(base.parent / "elsewhere", url=database_url)
    assert elsewhere.delete_task("a")
    moved = opened(base, url=database_url)
    assert moved.health().store == "database"
    assert [task["task_id"] for task in moved.load_tasks()] == ["b"]


def test_a_note_from_before_it_counts_no_more(
    opened: MakePersistence, base: Path, migrated_url: str, proxy: Proxy
) -> None:
    """A deletion whose answer got lost is taken back in the files; then the task is deleted."""
    here = opened(base, url=proxy.url, settings=impatient())
    fill(here)
    task = here.get_task("a")
    proxy.lose_answer("DELETE", then=proxy.refuse)
    assert here.delete_task("a")
    assert here.add_task(task)
    here.close()
    with no_room_for_snapshots():
        opened(base, url=migrated_url).close()
    there = opened(base.parent / "elsewhere", url=migrated_url)
    assert there.get_task("a") == task
    assert there.delete_task("a")
    here = opened(base, url=migrated_url)
    assert [task["task_id"] for task in here.load_tasks()] == ["b"]


def test_after_a_fork_it_is_no_other_database(
    opened: MakePersistence, base: Path, migrated_url: str
) -> None:
    """Which reads everything anew, and finds no room to show it."""
    persistence = opened(base, url=migrated_url)
    fill(persistence)
    persistence._switch.renew_mutex()
    elsewhere = opened(base.parent / "elsewhere", url=migrated_url)
    assert elsewhere.delete_task("a")
    with no_room_for_snapshots():
        for _ in range(2):
            assert [task["task_id"] for task in persistence.load_tasks()] == ["b"]
    persistence.load_tasks()
    assert persistence.health().store == "database"
    assert [task["task_id"] for task in OldCode(base).load()] == ["b"]
