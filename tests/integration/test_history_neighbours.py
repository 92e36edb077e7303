"""Others at the table of runs, or at the history file, while a process starts or trims."""

from __future__ import annotations

import fcntl
import json
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from datahound_storage.dal import StorageDAL
from datahound_storage.files.paths import StatePaths
from datahound_storage.history_sync import sync_history
from datahound_storage.run_dal import RunDAL
from tests.fix_persistence import MakePersistence
from tests.integration.test_history_sync import line
from tests.migrations.support import query, value

NOW = datetime.now(UTC)


def add_old(url: str, n: int = 3) -> None:
    query(
        url,
        "INSERT INTO scheduler_runs (id, run_id, task_key, started_at, finished_at, metadata_json) "
        """SELECT gen_random_uuid(), 'r' || n, 'a', %s, %s, '{"task_key": "a"}' """
        "FROM generate_series(1, %s) AS n",
        [NOW - timedelta(days=50)] * 2 + [n],
    )


def hold(url: str, mode: str, seconds: float) -> threading.Thread:
    ready = threading.Event()

    def work() -> None:
        with psycopg.connect(url) as c:
            c.execute(f"LOCK TABLE scheduler_runs IN {mode} MODE")
            ready.set()
            time.sleep(seconds)  # how long somebody holds the lock

    t = threading.Thread(target=work)
    t.start()
    ready.wait(5)
    return t


@pytest.mark.parametrize("mode", ["SHARE", "SHARE ROW EXCLUSIVE", "EXCLUSIVE"])
def test_a_table_that_is_locked_for_a_moment_is_pruned(
    opened: MakePersistence, base: Path, migrated_url: str, mode: str
) -> None:
    """CREATE INDEX, CREATE TRIGGER, a LOCK by hand, REFRESH: reads go on, writes wait for 0.7 s."""
    p = opened(base, url=migrated_url)
    add_old(migrated_url)
    t = hold(migrated_url, mode, 0.7)
    try:
        removed = p.clear_old_history(30)
    finally:
        t.join()
    assert (removed, p.health().store) == (3, "database"), p.health()


def test_a_start_while_the_table_is_locked_for_a_moment(
    opened: MakePersistence, base: Path, migrated_url: str
) -> None:
    """The files trimmed while they served; the start repeats that."""
    files = opened(base)
    files.log_task_execution("a", True, "x")
    files.clear_old_history(30)
    files.close()
    add_old(migrated_url)
    t = hold(migrated_url, "SHARE", 0.7)
    try:
        p = opened(base, url=migrated_url)
    finally:
        t.join()
    assert p.health().store == "database", p.health()


COUNT = "SELECT count(*) FROM scheduler_runs"


def old_line(n: int, **more: object) -> str:
    return json.dumps(
        {
            "timestamp": (NOW - timedelta(minutes=n)).isoformat(),
            "task_id": "a",
            "task_name": "",
            "task_type": "",
            "success": True,
            "message": str(n),
            "duration_seconds": 1,
            **more,
        }
    )


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("shown_first", [0, 2])
def test_a_rewrite_in_place_by_the_old_code_doubles_no_run(
    dal: StorageDAL, paths: StatePaths, migrated_url: str, shown_first: int, named: bool
) -> None:
    lines = [old_line(n, **({"run_id": str(n)} if named else {})) + "\n" for n in range(5)]
    paths.history_file.write_text("".join(lines))
    sync_history(dal, paths, 5)
    assert value(migrated_url, COUNT) == 5
    begun = threading.Event()

    def trim_as_the_old_code_does() -> None:
        with paths.lock_file.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with paths.history_file.open("w") as file:
                file.writelines(lines[:shown_first])
                file.flush()
                begun.set()
                time.sleep(0.7)  # it has begun, and takes its time
                file.writelines(lines[shown_first:])

    t = threading.Thread(target=trim_as_the_old_code_does)
    t.start()
    begun.wait(5)
    sync_history(dal, paths, 5)
    t.join()
    after = paths.history_file.read_text().splitlines()
    sync_history(dal, paths, 5)
    assert (len(after), value(migrated_url, COUNT)) == (5, 5)


def test_somebody_who_queues_for_the_table_does_not_stop_a_start(
    opened: MakePersistence, base: Path, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ALTER TABLE, TRUNCATE or a revision: what waits for the comparison stops the insertion."""
    p = opened(base, url=migrated_url)
    p.log_task_execution("a", True, "x")
    p.close()
    with p.history_file.open("a") as f:
        f.write(line("new") + "\n")
    add, threads, took = RunDAL.add_runs, [], []

    def alter() -> None:
        began = time.monotonic()
        with psycopg.connect(migrated_url, application_name="alter") as c:
            c.execute("ALTER TABLE scheduler_runs ADD COLUMN IF NOT EXISTS extra text")
        took.append(time.monotonic() - began)

    def late(self, rows):
        rows = list(rows)  # the comparison has begun to read
        if not threads:
            threads.append(threading.Thread(target=alter))
            threads[0].start()
            time.sleep(0.5)  # nothing tells that it waits, as it may not have to
        return add(self, rows)

    monkeypatch.setattr(RunDAL, "add_runs", late)
    q = opened(base, url=migrated_url)
    threads[0].join()
    assert (q.health().store, len(took)) == ("database", 1)


def test_one_connection_is_enough_to_start(
    opened: MakePersistence, base: Path, migrated_url: str
) -> None:
    p = opened(base, url=migrated_url)
    p.log_task_execution("a", True, "x")
    p.close()
    with p.history_file.open("a") as f:
        f.write(line("new") + "\n")
    role = f"g{uuid4().hex[:8]}"
    with psycopg.connect(migrated_url, autocommit=True) as c:
        c.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x' CONNECTION LIMIT 1")
        c.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
        c.execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}")
        url = f"postgresql://{role}:x@/{c.info.dbname}?host={c.info.host}&port={c.info.port}"
    try:
        q = opened(base, url=url)
        print(q.health())
        assert q.health().store == "database"
        assert len(q.get_task_history()) == 2
        q.close()
    finally:
        with psycopg.connect(migrated_url, autocommit=True) as c:
            c.execute(f"DROP OWNED BY {role}")
            c.execute(f"DROP ROLE {role}")


def test_a_role_without_temp_stays_on_the_database(
    opened: MakePersistence, base: Path, migrated_url: str, server, paths: StatePaths
) -> None:
    """TEMP on the database taken from PUBLIC (usual hardening), nothing to carry over."""
    p = opened(base, url=migrated_url)
    p.log_task_execution("a", True, "before")
    p.close()
    role = f"g{uuid4().hex[:8]}"
    with psycopg.connect(migrated_url, autocommit=True) as c:
        name = c.info.dbname
        c.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
        c.execute(f"REVOKE TEMP ON DATABASE {name} FROM PUBLIC")
        c.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
        c.execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}")
        c.execute(f"GRANT USAGE ON SCHEMA public TO {role}")
        info = c.info
        url = f"postgresql://{role}:x@/{name}?host={info.host}&port={info.port}"
    try:
        q = opened(base, url=url)
        print(q.health())
        assert q.health().store == "database", q.health()
        q.log_task_execution("a", True, "after")
        assert [e["message"] for e in q.get_task_history()] == ["after", "before"]
        q.close()
    finally:
        with psycopg.connect(migrated_url, autocommit=True) as c:
            c.execute(f"DROP OWNED BY {role}")
            c.execute(f"DROP ROLE {role}")
