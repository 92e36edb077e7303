"""What large operations add to the memory of a process, each in a process of its own.

The peak since just before the operation: the kernel's high-water mark is set back first, as that of
a child begins where its parent was.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg

from benchmarks.speed.results import MemoryResult
from benchmarks.speed.world import World, sample_tasks, texts_of, write_snapshot
from datahound_storage.dal import StorageDAL
from datahound_storage.database_store import DatabaseStore
from datahound_storage.files.file_store import FileStore
from datahound_storage.files.paths import StatePaths
from datahound_storage.migrations import upgrade
from datahound_storage.persistence import SchedulerPersistence
from datahound_storage.postgres.pool import Database
from tests.migrations.support import ROOT

# A third of the runs is older than what is kept.
_DAYS, _KEEP = 90, 60
_PATIENCE = 5.0


def _megabytes(name: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def grown_by(act: Callable[[], object]) -> None:
    """Print what an operation adds at its peak; what it returns is alive at the end."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before, began = _megabytes("VmRSS"), time.perf_counter()
    made = act()
    spent, peak = time.perf_counter() - began, _megabytes("VmHWM")
    print(json.dumps([before, peak - before, spent]), flush=True)
    del made


def _upgrade(url: str, directory: Path) -> None:
    upgrade(url, "0002", import_files=False)
    given = [f"snapshot={directory / 'data/scheduler/scheduled_tasks.json'}"]
    grown_by(lambda: upgrade(url, x=given))


def _start(url: str, directory: Path) -> None:
    grown_by(lambda: SchedulerPersistence(directory / "data", url=url))


def _load(url: str, directory: Path) -> None:
    persistence = SchedulerPersistence(directory / "data", url=url)
    grown_by(persistence.load_tasks)


def _prune(url: str, directory: Path) -> None:
    # As `clear_old_history` does it; a start would first compare all runs with the file.
    paths, dal = StatePaths.below(directory / "data"), StorageDAL(Database(url))
    store = DatabaseStore(dal, paths, FileStore(paths, _PATIENCE), _PATIENCE)
    dal.now()

    def trim() -> None:
        if (removed := store.trim_history(_KEEP)) < 100:
            raise RuntimeError(f"{removed} runs were removed")

    grown_by(trim)


_ACTS = {"upgrade": _upgrade, "start": _start, "load": _load, "prune": _prune}


def _measure(act: str, title: str, size: int, of: str, url: str, directory: Path) -> MemoryResult:
    command = [sys.executable, "-m", __name__, act, url, str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise RuntimeError(f"{title}: {done.stderr}")
    before, growth, seconds = json.loads(done.stdout)
    return MemoryResult(title, size, of, before, growth, seconds)


def lines(world: World, tasks: int, runs: int) -> Iterator[MemoryResult]:
    """The table. Its files are made in the directories of the world."""
    data_dir = world.data_dir()
    snapshot = data_dir / "scheduler" / "scheduled_tasks.json"
    write_snapshot(snapshot, texts_of(sample_tasks(tasks)))
    directory, migrated = data_dir.parent, world.database()
    for act, title, url in (
        ("upgrade", "upgrade that imports the snapshot", world.empty_database()),
        ("start", "first start, which imports the snapshot", migrated),
        ("load", "load_tasks, once after that", migrated),
    ):
        yield _measure(act, title, tasks, "tasks", url, directory)
    directory, url = world.data_dir().parent, world.database()
    fill_runs(url, runs)
    write_history(directory / "logging/scheduler/task_history.jsonl", runs)
    yield _measure("prune", "prune a third, table and file", runs, "runs", url, directory)


_FILL = f"""
INSERT INTO scheduler_runs (id, run_id, task_key, started_at, finished_at, success, message,
                            duration_ms, metadata_json)
SELECT gen_random_uuid(), 'run-' || n, 'task-' || n %% 500, ended - '5 s'::interval, ended, true,
       'processed ' || n || ' rows', 5000, '{{"task_type": "download"}}'
FROM (SELECT n, now() - (%(runs)s - n) * ('{_DAYS} days'::interval / %(runs)s) AS ended
      FROM generate_series(0, %(runs)s - 1) AS n) AS numbered"""


def fill_runs(url: str, runs: int) -> None:
    """So many runs, over the days."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_FILL.encode(), {"runs": runs})
        connection.execute("VACUUM ANALYZE scheduler_runs")


def write_history(path: Path, runs: int) -> None:
    """The lines of the same runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    now, step = datetime.now(UTC), timedelta(days=_DAYS) / runs
    with path.open("w", encoding="ascii") as file:
        for n in range(runs):
            ended = now - step * (runs - n)
            file.write(
                f'{{"timestamp": "{ended.isoformat()}", "task_id": "task-{n % 500}", '
                f'"task_name": "Task {n % 500}", "task_type": "download", "success": true, '
                f'"message": "processed {n} rows", "duration_seconds": 5.0, "run_id": "run-{n}"}}\n'
            )


if __name__ == "__main__":
    _ACTS[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
