"""The triggers use the tables of their own schema, and leave the caller's search path as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from datahound_storage.migrations import upgrade
from tests.migrations.support import query, with_search_path
from tests.migrations.test_triggers import INSERT

# Enough for a session to keep a plan that does not depend on the values.
OFTEN = 8
Session = psycopg.Connection[Any]


@pytest.fixture
def session(migrated_url: str) -> Iterator[Session]:
    """A session on new tables that commits each statement."""
    with psycopg.connect(migrated_url, autocommit=True) as connection:
        yield connection


def add(session: Session, key: str, schema: str = "public") -> None:
    here = sql.Identifier(schema, "scheduler_tasks").as_string()
    session.execute(INSERT.replace("scheduler_tasks", here).encode(), [key])


def change(session: Session, statement: str, schema: str = "public") -> None:
    session.execute(sql.SQL(statement).format(sql.Identifier(schema, "scheduler_tasks")))


def come_and_go(session: Session, key: str, schema: str = "public") -> None:
    """All that the functions are for; leaves tombstones of the key and of `KEY moved`."""
    add(session, key, schema)
    change(session, f"UPDATE {{}} SET task_text = '{key}', task_key = '{key} moved'", schema)
    change(session, "DELETE FROM {}", schema)


def traces(session: Session, schema: str = "public") -> list[str]:
    """The names on the tombstones of a schema that has been filled."""
    filled = sql.SQL("SELECT filled_at IS NOT NULL FROM {}")
    (row,) = session.execute(filled.format(sql.Identifier(schema, "scheduler_storage")))
    assert row == (True,)
    look = sql.SQL("SELECT task_key FROM {} ORDER BY 1")
    rows = session.execute(look.format(sql.Identifier(schema, "scheduler_task_tombstones")))
    return [key for (key,) in rows]


def both(*keys: str) -> list[str]:
    return sorted(name for key in keys for name in (key, f"{key} moved"))


# ---- Whose tables


def test_two_schemas_in_one_session_get_their_own(database_url: str) -> None:
    names = ("first", 'Second, "too"')
    query(database_url, 'CREATE SCHEMA first; CREATE SCHEMA "Second, ""too"""')
    for path in ("first", '"Second,\\ ""too"""'):
        upgrade(with_search_path(database_url, path))
    with psycopg.connect(database_url, autocommit=True) as session:
        for number in range(OFTEN):
            for index, name in enumerate(names):
                come_and_go(session, f"{index} {number}", name)
        for index, name in enumerate(names):
            assert traces(session, name) == both(*(f"{index} {n}" for n in range(OFTEN)))


def test_a_schema_that_is_renamed_is_found(session: Session, migrated_url: str) -> None:
    for number in range(OFTEN):
        come_and_go(session, f"before {number}")
    query(migrated_url, 'ALTER SCHEMA public RENAME TO "Else Where"; CREATE SCHEMA public')
    upgrade(migrated_url)
    come_and_go(session, "after", "Else Where")
    come_and_go(session, "new")
    assert traces(session) == both("new")
    assert set(traces(session, "Else Where")) >= set(both("after"))


# The names that the functions use, as tables of the caller's.
TRAPS = """
CREATE {kind} {schema}.scheduler_task_tombstones (
    task_key text PRIMARY KEY, task_text text, deleted_xid xid8, deleted_at timestamptz);
CREATE {kind} {schema}.scheduler_storage (filled_at timestamptz);
INSERT INTO {schema}.scheduler_storage VALUES (NULL);
CREATE {kind} {schema}.deleted (task_key text, task_text text);
INSERT INTO {schema}.deleted VALUES ('trap', 'trap')"""
CAUGHT = """
SELECT (SELECT count(*) FROM {schema}.scheduler_task_tombstones), (SELECT count(filled_at)
FROM {schema}.scheduler_storage)"""


@pytest.mark.parametrize("schema", ["trap", "pg_temp"])
@pytest.mark.parametrize("planned", [False, True])
def test_tables_of_the_caller_get_nothing(session: Session, schema: str, planned: bool) -> None:
    for number in range(OFTEN if planned else 0):
        come_and_go(session, f"before {number}")
    session.execute("CREATE SCHEMA trap; SET search_path = trap, public")
    kind = "TEMP TABLE" if schema == "pg_temp" else "TABLE"
    session.execute(TRAPS.format(kind=kind, schema=schema).encode())
    come_and_go(session, "after")
    assert session.execute(CAUGHT.format(schema=schema).encode()).fetchone() == (0, 0)
    assert "trap" not in traces(session)
    assert set(traces(session)) >= set(both("after"))


@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.parametrize(
    ("missing", "statement"),
    [
        ("scheduler_task_tombstones", "DELETE FROM {}"),
        ("scheduler_task_tombstones", "UPDATE {} SET task_key = 'moved'"),
        ("scheduler_storage", "INSERT INTO {} SELECT * FROM {0} WHERE false"),
    ],
)
def test_a_table_of_the_caller_does_not_stand_in_for_ours(
    session: Session, missing: str, statement: str, planned: bool
) -> None:
    for number in range(OFTEN if planned else 0):
        come_and_go(session, f"before {number}")
    add(session, "last")
    session.execute(f"ALTER TABLE {missing} RENAME TO away".encode())
    session.execute(TRAPS.format(kind="TEMP TABLE", schema="pg_temp").encode())
    # So that a look at it would find nothing to do.
    session.execute("DELETE FROM pg_temp.scheduler_storage")
    with pytest.raises(psycopg.errors.UndefinedTable, match=f"public.{missing}"):
        change(session, statement.replace("{}", "{0}"))
    assert session.execute(CAUGHT.format(schema="pg_temp").encode()).fetchone() == (0, 0)


# ---- The caller's search path


def path_of(session: Session) -> Any:
    return session.execute("SHOW search_path").fetchone()


@pytest.mark.parametrize("given", ["SET search_path = elsewhere, public", "SELECT 1"])
def test_the_search_path_is_the_callers_after_it(session: Session, given: str) -> None:
    session.execute(given.encode())
    before = path_of(session)
    come_and_go(session, "alone")
    assert path_of(session) == before
    with session.transaction():
        come_and_go(session, "together")
        assert path_of(session) == before
        session.execute("SET LOCAL search_path = local, public")
        come_and_go(session, "locally")
        assert path_of(session) == ("local, public",)
        with session.transaction():
            session.execute("SET LOCAL search_path = innermost")
            come_and_go(session, "deeper")
            assert path_of(session) == ("innermost",)
    assert path_of(session) == before
