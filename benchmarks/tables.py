"""Databases of a size: tables as older installations made them, filled by the server itself."""

from __future__ import annotations

import psycopg

from tests.migrations.support import LEGACY

DAYS, TASKS = 90, 500

_TASKS = """
INSERT INTO scheduler_tasks (id, task_key, task_type, company, config_json, schedule_type,
                             schedule_expr, timezone, status)
SELECT md5('task' || n)::uuid, 'task-' || n, 'download', 'Company ' || n %% 20,
       jsonb_build_object('task_id', 'task-' || n, 'name', 'Task ' || n, 'status', 'active',
                          'schedule_type', 'interval', 'interval_minutes', 15),
       'interval', 'interval:15', 'UTC', 'active'
FROM generate_series(1, %s) AS n"""
_RUNS = f"""
INSERT INTO scheduler_runs (id, task_id, run_id, started_at, finished_at, success, message,
                            duration_ms, metadata_json)
SELECT gen_random_uuid(), md5('task' || 1 + n %% {TASKS})::uuid, 'run-' || n,
       ended - '5 s'::interval, ended, n %% 20 > 0, 'processed ' || n || ' rows', 5000,
       jsonb_build_object('task_key', 'task-' || 1 + n %% {TASKS}, 'task_type', 'download')
FROM (SELECT n, now() - (%(runs)s - n) * ('{DAYS} days'::interval / %(runs)s) AS ended
      FROM generate_series(1, %(runs)s) AS n) AS numbered"""


def make_old(url: str, runs: int) -> None:
    """Old tables with 500 tasks and so many runs over 90 days."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(LEGACY.encode())
        connection.execute(_TASKS.encode(), (TASKS,))
        connection.execute(_RUNS.encode(), {"runs": runs})
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")
