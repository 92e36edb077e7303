"""A meeting is committed, and the snapshot cannot show it: what is done since is not undone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from datahound_storage import backup
from datahound_storage.dal import StorageDAL
from datahound_storage.files import atomic
from datahound_storage.files.paths import StatePaths
from datahound_storage.migrations import upgrade
from tests.fault.fix_faults import fill, impatient, secret_task
from tests.fault.proxy import Proxy
from tests.fault.standby import value
from tests.fault.test_lost_answers import no_room_for_snapshots
from tests.fix_persistence import MakePersistence, as_another
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

    def edit_there(self, change: Callable[[Tasks], Tasks]) -> None:
        """The same on the other host, which carries it over at once."""
        there = OldCode(self._base.parent / "elsewhere")
        there.save(change(there.load()))
        self.there.load_tasks()

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


@pytest.mark.parametrize("by", ["old code", "this package"])
def test_what_was_carried_over_can_be_taken_back_in_the_files(
    opened: MakePersistence, base: Path, migrated_url: str, proxy: Proxy, by: str
) -> None:
    """Which makes the file what it was when it was written last."""
    here = opened(base, url=migrated_url)
    fill(here)
    here.close()
    before = OldCode(base).load()
    OldCode(base).save([*paused(before), secret_task("c")])
    with after_the_meeting(proxy.refuse):
        here = opened(base, url=proxy.url, settings=impatient())
    assert here.health().store == "files"
    if by == "old code":
        OldCode(base).save(before)
    else:
        assert here.delete_task("c")
        assert here.update_task({**here.get_task("a"), "status": "active"})
    here.close()
    here = opened(base, url=migrated_url)
    assert statuses(here.load_tasks()) == {"a": "active", "b": "paused"}


@contextmanager
def after_the_meeting(work: Callable[[], object]) -> Iterator[None]:
    """Something happens between the commit of a meeting and the snapshot that shows it."""
    really_meet = backup.meet

    def meet(*args: Any, **options: Any) -> str | None:
        mark = really_meet(*args, **options)
        work()
        return mark

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backup, "meet", meet)
        yield


class Killed(BaseException):
    """The process ends here."""


def kill() -> None:
    raise Killed


def test_a_process_that_is_killed_after_a_meeting(
    opened: MakePersistence, base: Path, migrated_url: str
) -> None:
    here = opened(base, url=migrated_url)
    fill(here)
    here.close()
    before = OldCode(base).load()
    OldCode(base).save([*before, secret_task("c")])
    with after_the_meeting(kill), pytest.raises(Killed):
        opened(base, url=as_another(migrated_url, "killed"))
    OldCode(base).save(before)
    here = opened(base, url=migrated_url)
    assert list(statuses(here.load_tasks())) == ["a", "b"]


def test_the_first_start_of_an_installation(
    opened: MakePersistence, base: Path, migrated_url: str, proxy: Proxy
) -> None:
    """The database goes away after the import; then a task is deleted in the files."""
    (base / "data/scheduler").mkdir(parents=True)
    OldCode(base).save([secret_task("a"), secret_task("b")])
    with after_the_meeting(proxy.refuse):
        here = opened(base, url=proxy.url, settings=impatient())
    assert here.health().store == "files"
    assert here.delete_task("b")
    here.close()
    here = opened(base, url=migrated_url)
    assert list(statuses(here.load_tasks())) == ["a"]


@pytest.mark.parametrize("forgets", [True, False])
@pytest.mark.parametrize("place", ["elsewhere", "where it was"])
def test_a_copy_of_the_directory_has_met_nobody(
    opened: MakePersistence,
    base: Path,
    migrated_url: str,
    place: str,
    forgets: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A backup of the files, or another host's: what was carried over since is news to it."""
    here = opened(base, url=migrated_url)
    fill(here)
    here.close()
    copy = base.parent / "copy"
    shutil.copytree(base, copy)
    if not forgets:  # as a process that is killed before it can
        monkeypatch.setattr(StorageDAL, "forget_carried_over", lambda *_: None)
    OldCode(base).save(paused(OldCode(base).load()[:1]))
    here = opened(base, url=migrated_url)
    assert statuses(here.load_tasks()) == {"a": "paused"}
    here.close()
    if place == "where it was":
        shutil.rmtree(base)
        copy = copy.rename(base)
    OldCode(copy).save([*OldCode(copy).load(), secret_task("c")])
    there = opened(copy, url=as_another(migrated_url, "copy"))
    assert statuses(there.load_tasks()) == {"a": "paused", "c": "active"}


def test_what_another_host_carries_over_is_remembered_beside_it(hosts: Hosts) -> None:
    hosts.edit(paused)
    with no_room_for_snapshots():
        hosts.here.load_tasks()
    hosts.edit_there(lambda tasks: [*tasks, secret_task("c")])
    hosts.set_there(status="active")
    assert statuses(hosts.here.load_tasks()) == {"a": "active", "b": "paused", "c": "active"}


def test_an_equal_change_on_both_sides_is_not_made_again(hosts: Hosts) -> None:
    hosts.edit(paused)
    hosts.set_there(status="paused")
    with no_room_for_snapshots():
        hosts.here.load_tasks()
        hosts.set_there(status="active")
    assert statuses(hosts.here.load_tasks())["a"] == "active"


def test_nothing_is_kept_once_the_snapshot_shows_it(hosts: Hosts, migrated_url: str) -> None:
    hosts.edit(paused)
    with no_room_for_snapshots():
        hosts.here.load_tasks()
        assert value(migrated_url, _KEPT) == 1
    hosts.here.load_tasks()
    assert value(migrated_url, _KEPT) == 0


_KEPT = "SELECT count(*) FROM scheduler_storage, jsonb_object_keys(carried_over)"


@pytest.mark.parametrize("text", ["", "x", "{}", '{"tasks": {}, "of a later version": 1}'])
def test_what_is_not_understood_stops_nothing(hosts: Hosts, migrated_url: str, text: str) -> None:
    hosts.edit(paused)
    with no_room_for_snapshots():
        hosts.here.load_tasks()
    with psycopg.connect(migrated_url) as connection:
        statement = (
            "SELECT jsonb_object_agg(key, jsonb_build_array(1, %s::text))"
            " FROM jsonb_object_keys(carried_over) AS key"
        )
        connection.execute(f"UPDATE scheduler_storage SET carried_over = ({statement})", [text])
    hosts.restart()
    assert hosts.here.health().store == "database"
    assert statuses(hosts.shown)["a"] == "paused"


def test_what_nobody_comes_back_for_does_not_grow(hosts: Hosts, migrated_url: str) -> None:
    with psycopg.connect(migrated_url) as connection:
        connection.execute(
            "UPDATE scheduler_storage SET carried_over ="
            " (SELECT jsonb_object_agg(n, '[]'::jsonb) FROM generate_series(1, 1000) AS n)"
        )
    hosts.edit(paused)
    with no_room_for_snapshots():
        hosts.here.load_tasks()
    assert value(migrated_url, _KEPT) == 16
    hosts.set_there(status="active")
    assert statuses(hosts.here.load_tasks())["a"] == "active"


def test_what_a_crash_kept_from_the_snapshot_is_not_deleted_by_a_full_disk(
    opened: MakePersistence, base: Path, migrated_url: str
) -> None:
    """Which takes away the temporary file that tells of the crash."""
    here = opened(base, url=as_another(migrated_url, "killed"))
    fill(here)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "publish", kill_at_the_snapshot(atomic.publish))
        with pytest.raises(Killed):
            here.add_task(secret_task("c"))
    with no_room_for_snapshots():
        opened(base, url=migrated_url).close()
    here = opened(base, url=migrated_url)
    assert list(statuses(here.load_tasks())) == ["a", "b", "c"]


def kill_at_the_snapshot(publish: Callable[[Path], None]) -> Callable[[Path], None]:
    def publish_or_die(path: Path) -> None:
        if path.name == "scheduled_tasks.json":
            raise Killed
        publish(path)

    return publish_or_die


def test_a_copy_of_the_directory_is_as_the_crash_left_it(
    opened: MakePersistence, base: Path, migrated_url: str
) -> None:
    """Another host's task was to be shown; in the copy all files have other inodes."""
    here = opened(base, url=as_another(migrated_url, "killed"))
    fill(here)
    there = opened(base.parent / "elsewhere", url=migrated_url)
    assert there.add_task(secret_task("c"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "publish", kill_at_the_snapshot(atomic.publish))
        with pytest.raises(Killed):
            here.load_tasks()
    copy = base.parent / "copy"
    shutil.copytree(base, copy)
    here = opened(copy, url=migrated_url)
    assert list(statuses(here.load_tasks())) == ["a", "b", "c"]


def test_the_newest_memories_stay(hosts: Hosts, migrated_url: str) -> None:
    with psycopg.connect(migrated_url) as connection:
        connection.execute(
            "UPDATE scheduler_storage SET carried_over = (SELECT jsonb_object_agg("
            "'m' || n, jsonb_build_array(n, 'x')) FROM generate_series(1, 15) AS n)"
        )
    hosts.edit(paused)
    with no_room_for_snapshots():
        hosts.here.load_tasks()
    hosts.edit_there(lambda tasks: [*tasks, secret_task("c")])
    hosts.set_there(status="active")
    assert statuses(hosts.here.load_tasks())["a"] == "active"
    assert value(migrated_url, _KEPT) == 14
