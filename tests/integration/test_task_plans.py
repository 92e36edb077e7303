"""A task is found by an index, and so is what changed since; all of them come by one scan.

What the planner thinks, not how long it takes: of the very statements, with statistics and without.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from datahound_storage.dal import StorageDAL
from datahound_storage.postgres import changes, task_table
from datahound_storage.postgres.pool import Database
from datahound_storage.saving import TaskAdapter
from datahound_storage.writes import BulkChange
from tests.integration.test_plans import nodes
from tests.scheduler import make_task
from tests.servers import TestServer

TASKS, DELETED = 20_000, 5_000
BY_KEY = "scheduler_tasks_task_key_key"
SINCE = {"ix_scheduler_tasks_changed_xid", "ix_scheduler_task_tombstones_deleted_xid"}
modes = pytest.mark.parametrize("mode", ["custom", "generic"])
_VALUE = re.compile(r"%\((\w+)\)s|%s")


@pytest.fixture(scope="module", params=[True, False], ids=["analyzed", "just imported"])
def connection(
    server: TestServer, migrated_template: str, request: pytest.FixtureRequest
) -> Iterator[psycopg.Connection]:
    """A database with many tasks and tombstones; without statistics there are tasks only."""
    url = server.create_database(migrated_template)
    dal = StorageDAL(Database(url))
    adapter = TaskAdapter(None)
    tables = ("scheduler_tasks", "scheduler_task_tombstones")
    with psycopg.connect(url, autocommit=True) as made:
        for table in tables:
            # Nobody but this test analyzes it.
            made.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = false)".encode())
        keys = [f"task {number}" for number in range(TASKS + DELETED)]
        written = [adapter.prepare(make_task(key)) for key in keys]
        dal.change_all(lambda _: BulkChange(written, []))
        if request.param:
            dal.change_all(lambda _: BulkChange([], keys[::5]))
            for table in tables:
                made.execute(f"VACUUM ANALYZE {table}".encode())
        yield made
    dal.close()
    server.drop_database(url)


def explain(
    connection: psycopg.Connection, mode: str, statement: str, *values: str
) -> list[dict[str, Any]]:
    """The nodes of the plan that a prepared statement gets, for these values or for any."""
    numbers: dict[str, int] = {}

    def numbered(found: re.Match[str]) -> str:
        return f"${numbers.setdefault(found[1] or str(len(numbers)), len(numbers) + 1)}"

    prepared = _VALUE.sub(numbered, statement)
    given = f"({', '.join(values)})" if values else ""
    connection.execute(f"SET plan_cache_mode = force_{mode}_plan".encode())
    connection.execute(f"PREPARE looked_at AS {prepared}".encode())
    try:
        row = connection.execute(f"EXPLAIN (FORMAT JSON) EXECUTE looked_at {given}".encode())
        found = row.fetchone()
    finally:
        connection.execute("DEALLOCATE looked_at")
    assert found is not None
    return list(nodes(found[0][0]["Plan"]))


def value(connection: psycopg.Connection, query: str) -> str:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return str(row[0])


def scans(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """What is read, and by which kind of node; the one row of the state is left out."""
    read = [(node["Relation Name"], node["Node Type"]) for node in found if "Relation Name" in node]
    return [(name, kind) for name, kind in read if name != "scheduler_storage"]


@modes
@pytest.mark.parametrize("name", ["fetch", "update", "delete", "own"])
def test_a_task_is_found_by_the_index_of_its_key(
    connection: psycopg.Connection, mode: str, name: str
) -> None:
    stamp = value(connection, "SELECT quote_literal(max(changed_xid)) FROM scheduler_tasks")
    statement, values = {
        "fetch": (task_table._FETCH, ["'task 7'"]),
        "update": (task_table._UPDATE, [*["NULL"] * 10, "'task 7'", stamp]),
        "delete": (task_table._DELETE, ["'task 7'"]),
        "own": (task_table._OWN, ["'task 7'", "gen_random_uuid()"]),
    }[name]
    found = explain(connection, mode, statement, *values)
    kinds = {kind for _, kind in scans(found)} - {"ModifyTable"}
    assert kinds == {"Index Scan"}
    [scan] = [node for node in found if node["Node Type"] == "Index Scan"]
    assert scan["Index Name"] == BY_KEY
    assert "task_key" in scan["Index Cond"]


@modes
@pytest.mark.parametrize("own", [False, True])
def test_what_changed_since_comes_from_the_indexes_of_the_stamps(
    connection: psycopg.Connection, mode: str, own: bool
) -> None:
    values = [f"'{value(connection, 'SELECT pg_current_snapshot()::text')}'"]
    statement = changes._STATEMENTS[False, own].decode()
    if own:
        # It stands before the other one.
        values.insert(0, "'800'")
    found = explain(connection, mode, statement, *values)
    assert ("scheduler_tasks", "Seq Scan") not in scans(found)
    used = {node["Index Name"] for node in found if "Index Name" in node}
    if value(connection, "SELECT count(*) FROM scheduler_task_tombstones") == "0":
        assert used >= {"ix_scheduler_tasks_changed_xid"}
    else:
        assert used == SINCE


@modes
@pytest.mark.parametrize("name", ["all", "all but own", "list"])
def test_all_tasks_come_by_one_scan(connection: psycopg.Connection, mode: str, name: str) -> None:
    statement, values = {
        "all": (changes._STATEMENTS[True, False].decode(), []),
        "all but own": (changes._STATEMENTS[True, True].decode(), ["'800'"]),
        "list": (task_table._LIST, ["NULL", "NULL", "NULL"]),
    }[name]
    found = explain(connection, mode, statement, *values)
    assert scans(found) == [("scheduler_tasks", "Seq Scan")]
