"""Histories of a size: a table that the server fills by itself, and a file that shows the same."""

from __future__ import annotations

import os
import shutil
from datetime import datetime
from pathlib import Path

import psycopg

DAYS = 90
_BLOCK = 1 << 20

_FILL_TASKS = """
INSERT INTO scheduler_tasks (id, task_key, task_type, company, config_json, schedule_type,
                             schedule_expr, timezone, status)
SELECT md5('task' || n)::uuid, 'task-' || n, 'download', 'Company ' || n %% 20,
       jsonb_build_object('task_id', 'task-' || n, 'name', 'Task ' || n, 'status', 'active',
                          'schedule_type', 'interval', 'interval_minutes', 15),
       'interval', 'interval:15', 'UTC', 'active'
FROM generate_series(1, %s) AS n"""
# Over 90 days, as `log_task_execution` makes them.
_FILL_RUNS = f"""
INSERT INTO scheduler_runs (id, task_id, run_id, started_at, finished_at, success, message,
                            duration_ms, metadata_json, task_key)
SELECT gen_random_uuid(), md5('task' || 1 + n %% %(tasks)s)::uuid, gen_random_uuid()::text,
       ended - '5.25 s'::interval, ended, n %% 20 > 0, 'processed ' || n || ' rows', 5250,
       jsonb_build_object('task_key', 'task-' || 1 + n %% %(tasks)s, 'task_name',
                          'Task ' || n %% %(tasks)s, 'task_type', 'download',
                          'duration_seconds', 5.25),
       'task-' || 1 + n %% %(tasks)s
FROM (SELECT n, date_trunc('minute', now()) + '123457 us'::interval
             - (%(runs)s - n) * ('{DAYS} days'::interval / %(runs)s) AS ended
      FROM generate_series(1, %(runs)s) AS n) AS numbered ORDER BY n"""
_LINES = """
COPY (SELECT format(
    '{"timestamp": "%s+00:00", "task_id": "%s", "task_name": "%s", "task_type": "%s", '
    '"success": %s, "message": "%s", "duration_seconds": %s, "run_id": "%s"}',
    to_char(finished_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US'), task_key,
    metadata_json ->> 'task_name', metadata_json ->> 'task_type', success, message,
    metadata_json ->> 'duration_seconds', run_id)
FROM scheduler_runs ORDER BY finished_at, seq) TO STDOUT"""


def fill(url: str, tasks: int, runs: int) -> None:
    """So many tasks and runs, by the server itself."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_FILL_TASKS.encode(), (tasks,))
        connection.execute(_FILL_RUNS.encode(), {"runs": runs, "tasks": tasks})
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")


def write_lines(url: str, path: Path) -> None:
    """The history file of the runs in a database."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with psycopg.connect(url) as connection, path.open("wb") as file:
        with connection.cursor().copy(_LINES.encode()) as copy:
            for block in copy:
                # COPY has no backslash to double here; `true` is spelled t by format().
                file.write(bytes(block).replace(b'": t, "', b'": true, "')
                           .replace(b'": f, "', b'": false, "'))  # fmt: skip
        file.flush()
        os.fsync(file.fileno())


def copy_kept(path: Path, cutoff: datetime) -> None:
    """Put the lines from `cutoff` on in the file's place; found by bisection: they are sorted."""
    edge = f'{{"timestamp": "{cutoff.isoformat()}'.encode()
    with path.open("rb") as file, path.with_suffix(".new").open("wb") as new:
        low, high = 0, path.stat().st_size
        while low < high:
            middle = (low + high) // 2
            file.seek(middle)
            file.readline()
            line = file.readline()
            low, high = (middle + 1, high) if line and line < edge else (low, middle)
        file.seek(low)
        file.readline()
        shutil.copyfileobj(file, new, _BLOCK)
        new.flush()
        os.fsync(new.fileno())
    os.replace(path.with_suffix(".new"), path)
    directory = os.open(path.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
