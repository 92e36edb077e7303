"""Reconciling by hand: each choice in each situation where a start refuses to meet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from datahound_storage import SchedulerPersistence, by_hand
from datahound_storage.attach import Keep
from datahound_storage.by_hand import Preview
from datahound_storage.errors import DivergedError, SnapshotError
from datahound_storage.testing import EmbeddedServer
from tests import situations
from tests.fix_persistence import MakePersistence
from tests.scheduler import OldCode, make_task
from tests.servers import TestServer
from tests.situations import RESULTS, Installation

Make = Callable[[], Installation]
CHOICES = [*Keep]


@pytest.fixture
def outage(embedded_directory: Path) -> Iterator[EmbeddedServer]:
    """A server of the test's own, that it can stop and start."""
    with EmbeddedServer(embedded_directory, settings={"fsync": "off"}) as server:
        yield server


def act(installation: Installation, keep: Keep | None = None) -> Preview:
    """Preview, which changes nothing, and then do it: both tell the same."""
    dal = installation.dal()
    before = installation.fingerprint()
    found = by_hand.preview(dal, installation.paths, keep)
    assert installation.fingerprint() == before
    assert by_hand.reconcile(dal, installation.paths, 5.0, keep) == found
    dal.close()
    return found


def refuses(installation: Installation, words: str) -> None:
    dal = installation.dal()
    before = installation.fingerprint()
    for call in (by_hand.preview, lambda d, p: by_hand.reconcile(d, p, 5.0)):
        with pytest.raises(DivergedError, match=words):
            call(dal, installation.paths)
    assert installation.fingerprint() == before
    dal.close()


def settles(installation: Installation, keep: Keep) -> Preview:
    """The choice is carried out: it gives what it should, and everything goes on from there."""
    found = act(installation, keep)
    names, lost = RESULTS[keep]
    assert installation.names() == names
    assert installation.lost() == lost
    assert sorted(found.lost) == [key for key, _ in lost]
    installation.require_equal()
    return found


@pytest.mark.parametrize("keep", CHOICES)
def test_a_database_restored_from_yesterdays_dump(
    mine: Installation, tmp_path: Path, keep: Keep
) -> None:
    situations.restored(mine, tmp_path)
    refuses(mine, "older than")
    found = settles(mine, keep)
    assert (found.runs_to_database, found.runs_to_files) == (1, 0)
    assert mine.sql("SELECT message FROM scheduler_runs ORDER BY seq") == [
        ("yesterday",),
        ("today",),
    ]


@pytest.mark.parametrize("after", ["edit", "another host", "deletion"])
def test_what_happens_after_a_restore_does_not_hide_it(
    mine: Installation, tmp_path: Path, after: str
) -> None:
    situations.restored(mine, tmp_path)
    if after == "edit":
        mine.sql("UPDATE scheduler_tasks SET company = 'Bolt' WHERE task_key = 'kept'")
    elif after == "deletion":
        mine.sql("DELETE FROM scheduler_tasks WHERE task_key = 'edited'")
    else:
        host = Installation(tmp_path / "host", mine.url).open()
        assert host.add_task(make_task("from another host"))
        host.close()
    refuses(mine, "older than")
    process = mine.open()
    assert process.health().store == "files"
    assert "datahound-storage reconcile" in process.health().reason
    process.close()
    assert mine.names() == situations.TODAY
    act(mine, Keep.BOTH)
    assert mine.names().items() >= situations.TODAY.items()
    mine.require_equal()


@pytest.mark.parametrize("lost", ["addition", "edit", "deletion", "second addition"])
def test_each_single_change_that_a_dump_lacks_is_noticed(
    mine: Installation, tmp_path: Path, lost: str
) -> None:
    situations.yesterday(mine)
    process = mine.open()
    process.delete_task("deleted")
    situations.dump(mine.url, tmp_path / "dump")
    if lost == "edit":
        process.update_task({**(process.get_task("edited") or {}), "name": "edited today"})
    elif lost == "deletion":
        process.delete_task("edited")
    else:
        process.add_task(make_task("added" if lost == "addition" else "deleted"))
    process.close()
    names = mine.names()
    situations.restore(mine.url, tmp_path / "dump")
    mine.sql("UPDATE scheduler_tasks SET company = 'Bolt' WHERE task_key = 'kept'")
    refuses(mine, "older than")
    assert mine.names() == names


def test_a_dump_of_the_present_state_is_no_older_one(mine: Installation, tmp_path: Path) -> None:
    situations.yesterday(mine)
    situations.today(mine)
    situations.dump(mine.url, tmp_path / "dump")
    situations.restore(mine.url, tmp_path / "dump")
    mine.sql("UPDATE scheduler_tasks SET company = 'Bolt' WHERE task_key = 'kept'")
    mine.sql("DELETE FROM scheduler_tasks WHERE task_key = 'edited'")
    found = act(mine)
    assert (found.to_files, found.deleted_in_files) == (["kept"], ["edited"])
    mine.require_equal()


@pytest.mark.parametrize("edited", [False, True])
def test_a_restore_under_a_running_process_overwrites_nothing(
    mine: Installation, tmp_path: Path, edited: bool
) -> None:
    situations.yesterday(mine)
    situations.dump(mine.url, tmp_path / "dump")
    situations.today(mine)
    process = mine.open()
    situations.restore(mine.url, tmp_path / "dump")
    if edited:
        mine.sql("UPDATE scheduler_tasks SET company = 'Bolt' WHERE task_key = 'kept'")
    assert {t["task_id"] for t in process.load_tasks()} == situations.TODAY.keys()
    assert process.health().store == "files"
    process.close()
    assert mine.names() == situations.TODAY
    refuses(mine, "older than")


def test_a_restore_of_the_present_state_under_a_running_process_is_no_outage(
    mine: Installation, tmp_path: Path
) -> None:
    situations.yesterday(mine)
    process = mine.open()
    situations.dump(mine.url, tmp_path / "dump")
    situations.restore(mine.url, tmp_path / "dump")
    assert len(process.load_tasks()) == len(process.load_tasks()) == 3
    assert process.add_task(make_task("new"))
    assert process.health().store == "database"
    process.close()
    mine.require_equal()


@pytest.mark.parametrize("keep", CHOICES)
def test_a_copy_of_the_database_from_yesterday(
    mine: Installation, server: TestServer, keep: Keep
) -> None:
    situations.yesterday(mine)
    copy = Installation(mine.base, server.create_database(mine.url))
    try:
        situations.today(mine)
        refuses(copy, "older than")
        settles(copy, keep)
    finally:
        server.drop_database(copy.url)


@pytest.mark.parametrize("keep", CHOICES)
def test_a_standby_that_lagged_and_was_promoted(
    base: Path, outage: EmbeddedServer, keep: Keep
) -> None:
    installation = situations.lagging_standby(base, outage)
    refuses(installation, "standby that lagged")
    settles(installation, keep)


@pytest.mark.parametrize("keep", CHOICES)
def test_the_sidecar_of_another_database(
    mine: Installation, server: TestServer, migrated_template: str, tmp_path: Path, keep: Keep
) -> None:
    """Yesterday's tasks are another installation's: the files show today's."""
    situations.yesterday(mine)
    other = Installation(tmp_path / "other", server.create_database())
    try:
        situations.yesterday(other)
        situations.today(mine)
        crossed = Installation(mine.base, other.url)
        refuses(crossed, "another database")
        found = settles(crossed, keep)
        assert (found.runs_to_database, found.runs_to_files) == (2, 1)
    finally:
        server.drop_database(other.url)


def test_equal_sides_that_did_not_belong_together_need_no_choice(
    mine: Installation, server: TestServer
) -> None:
    situations.yesterday(mine)
    copy = Installation(mine.base, server.create_database(mine.url))
    try:
        copy.sql("UPDATE scheduler_storage SET identity = gen_random_uuid()")
        assert act(copy).is_empty
        copy.require_equal()
    finally:
        server.drop_database(copy.url)


def test_both_deletes_nothing_that_the_other_side_once_deleted(
    mine: Installation, server: TestServer, tmp_path: Path
) -> None:
    situations.yesterday(mine)
    other = Installation(tmp_path / "other", server.create_database())
    try:
        situations.yesterday(other)
        persistence = other.open()
        assert persistence.delete_task("kept")
        persistence.close()
        crossed = Installation(mine.base, other.url)
        act(crossed, Keep.BOTH)
        assert set(crossed.names()) == {"kept", "edited", "deleted"}
    finally:
        server.drop_database(other.url)


def test_an_outage_with_edits_on_both_sides_needs_no_choice(
    base: Path, outage: EmbeddedServer
) -> None:
    installation = Installation(base, outage.url)
    situations.yesterday(installation)
    process = installation.open()
    outage.stop("immediate")
    assert process.update_task({**process.get_task("edited"), "name": "in the files"})
    assert process.delete_task("deleted")
    assert process.add_task(make_task("new"))
    process.log_task_execution("kept", True, "during")
    assert process.health().store == "files"
    process.close()
    outage.start()
    installation.sql(
        "UPDATE scheduler_tasks SET company = 'in the database' WHERE task_key IN "
        "('edited', 'kept')"
    )
    found = act(installation)
    assert sorted(found.to_database) == ["new"]
    assert found.deleted_in_database == ["deleted"]
    assert sorted(found.to_files) == ["edited", "kept"]
    assert found.deleted_in_files == []
    assert found.lost == ["edited"]
    assert (found.runs_to_database, found.runs_to_files, found.runs_pruned) == (1, 0, 0)
    assert installation.lost() == [("edited", "in the files")]
    assert list(installation.names()) == ["kept", "edited", "new"]
    installation.require_equal()
    assert act(installation).is_empty


def test_a_process_that_fell_back_and_goes_on_is_carried_over_at_its_restart(
    base: Path, outage: EmbeddedServer
) -> None:
    installation = Installation(base, outage.url)
    situations.yesterday(installation)
    process = installation.open()
    outage.stop("immediate")
    assert process.add_task(make_task("before"))
    outage.start()
    assert act(installation).to_database == ["before"]
    assert process.health().store == "files"
    assert process.add_task(make_task("after"))
    assert process.delete_task("before")
    process.log_task_execution("after", True, "after")
    process.close()
    installation.open().close()
    installation.require_equal()
    assert list(installation.names()) == ["kept", "edited", "deleted", "after"]
    assert installation.sql("SELECT count(*) FROM scheduler_runs") == [(2,)]
    assert installation.lost() == []


def test_a_process_on_the_database_goes_on(mine: Installation, opened: MakePersistence) -> None:
    situations.yesterday(mine)
    process: SchedulerPersistence = opened(mine.base, url=mine.url)
    old = OldCode(mine.base)
    old.save([t for t in old.load() if t["task_id"] != "deleted"])
    assert act(mine).deleted_in_database == ["deleted"]
    assert [task["task_id"] for task in process.load_tasks()] == ["kept", "edited"]
    assert process.add_task(make_task("new"))
    assert process.health().store == "database"
    process.close()
    mine.require_equal()


@pytest.mark.parametrize("content", ["torn", "missing"])
def test_a_snapshot_that_is_not_whole_cannot_become_the_whole_state(
    mine: Installation, content: str
) -> None:
    situations.yesterday(mine)
    file = mine.paths.tasks_file
    if content == "missing":
        file.unlink()
    else:
        file.write_text(file.read_text()[:-5])
    before = mine.fingerprint()
    dal = mine.dal()
    for call in (by_hand.preview, lambda d, p, k: by_hand.reconcile(d, p, 5.0, k)):
        with pytest.raises(SnapshotError, match="missing or damaged"):
            call(dal, mine.paths, Keep.FILES)
    assert mine.fingerprint() == before
    dal.close()


@pytest.mark.parametrize("keep", [None, Keep.BOTH, Keep.DATABASE])
def test_a_torn_snapshot_is_kept_aside_and_deletes_nothing(
    mine: Installation, keep: Keep | None
) -> None:
    situations.yesterday(mine)
    file = mine.paths.tasks_file
    torn = file.read_text()[:-5]
    file.write_text(torn)
    found = act(mine, keep)
    assert "torn" in found.damage[0]
    assert found.to_files == ["deleted"]
    assert list(mine.names()) == ["kept", "edited", "deleted"]
    assert [p.read_text() for p in file.parent.glob("*.damaged-*")] == [torn]
    mine.require_equal()


def test_text_after_the_list_is_something_to_do(mine: Installation) -> None:
    situations.yesterday(mine)
    with mine.paths.tasks_file.open("a") as file:
        file.write("more")
    assert not act(mine).is_empty
    assert act(mine).is_empty


def test_another_order_in_the_files_is_something_to_do(mine: Installation) -> None:
    situations.yesterday(mine)
    old = OldCode(mine.base)
    old.save(old.load()[::-1])
    found = act(mine)
    assert found.reordered
    assert found == Preview([], [], [], [], [], [], 0, 0, reordered=True)
    mine.require_equal()
    assert act(mine).is_empty


def test_runs_that_were_trimmed_in_an_outage_leave_the_table(
    base: Path, outage: EmbeddedServer
) -> None:
    installation = Installation(base, outage.url)
    situations.yesterday(installation)
    process = installation.open()
    outage.stop("immediate")
    assert process.clear_old_history(0) == 1
    process.log_task_execution("kept", True, "during")
    process.close()
    outage.start()
    found = act(installation)
    assert (found.runs_to_database, found.runs_to_files, found.runs_pruned) == (1, 0, 1)
    assert installation.sql("SELECT message FROM scheduler_runs") == [("during",)]
    installation.require_equal()


def test_runs_of_the_table_go_to_a_new_machine(mine: Installation, tmp_path: Path) -> None:
    situations.yesterday(mine)
    new = Installation(tmp_path / "new", mine.url)
    new.paths.scheduler_dir.mkdir(parents=True)
    found = act(new)
    assert found.to_files == ["kept", "edited", "deleted"]
    assert (found.runs_to_database, found.runs_to_files) == (0, 1)
    new.require_equal()


def test_files_of_the_old_code_are_imported(mine: Installation) -> None:
    tasks: list[dict[str, Any]] = [make_task("a"), make_task("b")]
    OldCode(mine.base).save(tasks)
    found = act(mine)
    assert found.to_database == ["a", "b"]
    assert json.loads(mine.paths.tasks_file.read_text()) == tasks
    mine.require_equal()
