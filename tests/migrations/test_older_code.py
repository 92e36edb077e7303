"""Code that knows only what an earlier revision made goes on working on the newest tables.

Its statements name the columns of that revision, as it does not know others. A revision that makes
this impossible is marked in `breaking_since`, and code from before it is not held to it here.
"""

from __future__ import annotations

import uuid
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from datahound_storage.migrations import upgrade
from datahound_storage.migrations.state import revisions
from tests.migrations.support import query, value

VALUES: dict[str, Any] = {
    "uuid": uuid.UUID(int=7),
    "jsonb": Jsonb({"task_id": "a"}),
    "timestamp with time zone": "2024-03-01 00:00+00",
    "boolean": True,
    "bigint": 1,
}
TABLES = ("scheduler_tasks", "scheduler_runs")
# What a statement of the older code leaves to the database.
FILLED = ("seq", "position", "changed_xid", "changed_at", "edited_columns")


def columns_of(url: str, table: str) -> dict[str, str]:
    look = """SELECT column_name, data_type FROM information_schema.columns
        WHERE table_schema = current_schema() AND table_name = %s ORDER BY ordinal_position"""
    return {name: kind for name, kind in query(url, look, [table]) if name not in FILLED}


def write(connection: psycopg.Connection, table: str, columns: dict[str, str]) -> None:
    """Insert a row, rewrite each of its columns, and read it."""
    row = {name: VALUES.get(kind, "a") for name, kind in columns.items()}
    names = sql.SQL(", ").join(map(sql.Identifier, row))
    holders = sql.SQL(", ").join(sql.Placeholder() for _ in row)
    here = sql.Identifier(table)
    insert = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(here, names, holders)
    connection.execute(insert, list(row.values()))
    update = sql.SQL("UPDATE {} SET ({}) = ROW ({})").format(here, names, holders)
    assert connection.execute(update, list(row.values())).rowcount == 1
    assert connection.execute(sql.SQL("SELECT {} FROM {}").format(names, here)).rowcount == 1


@pytest.mark.parametrize("older", revisions()[:-1])
def test_older_code_works_on_the_newest_tables(database_url: str, older: str) -> None:
    upgrade(database_url, older)
    known = {table: columns_of(database_url, table) for table in TABLES}
    upgrade(database_url)
    if value(database_url, "SELECT breaking_since FROM scheduler_storage") > older:
        pytest.skip(f"a later revision is marked as breaking code of {older}")
    with psycopg.connect(database_url) as connection:
        for table, columns in known.items():
            write(connection, table, columns)
        for table in reversed(TABLES):
            statement = sql.SQL("DELETE FROM {}").format(sql.Identifier(table))
            assert connection.execute(statement).rowcount == 1
