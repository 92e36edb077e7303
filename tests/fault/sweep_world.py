"""What a trial of the sweep looks at: the raw files and the raw tables, not what the package says.

One world is one base directory, with one database in database mode. Nobody else uses either.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from datahound_storage import SchedulerPersistence
from datahound_storage.codec import encode
from datahound_storage.dal import StorageDAL
from datahound_storage.files.paths import StatePaths
from datahound_storage.postgres.pool import Database
from datahound_storage.runs import line_text, new_entry, parse_line, row_of
from datahound_storage.settings import Settings
from datahound_storage.tasks import columns_of
from datahound_storage.verify import compare
from datahound_storage.writes import PreparedTask
from tests.scheduler import OldCode, make_task

Task = dict[str, Any]
OLD = timedelta(days=40)
# Every name that may be in the two directories; anything else is piling up.
KNOWN_FILES = {
    "scheduled_tasks.json",
    ".scheduled_tasks.json.tmp",
    ".scheduled_tasks.state.json",
    ".scheduled_tasks.state.json.tmp",
    ".scheduler.lock",
    "task_history.jsonl",
    ".task_history.jsonl.tmp",
    ".task_history.state.json",
    ".task_history.state.json.tmp",
}
_QUIET_SECONDS = 15.0
_NAME = "sweep-observer"


@dataclass(frozen=True)
class Sight:
    """Both sides as they are. In files mode there are no `rows` and no `runs`.

    Tasks are without `updated_at`, which an update sets. Lines and runs are counted by message; a
    line that cannot be parsed by its text.
    """

    tasks: list[Task]
    lines: Counter[str]
    rows: list[Task] | None = None
    runs: Counter[str] | None = None


class BadSnapshotError(AssertionError):
    """The snapshot is not a whole JSON list of tasks."""


class World:
    """A base directory and, in database mode, a migrated database."""

    def __init__(self, base: Path, url: str | None) -> None:
        self.base = base
        self.url = url
        self.paths = StatePaths.below(base / "data")
        self.old_code = OldCode(base)
        self.facade: SchedulerPersistence | None = None
        self._history = b""
        if url is not None:
            self.connection = psycopg.connect(url, autocommit=True, application_name=_NAME)
            self.dal = StorageDAL(Database(make_conninfo(url, application_name=_NAME)))

    def open(self, timeout: float = 5.0) -> SchedulerPersistence:
        """A new facade; in database mode it attaches."""
        settings = Settings(url=self.url, operation_timeout=timeout)
        return SchedulerPersistence(self.base / "data", settings=settings)

    def reopen(self) -> SchedulerPersistence:
        """The world's own facade, made anew."""
        self.close()
        self.facade = self.open()
        return self.facade

    def close(self) -> None:
        """Close the world's own facade."""
        if self.facade is not None:
            self.facade.close()
            self.facade = None

    def disconnect(self) -> None:
        """Close everything."""
        self.close()
        if self.url is not None:
            self.connection.close()
            self.dal.close()

    def populate(self) -> None:
        """Some tasks and runs that no trial touches, and some that all do."""
        facade = self.reopen()
        for key in ("keep-1", "target", "victim", "witness", "keep-2"):
            facade.add_task(make_task(key))
        for number in range(3):
            facade.log_task_execution("keep-1", True, f"kept {number}", 0.5)
        self._history = self.paths.history_file.read_bytes()

    def forget_runs(self) -> None:
        """Only the first runs are left, so that no trial is slower than the one before."""
        self.paths.history_file.write_bytes(self._history)
        if self.url is not None:
            self.connection.execute("DELETE FROM scheduler_runs WHERE message NOT LIKE 'kept %'")

    # Looking.

    def look(self) -> Sight:
        """Both sides, raw. Raises BadSnapshotError."""
        if self.url is None:
            return Sight(self.snapshot(), self._lines())
        return Sight(self.snapshot(), self._lines(), self._rows(), self._runs())

    def snapshot(self) -> list[Task]:
        """The snapshot as the old code reads it."""
        try:
            tasks = json.loads(self.paths.tasks_file.read_bytes())
        except (OSError, ValueError) as error:
            raise BadSnapshotError(f"the snapshot cannot be read: {error}") from None
        if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
            raise BadSnapshotError("the snapshot is not a list of objects")
        return [without_stamp(task) for task in tasks]

    def _rows(self) -> list[Task]:
        rows = self.connection.execute(
            "SELECT task_text, company FROM scheduler_tasks ORDER BY position, task_key"
        )
        return [_with_company(without_stamp(json.loads(text)), company) for text, company in rows]

    def _lines(self) -> Counter[str]:
        try:
            texts = self.paths.history_file.read_text("utf-8").splitlines()
        except FileNotFoundError:
            return Counter()
        return Counter(_message(text) for text in texts if text)

    def _runs(self) -> Counter[str]:
        rows = self.connection.execute("SELECT message FROM scheduler_runs")
        return Counter(message for (message,) in rows)

    def differences(self) -> str:
        """What `verify` finds; empty where files and database are equal."""
        if self.url is None:
            return ""
        report = compare(self.dal, self.paths, pause=0)
        return "" if report.equal else f"files and database differ: {report}"

    def strangers(self) -> list[str]:
        """Files that nobody should have left."""
        places = (self.paths.scheduler_dir, self.paths.history_file.parent)
        return sorted({name for place in places for name in os.listdir(place)} - KNOWN_FILES)

    def leftovers(self) -> list[str]:
        """Temporary files of the snapshot and its sidecar."""
        return [name for name in os.listdir(self.paths.scheduler_dir) if name.endswith(".tmp")]

    def wait_until_quiet(self) -> None:
        """Wait until the server has ended all sessions but ours: what they commit is committed."""
        if self.url is None:
            return
        query = (
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name <> %s "
            "AND backend_type = 'client backend'"
        )
        deadline = time.monotonic() + _QUIET_SECONDS
        while self.connection.execute(query, (_NAME,)).fetchone() != (0,):
            if time.monotonic() > deadline:
                raise AssertionError("a session of a process that ended goes on")
            time.sleep(0.001)  # the server tells nobody when a session has ended

    # Meddling.

    def forget_trims(self) -> None:
        """As if nothing was ever trimmed."""
        self.paths.history_state_file.unlink(missing_ok=True)
        if self.url is not None:
            self.connection.execute("UPDATE scheduler_storage SET history_cutoff = NULL")

    def edit_company(self, key: str, company: str) -> None:
        """Edit a row by hand."""
        self.connection.execute(
            "UPDATE scheduler_tasks SET company = %s WHERE task_key = %s", (company, key)
        )

    def delete_row(self, key: str) -> None:
        """Delete a row by hand."""
        self.connection.execute("DELETE FROM scheduler_tasks WHERE task_key = %s", (key,))

    def add_row(self, task: Task) -> None:
        """Add a task to the database alone."""
        assert self.dal.add_task(PreparedTask(columns_of(task), encode(task)))

    def conflicts(self) -> int:
        """How many versions of tasks have lost."""
        if self.url is None:
            return 0
        row = self.connection.execute("SELECT count(*) FROM scheduler_conflicts").fetchone()
        assert row is not None
        return int(row[0])

    def add_line(self, message: str, age: timedelta = timedelta(0)) -> None:
        """Append a run to the file alone."""
        with self.paths.history_file.open("a", encoding="utf-8") as file:
            file.write(f"{_line(message, age)}\n")

    def tear_line(self, text: str) -> None:
        """Append a part of a line, as a crash leaves one."""
        with self.paths.history_file.open("a", encoding="utf-8") as file:
            file.write(text)

    def add_run(self, message: str, age: timedelta = timedelta(0), text: str = "") -> None:
        """Add a run to the table alone."""
        line = parse_line(text or _line(message, age))
        assert line is not None
        self.dal.add_run(row_of(line))

    def add_old_run(self, message: str) -> None:
        """Add a run that ended long ago to file and table."""
        text = _line(message, OLD)
        with self.paths.history_file.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")
        if self.url is not None:
            self.add_run(message, text=text)


def _line(message: str, age: timedelta) -> str:
    entry = new_entry("keep-1", True, message, 1.5, "Task keep-1", "download")
    return line_text({**entry, "timestamp": (datetime.now(UTC) - age).isoformat()})


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text


def without_stamp(task: Task) -> Task:
    """A task without the time of its last update."""
    return {key: value for key, value in task.items() if key != "updated_at"}


def _with_company(task: Task, company: str) -> Task:
    # An operator's edit of a row shows in the column first.
    return {**task, "task_config": {**task["task_config"], "company": company}}
