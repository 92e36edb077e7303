"""The whole job once: a real PostgreSQL, the sample files, an outage in the middle (`make demo`).

It works in a temporary directory, leaves nothing behind, and ends with exit code 1 if anything is
not as it should be.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from datahound_storage import SchedulerPersistence, StorageError
from datahound_storage.testing import EmbeddedServer

ROOT = Path(__file__).resolve().parent.parent
DAYS_KEPT = 30
# What an operator is promised: longer than this a scheduler never waits for a dead database.
LONGEST_FALL_BACK = 5.0

Task = dict[str, Any]
console = Console(highlight=False)


class DemoError(Exception):
    """Something is not as it should be."""


def main() -> int:
    """Run the demonstration; return the exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    logging.getLogger("datahound_storage").addHandler(LogToConsole(logging.WARNING))
    started = time.monotonic()
    try:
        with temporary_directory() as directory:
            run(directory)
    except (DemoError, StorageError) as error:
        console.print(f"\nThe demonstration failed: {error}", style="bold red", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("\nInterrupted: the server is stopped, the directory removed.")
        return 130
    console.print(f"\nEverything is as it should be ({since(started)} in all).", style="bold green")
    return 0


def _leave(number: int, _frame: object) -> None:
    # An exception, so that the server is stopped and the directory removed.
    sys.exit(128 + number)


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """Make a directory, and remove it whatever happens."""
    directory = Path(tempfile.mkdtemp(prefix="datahound-demo-"))
    try:
        yield directory
    finally:
        remove(directory)


def remove(directory: Path) -> None:
    """Remove a directory in which an interrupted program may still be writing its last files."""
    deadline = time.monotonic() + 5
    while directory.exists() and time.monotonic() < deadline:
        shutil.rmtree(directory, ignore_errors=True)
        time.sleep(0.02)


def run(directory: Path) -> None:
    """All steps, in order."""
    base = directory / "scheduler"
    with EmbeddedServer(directory / "postgres") as server:
        set_environment(server.url)
        show_start(base, server.url)
        migrate(base)
        persistence = start(base, "The scheduler starts. New in its code: one import")
        work(persistence)
        fall_back(persistence, server)
        deleted = work_in_outage(persistence)
        server.start()
        persistence.close()
        persistence = start(base, "The database is back, and the scheduler's process is restarted")
        check_carried_over(persistence, deleted)
        persistence.close()
        verify(base)


# The steps.


def set_environment(url: str) -> None:
    """Set the URL, as an operator does, and nothing else of ours."""
    for name in list(os.environ):
        if name.startswith("DATAHOUND_") or name == "DATABASE_URL":
            del os.environ[name]
    os.environ["DATAHOUND_STORAGE_URL"] = url


def show_start(base: Path, url: str) -> None:
    """Copy the sample files and show what there is."""
    step("A scheduler with its state in files, and an empty database")
    copy_sample(base)
    tasks = read_snapshot(base)
    with psycopg.connect(url) as connection:
        version = connection.info.server_version // 10000
    say(f"{len(tasks)} tasks in data/scheduler/scheduled_tasks.json ({statuses(tasks)})")
    say(f"{len(read_history(base)):,} runs in logging/scheduler/task_history.jsonl")
    say(f"PostgreSQL {version}, started for this demonstration; DATAHOUND_STORAGE_URL leads to it")


def copy_sample(base: Path) -> None:
    """Copy the sample; its history is moved in time, so that the newest run ended yesterday."""
    for name in ("data", "logging"):
        shutil.copytree(ROOT / "examples" / name, base / name, copy_function=shutil.copyfile)
    entries = read_history(base)
    ends = [datetime.fromisoformat(entry["timestamp"]) for entry in entries]
    later = datetime.now(UTC) - timedelta(days=1) - max(ends)
    for entry, end in zip(entries, ends, strict=True):
        entry["timestamp"] = (end + later).isoformat()
    lines = "".join(f"{json.dumps(entry)}\n" for entry in entries)
    history_file(base).write_text(lines, encoding="utf-8")


def migrate(base: Path) -> None:
    """Make the tables and import the files, with the command that deployments run."""
    step("The deployment runs `alembic upgrade head`")
    command = [sys.executable, "-m", "alembic", "-c", str(ROOT / "alembic.ini")]
    command += ["-x", f"snapshot={snapshot_file(base)}", "-x", f"history={history_file(base)}"]
    call([*command, "upgrade", "head"], hidden=f"{base}/")


def start(base: Path, title: str) -> SchedulerPersistence:
    """Start the scheduler, or start it again."""
    step(title)
    persistence = SchedulerPersistence(base / "data")
    show_health(persistence)
    expect(persistence.health().store == "database", "the database serves")
    expect(read_snapshot(base) == persistence.load_tasks(), "the snapshot shows the database")
    return persistence


def work(persistence: SchedulerPersistence) -> None:
    """What a scheduler and its web UI do all day."""
    active = persistence.get_active_tasks()
    expect(len(active) > 1, "there are active tasks")
    show_tasks("Due first, of the active tasks", sorted(active, key=due)[:4])
    add(persistence, "demo-1", "Added by the web UI")
    execute(persistence, active[0])
    prune(persistence)


def fall_back(persistence: SchedulerPersistence, server: EmbeddedServer) -> None:
    """Kill the database under the scheduler's hands."""
    step("The database is killed while the scheduler works")
    task = find(persistence, "demo-1")
    server.stop("immediate")
    task["description"] = "changed while the database was dying"
    started = time.monotonic()
    expect(persistence.update_task(task), "the update succeeds")
    seconds = time.monotonic() - started
    expect(persistence.health().store == "files", "the files serve")
    expect(seconds < LONGEST_FALL_BACK, f"that took less than {LONGEST_FALL_BACK:g} s")
    say(f"The next update took {seconds:.1f} s: tried again, gave up, stored in the files.")
    show_health(persistence)


def work_in_outage(persistence: SchedulerPersistence) -> Task:
    """Go on with the files, where every change is on disk when its call returns.

    Returns the task that was deleted.
    """
    say("That was all the scheduler noticed. Until it is restarted it works on the files:")
    execute(persistence, find(persistence, "demo-1"))
    add(persistence, "demo-2", "Added in the outage")
    unwanted: Task = next(t for t in persistence.load_tasks() if t["status"] == "disabled")
    expect(persistence.delete_task(unwanted["task_id"]), "a task is deleted")
    say(f"Deleted:  {unwanted['name']}")
    return unwanted


def check_carried_over(persistence: SchedulerPersistence, deleted: Task) -> None:
    """See in the database what was done while it was away."""
    changed = find(persistence, "demo-1")
    expect(changed["description"].endswith("dying"), "the update is carried over")
    expect(changed["run_count"] == 1, "the run is counted")
    expect(find(persistence, "demo-2")["status"] == "active", "the new task is carried over")
    expect(persistence.get_task(deleted["task_id"]) is None, "the deleted task stays deleted")
    expect(len(persistence.get_task_history("demo-1")) == 1, "the run is carried over, once")
    say("The update, the new task, the deletion and the run are in the database now.")


def verify(base: Path) -> None:
    """Compare both sides, with the command that operators run."""
    step("The operator runs `datahound-storage verify`")
    command = [str(Path(sys.executable).with_name("datahound-storage")), "verify"]
    output = call([*command, "--data-dir", str(base / "data")], hidden=f"{base}/")
    expect(output.splitlines()[-1] == "equal", "files and database are equal")


# What the scheduler does.


def add(persistence: SchedulerPersistence, task_id: str, name: str) -> None:
    """Add a task; its id can be used once."""
    task = {
        "task_id": task_id,
        "name": name,
        "description": "",
        "task_config": {"task_type": "download", "company": "Demo", "settings": {}},
        "schedule_type": "interval",
        "status": "active",
        "interval_minutes": 15,
        "next_run": None,
        "run_count": 0,
        "updated_at": datetime.now().isoformat(),
    }
    expect(persistence.add_task(task), f"{task_id} is added")
    expect(not persistence.add_task(task), f"{task_id} cannot be added twice")
    say(f"Added:    {name}")


def find(persistence: SchedulerPersistence, task_id: str) -> Task:
    """The task, which must be there."""
    task = persistence.get_task(task_id)
    if task is None:
        raise DemoError(f"not so: task {task_id} is there")
    return dict(task)


def execute(persistence: SchedulerPersistence, task: Task) -> None:
    """Run a task: `running`, the work, `active` with the result, a line in the history."""
    count, started = task["run_count"], time.monotonic()
    task["status"] = "running"
    expect(persistence.update_task(task), "the task is set to running")
    shown = find(persistence, task["task_id"])
    expect(shown["status"] == "running", "others see it running")
    now = datetime.now(UTC)
    result = {"last_run": now.isoformat(), "run_count": count + 1, "consecutive_errors": 0}
    task.update(result, status="active", next_run=(now + timedelta(minutes=15)).isoformat())
    expect(persistence.update_task(task), "its result is stored")
    seconds, kind = time.monotonic() - started, task["task_config"]["task_type"]
    persistence.log_task_execution(task["task_id"], True, "done", seconds, task["name"], kind)
    newest = persistence.get_task_history(task["task_id"], limit=1)
    expect([entry["duration_seconds"] for entry in newest] == [seconds], "its run is kept")
    say(f"Executed: {task['name']} (run_count {count} -> {count + 1}, a line in the history)")


def prune(persistence: SchedulerPersistence) -> None:
    """Remove old runs, from table and file."""
    before = len(persistence.get_task_history(limit=1_000_000))
    removed = persistence.clear_old_history(DAYS_KEPT)
    after = len(persistence.get_task_history(limit=1_000_000))
    expect(0 < removed == before - after, "old runs are removed, and only those")
    say(f"Pruned:   {removed:,} runs of more than {DAYS_KEPT} days ago, {after:,} stay")


def due(task: Task) -> str:
    """When a task is due; those without a time last."""
    return task["next_run"] or "~"


# Files.


def snapshot_file(base: Path) -> Path:
    """Where the scheduler keeps its tasks."""
    return base / "data" / "scheduler" / "scheduled_tasks.json"


def history_file(base: Path) -> Path:
    """Where the scheduler keeps its history."""
    return base / "logging" / "scheduler" / "task_history.jsonl"


def read_snapshot(base: Path) -> list[Task]:
    """The tasks, as code that knows nothing of this package reads them."""
    with snapshot_file(base).open(encoding="utf-8") as file:
        tasks: list[Task] = json.load(file)
    return tasks


def read_history(base: Path) -> list[Task]:
    """The lines of the history."""
    with history_file(base).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


# Checking and showing.


def expect(true: bool, what: str) -> None:
    """Raise DemoError unless something is as it should be."""
    if not true:
        raise DemoError(f"not so: {what}")


def call(command: Sequence[str], hidden: str) -> str:
    """Run a program, show its output without `hidden`, and return it."""
    done = subprocess.run(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    for line in done.stdout.splitlines():
        console.print(Text(f"    {line.replace(hidden, '')}", style="dim"), soft_wrap=True)
    expect(done.returncode == 0, f"{Path(command[0]).name} ends with exit code 0")
    return done.stdout


def step(title: str) -> None:
    """Begin a step."""
    console.print()
    console.rule(Text(title, style="bold"), align="left")


def say(text: str) -> None:
    """Print a line."""
    console.print(Text(f"  {text}"), soft_wrap=True)


def show_health(persistence: SchedulerPersistence) -> None:
    """Show what `health()` says."""
    health = persistence.health()
    serves = {"database": "green", "files": "yellow"}[health.store]
    table = Table(title="health()", title_justify="left", show_header=False)
    table.add_row("store", Text(health.store, style=f"bold {serves}"))
    table.add_row("since", f"{health.since:%H:%M:%S} UTC")
    table.add_row("reason", Text(health.reason, overflow="fold"))
    table.add_row("backup", Text(health.backup_problem or "the snapshot shows every change"))
    console.print(table)


def show_tasks(title: str, tasks: Iterable[Task]) -> None:
    """Show some tasks."""
    table = Table(title=title, title_justify="left")
    for column in ("task", "schedule", "runs", "next run"):
        table.add_column(column)
    for task in tasks:
        when = (task["next_run"] or "")[:16].replace("T", " ")
        schedule = task["schedule_type"].partition("_")[0]
        table.add_row(Text(task["name"]), schedule, str(task["run_count"]), when)
    console.print(table)


def statuses(tasks: Iterable[Task]) -> str:
    """How many tasks have each status."""
    counted = Counter(task["status"] for task in tasks)
    return ", ".join(f"{number} {status}" for status, number in counted.most_common())


def since(started: float) -> str:
    """The time since then, for people."""
    return f"{time.monotonic() - started:.1f} s"


class LogToConsole(logging.Handler):
    """Shows what operators find in the log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        title = f"log, {record.levelname.lower()}"
        console.print(Panel(Text(record.getMessage()), title=title, title_align="left"))


if __name__ == "__main__":
    sys.exit(main())
