"""Moments in which what is known of the other side is not what it seems."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from datahound_storage import view
from datahound_storage.backup import SnapshotBackup
from datahound_storage.dal import StorageDAL
from datahound_storage.files import atomic, sidecar, snapshot
from datahound_storage.files.paths import StatePaths
from datahound_storage.halves import hashes_of
from datahound_storage.testing import EmbeddedServer
from tests.fault.test_crash import count_up
from tests.fix_persistence import MakePersistence
from tests.migrations.support import query, value
from tests.migrations.test_pooler import (  # noqa: F401
    _PGBOUNCER,
    _SETTINGS,
    directory,
    free_port,
    wait_until_it_answers,
)
from tests.scheduler import make_task

EDIT = """
UPDATE scheduler_tasks SET task_text = replace(task_text, 'Task a', 'Edited')
WHERE task_key = 'a'"""
NAME = b"SELECT task_text::json ->> 'name' FROM scheduler_tasks WHERE task_key = 'a'"

CRASH = """
import os, sys
from datahound_storage import SchedulerPersistence
from datahound_storage.files import atomic
from tests.scheduler import make_task
p = SchedulerPersistence(sys.argv[1] + "/data", url=sys.argv[2])
publish = atomic.publish
def dying(path):
    if path.name == "scheduled_tasks.json":
        os._exit(9)
    publish(path)
atomic.publish = dying
p.save_tasks([make_task("a", name="new"), make_task("b")])
"""


def crashed(opened: MakePersistence, base: Path, url: str) -> None:
    p = opened(base, url=url)
    p.save_tasks([make_task("a", name="old"), make_task("b")])
    p.close()
    done = subprocess.run([sys.executable, "-c", CRASH, str(base), url], check=False)
    assert done.returncode == 9
    assert (
        value(url, "SELECT count(*) FROM scheduler_tasks WHERE task_text LIKE '%%\"new\"%%'") == 1
    )


def resaved(opened: MakePersistence, base: Path) -> None:
    """Without the database for now, the scheduler saves what it had been saving."""
    files = opened(base, url=None)
    files.save_tasks([make_task("a", name="new"), make_task("b")])
    files.close()


def test_a_sidecar_beside_what_it_calls_new_gives_the_hashes_of_that(
    opened: MakePersistence, base: Path, migrated_url: str
) -> None:
    crashed(opened, base, migrated_url)
    resaved(opened, base)
    again = opened(base, url=migrated_url)
    assert again.health().store == "database"
    paths = StatePaths.below(base / "data")
    known, found = sidecar.read(paths.sidecar_file), snapshot.read(paths.tasks_file)
    assert known is not None
    assert known.tasks == {i.task_key: hashes_of(i.task) for i in found.items}


def test_what_somebody_took_back_after_a_crash_stays(
    opened: MakePersistence, base: Path, migrated_url: str
) -> None:
    crashed(opened, base, migrated_url)
    resaved(opened, base)
    again = opened(base, url=migrated_url)
    assert again.get_task("a")["name"] == "new"
    again.close()
    # Somebody takes it back in the database, and a process without it adds a task to the files.
    query(
        migrated_url,
        """UPDATE scheduler_tasks SET task_text = replace(task_text, '"new"', '"old"'),
        config_json = replace(config_json::text, '"new"', '"old"')::jsonb WHERE task_key = 'a'""",
    )
    files = opened(base, url=None)
    files.add_task(make_task("c"))
    files.close()
    once_more = opened(base, url=migrated_url)
    assert [t["task_id"] for t in once_more.load_tasks()] == ["a", "b", "c"]
    assert once_more.get_task("a")["name"] == "old"


def test_a_temporary_file_that_is_put_in_place_by_hand_is_known(
    opened: MakePersistence, base: Path, migrated_url: str
) -> None:
    """An operator finds the temporary file beside the old one, and copies it into its place."""
    crashed(opened, base, migrated_url)
    paths = StatePaths.below(base / "data")
    tmp = paths.scheduler_dir / ".scheduled_tasks.json.tmp"
    paths.tasks_file.write_bytes(tmp.read_bytes())
    again = opened(base, url=migrated_url)
    assert again.health().store == "database"
    known, found = sidecar.read(paths.sidecar_file), snapshot.read(paths.tasks_file)
    assert known is not None
    assert known.tasks == {i.task_key: hashes_of(i.task) for i in found.items}


DEEP = '{"task_id": "zz", "x": ' + "[" * 3000 + "]" * 3000 + "}"


@pytest.mark.parametrize("how", ["interrupt", "unreadable"])
def test_a_reading_that_is_interrupted_leaves_no_doubt_about_the_snapshot(
    opened: MakePersistence,
    base: Path,
    migrated_url: str,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    paths = StatePaths.below(base / "data")
    p = opened(base, url=migrated_url)
    p.save_tasks([make_task("a"), make_task("b"), make_task("zz")])
    query(migrated_url, "UPDATE scheduler_tasks SET company = 'new' WHERE task_key = 'a'")
    if how == "unreadable":
        # what no reader can read, for a moment
        query(
            migrated_url,
            f"UPDATE scheduler_tasks SET task_text = '{DEEP}' WHERE task_key = 'zz'".encode(),
        )
        with pytest.raises(ValueError):  # noqa: PT011 - the words are those of a library
            p.load_tasks()
        query(
            migrated_url,
            "UPDATE scheduler_tasks SET task_text = '{\"task_id\": \"zz\"}' WHERE task_key = 'zz'",
        )
    else:
        query(migrated_url, "UPDATE scheduler_tasks SET company = 'new' WHERE task_key = 'zz'")
        real = view.look_at

        def look_at(key: str, text: str) -> object:
            if key == "zz":
                raise KeyboardInterrupt
            return real(key, text)

        with monkeypatch.context() as m:
            m.setattr(view, "look_at", look_at)
            with pytest.raises(KeyboardInterrupt):
                p.load_tasks()
    assert p.health().store == "database", p.health()
    seen = []
    publish = atomic.publish

    def publishing(path: Path) -> None:
        if path == paths.tasks_file:
            known = sidecar.read(paths.sidecar_file)
            assert known is not None
            older = known.settled(atomic.unpublished(path)).tasks
            seen.append((older, {i.task_key: hashes_of(i.task) for i in snapshot.read(path).items}))
        publish(path)

    monkeypatch.setattr(atomic, "publish", publishing)
    p.load_tasks()
    for older, standing in seen:
        assert older == standing
    assert seen


def test_an_edit_stays_where_a_save_begins_while_the_loss_is_noticed(
    opened: MakePersistence, base: Path, embedded_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EmbeddedServer(embedded_directory) as server:
        p = opened(base, url=server.url)
        p.save_tasks([make_task("a"), make_task("b")])
        count_up(server.url, 100)
        tasks = p.load_tasks()
        server.stop("immediate")
        server.start()
        with psycopg.connect(server.url, autocommit=True) as c:
            c.execute(EDIT)
        count_up(server.url, 150)
        for t in tasks:
            t["description"] = "mine"
        p.health()
        assert p.get_task("b") is not None  # the broken connection is noticed
        done, threads = threading.Event(), []
        change_all, check = StorageDAL.change_all, SnapshotBackup._check_not_before

        def changing(self: StorageDAL, *rest: Any, **options: Any) -> Any:
            try:
                return change_all(self, *rest, **options)
            finally:
                done.set()

        def checking(self: SnapshotBackup, changes: Any) -> None:
            if not threads:
                threads.append(threading.Thread(target=lambda: p.save_tasks(tasks)))
                threads[0].start()
                assert done.wait(10)
            return check(self, changes)

        monkeypatch.setattr(StorageDAL, "change_all", changing)
        monkeypatch.setattr(SnapshotBackup, "_check_not_before", checking)
        p.load_tasks()
        threads[0].join()
        assert p.health().store == "database", p.health()
        with psycopg.connect(server.url) as c:
            (name,) = c.execute(NAME).fetchone() or ("",)
        assert name == "Edited"
        p.close()


@pytest.mark.skipif(_PGBOUNCER is None, reason="there is no pgbouncer")
def test_an_edit_stays_after_a_crash_that_a_pooler_kept_to_itself(
    opened: MakePersistence,
    base: Path,
    embedded_directory: Path,
    directory: Path,  # noqa: F811
) -> None:
    with EmbeddedServer(embedded_directory) as server:
        direct = server.url
        parts = conninfo_to_dict(direct)
        known = {
            name: parts[name] for name in ("host", "port", "user", "password") if parts.get(name)
        }
        port = free_port()
        settings = directory / "pgbouncer.ini"
        target = " ".join(f"{name}={value}" for name, value in known.items())
        settings.write_text(_SETTINGS.format(target=target, port=port, pool_size=6))
        settings.chmod(0o644)
        log = (directory / "log").open("w")
        process = subprocess.Popen(
            [_PGBOUNCER, str(settings)],
            stdout=log,
            stderr=log,
            user="nobody",
            group="nogroup",
            extra_groups=[],
        )
        url = f"postgresql://{known.get('user', 'postgres')}@127.0.0.1:{port}/{parts['dbname']}"
        try:
            wait_until_it_answers(url, process, directory / "log")
            p = opened(base, url=url)
            assert p.health().store == "database", p.health()
            p.save_tasks([make_task("a"), make_task("b")])
            count_up(direct, 100)
            tasks = p.load_tasks()
            server.stop("immediate")
            server.start()
            with psycopg.connect(direct, autocommit=True) as c:
                c.execute(EDIT)
            count_up(direct, 150)
            for t in tasks:
                t["description"] = "mine"
            p.save_tasks(tasks)
            assert p.health().store == "database", p.health()
            with psycopg.connect(direct) as c:
                (name,) = c.execute(NAME).fetchone() or ("",)
            assert name == "Edited"
            p.close()
        finally:
            process.kill()
            process.wait()
            log.close()
