"""The operations on runs, beside their floors; by itself `python -m benchmarks.speed.run_cases`.

The floors: a prepared INSERT and one appended line, through a descriptor that stays open; the same
SELECT, its rows fetched; a DELETE in batches, and a durable copy of the lines that are kept.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg

from benchmarks.speed.bounds import OF_RUNS
from benchmarks.speed.histories import copy_kept, fill, write_lines
from benchmarks.speed.measure import BUDGET, Case, Result, measure
from benchmarks.speed.world import World
from datahound_storage.persistence import SchedulerPersistence
from datahound_storage.runs import line_text, new_entry
from datahound_storage.testing import EmbeddedServer

RUNS, FEW_RUNS = 3_000_000, 10_000
TASKS = (100, 10_000)
KEPT_DAYS = 60
# What one statement of the floor deletes: more of them would take longer than 100 ms.
FLOOR_BATCH = 5000

# The columns of the contract, as they are.
_FLOOR_SELECT = b"""
SELECT run_id, task_key, finished_at, success, message, duration_ms, metadata_json, line_text
FROM scheduler_runs WHERE task_key = %s AND finished_at IS NOT NULL
ORDER BY coalesce(finished_at, started_at) DESC, seq DESC LIMIT %s"""
_FLOOR_INSERT = """
INSERT INTO scheduler_runs (id, run_id, task_key, started_at, finished_at, success, message,
                            duration_ms, metadata_json, task_id)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"""
_FLOOR_DELETE = f"""
DELETE FROM scheduler_runs WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM scheduler_runs WHERE coalesce(finished_at, started_at) < %s
    ORDER BY coalesce(finished_at, started_at), seq LIMIT {FLOOR_BATCH}))"""


class Logging:
    """`log_task_execution` with so many tasks in the table."""

    def __init__(self, world: World, tasks: int) -> None:
        self.tasks = tasks
        template = world.database()
        fill(template, tasks, FEW_RUNS)
        self.ours = SchedulerPersistence(world.data_dir(), url=world.database(template))
        self.connection = psycopg.connect(
            world.database(template), autocommit=True, prepare_threshold=0
        )
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._descriptor = os.open(world.data_dir() / "history.jsonl", flags)
        self._key = ""

    def cases(self) -> Iterator[Case]:
        yield Case(
            "log_task_execution",
            self.tasks,
            before=self._pick,
            ours=self._ours,
            floor=self._floor,
            bound=OF_RUNS["log_task_execution"],
            most=2000,
        )

    def _pick(self, number: int) -> None:
        self._key = f"task-{1 + number % self.tasks}"
        entry = new_entry(self._key, True, "processed 5 rows", 5.25, "Task", "download")
        self._line = f"{line_text(entry)}\n".encode()
        now = datetime.now(UTC)
        metadata = (
            f'{{"task_key": "{self._key}", "task_name": "Task", "task_type": "download", '
            '"duration_seconds": 5.25}'
        )
        started = now - timedelta(seconds=5.25)
        self._row = (uuid4(), entry["run_id"], self._key, started, now, True, entry["message"],
                     5250, metadata, uuid4())  # fmt: skip

    def _ours(self, _: int) -> None:
        self.ours.log_task_execution(self._key, True, "processed 5 rows", 5.25, "Task", "download")

    def _floor(self, _: int) -> None:
        os.write(self._descriptor, self._line)
        self.connection.execute(_FLOOR_INSERT, self._row)

    def close(self) -> None:
        if self.ours.health().store != "database":
            raise RuntimeError("the database does not serve")
        self.ours.close()
        self.connection.close()
        os.close(self._descriptor)


class History:
    """What is read and what is removed, of a table with so many runs."""

    def __init__(self, world: World, runs: int) -> None:
        self.world, self.runs = world, runs
        self.template = world.database()
        # Each has a hundred runs at least.
        self._tasks = max(1, min(500, runs // 100))
        fill(self.template, self._tasks, runs)
        self._lines = world.data_dir() / "all.jsonl"
        write_lines(self.template, self._lines)
        self._opened: tuple[SchedulerPersistence, psycopg.Connection[Any], Path] | None = None
        self.trimmed: list[int] = []

    def cases(self) -> Iterator[Case]:
        yield from self._reading()
        yield Case(
            "clear_old_history",
            self.runs,
            before=self._open,
            ours=self._clear,
            floor=self._floor,
            # Of few runs it takes some ms, in which the preparations count.
            bound=OF_RUNS["clear_old_history"] if self.runs > FEW_RUNS else None,
            most=2 if self.runs > 100_000 else 20,
        )
        self._close()

    def _reading(self) -> Iterator[Case]:
        self._open(0)
        if self._opened is None:
            raise RuntimeError("nothing is opened")
        ours, connection, _ = self._opened
        yield Case(
            "get_task_history",
            self.runs,
            ours=lambda n: ours.get_task_history(self._key(n), 100),
            floor=lambda n: connection.execute(_FLOOR_SELECT, (self._key(n), 100)).fetchall(),
            bound=OF_RUNS["get_task_history"],
            most=1000,
        )

    def _key(self, number: int) -> str:
        return f"task-{1 + number % self._tasks}"

    def _open(self, _: int) -> None:
        """The same runs in two databases and two files."""
        self._close()
        ours, theirs = self.world.data_dir(), self.world.data_dir()
        file = ours.parent / "logging" / "scheduler" / "task_history.jsonl"
        file.parent.mkdir(parents=True)
        copy = theirs / "history.jsonl"
        for target in (file, copy):
            shutil.copyfile(self._lines, target)
        facade = SchedulerPersistence(ours, url=self.world.database(self.template))
        url = self.world.database(self.template)
        connection = psycopg.connect(url, autocommit=True, prepare_threshold=0)
        connection.execute("CHECKPOINT")
        os.sync()
        self._opened = facade, connection, copy

    def _close(self) -> None:
        if self._opened is None:
            return
        facade, connection, copy = self._opened
        if facade.health().store != "database":
            raise RuntimeError("the database does not serve")
        urls = [facade._settings.url or "", connection.info.dsn]
        facade.close()
        connection.close()
        for directory in (facade.data_dir.parent, copy.parent.parent):
            shutil.rmtree(directory)
        for url in urls:
            self.world.drop(url)
        self._opened = None

    def _clear(self, _: int) -> None:
        if self._opened is not None:
            self.trimmed.append(self._opened[0].clear_old_history(KEPT_DAYS))

    def _floor(self, _: int) -> None:
        if self._opened is None:
            return
        _, connection, path = self._opened
        cutoff = datetime.now(UTC) - timedelta(days=KEPT_DAYS)
        while connection.execute(_FLOOR_DELETE, (cutoff,)).rowcount:
            pass
        copy_kept(path, cutoff)


def cases(world: World, runs: int = RUNS, tasks: Sequence[int] = TASKS) -> Iterator[Case]:
    """All cases; `runs`: the size of the large history."""
    for count in tasks:
        log = Logging(world, count)
        yield from log.cases()
        log.close()
    for size in dict.fromkeys((min(FEW_RUNS, runs), runs)):
        yield from History(world, size).cases()


def longest_statement(log: Path) -> float:
    """The longest statement in a server's log, in ms; bulk work of the measurement left out."""
    found = re.findall(
        r"duration: ([\d.]+) ms  (?:execute[^:]*|statement): \s*(WITH old|DELETE FROM)",
        log.read_text(encoding="utf-8", errors="replace"),
    )
    return max((float(duration) for duration, _ in found), default=0.0)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS, help="size of the large history")
    parser.add_argument("--tasks", type=int, nargs="*", default=TASKS)
    parser.add_argument("--only", default="", help="operations whose name has this in it")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for each line")
    parser.add_argument("--directory", default="/var/tmp", help="on the disk to be measured")
    return parser.parse_args()


def show(result: Result) -> None:
    mark = " OVER" if result.is_over else ""
    print(
        f"{result.operation:24} {result.size:9,} {result.ours_ms:10.2f} {result.floor_ms:10.2f} "
        f"{result.ratio:6.2f} ({result.low:.2f} to {result.high:.2f}) <= {result.bound} "
        f"n={result.rounds}{mark}",
        flush=True,
    )


def main() -> None:
    given = arguments()
    logging.disable(logging.WARNING)
    settings = {"max_wal_size": "4GB", "log_min_duration_statement": "20ms"}
    over = False
    with (
        tempfile.TemporaryDirectory(dir=given.directory) as name,
        EmbeddedServer(Path(name) / "server", settings=settings) as server,
    ):
        world = World(Path(name), server)
        for case in cases(world, given.runs, given.tasks):
            if given.only in case.operation:
                result = measure(case, given.budget)
                show(result)
                over = over or result.is_over
        longest = longest_statement(Path(name) / "server" / "server.log")
        print(f"longest statement that deletes: {longest:.0f} ms", flush=True)
    sys.exit(1 if over else 0)


if __name__ == "__main__":
    main()
