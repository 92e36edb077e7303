"""The import of large files by an upgrade: rates and memory, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.tables import DAYS, TASKS
from tests.migrations.support import ROOT

HEADER = ("import", "size", "rows/s in all", "memory of the process")
_RUN = """
import resource, sys, time
from datahound_storage.migrations import upgrade
upgrade(sys.argv[1], "0002", import_files=False)
before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
upgrade(sys.argv[1], x=sys.argv[2:])
spent = time.monotonic() - began
print(spent, before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def write_tasks(path: Path, count: int) -> str:
    sample = json.loads(
        (ROOT / "examples/data/scheduler/scheduled_tasks.json").read_text(encoding="utf-8")
    )
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            task = {**sample[number % len(sample)], "task_id": f"task-{number}"}
            text = json.dumps(task, indent=2).replace("\n", "\n  ")
            file.write(f"{',' if number else '['}\n  {text}")
        file.write("\n]")
    return f"snapshot={path}"


def write_history(path: Path, count: int) -> str:
    began = datetime.now(UTC) - timedelta(days=DAYS)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            line = {
                "timestamp": (began + timedelta(days=DAYS) * number / count).isoformat(),
                "task_id": f"task-{number % TASKS}",
                "task_name": f"Task {number % TASKS}",
                "task_type": "download",
                "success": number % 20 > 0,
                "message": f"processed {number} rows",
                "duration_seconds": round(5 + number % 1000 / 7, 6),
            }
            file.write(json.dumps(line) + "\n")
    return f"history={path}"


def measure(url: str, what: str, rows: int, path: Path, *x: str) -> tuple[str, ...]:
    done = subprocess.run(
        [sys.executable, "-c", _RUN, url, *x],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        check=True,
    )
    seconds, before, after = map(float, done.stdout.split())
    return (
        f"{rows:,} {what}: {seconds:.1f} s",
        f"{path.stat().st_size / 1e6:.0f} MB",
        f"{rows / seconds:,.0f}",
        f"{before / 1024:.0f} MB before, at most {after / 1024:.0f} MB",
    )


def rows(urls: Iterator[str], directory: Path, tasks: int, lines: int) -> Iterator[tuple[str, ...]]:
    snapshot, history = directory / "tasks.json", directory / "history.jsonl"
    given = write_tasks(snapshot, tasks)
    yield measure(next(urls), "tasks", tasks, snapshot, given)
    given = write_history(history, lines)
    yield measure(next(urls), "history lines", lines, history, given)
