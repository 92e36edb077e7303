"""Each case in which files and database meet again, with a real file and a real table."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from datahound_storage import SchedulerPersistence
from datahound_storage.errors import FileStoreError
from datahound_storage.files import atomic
from datahound_storage.migrations import upgrade
from tests.fault.fix_faults import impatient
from tests.fault.proxy import Proxy
from tests.fix_persistence import MakePersistence
from tests.scheduler import OldCode, make_task
from tests.servers import TestServer

Tasks = list[dict[str, Any]]
RUN = {"status": "error", "run_count": 7, "last_run": "2026-11-01T10:00:00Z"}
# The task in `make_task` was last changed in October 2026; these are sure to be newer.
LATER = "2026-11-02T00:00:00"
LATEST = "2026-11-03T00:00:00"
# In a minute: later than a change in the database that is still to come, by clocks that differ.
SOON = object()


@pytest.fixture
def sql(migrated_url: str) -> Callable[..., list[Any]]:
    def run(query: str, *values: Any) -> list[Any]:
        with psycopg.connect(migrated_url) as connection:
            cursor = connection.execute(query.encode(), values)
            return cursor.fetchall() if cursor.description else []

    return run


def edit_file(base: Path, **changes: Any) -> None:
    """What old code or an editor does to the task `a`; None deletes it."""
    tasks = OldCode(base).load()
    OldCode(base).save([{**t, **changes} if t["task_id"] == "a" else t for t in tasks])


def drop_from_file(base: Path) -> None:
    OldCode(base).save([t for t in OldCode(base).load() if t["task_id"] != "a"])


EDITED = {"name": "edited there"}
# What happened to the task in the files, in the database, and what becomes of it: None, it is gone.
ROWS: dict[str, tuple[dict[str, Any] | None, dict[str, Any] | None, dict[str, Any] | None, int]] = {
    "unchanged, edited": ({}, EDITED, EDITED, 0),
    "unchanged, deleted": ({}, None, None, 0),
    "edited, unchanged": ({"name": "edited", "updated_at": LATER}, {}, {"name": "edited"}, 0),
    "run, unchanged": ({**RUN, "updated_at": LATER}, {}, RUN, 0),
    "deleted, unchanged": (None, {}, None, 0),
    "run, edited": ({**RUN, "updated_at": LATER}, EDITED, {**RUN, **EDITED}, 0),
    "edited, run": (
        {"name": "edited", "updated_at": LATER},
        RUN,
        {**RUN, "name": "edited"},
        0,
    ),
    "run, paused": (
        {**RUN, "updated_at": LATER},
        {"status": "paused"},
        {**RUN, "status": "paused"},
        0,
    ),
    "edited with an older time, edited": (
        {"name": "older", "updated_at": LATER},
        EDITED,
        EDITED,
        1,
    ),
    "edited later, edited": (
        {"name": "edited", "updated_at": SOON},
        EDITED,
        {"name": "edited"},
        1,
    ),
    "edited with a time that cannot be, edited": (
        {"name": "from the future", "updated_at": "2999-01-01T00:00:00"},
        EDITED,
        EDITED,
        1,
    ),
    "deleted, edited": (None, EDITED, EDITED, 0),
    "deleted, run": (None, RUN, None, 0),
    "edited, deleted": ({"name": "edited", "updated_at": LATER}, None, {"name": "edited"}, 0),
    "run, deleted": ({**RUN, "updated_at": LATER}, None, None, 0),
    "deleted, deleted": (None, None, None, 0),
}


@pytest.mark.parametrize(("files", "database", "expected", "conflicts"), ROWS.values(), ids=[*ROWS])
def test_the_table(
    opened: MakePersistence,
    base: Path,
    migrated_url: str,
    sql: Callable[..., list[Any]],
    files: dict[str, Any] | None,
    database: dict[str, Any] | None,
    expected: dict[str, Any] | None,
    conflicts: int,
) -> None:
    persistence = opened(base, url=migrated_url)
    persistence.save_tasks([make_task("a"), make_task("other")])
    # So that also the snapshot before the last one showed the task.
    change_twice(persistence)
    persistence.close()
    if files is None:
        drop_from_file(base)
    else:
        soon = (datetime.now() + timedelta(minutes=1)).isoformat()
        edit_file(base, **{k: soon if v is SOON else v for k, v in files.items()})
    elsewhere = opened(base.parent / "another host", url=migrated_url)
    if database is None:
        elsewhere.delete_task("a")
    elif database:
        assert elsewhere.update_task({**elsewhere.get_task("a"), **database})
    elsewhere.close()
    persistence = opened(base, url=migrated_url)
    found = persistence.get_task("a")
    if expected is None:
        assert found is None
    else:
        wanted = {**make_task("a"), **expected, "updated_at": found["updated_at"]}
        assert found == wanted
    assert persistence.get_task("other") == make_task("other")
    assert OldCode(base).load() == persistence.load_tasks()
    assert sql("SELECT count(*) FROM scheduler_conflicts") == [(conflicts,)]


def test_files_of_the_old_code_and_a_table_with_rows_are_united(
    opened: MakePersistence, base: Path, sql: Callable[..., list[Any]], migrated_url: str
) -> None:
    elsewhere = opened(base.parent / "elsewhere", url=migrated_url)
    old = [make_task(key) for key in ("in both", "newer in files", "newer in table", "in table")]
    elsewhere.save_tasks(old)
    newer = {"name": "newer", "updated_at": LATER}
    sql(
        "UPDATE scheduler_tasks SET task_text = %s WHERE task_key = 'newer in table'",
        json.dumps({**old[2], **newer}),
    )
    elsewhere.close()
    in_files = [old[0], {**old[1], **newer}, {**old[2], "name": "older"}, make_task("in files")]
    OldCode(base).save(in_files)
    persistence = opened(base, url=migrated_url)
    found = {task["task_id"]: task for task in persistence.load_tasks()}
    assert len(found) == 5
    assert found["newer in files"] == in_files[1]
    assert found["newer in table"]["name"] == "newer"
    lost = sql("SELECT task_key, kept FROM scheduler_conflicts ORDER BY task_key")
    assert ("newer in table", "database") in lost
    assert OldCode(base).load() == persistence.load_tasks()


@pytest.mark.parametrize("upgraded_first", [False, True], ids=["a start", "upgrade, then a start"])
def test_a_new_and_empty_database_gets_what_the_files_show(
    opened: MakePersistence, base: Path, server: TestServer, migrated_url: str, upgraded_first: bool
) -> None:
    """The old server is gone; the snapshot is as it wrote it."""
    persistence = opened(base, url=migrated_url)
    persistence.save_tasks([make_task("a"), make_task("b")])
    persistence.log_task_execution("a", True, "kept")
    persistence.close()
    new = server.create_database()
    try:
        if upgraded_first:
            snapshot, history = str(persistence.tasks_file), str(persistence.history_file)
            upgrade(new, x=[f"snapshot={snapshot}", f"history={history}"])
        persistence = opened(base, url=new)
        assert persistence.health().store == "database"
        expected = [make_task("a"), make_task("b")]
        assert persistence.load_tasks() == OldCode(base).load() == expected
        assert [run["message"] for run in persistence.get_task_history()] == ["kept"]
        persistence.close()
    finally:
        server.drop_database(new)


@pytest.mark.parametrize("damage", ["missing", "torn", "empty"])
def test_a_damaged_snapshot_that_was_written_to_deletes_nothing_from_the_database(
    opened: MakePersistence, base: Path, migrated_url: str, damage: str
) -> None:
    persistence = opened(base, url=migrated_url)
    persistence.save_tasks([make_task(key) for key in "abc"])
    # So that also the snapshot before the last one showed the tasks.
    change_twice(persistence)
    persistence.close()
    path = persistence.tasks_file
    if damage == "missing":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if damage == "torn" else b"")
    rolled_back = opened(base)
    assert rolled_back.add_task(make_task("added"))
    rolled_back.close()
    persistence = opened(base, url=migrated_url)
    assert {task["task_id"] for task in persistence.load_tasks()} == {"a", "b", "c", "added"}
    assert OldCode(base).load() == persistence.load_tasks()


def change_twice(persistence: SchedulerPersistence) -> None:
    assert persistence.add_task(make_task("third"))
    assert persistence.delete_task("third")


def test_a_table_that_its_users_emptied_is_not_refilled(
    opened: MakePersistence, base: Path, sql: Callable[..., list[Any]], migrated_url: str
) -> None:
    for statement in ("DELETE FROM scheduler_tasks", "TRUNCATE scheduler_tasks"):
        persistence = opened(base, url=migrated_url)
        persistence.save_tasks([make_task("a"), make_task("b")])
        persistence.close()
        sql(statement)
        persistence = opened(base, url=migrated_url)
        assert persistence.load_tasks() == OldCode(base).load() == []
        persistence.close()


def test_what_is_added_anew_while_the_disk_is_full_stays(
    opened: MakePersistence, base: Path, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call lets the sides meet again, against what the files still say."""
    persistence = opened(base, url=migrated_url)
    persistence.save_tasks([make_task("b"), make_task("a")])
    drop_from_file(base)

    def full(path: Path, *_: Any) -> Any:
        raise FileStoreError(f"cannot write {path}: no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "prepare", full)
        assert [task["task_id"] for task in persistence.load_tasks()] == ["b"]
        assert persistence.add_task(make_task("a"))
        assert persistence.get_task("a") == make_task("a")
    assert persistence.load_tasks() == OldCode(base).load() == [make_task("b"), make_task("a")]


def test_an_editor_that_replaces_the_file_by_one_with_a_used_inode(
    opened: MakePersistence, base: Path, migrated_url: str
) -> None:
    """The file system gives away the inode of the snapshot before the last change."""
    persistence = opened(base, url=migrated_url)
    path = persistence.tasks_file
    persistence.add_task(make_task("a"))
    freed = path.stat().st_ino
    persistence.add_task(make_task("b"))
    persistence.close()
    content = json.dumps(OldCode(base).load()[:1], indent=2)
    made = [path.with_name(f"made {number}") for number in range(50)]
    for file in made:
        file.write_text(content)
    edited = [file for file in made if file.stat().st_ino == freed]
    if not edited:
        pytest.skip("this file system gives the inode to nobody")
    edited[0].replace(path)
    persistence = opened(base, url=migrated_url)
    assert [task["task_id"] for task in persistence.load_tasks()] == ["a"]


def test_a_run_of_a_deleted_task_is_not_that_of_the_one_added_anew(
    opened: MakePersistence, base: Path, sql: Callable[..., list[Any]], migrated_url: str
) -> None:
    persistence = opened(base, url=migrated_url)
    persistence.save_tasks([make_task("a"), make_task("b")])
    sql("DELETE FROM scheduler_tasks WHERE task_key = 'a'")
    edit_file(base, **RUN)
    anew = make_task("a", name="anew")
    assert persistence.add_task(anew)
    assert persistence.get_task("a") == anew
    assert OldCode(base).load() == persistence.load_tasks() == [make_task("b"), anew]


@pytest.mark.parametrize(
    ("left", "is_kept"),
    [([], True), (["new"], True), (["a"], False)],
    ids=["no task", "only a new one", "one of those that were there"],
)
def test_what_an_emptied_list_deletes_is_kept(
    opened: MakePersistence,
    base: Path,
    sql: Callable[..., list[Any]],
    migrated_url: str,
    left: list[str],
    is_kept: bool,
) -> None:
    """As old code writes it after it could not read the file."""
    persistence = opened(base, url=migrated_url)
    persistence.save_tasks([make_task("a"), make_task("b")])
    change_twice(persistence)
    persistence.close()
    OldCode(base).save([make_task(key) for key in left])
    persistence = opened(base, url=migrated_url)
    assert [task["task_id"] for task in persistence.load_tasks()] == left
    kept = sql("SELECT task_key, half, lost_text FROM scheduler_conflicts ORDER BY task_key")
    lost = [make_task("a"), make_task("b")] if is_kept else []
    assert [(key, half, json.loads(text)) for key, half, text in kept] == [
        (task["task_id"], "task", task) for task in lost
    ]


def test_yesterdays_dump_overwrites_nothing(
    opened: MakePersistence, base: Path, server: TestServer, migrated_url: str
) -> None:
    persistence = opened(base, url=migrated_url)
    persistence.save_tasks([make_task("a"), make_task("deleted since")])
    persistence.close()
    yesterday = server.create_database(migrated_url)
    try:
        persistence = opened(base, url=migrated_url)
        persistence.delete_task("deleted since")
        persistence.add_task(make_task("added since"))
        persistence.close()
        shown = OldCode(base).load()
        persistence = opened(base, url=yesterday)
        health = persistence.health()
        assert health.store == "files"
        assert "older than" in health.reason
        assert "datahound-storage reconcile" in health.reason
        assert OldCode(base).load() == persistence.load_tasks() == shown
        persistence.close()
        with psycopg.connect(yesterday) as connection:
            rows = connection.execute("SELECT task_key FROM scheduler_tasks ORDER BY 1").fetchall()
        assert rows == [("a",), ("deleted since",)]
    finally:
        server.drop_database(yesterday)


def test_a_peer_that_fell_back_while_this_process_stayed(
    opened: MakePersistence, base: Path, migrated_url: str
) -> None:
    with Proxy(migrated_url) as proxy:
        ui = opened(base, url=proxy.url, settings=impatient())
        scheduler = opened(base, url=migrated_url)
        for key in ("a", "b", "c"):
            scheduler.add_task(make_task(key))
        running, edited = scheduler.get_task("a"), ui.get_task("a")
        proxy.refuse()
        proxy.drop()
        # The web UI edits, adds and deletes in the files, while the scheduler runs on the database.
        edited.update(name="edited", status="paused")
        assert ui.update_task(edited)
        assert ui.health().store == "files"
        ui.add_task(make_task("added"))
        ui.delete_task("b")
        ui.log_task_execution("c", True, "run by the UI")
        running.update(RUN)
        assert scheduler.update_task(running)
        expected = {**make_task("a"), **RUN, "name": "edited", "status": "paused"}
        for persistence in (scheduler, ui, scheduler):
            found = {task["task_id"]: task for task in persistence.load_tasks()}
            assert set(found) == {"a", "c", "added"}
            assert {**found["a"], "updated_at": expected["updated_at"]} == expected
        assert scheduler.health().store == "database"
        proxy.listen()
        ui.close()
        ui = opened(base, url=proxy.url, settings=impatient())
        assert ui.health().store == "database"
        assert [entry["message"] for entry in ui.get_task_history()] == ["run by the UI"]
        # Closed before the proxy is: its connections lead through it.
        ui.close()


def test_two_hosts_share_the_database_and_have_their_own_files(
    opened: MakePersistence, base: Path, migrated_url: str
) -> None:
    here = opened(base, url=migrated_url)
    there = opened(base.parent / "there", url=migrated_url)
    here.add_task(make_task("a"))
    there.add_task(make_task("b"))
    here.log_task_execution("a", True, "here")
    assert there.load_tasks() == here.load_tasks() == [make_task("a"), make_task("b")]
    here.close()
    edit_file(base, name="edited in the files of one host", updated_at=LATEST)
    here = opened(base, url=migrated_url)
    assert there.get_task("a")["name"] == "edited in the files of one host"
    there.load_tasks()
    assert OldCode(base.parent / "there").load() == OldCode(base).load()


def reopened(opened: MakePersistence, base: Path, url: str) -> SchedulerPersistence:
    persistence = opened(base, url=url)
    assert persistence.health().store == "database"
    return persistence


def test_an_editor_that_changes_nothing_changes_nothing(
    opened: MakePersistence, base: Path, migrated_url: str, sql: Callable[..., list[Any]]
) -> None:
    persistence = reopened(opened, base, migrated_url)
    persistence.add_task(make_task("a"))
    stamps = sql("SELECT changed_xid::text FROM scheduler_tasks")
    persistence.tasks_file.write_bytes(persistence.tasks_file.read_bytes())
    persistence.load_tasks()
    persistence.close()
    reopened(opened, base, migrated_url)
    assert sql("SELECT changed_xid::text FROM scheduler_tasks") == stamps
