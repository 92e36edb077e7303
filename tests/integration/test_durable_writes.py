"""What a change of a task makes the disk do, and in which order; a look asks nothing of it.

The process runs under strace, which tells its calls.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SNAPSHOT, SIDECAR, DIRECTORY = "scheduled_tasks.json", ".scheduled_tasks.state.json", "scheduler"
START = """
import os, sys
from datahound_storage import SchedulerPersistence
from tests.scheduler import make_task
persistence = SchedulerPersistence(sys.argv[1], url=sys.argv[2] or None)
persistence.save_tasks([make_task(f"task {number}") for number in range(1000)])
persistence.load_tasks()
tasks = [make_task(f"task {number}", run_count=1) for number in range(1000)]
mark = lambda: os.write(2, b"MARK")
mark()
"""
END = """
mark()
assert persistence.health().store == sys.argv[3], persistence.health()
assert persistence.health().backup_problem is None
"""
_CALL = re.compile(r"(\w+)\((.*)")
_PATH = re.compile(r"<(/[^>]*)>|\"(/[^\"]*)\"")
Trace = Callable[..., list[tuple[str, ...]]]


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    """Runs an operation in a process of its own; its calls on the scheduler's files, in order.

    Writes to the same file count as one. Skips where nothing can be traced.
    """

    def run(operation: str, url: str | None) -> list[tuple[str, ...]]:
        base, log = tmp_path / "base", tmp_path / "strace.log"
        calls = "trace=fsync,fdatasync,sync_file_range,rename,renameat,renameat2,write,pwrite64"
        command = ["strace", "-f", "-qq", "-y", "-s", "8", "-e", "signal=none", "-o", str(log)]
        command += ["-e", f"{calls},writev,msync,sync,syncfs"]
        if shutil.which("strace") is None:
            pytest.skip("needs strace")
        tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
        if tried.returncode != 0:
            pytest.skip(f"strace may not trace: {tried.stderr.strip()}")
        command += [sys.executable, "-c", START + operation + END, str(base / "data"), url or ""]
        command.append("database" if url else "files")
        done = subprocess.run(
            command, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return told(log.read_text(), base)

    return run


def told(log: str, base: Path) -> list[tuple[str, ...]]:
    """The calls between the marks that have to do with files below `base`."""
    _, between, _ = log.split('"MARK"')
    found: list[tuple[str, ...]] = []
    for name, arguments in _CALL.findall(between):
        paths = [Path(a or b) for a, b in _PATH.findall(arguments)]
        if paths and all(path.is_relative_to(base) for path in paths):
            found.append((name, *(path.name for path in paths)))
        # A sync of everything names no file.
        assert name not in {"sync", "syncfs", "msync"}
    return [call for call, _ in groupby(found)]


def temporary(name: str) -> str:
    return f".{name.lstrip('.')}.tmp"


# The new snapshot is on disk before the sidecar tells of it, and that before it is the snapshot.
SNAPSHOT_REPLACED = [
    ("write", temporary(SNAPSHOT)),
    ("fsync", temporary(SNAPSHOT)),
    ("write", temporary(SIDECAR)),
    ("fsync", temporary(SIDECAR)),
    ("rename", temporary(SIDECAR), SIDECAR),
    ("fsync", DIRECTORY),
    ("rename", temporary(SNAPSHOT), SNAPSHOT),
    ("fsync", DIRECTORY),
]
CHANGES = {
    "add_task": "assert persistence.add_task(make_task('new'))",
    "update_task": "assert persistence.update_task(make_task('task 7', run_count=1))",
    "delete_task": "assert persistence.delete_task('task 7')",
    "save_tasks": "assert persistence.save_tasks(tasks)",
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_four_syncs_and_two_renames(trace: Trace, migrated_url: str, name: str) -> None:
    assert trace(CHANGES[name], migrated_url) == SNAPSHOT_REPLACED


LOOKS = {
    "load_tasks": "assert len(persistence.load_tasks()) == 1000",
    "get_active_tasks": "assert len(persistence.get_active_tasks()) == 1000",
    "get_task": "assert persistence.get_task('task 7')",
    "get_task_history": "persistence.get_task_history()",
    "a change that is none": "assert persistence.add_task(make_task('task 7')) is False",
}


@pytest.mark.parametrize("name", LOOKS)
def test_a_look_writes_nothing(trace: Trace, migrated_url: str, name: str) -> None:
    assert trace(LOOKS[name] + "\n" + LOOKS[name], migrated_url) == []


def test_a_listing_shows_what_somebody_else_changed_by_replacing_the_snapshot_once(
    trace: Trace, migrated_url: str
) -> None:
    by_hand = """
import psycopg
with psycopg.connect(sys.argv[2]) as connection:
    connection.execute("UPDATE scheduler_tasks SET company = 'Bolt' WHERE task_key = 'task 7'")
for _ in range(2):
    persistence.load_tasks()
"""
    assert trace(by_hand, migrated_url) == SNAPSHOT_REPLACED


LOG = "persistence.log_task_execution('task 7', True, 'done')"


def test_a_run_is_one_write_and_no_sync_while_the_database_serves(
    trace: Trace, migrated_url: str
) -> None:
    assert trace(LOG, migrated_url) == [("write", "task_history.jsonl")]


def test_a_run_is_synced_where_only_the_file_has_it(trace: Trace) -> None:
    calls = trace(LOG, None)
    assert calls[0] == ("write", "task_history.jsonl")
    assert ("fsync", "task_history.jsonl") in calls
