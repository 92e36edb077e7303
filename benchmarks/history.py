"""A long history: what the newest runs cost, by which plan, and what pruning does to others."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg

from benchmarks import live
from benchmarks.tables import DAYS
from datahound_storage.dal import StorageDAL
from datahound_storage.postgres import run_table
from datahound_storage.postgres.pool import Database

HEADER = ("look-up", "median", "plan")
_REPEATS = 50
# The index that serves the newest runs, of a task and of all.
_INDEX = {True: "ix_scheduler_runs_task_key_ended_at", False: "ix_scheduler_runs_ended_at"}


def _plan(connection: psycopg.Connection, of_task: bool) -> str:
    statement = run_table.entries_statement(of_task=of_task)
    explain = f"EXPLAIN (FORMAT JSON) {statement}".encode()
    row = connection.execute(explain, {"task_key": "task-7", "limit": 100}).fetchone()
    plan = row[0][0]["Plan"] if row else {}
    names = []
    while plan:
        names.append(f"{plan['Node Type']} {plan.get('Index Name', '')}".strip())
        plan = next(iter(plan.get("Plans", ())), None)
    if names != ["Limit", f"Index Scan {_INDEX[of_task]}"]:
        raise RuntimeError(f"the newest runs do not come from their index: {names}")
    return " / ".join(names)


def _median(act: Callable[[], object]) -> str:
    spent = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        act()
        spent.append(time.perf_counter() - began)
    return f"{statistics.median(spent) * 1000:.2f} ms"


def look_ups(url: str) -> Iterator[live.Row]:
    dal = StorageDAL(Database(url))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ANALYZE scheduler_runs")
        for name, key in (("newest 100 of a task", "task-7"), ("newest 100 of all", None)):
            median = _median(lambda key=key: dal.newest_entries(key, 100))  # type: ignore[misc]
            yield (name, median, _plan(connection, key is not None))
    dal.close()


def prunings(url: str, log: Path) -> Iterator[live.Row]:
    """Remove a third of the history, then another one but for the last 5 runs of each task."""
    dal = StorageDAL(Database(url))
    now = datetime.now(UTC)
    for what, days, keep_last in (
        ("prune the oldest third", DAYS * 2 / 3, 0),
        ("prune the next third, keep_last=5", DAYS / 3, 5),
    ):
        removed = 0

        def prune(days: float = days, keep_last: int = keep_last) -> None:
            nonlocal removed
            older_than = now - timedelta(days=days)
            removed = dal.purge_task_runs(older_than=older_than, keep_last=keep_last)

        row = live.beside(url, log, what, prune)
        yield (f"{what}: {removed:,} runs", *row[1:])
    dal.close()
