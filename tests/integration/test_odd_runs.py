"""Runs, lines and tables of runs that are not as usual."""

from __future__ import annotations

import json
import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import psycopg
import pytest

from datahound_storage.dal import StorageDAL
from datahound_storage.files import atomic, history
from datahound_storage.files.file_store import FileStore
from datahound_storage.files.paths import StatePaths
from datahound_storage.files.shown_runs import open_runs
from datahound_storage.history_sync import sync_history
from datahound_storage.postgres import run_compare
from datahound_storage.postgres.pool import Database
from datahound_storage.records import SchedulerRunRecord
from tests.fix_persistence import MakePersistence
from tests.integration.test_history_sync import line, write
from tests.migrations.support import query, value

NOW = datetime.now(UTC)


CUTOFF = NOW - timedelta(days=30)


def test_a_line_that_is_appended_without_the_lock_while_a_trim_writes_survives(
    paths: StatePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trim that takes longer than the patience: the acknowledged run must not be lost."""
    write(paths.history_file, line("old", 50), line("kept"))
    store = FileStore(paths, 0.05)
    publish = atomic.publish

    def late(path: Path) -> None:
        if path == paths.history_file:
            t = threading.Thread(target=lambda: store.log_run(json.loads(line("acknowledged"))))
            t.start()
            t.join()
        publish(path)

    monkeypatch.setattr(atomic, "publish", late)
    FileStore(paths, 5).trim_before(CUTOFF)
    assert [json.loads(t)["run_id"] for t in history.texts(paths.history_file)] == [
        "kept",
        "acknowledged",
    ]


def test_a_torn_line_of_the_same_size_and_time(tmp_path: Path) -> None:
    """Another process writes the file anew, as long and as old as it was (rsync -t, tar)."""
    path = tmp_path / "h.jsonl"
    history.append(path, [line("1")], durable=False)
    s = path.stat()
    with path.open("r+b") as f:
        f.seek(s.st_size - 1)
        f.write(b"x")
    os.utime(path, ns=(s.st_atime_ns, s.st_mtime_ns))
    history.append(path, [line("2")], durable=False)
    assert b"x\n{" in path.read_bytes()


@pytest.mark.parametrize(
    "how",
    [
        "empty key",
        "no key",
        "line- id",
        "newline text",
        "garbage text",
        "other id text",
        "array text",
    ],
)
def test_a_row_that_gives_no_usable_line_is_appended_once(
    dal: StorageDAL, paths: StatePaths, migrated_url: str, how: str
) -> None:
    write(paths.history_file, line("x"))
    record = SchedulerRunRecord(
        id=uuid4(),
        task_id=uuid4(),
        run_id="line-1" if how == "line- id" else "r1",
        started_at=NOW,
        finished_at=NOW,
        success=True,
        message="m",
        duration_ms=1,
        metadata_json={"task_key": "" if how == "empty key" else "a"},
    )
    dal.record_task_run(record)
    if how == "no key":
        query(migrated_url, "UPDATE scheduler_runs SET task_key = NULL, metadata_json = NULL")
    text = {
        "newline text": '{"a":\n 1}',
        "garbage text": "garbage",
        "other id text": line("zz"),
        "array text": "[1]",
    }.get(how)
    if text:
        query(migrated_url, "UPDATE scheduler_runs SET line_text = %s", [text])
    sizes, counts = [], []
    for _ in range(4):
        sync_history(dal, paths, 5)
        sizes.append(len(paths.history_file.read_bytes().splitlines()))
        counts.append(value(migrated_url, "SELECT count(*) FROM scheduler_runs"))
    print(sizes, counts)
    assert sizes[-1] == sizes[1], (sizes, counts)


@pytest.mark.parametrize("text", ["garbage", "[1]", "{}", '"x"', '{"task_id": "a"}', "{\n}"])
def test_a_line_text_by_hand_does_not_break_the_history(
    opened: MakePersistence, base: Path, migrated_url: str, text: str
) -> None:
    p = opened(base, url=migrated_url)
    p.log_task_execution("a", True, "1")
    p.log_task_execution("a", True, "2")
    query(migrated_url, "UPDATE scheduler_runs SET line_text = %s WHERE message = '1'", [text])
    assert len(p.get_task_history("a")) == 2
    p.close()
    q = opened(base, url=migrated_url)
    assert q.health().store == "database"


def test_rows_of_a_child_table_do_not_make_others_go(dal: StorageDAL, migrated_url: str) -> None:
    """ctid is one of a table: an archive that INHERITS shares places with it."""
    ins = """
        INSERT INTO {t} (id, run_id, task_key, started_at, finished_at)
        SELECT gen_random_uuid(), '{k}' || n, '{k}', %s::timestamptz + n * interval '1 s',
               %s::timestamptz + n * interval '1 s'
        FROM generate_series(1, 3) AS n"""
    query(migrated_url, "CREATE TABLE runs_archive () INHERITS (scheduler_runs)")
    query(migrated_url, ins.format(t="scheduler_runs", k="a"), [NOW - timedelta(days=50)] * 2)
    query(migrated_url, ins.format(t="runs_archive", k="b"), [NOW - timedelta(days=60)] * 2)
    query(migrated_url, ins.format(t="scheduler_runs", k="b"), [NOW - timedelta(days=1)] * 2)
    dal.purge_task_runs(older_than=CUTOFF, keep_last=3)
    left = sorted(
        n for (n,) in query(migrated_url, "SELECT run_id FROM scheduler_runs WHERE task_key = 'a'")
    )
    assert left == ["a1", "a2", "a3"]


@pytest.mark.parametrize("encoding", ["UTF8", "LATIN1"])
@pytest.mark.parametrize("level", ["serializable", "repeatable read"])
def test_defaults_of_the_role(
    paths: StatePaths, migrated_url: str, level: str, encoding: str, request: pytest.FixtureRequest
) -> None:
    settings = {
        "default_transaction_isolation": level.replace(" ", "\\ "),
        "statement_timeout": "20000",
        "lock_timeout": "500",
        "idle_in_transaction_session_timeout": "300",
        "client_encoding": encoding,
    }
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    url = f"{migrated_url}{'&' if '?' in migrated_url else '?'}options={quote(options)}"
    dal = StorageDAL(Database(url))
    request.addfinalizer(dal.close)
    write(
        paths.history_file,
        *[line(f"é{n}→") for n in range(50)],
        json.dumps({k: v for k, v in json.loads(line("u")).items() if k != "run_id"}),
    )
    sync_history(dal, paths, 5)
    assert value(migrated_url, "SELECT count(*) FROM scheduler_runs") == 51
    assert dal.purge_task_runs(older_than=NOW, keep_last=2) == 49
    sync_history(dal, paths, 5)
    assert value(migrated_url, "SELECT count(*) FROM scheduler_runs") == 2
    dal.close()


ODD_IDS = ["plain", "tab\tid", "back\\slash", "new\nline", "ret\rurn", "\\N", "é\U0001f600", "\\t"]


def test_what_is_compared_here_is_what_the_server_compares(
    paths: StatePaths, dal: StorageDAL, migrated_url: str
) -> None:
    """Where a role may make no temporary table."""
    unnamed = [json.loads(line(f"u{n // 2}")) for n in range(6)]
    for entry in unnamed:
        del entry["run_id"]
    named = [line(run_id) for run_id in ODD_IDS]
    legacy = [json.dumps(entry) for entry in unnamed[:3]]
    write(paths.legacy_history_file, *legacy, *named[:2], "garbage")
    write(paths.history_file, *named, *map(json.dumps, unnamed), line("last"))
    sync_history(dal, paths, 5)
    query(migrated_url, "DELETE FROM scheduler_runs WHERE md5(run_id) < '8'")
    write(paths.history_file, *named[::2], *map(json.dumps, unnamed[1:]))
    with open_runs(paths.history_files) as shown, psycopg.connect(migrated_url) as connection:
        run_compare.load_shown(connection, shown.rows("utf-8"))
        run_compare.name_unnamed(connection)
        there = (
            list(run_compare.only_shown(connection)),
            list(run_compare.only_stored(connection)),
        )
        found = run_compare.compare_here(connection, shown.rows("utf-8"))
        assert (sorted(found.only_shown), list(found.only_stored)) == (sorted(there[0]), there[1])
    assert there[0]
    assert there[1]
