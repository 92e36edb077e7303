"""The newest runs, and those to prune, come from an index, at a scale that leaves a choice.

What the planner thinks, not how long it takes; the benchmark asks the same at three million runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from datahound_storage.postgres import pruning, run_compare, run_table
from tests.servers import TestServer

RUNS, TASKS = 20_000, 40
FILL = f"""
INSERT INTO scheduler_runs (id, run_id, task_key, started_at, finished_at, message)
SELECT gen_random_uuid(), 'run-' || n, 'task-' || n % {TASKS}, ended, ended, repeat('x', 100)
FROM (SELECT n, now() - n * interval '3 min' AS ended FROM generate_series(1, {RUNS}) AS n) AS s"""
OF_TASK, OF_ALL = "ix_scheduler_runs_task_key_ended_at", "ix_scheduler_runs_ended_at"


@pytest.fixture(scope="module")
def connection(server: TestServer, migrated_template: str) -> Iterator[psycopg.Connection]:
    url = server.create_database(migrated_template)
    with psycopg.connect(url, autocommit=True) as made:
        made.execute(FILL.encode())
        made.execute("VACUUM ANALYZE scheduler_runs")
        yield made
    server.drop_database(url)


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def explain(
    connection: psycopg.Connection, mode: str, statement: str, values: dict[str, str]
) -> list[dict[str, Any]]:
    """The nodes of the plan that a prepared statement gets, for these values or for any."""
    used = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", statement)))
    numbered = re.sub(r"%\((\w+)\)s", lambda found: f"${used.index(found[1]) + 1}", statement)
    given = ", ".join(values[name] for name in used)
    connection.execute(f"SET plan_cache_mode = force_{mode}_plan".encode())
    connection.execute(f"PREPARE looked_at AS {numbered}".encode())
    try:
        row = connection.execute(
            f"EXPLAIN (FORMAT JSON) EXECUTE looked_at ({given})".encode()
        ).fetchone()
    finally:
        connection.execute("DEALLOCATE looked_at")
    assert row is not None
    return list(nodes(row[0][0]["Plan"]))


@pytest.mark.parametrize("mode", ["custom", "generic"])
@pytest.mark.parametrize("ended_only", [True, False])
@pytest.mark.parametrize(("of_task", "index"), [(True, OF_TASK), (False, OF_ALL)])
def test_the_newest_come_from_an_index(
    connection: psycopg.Connection, mode: str, ended_only: bool, of_task: bool, index: str
) -> None:
    statement = run_table.newest_statement(of_task=of_task, ended_only=ended_only)
    of_entries = run_table.entries_statement(of_task=of_task)
    for looked_at in (statement, of_entries):
        found = explain(connection, mode, looked_at, {"task_key": "'task-7'", "limit": "100"})
        assert [node["Node Type"] for node in found] == ["Limit", "Index Scan"]
        assert found[1]["Index Name"] == index


@pytest.mark.parametrize("mode", ["custom", "generic"])
@pytest.mark.parametrize("keep_last", [0, 3])
@pytest.mark.parametrize("careful", [False, True])
def test_a_batch_to_prune_comes_from_an_index(
    connection: psycopg.Connection, mode: str, careful: bool, keep_last: int
) -> None:
    values = {
        "cutoff": "now() - interval '20 days'",
        "ended_at": "now() - interval '30 days'",
        "seq": "5",
        "size": "1000",
        "keep_last": str(keep_last),
    }
    found = explain(connection, mode, pruning.prune_statement(keep_last, careful=careful), values)
    assert "Seq Scan" not in {node["Node Type"] for node in found}
    read = {node["Index Name"]: node for node in found if "Index Name" in node}
    assert set(read) == {OF_ALL, *([OF_TASK] if keep_last else [])}
    # Those to delete; before that, where it is careful, those to lock.
    assert [node["Node Type"] for node in found].count("Tid Scan") == 1 + careful
    # What was pruned or kept before is not looked at again.
    place = "ROW(COALESCE(finished_at, started_at), seq) > ROW("
    assert place in read[OF_ALL]["Index Cond"]


def test_what_is_kept_is_counted_once_for_a_task(connection: psycopg.Connection) -> None:
    values = {"cutoff": "2100-01-01", **pruning.Place()._asdict(), "size": 1000, "keep_last": 400}
    statement = f"EXPLAIN (ANALYZE, FORMAT JSON) {pruning.prune_statement(400, careful=False)}"
    with connection.transaction(force_rollback=True):
        row = connection.execute(statement.encode(), values).fetchone()
    assert row is not None
    found = [node for node in nodes(row[0][0]["Plan"]) if node.get("Index Name") == OF_TASK]
    read = sum(node["Actual Rows"] * node["Actual Loops"] for node in found)
    assert 0 < read <= RUNS


@pytest.mark.parametrize("query", [run_compare.ONLY_SHOWN, run_compare.ONLY_STORED])
def test_what_only_one_side_has_is_found_by_one_pass_over_each(
    connection: psycopg.Connection, query: str
) -> None:
    """Not by a look-up for each run: there may be millions."""
    shown = (b"0\t%d\trun-%d\t\\N\n" % (n * 250, n) for n in range(RUNS))
    with connection.transaction(force_rollback=True):
        run_compare.load_shown(connection, shown)
        run_compare.analyze(connection)
        row = connection.execute(
            f"EXPLAIN (FORMAT JSON) DECLARE looked_at CURSOR FOR {query}".encode()
        ).fetchone()
    assert row is not None
    joins = [node for node in nodes(row[0][0]["Plan"]) if "Join Type" in node]
    kinds = [(node["Node Type"], node["Join Type"].removeprefix("Right ")) for node in joins]
    assert kinds == [("Hash Join", "Anti")]
