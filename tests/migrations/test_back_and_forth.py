"""Down and up again from each revision to each earlier one, on a filled database."""

from __future__ import annotations

import pytest

from datahound_storage.migrations import SchemaState, downgrade, upgrade
from datahound_storage.migrations.state import revisions
from tests.migrations import support
from tests.migrations.support import query

TASKS = (
    "id, task_key, task_type, company, config_json, schedule_type, schedule_expr, timezone, status,"
    " created_at, updated_at"
)
RUNS = "id, task_id, run_id, started_at, finished_at, success, message, duration_ms, metadata_json"
TRACES = """
SELECT relname FROM pg_class WHERE relname ~ '(scheduler|datahound)' AND relkind <> 't'
  AND relname <> 'datahound_storage_version' AND relname !~ '^datahound_storage_version'
UNION ALL SELECT proname FROM pg_proc WHERE proname LIKE 'scheduler%' ORDER BY 1"""


def rows_of(url: str) -> list[list[tuple]]:
    return [
        query(url, f"SELECT {TASKS} FROM scheduler_tasks ORDER BY id"),
        query(url, f"SELECT {RUNS} FROM scheduler_runs ORDER BY id"),
    ]


@pytest.fixture(params=["new", "adopted"])
def start_url(request: pytest.FixtureRequest, database_url: str) -> str:
    """A database at the head, filled by the import or adopted with its rows."""
    if request.param == "adopted":
        query(database_url, (support.LEGACY + support.LEGACY_ROWS).encode())
    upgrade(database_url, x=support.IMPORT_SAMPLE)
    # What only the database knows.
    query(database_url, "UPDATE scheduler_tasks SET status = 'paused'")
    query(database_url, "INSERT INTO scheduler_runs (id, run_id, started_at, message)"
          " VALUES (gen_random_uuid(), 'by hand', now(), 'goes on')")  # fmt: skip
    return database_url


@pytest.mark.parametrize("target", revisions()[:-1])
def test_each_way_down_and_up_keeps_all_tasks_and_runs(start_url: str, target: str) -> None:
    before, schema = rows_of(start_url), support.schema_of(start_url)
    assert len(before[0]) >= 3
    assert len(before[1]) >= 4
    for _ in range(2):
        assert downgrade(start_url, target).found == target
        assert rows_of(start_url) == before
        assert upgrade(start_url).state is SchemaState.CURRENT
        assert rows_of(start_url) == before
        assert support.schema_of(start_url) == schema


def test_step_by_step_to_nothing_leaves_nothing(start_url: str) -> None:
    for target in reversed(revisions()[:-1]):
        downgrade(start_url, target)
    assert query(start_url, TRACES) != []
    downgrade(start_url, "base", x=["drop=yes"])
    assert query(start_url, TRACES) == []
