"""The demonstration works, cleans up, and can fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from datahound_storage.migrations.state import revisions

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "examples" / "demo.py"
SECONDS = 60

pytestmark = pytest.mark.slow


def start(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the demonstration, with its temporary directory inside of `directory`."""
    return subprocess.Popen(
        [sys.executable, *(arguments or [str(DEMO)])],
        env={**os.environ, "TMPDIR": str(directory), "DATABASE_URL": "mysql://not-this-one/"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def left_behind(directory: Path) -> list[str]:
    """Files and processes that are still there."""
    commands = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
    processes = [command for command in commands if str(directory) in command]
    return [*map(str, directory.iterdir()), *processes]


def test_the_demonstration_shows_everything_and_leaves_nothing(embedded_directory: Path) -> None:
    demo = start(embedded_directory)
    output, _ = demo.communicate(timeout=SECONDS)
    assert demo.returncode == 0, output
    for shown in (
        f"revision {revisions()[-1]} applied",
        "imported 1,500 runs",
        "Pruned:",
        "the database does not serve",
        "Until it is restarted it works on the files",
        "the deletion and the run are in the database now",
        "equal\n",
        "Everything is as it should be",
    ):
        assert shown in output
    assert left_behind(embedded_directory) == []


def test_it_cleans_up_when_it_is_stopped(embedded_directory: Path) -> None:
    demo = start(embedded_directory)
    deadline = time.monotonic() + SECONDS
    while not list(embedded_directory.glob("*/postgres/data/postmaster.pid")):
        assert time.monotonic() < deadline
        assert demo.poll() is None
        time.sleep(0.02)  # no way to wait for a file
    demo.send_signal(signal.SIGTERM)
    demo.communicate(timeout=SECONDS)
    assert demo.returncode == 128 + signal.SIGTERM
    assert left_behind(embedded_directory) == []


# What the demonstration must notice: an update that goes nowhere, a snapshot nobody refreshes.
_SABOTAGE = """
import runpy, sys
import datahound_storage
from datahound_storage import SchedulerPersistence as persistence
from datahound_storage.backup import SnapshotBackup
{sabotage}
sys.argv = [{demo!r}]
runpy.run_path({demo!r}, run_name="__main__")
"""


@pytest.mark.parametrize(
    "sabotage",
    [
        "persistence.update_task = lambda self, task: True",
        "persistence.delete_task = lambda self, task_id: True",
        "persistence.clear_old_history = lambda self, days: 0",
        "SnapshotBackup._write = lambda self, replaced=None: None",
    ],
)
def test_it_fails_where_something_is_wrong(embedded_directory: Path, sabotage: str) -> None:
    demo = start(embedded_directory, "-c", _SABOTAGE.format(sabotage=sabotage, demo=str(DEMO)))
    output, _ = demo.communicate(timeout=SECONDS)
    assert demo.returncode == 1, output
    assert "The demonstration failed: not so:" in output
    assert left_behind(embedded_directory) == []
