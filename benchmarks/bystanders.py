"""A reader and a writer that use the tables while something else happens to them."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg

_PACE = 0.002
# By which the server's log tells them apart from what happens beside them.
NAME = "bystander"
LOG_SETTINGS = {"log_lock_waits": "on", "deadlock_timeout": "20ms", "log_line_prefix": "%a "}
Act = Callable[["psycopg.Connection[Any]", int], None]


def read(connection: psycopg.Connection[Any], number: int) -> None:
    """What the scheduler and a dashboard ask for, as the code before the upgrade does."""
    connection.execute("SELECT id, task_key, config_json FROM scheduler_tasks WHERE company = %s",
                       (f"Company {number % 20}",))  # fmt: skip
    connection.execute(
        "SELECT run_id, started_at, success, duration_ms FROM scheduler_runs WHERE run_id = %s",
        (f"run-{number}",),
    )


def write(connection: psycopg.Connection[Any], number: int) -> None:
    """A task that starts and ends, and its run, as the code before the upgrade does."""
    key = f"task-{1 + number % 500}"
    connection.execute("UPDATE scheduler_tasks SET status = 'running' WHERE task_key = %s", (key,))
    connection.execute(
        "INSERT INTO scheduler_runs (id, task_id, run_id, started_at, finished_at, success,"
        " message, duration_ms, metadata_json) SELECT %s, id, %s, now(), now(), true, '', 5, NULL"
        " FROM scheduler_tasks WHERE task_key = %s",
        (uuid4(), f"new-{uuid4()}", key),
    )
    connection.execute("UPDATE scheduler_tasks SET status = 'active' WHERE task_key = %s", (key,))


@dataclass
class Waits:
    """How long a bystander's statements took, in ms, and when the longest began (in s)."""

    count: int = 0
    longest: float = 0.0
    at: float = 0.0
    errors: list[str] = field(default_factory=list)
    over_50: int = 0


def _stand_by(url: str, act: Act, stop: Any, results: Any) -> None:
    waits, began = Waits(), time.monotonic()
    # Statements that were prepared before a column changes its type fail after it, whoever
    # changed it; that is not what is measured.
    with psycopg.connect(
        url, autocommit=True, prepare_threshold=None, application_name=NAME
    ) as connection:
        cursor = _Timed(connection, waits, began)
        number = 0
        while not stop.is_set():
            number += 1
            try:
                act(cursor, number)  # type: ignore[arg-type]
            except psycopg.Error as error:
                waits.errors.append(str(error).splitlines()[0])
            time.sleep(_PACE)
    results.put((act.__name__, waits))


class _Timed:
    """A connection that takes the time of each statement."""

    def __init__(self, connection: psycopg.Connection[Any], waits: Waits, began: float) -> None:
        self._connection, self._waits, self._began = connection, waits, began

    def execute(self, statement: str, values: Any) -> None:
        start = time.monotonic()
        try:
            self._connection.execute(statement.encode(), values)
        finally:
            spent = (time.monotonic() - start) * 1000
            self._waits.count += 1
            self._waits.over_50 += spent > 50
            if spent > self._waits.longest:
                self._waits.longest, self._waits.at = spent, start - self._began


def lock_waits(log: Path) -> int:
    """How often, by a server's log, one of them has waited for a lock for over 20 ms."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return sum(line.startswith(NAME) and "still waiting for" in line for line in lines)


@contextmanager
def bystanders(url: str) -> Iterator[dict[str, Waits]]:
    """A reader and a writer, processes of their own; their waits are there after the block."""
    context = multiprocessing.get_context("spawn")
    stop, results = context.Event(), context.Queue()
    processes = [
        context.Process(target=_stand_by, args=(url, act, stop, results), daemon=True)
        for act in (read, write)
    ]
    for process in processes:
        process.start()
    time.sleep(1.0)  # they have connected, and have a second of peace
    waits: dict[str, Waits] = {}
    try:
        yield waits
    finally:
        stop.set()
        waits.update(results.get(timeout=60) for _ in processes)
        for process in processes:
            process.join()
