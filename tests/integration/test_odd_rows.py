"""Rows, triggers and objects that are not as usual."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from datahound_storage.errors import FileStoreError
from datahound_storage.files import atomic, sidecar, snapshot
from datahound_storage.files.paths import StatePaths
from datahound_storage.halves import hashes_of
from tests.fault.fix_faults import impatient
from tests.fix_persistence import MakePersistence, as_another
from tests.integration.test_own_writes import ON_ITS_WAY
from tests.migrations.support import query, value
from tests.scheduler import make_task

TEXTS = {
    "plain": '{"task_id": "b", "name": "x"}',
    "blanks": '  \n{"task_id": "b", "name": "x"}\n ',
    "separator": '{"task_id": "b", "l": [1,\n  {"a": 1},\n  {"b": 2}]}',
    "nan": '{"task_id": "b", "n": NaN}',
    "big": '{"task_id": "b", "n": 123456789012345678901234567890}',
    "del": '{"task_id": "b", "n": "\x7f"}',
    "cr": '{"task_id": "b",\r\n "n": 1E5}',
    "dups": '{"task_id": "c", "task_id": "b", "n": 1, "n": 2}',
    "nonascii": '{"task_id": "b", "name": "\u00e9\U0001f600"}',
    "deep": '{"task_id": "b", "n": ' + "[" * 400 + "]" * 400 + "}",
    "last": '{"task_id": "b", "n": [1,\n  {"x": 1}\n]}',
}


@pytest.mark.parametrize("name", list(TEXTS))
@pytest.mark.parametrize("then", ["load", "save", "update", "attach"])
def test_a_text_that_was_put_there_by_hand_is_read_and_shown(
    opened: MakePersistence, base: Path, migrated_url: str, name: str, then: str
) -> None:
    p = opened(base, url=migrated_url)
    p.save_tasks([make_task("a"), make_task("b"), make_task("d")])
    if then == "attach":
        p.close()
    query(
        migrated_url,
        "UPDATE scheduler_tasks SET task_text = %s WHERE task_key = 'b'",
        [TEXTS[name]],
    )
    if then == "attach":
        p = opened(base, url=migrated_url)
    expected = json.loads(TEXTS[name])
    if then == "save":
        tasks = p.load_tasks()
        tasks[0]["name"] = "changed"
        p.save_tasks(tasks)
    elif then == "update":
        task = p.load_tasks()[0]
        task["name"] = "changed"
        p.update_task(task)
    listed = p.load_tasks()
    assert repr(dict(listed[1])) == repr(expected)
    assert (p.health().store, p.health().backup_problem) == ("database", None)
    paths = StatePaths.below(base / "data")
    shown = json.loads(paths.tasks_file.read_text())
    assert repr(shown[1]) == repr(expected)
    known, found = sidecar.read(paths.sidecar_file), snapshot.read(paths.tasks_file)
    assert known is not None
    assert known.tasks == {i.task_key: hashes_of(i.task) for i in found.items}
    assert known.header.after == found.digest
    assert (
        value(migrated_url, "SELECT task_text FROM scheduler_tasks WHERE task_key = 'b'")
        == TEXTS[name]
    )


SAME_LENGTH = ON_ITS_WAY.replace('"older"', '"OLD"')


def test_a_trigger_that_keeps_the_length_is_seen(
    opened: MakePersistence, base: Path, migrated_url: str
) -> None:
    query(migrated_url, SAME_LENGTH)
    p = opened(base, url=migrated_url)
    p.save_tasks([make_task("a", name="old")])
    in_table = value(migrated_url, "SELECT task_text::json->>'name' FROM scheduler_tasks")
    assert in_table == "OLD"
    assert p.get_task("a")["name"] == "OLD"
    assert [t["name"] for t in json.loads(p.tasks_file.read_text())] == ["OLD"]
    assert [t["name"] for t in p.load_tasks()] == ["OLD"]


def test_what_a_filtered_listing_leaves_out_was_not_seen(
    opened: MakePersistence, base: Path, migrated_url: str
) -> None:
    p = opened(base, url=migrated_url)
    p.save_tasks([make_task("a"), make_task("b")])
    copy = dict(p.load_tasks()[0])
    other = opened(base, url=as_another(migrated_url, "other"))
    theirs = other.load_tasks()[0]
    theirs["status"] = "paused"
    theirs["description"] = "theirs"
    assert other.update_task(theirs)
    assert [t["task_id"] for t in p.get_active_tasks()] == ["b"]
    copy["name"] = "mine"
    assert p.update_task(copy)
    now = p.get_task("a")
    assert (now["name"], now["description"], now["status"]) == ("mine", "theirs", "paused")


def test_what_a_filtered_listing_leaves_out_was_not_seen_as_edited_by_hand(
    opened: MakePersistence, base: Path, migrated_url: str
) -> None:
    p = opened(base, url=migrated_url)
    p.save_tasks([make_task("a"), make_task("b")])
    copy = dict(p.load_tasks()[0])
    query(
        migrated_url,
        "UPDATE scheduler_tasks SET status = 'paused', company='Other' WHERE task_key = 'a'",
    )
    assert [t["task_id"] for t in p.get_active_tasks()] == ["b"]
    copy["name"] = "mine"
    assert p.update_task(copy)
    now = p.get_task("a")
    assert (now["name"], now["task_config"]["company"], now["status"]) == (
        "mine",
        "Other",
        "paused",
    )


def test_a_save_needs_no_thread(
    opened: MakePersistence, base: Path, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at the end of the interpreter (3.12), or where the user may have no more processes."""
    p = opened(base, url=migrated_url)
    p.save_tasks([make_task(f"t{n:03}") for n in range(300)])
    tasks = p.load_tasks()
    for t in tasks:
        t["name"] = "changed"

    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert p.save_tasks(tasks)
    assert {t["name"] for t in p.load_tasks()} == {"changed"}
    assert p.health().store == "database"


def test_a_row_that_came_past_the_triggers_is_found(
    opened: MakePersistence, base: Path, migrated_url: str
) -> None:
    """A restore of single rows with --disable-triggers, or a subscription's worker."""
    p = opened(base, url=migrated_url)
    p.save_tasks([make_task("a"), make_task("b"), make_task("c")])
    query(migrated_url, "CREATE TABLE kept AS SELECT * FROM scheduler_tasks WHERE task_key = 'b'")
    p.delete_task("b")
    tasks = p.load_tasks()
    past = "SET session_replication_role = replica; INSERT INTO scheduler_tasks SELECT * FROM kept"
    query(migrated_url, past)
    tasks.append(make_task("b"))
    for t in tasks:
        t["description"] = "mine"
    p.save_tasks(tasks)
    assert p.health().store == "database", p.health()
    rows = dict(
        query(migrated_url, "SELECT task_key, task_text::json->>'description' FROM scheduler_tasks")
    )
    assert rows == {"a": "mine", "b": "mine", "c": "mine"}


@pytest.mark.parametrize("how", ["update", "save"])
def test_what_is_owed_is_what_was_submitted(
    opened: MakePersistence,
    base: Path,
    migrated_url: str,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    p = opened(base, url=migrated_url, settings=impatient(1.0))
    p.save_tasks([make_task("a")])
    task = p.load_tasks()[0]
    task["task_config"]["company"] = "Submitted"

    def refused(path: Path, *rest: object, **options: object) -> object:
        raise FileStoreError("no room")

    with monkeypatch.context() as m:
        m.setattr(atomic, "prepare", refused)
        assert p.update_task(task) if how == "update" else p.save_tasks([task])
    # the caller goes on with its object, and has not submitted that yet
    task["task_config"]["company"] = "Not yet"
    db = value(migrated_url, "SELECT current_database()")
    admin = migrated_url.replace(db, "postgres")
    query(admin, f"ALTER DATABASE {db} ALLOW_CONNECTIONS false".encode())
    query(admin, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [db])
    try:
        shown = [t["task_config"]["company"] for t in p.load_tasks()]
        assert p.health().store == "files"
        assert shown == ["Submitted"]
    finally:
        query(admin, f"ALTER DATABASE {db} ALLOW_CONNECTIONS true".encode())
