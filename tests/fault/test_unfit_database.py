"""A database that answers but cannot serve: rights that lack, a schema that does not fit, locks."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from datahound_storage.errors import LockTimeoutError
from datahound_storage.files import conflicts
from datahound_storage.files.paths import StatePaths
from datahound_storage.migrations import downgrade
from datahound_storage.migrations.state import revisions
from datahound_storage.settings import from_environment
from tests.fault.fix_faults import (
    CALLS,
    PASSWORD,
    Told,
    bounded,
    check_files,
    check_left,
    fill,
    impatient,
    secret_task,
)
from tests.fault.standby import execute
from tests.fix_persistence import MakePersistence
from tests.migrations import support

ROLE = "datahound_test_limited"
every_call = pytest.mark.parametrize("name", CALLS)


@pytest.fixture
def limited_url(migrated_url: str) -> Iterator[str]:
    """The database for a role that may work with the rows and nothing else."""
    execute(
        migrated_url,
        f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {ROLE}",
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {ROLE}",
    )
    parts = conninfo_to_dict(migrated_url)
    place = f"host={parts['host']}&port={parts['port']}"
    yield f"postgresql://{ROLE}:{PASSWORD}@/{parts['dbname']}?{place}"
    execute(migrated_url, f"DROP OWNED BY {ROLE}", f"DROP ROLE {ROLE}")


def test_a_role_with_rights_on_the_rows_is_enough(
    opened: MakePersistence, base: Path, limited_url: str, told: Told
) -> None:
    persistence = opened(base, url=limited_url)
    fill(persistence)
    for call in CALLS.values():
        call.make(persistence)
    told.on_database(persistence)


def test_a_table_with_row_level_security_takes_many_tasks_at_once(
    opened: MakePersistence, base: Path, migrated_url: str, limited_url: str, told: Told
) -> None:
    execute(
        migrated_url,
        "ALTER TABLE scheduler_tasks ENABLE ROW LEVEL SECURITY",
        f"CREATE POLICY all_of_it ON scheduler_tasks TO {ROLE} USING (true) WITH CHECK (true)",
    )
    opened(base).save_tasks([secret_task(key) for key in "ba"])
    persistence = opened(base, url=limited_url)
    assert [task["task_id"] for task in persistence.load_tasks()] == ["b", "a"]
    assert persistence.save_tasks([secret_task(key) for key in "bacd"])
    assert [task["task_id"] for task in persistence.load_tasks()] == ["b", "a", "c", "d"]
    told.on_database(persistence)


@pytest.mark.parametrize(
    ("revoked", "name"),
    [
        ("UPDATE ON scheduler_tasks", "update_task"),
        ("INSERT ON scheduler_tasks", "add_task"),
        ("DELETE ON scheduler_tasks", "delete_task"),
        ("SELECT ON scheduler_storage", "load_tasks"),
        ("INSERT ON scheduler_runs", "log_task_execution"),
        ("SELECT ON scheduler_runs", "get_task_history"),
        ("UPDATE ON scheduler_tasks", "save_tasks"),
    ],
)
def test_revoked_rights(
    opened: MakePersistence,
    base: Path,
    migrated_url: str,
    limited_url: str,
    told: Told,
    revoked: str,
    name: str,
) -> None:
    persistence = opened(base, url=limited_url)
    fill(persistence)
    execute(migrated_url, f"REVOKE {revoked} FROM {ROLE}")
    with bounded():
        assert CALLS[name].make(persistence) == CALLS[name].answer
    assert "grant this role SELECT, INSERT, UPDATE and DELETE" in told.fallen_back(persistence)
    check_left(persistence, CALLS[name])
    check_files(persistence, CALLS[name])


def test_a_start_without_the_right_to_read(
    opened: MakePersistence, base: Path, migrated_url: str, limited_url: str, told: Told
) -> None:
    execute(migrated_url, f"REVOKE SELECT ON scheduler_storage FROM {ROLE}")
    persistence = opened(base, url=limited_url)
    assert "grant this role" in told.fallen_back(persistence)
    assert persistence.add_task(secret_task("a"))


NO_UPGRADE = "run `datahound-storage upgrade` (or `alembic upgrade head`)"


def make_older(url: str) -> None:
    downgrade(url, revisions()[-2])


def make_newer(url: str) -> None:
    support.make_newer(url, breaking=True)


def make_missing(url: str) -> None:
    downgrade(url, "base")


@pytest.mark.parametrize(
    ("change", "auto_upgrade", "command"),
    [
        (make_missing, False, NO_UPGRADE),
        (make_older, False, NO_UPGRADE),
        (make_newer, False, "`pip install --upgrade datahound-storage`"),
        (make_newer, True, "`pip install --upgrade datahound-storage`"),
    ],
)
def test_a_schema_that_does_not_fit(
    opened: MakePersistence,
    base: Path,
    migrated_url: str,
    told: Told,
    change: Any,
    auto_upgrade: bool,
    command: str,
) -> None:
    change(migrated_url)
    settings = replace(from_environment(), auto_upgrade=auto_upgrade)
    with bounded():
        persistence = opened(base, url=migrated_url, settings=settings)
    assert command in told.fallen_back(persistence)
    assert persistence.add_task(secret_task("a"))
    told.fallen_back(persistence)


def test_an_upgrade_that_the_role_may_not_do(
    opened: MakePersistence, base: Path, migrated_url: str, limited_url: str, told: Told
) -> None:
    downgrade(migrated_url, revisions()[0])
    persistence = opened(base, url=limited_url)
    assert "run `datahound-storage upgrade` (or `alembic upgrade head`) once as the owner" in (
        told.fallen_back(persistence)
    )


def test_tables_that_vanish_under_a_running_process(
    opened: MakePersistence, base: Path, migrated_url: str, told: Told
) -> None:
    persistence = opened(base, url=migrated_url)
    fill(persistence)
    execute(migrated_url, "DROP TABLE scheduler_tasks CASCADE")
    assert CALLS["update_task"].make(persistence) is True
    assert NO_UPGRADE in told.fallen_back(persistence)
    check_left(persistence, CALLS["update_task"])


@every_call
def test_a_locked_table_is_not_waited_for_long(
    opened: MakePersistence, base: Path, migrated_url: str, told: Told, name: str
) -> None:
    persistence = opened(base, url=migrated_url, settings=impatient())
    fill(persistence)
    with psycopg.connect(migrated_url) as peer:
        peer.execute("LOCK TABLE scheduler_tasks, scheduler_runs IN ACCESS EXCLUSIVE MODE")
        with bounded():
            assert CALLS[name].make(persistence) == CALLS[name].answer
        told.fallen_back(persistence)
        check_left(persistence, CALLS[name])
        check_files(persistence, CALLS[name])


def test_a_start_does_not_wait_long_for_a_locked_table(
    opened: MakePersistence, base: Path, migrated_url: str, told: Told
) -> None:
    with psycopg.connect(migrated_url) as peer:
        peer.execute("LOCK TABLE scheduler_runs IN ACCESS EXCLUSIVE MODE")
        with bounded():
            persistence = opened(base, url=migrated_url, settings=impatient())
    assert "pg_stat_activity" in told.fallen_back(persistence)


@pytest.mark.parametrize("name", ["update_task", "save_tasks"])
def test_a_locked_row_is_not_waited_for_long(
    opened: MakePersistence, base: Path, migrated_url: str, told: Told, name: str
) -> None:
    persistence = opened(base, url=migrated_url, settings=impatient())
    fill(persistence)
    with psycopg.connect(migrated_url) as peer:
        peer.execute("SELECT 1 FROM scheduler_tasks WHERE task_key = 'a' FOR UPDATE")
        with bounded():
            assert CALLS[name].make(persistence) is True
    told.fallen_back(persistence)
    check_left(persistence, CALLS[name])


def test_locked_conflicts_are_not_waited_for_long(
    opened: MakePersistence, base: Path, migrated_url: str, told: Told
) -> None:
    """The version that loses cannot be kept in the table: then nothing is written there at all."""
    persistence = opened(base, url=migrated_url, settings=impatient())
    fill(persistence)
    held, other = persistence.get_task("a"), persistence.get_task("a")
    assert persistence.update_task({**other, "name": "another"})
    held["name"] = "held"
    with psycopg.connect(migrated_url) as peer:
        peer.execute("LOCK TABLE scheduler_conflicts IN ACCESS EXCLUSIVE MODE")
        with bounded():
            assert persistence.update_task(held)
        told.fallen_back(persistence)
    assert persistence.get_task("a")["name"] == "held"
    kept = conflicts.read(StatePaths.below(base / "data").conflicts_file)
    assert [json.loads(noted.conflict.lost_text)["name"] for noted in kept] == ["another"]


_HOLD = """
import fcntl, sys
with open(sys.argv[1], "a") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def stopped_holder(base: Path) -> Iterator[subprocess.Popen[str]]:
    """Starts a process that takes the file lock and is stopped."""
    lock = base / "data/scheduler/.scheduler.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", _HOLD, str(lock)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            process.send_signal(signal.SIGSTOP)
            yield process
        finally:
            process.kill()


@every_call
def test_a_stopped_process_with_the_file_lock_is_no_failure_of_the_database(
    opened: MakePersistence,
    base: Path,
    migrated_url: str,
    told: Told,
    request: pytest.FixtureRequest,
    name: str,
) -> None:
    persistence = opened(base, url=migrated_url, settings=impatient())
    fill(persistence)
    holder = request.getfixturevalue("stopped_holder")
    with bounded():
        assert CALLS[name].make(persistence) == CALLS[name].answer
    assert persistence.health().store == "database"
    if name in ("add_task", "update_task", "delete_task", "save_tasks", "load_tasks"):
        assert ".scheduler.lock" in str(persistence.health().backup_problem)
    holder.kill()
    holder.wait()
    # The next call makes up for what the files missed.
    check_left(persistence, CALLS[name])
    assert persistence.health().backup_problem is None
    assert persistence.health().store == "database"
    told.check_secrets(*told.errors())


def test_a_stopped_process_with_the_file_lock_is_an_error_where_the_files_serve(
    opened: MakePersistence, base: Path, stopped_holder: subprocess.Popen[str], told: Told
) -> None:
    persistence = opened(base, settings=impatient())
    with bounded(), pytest.raises(LockTimeoutError, match=r"\.scheduler\.lock"):
        persistence.add_task(secret_task("a"))
    with bounded():
        persistence.log_task_execution("a", True)
    assert told.errors() == []
    assert '"task_id": "a"' in persistence.history_file.read_text()
