"""A change whose answer got lost, and what is done about it since: it counts once, or is undone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from datahound_storage import SchedulerPersistence
from datahound_storage.dal import StorageDAL
from datahound_storage.files.paths import StatePaths
from tests.fault.fix_faults import fill, impatient, secret_task
from tests.fault.proxy import Proxy
from tests.fault.standby import value
from tests.fault.test_lost_answers import no_room_for_snapshots
from tests.fix_persistence import MakePersistence, as_another
from tests.scheduler import OldCode

WHEN = ("2026-11-01T00:00:00", "2026-11-01T00:10:00")
CHANGES = {"status": ("paused", "active"), "name": ("changed", "Task a")}


def names_kept(url: str) -> list[tuple[str, str, str]]:
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT task_key, half, kept FROM scheduler_conflicts").fetchall()


@pytest.mark.parametrize("by", ["this package", "old code"])
@pytest.mark.parametrize("field", CHANGES)
@pytest.mark.parametrize("how", ["its answer got lost", "the snapshot had no room for it"])
def test_what_is_taken_back_in_the_files_is_taken_back(
    opened: MakePersistence,
    base: Path,
    migrated_url: str,
    proxy: Proxy,
    field: str,
    by: str,
    how: str,
) -> None:
    here = opened(base, url=proxy.url, settings=impatient())
    fill(here)
    before, (there, back) = OldCode(base).load(), CHANGES[field]
    change: dict[str, Any] = {**here.get_task("a"), field: there}
    if how == "its answer got lost":
        proxy.lose_answer("UPDATE", then=proxy.refuse)
        assert here.update_task(change)
    else:
        with no_room_for_snapshots():
            assert here.update_task(change)
        proxy.refuse()
    assert here.get_task("a")[field] == there
    assert here.health().store == "files"
    if by == "this package":
        assert here.update_task({**here.get_task("a"), field: back})
    else:
        OldCode(base).save(before)
    here.close()
    here = opened(base, url=migrated_url)
    assert here.health().store == "database"
    assert here.get_task("a")[field] == back
    assert names_kept(migrated_url) == [("a", "operator", "files")]


def test_added_anew_on_both_sides_after_a_deletion(
    opened: MakePersistence, base: Path, migrated_url: str, proxy: Proxy
) -> None:
    """As it was in the files, another one in the database: one of the two is kept as a conflict."""
    here = opened(base, url=proxy.url, settings=impatient())
    fill(here)
    task = here.get_task("a")
    elsewhere = opened(base.parent / "elsewhere", url=migrated_url)
    proxy.lose_answer("DELETE", then=proxy.refuse)
    assert here.delete_task("a")
    assert here.add_task(task)
    assert elsewhere.add_task(secret_task("a", name="another"))
    here.close()
    here = opened(base, url=migrated_url)
    assert here.get_task("a")["name"] in ("another", task["name"])
    assert [kept[0] for kept in names_kept(migrated_url)] != []


def count_up_and_update(persistence: SchedulerPersistence) -> bool:
    task = persistence.get_task("a")
    task["run_count"] += 1
    return persistence.update_task(task)


def count_up_and_save(persistence: SchedulerPersistence) -> bool:
    tasks = persistence.load_tasks()
    tasks[0]["run_count"] += 1
    return persistence.save_tasks(tasks)


@pytest.mark.parametrize(
    ("write", "tag"), [(count_up_and_update, "UPDATE"), (count_up_and_save, "COMMIT")]
)
def test_a_run_counts_once_where_a_peer_shows_it_already(
    opened: MakePersistence,
    base: Path,
    migrated_url: str,
    proxy: Proxy,
    write: Callable[[SchedulerPersistence], bool],
    tag: str,
) -> None:
    here = opened(base, url=proxy.url, settings=impatient())
    fill(here)
    here.load_tasks()
    peer = opened(base, url=as_another(migrated_url, "peer"))

    def show_and_refuse() -> None:
        peer.load_tasks()
        proxy.refuse()

    proxy.lose_answer(tag, then=show_and_refuse)
    assert write(here)
    assert (proxy.has_lost, here.health().store) == (True, "files")
    assert here.get_task("a")["run_count"] == 1
    assert peer.load_tasks()[0]["run_count"] == 1


@contextmanager
def first_attempt_fails(url: str, then: Callable[[], None] | None) -> Iterator[None]:
    """The session of the first bulk change ends before its commit."""
    really_apply, done = StorageDAL.apply, []

    def apply(dal: StorageDAL, connection: Any, change: Any, *more: Any) -> None:
        really_apply(dal, connection, change, *more)
        if not done:
            done.append(True)
            value(url, f"SELECT pg_terminate_backend({connection.info.backend_pid})")
            if then is not None:
                then()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StorageDAL, "apply", apply)
        yield


@pytest.mark.parametrize("outage", [False, True])
def test_what_only_keeps_a_conflict_is_done_again(
    opened: MakePersistence, base: Path, migrated_url: str, proxy: Proxy, outage: bool
) -> None:
    """A list with an edit of a task that somebody deleted meanwhile; it changes nothing else."""
    here = opened(base, url=proxy.url, settings=impatient())
    fill(here)
    ui = opened(base, url=as_another(migrated_url, "ui"))
    tasks = here.load_tasks()
    assert ui.delete_task("a")
    tasks[0]["name"] = "edited"
    with first_attempt_fails(migrated_url, proxy.refuse if outage else None):
        assert here.save_tasks(tasks)
    in_file = StatePaths.below(base / "data").conflicts_file
    kept = in_file.read_text() if outage else json.dumps(names_kept(migrated_url))
    assert '"a"' in kept


def test_taken_back_in_the_files_beside_another_edit_it_is_kept(
    opened: MakePersistence, base: Path, migrated_url: str, proxy: Proxy
) -> None:
    """Paused, active again, and given another name in the database: two changes of one half."""
    here = opened(base, url=proxy.url, settings=impatient())
    fill(here)
    there = opened(base.parent / "elsewhere", url=migrated_url)
    proxy.lose_answer("UPDATE", then=proxy.refuse)
    for status in ("paused", "active"):
        assert here.update_task({**here.get_task("a"), "status": status})
    assert there.update_task({**there.get_task("a"), "name": "there"})
    here.close()
    here = opened(base, url=migrated_url)
    assert [kept[:2] for kept in names_kept(migrated_url)] == [("a", "operator")]


def test_taken_back_exactly_in_the_database_it_is_kept(
    opened: MakePersistence, base: Path, migrated_url: str, proxy: Proxy
) -> None:
    """By old code on another host, which writes its list from before."""
    here = opened(base, url=proxy.url, settings=impatient())
    fill(here)
    there, old = (
        opened(base.parent / "elsewhere", url=migrated_url),
        OldCode(base.parent / "elsewhere"),
    )
    before = old.load()
    proxy.lose_answer("UPDATE", then=proxy.refuse)
    assert here.update_task({**here.get_task("a"), "status": "paused"})
    there.load_tasks()
    old.save(before)
    assert there.load_tasks() == before
    here.close()
    here = opened(base, url=migrated_url)
    assert here.get_task("a")["status"] == "paused"
    assert names_kept(migrated_url) == [("a", "operator", "files")]
