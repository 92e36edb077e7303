"""Situations in which files and database are not allowed to meet, made by real means."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from datahound_storage import SchedulerPersistence, verify
from datahound_storage.dal import StorageDAL
from datahound_storage.files.paths import StatePaths
from datahound_storage.postgres.pool import Database
from datahound_storage.testing import EmbeddedServer, _installation
from tests.scheduler import make_task

TABLES = (
    "scheduler_tasks",
    "scheduler_runs",
    "scheduler_task_tombstones",
    "scheduler_storage",
    "scheduler_conflicts",
)


@dataclass
class Installation:
    """A base directory and the database that its URL leads to."""

    base: Path
    url: str

    @property
    def paths(self) -> StatePaths:
        return StatePaths.below(self.base / "data")

    def open(self) -> SchedulerPersistence:
        return SchedulerPersistence(self.base / "data", url=self.url)

    def dal(self) -> StorageDAL:
        return StorageDAL(Database(self.url))

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def names(self) -> dict[str, str]:
        """The names of the tasks in the snapshot, by key."""
        tasks = json.loads(self.paths.tasks_file.read_text())
        return {task["task_id"]: task["name"] for task in tasks}

    def lost(self) -> list[tuple[str, str]]:
        """Key and name of the versions that lost."""
        dal = self.dal()
        found = [(k.conflict.task_key, json.loads(k.conflict.lost_text)) for k in dal.conflicts()]
        dal.close()
        return sorted((key, task["name"]) for key, task in found)

    def fingerprint(self) -> object:
        """Every byte and time of the files, every version of a row."""
        files = {
            str(path): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in self.base.rglob("*")
            if path.is_file()
        }
        rows = {
            table: self.sql(f"SELECT t.ctid::text, t.xmin::text, t::text FROM {table} AS t")
            for table in TABLES
        }
        return files, rows

    def require_equal(self) -> None:
        """Files and database show the same, and a process that starts now uses the database."""
        dal = self.dal()
        report = verify.compare(dal, self.paths, pause=0.01)
        dal.close()
        assert report.equal, report
        persistence = self.open()
        health = persistence.health()
        assert health.store == "database", health
        assert [t["task_id"] for t in persistence.load_tasks()] == list(self.names())
        persistence.close()


def yesterday(installation: Installation) -> None:
    """What was there when the dump was made."""
    persistence = installation.open()
    for key in ("kept", "edited", "deleted"):
        assert persistence.add_task(make_task(key))
    persistence.log_task_execution("kept", True, "yesterday")
    persistence.close()


def today(installation: Installation) -> None:
    """What happened since, on the database and in its snapshot."""
    persistence = installation.open()
    task: dict[str, Any] = persistence.get_task("edited") or {}
    task["name"] = "edited today"
    assert persistence.update_task(task)
    assert persistence.delete_task("deleted")
    assert persistence.add_task(make_task("added"))
    persistence.log_task_execution("kept", True, "today")
    persistence.close()


YESTERDAY = {"kept": "Task kept", "edited": "Task edited", "deleted": "Task deleted"}
TODAY = {"kept": "Task kept", "edited": "edited today", "added": "Task added"}
# What each choice makes of the two, and what loses by it.
RESULTS: dict[str, tuple[dict[str, str], list[tuple[str, str]]]] = {
    "both": ({**YESTERDAY, **TODAY}, [("edited", "Task edited")]),
    "files": (TODAY, [("deleted", "Task deleted"), ("edited", "Task edited")]),
    "database": (YESTERDAY, [("added", "Task added"), ("edited", "edited today")]),
}


def dump(url: str, path: Path) -> None:
    """What an operator's nightly job does."""
    _tool(url, "pg_dump", "--format=custom", f"--file={path}", f"--dbname={url}")


def restore(url: str, path: Path) -> None:
    """Put a dump in the place of what the database holds."""
    _tool(url, "pg_restore", "--clean", "--if-exists", "--exit-on-error", f"--dbname={url}", path)


def _tool(url: str, name: str, *arguments: str | Path) -> None:
    with psycopg.connect(url) as connection:
        version = 18 if connection.info.server_version >= 170000 else 16
    subprocess.run([_installation(version) / "bin" / name, *arguments], check=True)


def restored(installation: Installation, directory: Path) -> None:
    """The same database, restored from yesterday's dump."""
    yesterday(installation)
    dump(installation.url, directory / "dump")
    today(installation)
    restore(installation.url, directory / "dump")


def lagging_standby(base: Path, server: EmbeddedServer) -> Installation:
    """A server that was promoted although it had not got the last changes."""
    installation = Installation(base, server.url)
    yesterday(installation)
    server.stop()
    copy = server.directory / "standby"
    subprocess.run(["cp", "-a", server.directory / "data", copy], check=True)
    server.start()
    today(installation)
    server.stop()
    (server.directory / "data").rename(server.directory / "lost primary")
    copy.rename(server.directory / "data")
    server.start()
    return installation
