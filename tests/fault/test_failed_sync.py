"""A disk that refuses a sync, a process that dies before it: nothing counts as kept that is not.

The process that writes runs under strace, which makes single calls fail or kills it there.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fault.disks import PowerDisk, power_disk
from tests.fault.writers import ROOT
from tests.fix_persistence import MakePersistence

START = """
import logging, sys
from pathlib import Path
from datahound_storage import SchedulerPersistence
from tests.scheduler import make_task
class Handler(logging.Handler):
    def emit(self, record):
        print("reported")
logging.getLogger("datahound_storage").addHandler(Handler(logging.ERROR))
persistence = SchedulerPersistence(sys.argv[1], url=sys.argv[2] or None)
"""


@pytest.fixture
def disk() -> Iterator[PowerDisk]:
    with power_disk() as disk:
        yield disk


@pytest.fixture
def base(disk: PowerDisk) -> Path:
    return disk.path / "base"


def run(script: str, base: Path, url: str | None, inject: str, *paths: Path) -> list[str]:
    """Run a script after START under strace; the words that it printed.

    `inject` is what happens to a sync of one of `paths`. Skips where nothing can be traced.
    """
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync"]
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    command += ["-e", f"inject=fsync:{inject}", *(f"--trace-path={path}" for path in paths)]
    tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"strace may not trace: {tried.stderr.strip()}")
    command += [sys.executable, "-c", START + script, str(base / "data"), url or ""]
    result = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False, timeout=60
    )
    return result.stdout.split()


def keys_in(base: Path) -> list[str]:
    tasks = json.loads((base / "data/scheduler/scheduled_tasks.json").read_bytes())
    return [task["task_id"] for task in tasks]


def history_file(base: Path) -> Path:
    return base / "logging/scheduler/task_history.jsonl"


def entries_in(base: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in history_file(base).read_text().splitlines()]


LOG_TWICE = """
for message in ("1", "2"):
    persistence.log_task_execution("a", True, message=message)
    print("logged")
"""


@pytest.mark.parametrize("which", ["1", "2", "1..2"])
def test_a_run_whose_sync_fails_is_put_on_disk_in_a_new_file(
    disk: PowerDisk, base: Path, which: str
) -> None:
    told = run(LOG_TWICE, base, None, f"error=EIO:when={which}", history_file(base))
    assert told == ["logged", "logged"]
    disk.cut()
    assert [entry["message"] for entry in entries_in(base)] == ["1", "2"]


def test_a_run_that_cannot_be_synced_at_all_is_reported_and_hides_no_other(
    disk: PowerDisk, base: Path
) -> None:
    temporary = history_file(base).with_name(".task_history.jsonl.tmp")
    paths = [history_file(base), temporary]
    told = run(LOG_TWICE, base, None, "error=EIO:when=1..2", *paths)
    assert told[0] == "reported"
    assert told[-2:] == ["logged", "logged"]
    assert told.count("reported") == 1
    disk.cut()
    assert "2" in [entry["message"] for entry in entries_in(base)]
    assert list(history_file(base).parent.iterdir()) == [history_file(base)]


RETRY = """
from datahound_storage.errors import FileStoreError
from datahound_storage.files.file_store import FileStore
from datahound_storage.files.paths import StatePaths
from datahound_storage.runs import new_entry
store = FileStore(StatePaths.below(sys.argv[1]), 5)
entry = new_entry("a", True, "", 0, "", "")
try:
    store.log_run(entry)
except FileStoreError as error:
    print("refused")
store.log_run(entry)
print(len(store.history(None, 10)))
"""


def test_a_run_that_is_sent_again_after_a_failed_sync_is_one_run(tmp_path: Path) -> None:
    base = tmp_path / "base"
    temporary = history_file(base).with_name(".task_history.jsonl.tmp")
    told = run(RETRY, base, None, "error=EIO:when=1..2", history_file(base), temporary)
    assert told == ["refused", "1"]


ADD_TWO = """
from datahound_storage.errors import FileStoreError
for key in ("a", "b"):
    try:
        persistence.add_task(make_task(key))
        print("problem" if persistence.health().backup_problem else "added")
    except FileStoreError:
        print("refused")
"""


def test_a_snapshot_that_cannot_be_synced_is_not_acknowledged_and_the_next_one_is(
    disk: PowerDisk, base: Path
) -> None:
    temporary = base / "data/scheduler/.scheduled_tasks.json.tmp"
    assert run(ADD_TWO, base, None, "error=EIO:when=1", temporary) == ["refused", "added"]
    disk.cut()
    assert keys_in(base) == ["b"]
    assert not temporary.exists()


WRITTEN_AGAIN = """
before = persistence.tasks_file.stat().st_mtime_ns
persistence.load_tasks()
print(persistence.health().backup_problem)
print("again" if persistence.tasks_file.stat().st_mtime_ns != before else "not again")
"""


# A start with a database makes two syncs of the directory, for sidecar and snapshot; so does a
# change. One of those of the first change is refused.
@pytest.mark.parametrize("which", ["3", "4"])
def test_a_snapshot_whose_name_could_not_be_synced_is_written_again(
    disk: PowerDisk, base: Path, migrated_url: str, which: str
) -> None:
    script = ADD_TWO.replace(', "b"', ",") + WRITTEN_AGAIN
    told = run(script, base, migrated_url, f"error=EIO:when={which}", base / "data/scheduler")
    assert told == ["reported", "problem", "None", "again"]
    disk.cut()
    assert keys_in(base) == ["a"]


def test_a_snapshot_of_a_peer_that_died_before_its_sync_is_put_on_disk(
    disk: PowerDisk, base: Path, migrated_url: str, opened: MakePersistence
) -> None:
    persistence = opened(base, url=migrated_url)
    told = run(ADD_TWO, base, migrated_url, "error=EIO:signal=KILL:when=4", base / "data/scheduler")
    assert told == []
    assert keys_in(base) == ["a"]
    assert [task["task_id"] for task in persistence.load_tasks()] == ["a"]
    assert persistence.health().backup_problem is None
    disk.cut()
    assert keys_in(base) == ["a"]


def test_the_name_of_the_history_is_synced_though_an_earlier_call_made_it(tmp_path: Path) -> None:
    """An ext4 syncs the name with the file; others need not."""
    base = tmp_path / "base"
    script = """
from datahound_storage.files import history
path = Path(sys.argv[1]).parent / "logging/scheduler/task_history.jsonl"
history.append(path, ["{}"], durable=False)
history.append(path, ["{}"], durable=True)
print("lived")
"""
    directory = history_file(base).parent
    assert run(script, base, None, "signal=KILL", directory) == []
    assert run(script.replace("=True", "=False"), base, None, "signal=KILL", directory) == ["lived"]
    sync = script.replace(", durable=True)", ", durable=False)\nhistory.sync(path)")
    assert run(sync, base, None, "signal=KILL", directory) == []
