"""A long history takes little memory: the peak of a process that trims, or compares, one."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg

from datahound_storage.files.paths import StatePaths
from tests.migrations.support import ROOT, value

NOW = datetime.now(UTC)
# In MB; what holds the lines, or their ids, grows by several times that.
BOUND = 20
SCRIPT = """
import sys
from datetime import UTC, datetime, timedelta
from datahound_storage.dal import StorageDAL
from datahound_storage.files.file_store import FileStore
from datahound_storage.files.paths import StatePaths
from datahound_storage.history_sync import sync_history
from datahound_storage.postgres.pool import Database

def peak():
    # Not that of getrusage, which has the parent's in it.
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024

paths = StatePaths.below(sys.argv[1])
if len(sys.argv) > 2:
    dal = StorageDAL(Database(sys.argv[2]))
    dal.now()
before = peak()
"""


def line(number: int, count: int) -> str:
    """Of a run within the last 60 days, as `log_task_execution` writes it."""
    entry = {
        "timestamp": (NOW - timedelta(days=60) * (1 - number / count)).isoformat(),
        "task_id": f"task-{number % 500}",
        "task_name": "Task",
        "task_type": "download",
        "success": True,
        "message": f"processed {number} rows",
        "duration_seconds": 5.25,
        "run_id": f"00000000-0000-4000-8000-{number:012d}",
    }
    return json.dumps(entry)


def paths_with(base: Path, count: int) -> StatePaths:
    paths = StatePaths.below(base / "data")
    paths.make_directories()
    paths.history_file.write_text("".join(f"{line(n, count)}\n" for n in range(count)))
    return paths


def growth(paths: StatePaths, act: str, *arguments: str) -> float:
    """By how many MB a process grows, at its peak, while it does something."""
    script = f"{SCRIPT}{act}\nprint(peak() - before)"
    command = [sys.executable, "-c", script, str(paths.data_dir), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout)


def test_trimming_a_long_history(base: Path) -> None:
    paths = paths_with(base, 200_000)
    act = "FileStore(paths, 5).trim_before(datetime.now(UTC) - timedelta(days=30))"
    assert growth(paths, act) < BOUND
    # Some minutes may have passed since this module was read.
    assert 99_000 < len(paths.history_file.read_bytes().splitlines()) <= 100_000


def test_comparing_a_long_history_with_a_table_that_has_it(base: Path, migrated_url: str) -> None:
    paths = paths_with(base, 100_000)
    with psycopg.connect(migrated_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO scheduler_runs (id, run_id, task_key, started_at, finished_at) "
            "SELECT gen_random_uuid(), '00000000-0000-4000-8000-' || lpad(n::text, 12, '0'), 'a', "
            "now(), now() FROM generate_series(0, 99999) AS n"
        )
    assert growth(paths, "sync_history(dal, paths, 5)", migrated_url) < BOUND / 2
    assert value(migrated_url, "SELECT count(*) FROM scheduler_runs") == 100_000


def test_carrying_a_long_history_over(base: Path, migrated_url: str) -> None:
    """To the table, and back to a file that was lost; a batch of rows is in memory."""
    paths = paths_with(base, 60_000)
    assert growth(paths, "sync_history(dal, paths, 5)", migrated_url) < 2 * BOUND
    assert value(migrated_url, "SELECT count(*) FROM scheduler_runs") == 60_000
    before = paths.history_file.read_bytes()
    paths.history_file.unlink()
    assert growth(paths, "sync_history(dal, paths, 5)", migrated_url) < BOUND
    assert paths.history_file.read_bytes() == before
