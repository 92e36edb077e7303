"""The triggers' statements are planned once in a session; revision 0007, there and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from datahound_storage.migrations import downgrade, upgrade
from tests.migrations import support
from tests.migrations.support import query, value
from tests.migrations.test_trigger_schemas import (
    OFTEN,
    Session,
    add,
    both,
    change,
    come_and_go,
)
from tests.migrations.test_triggers import FILLED, INSERT, TOMBSTONES
from tests.migrations.test_upgrade import script_of, wait_for


@pytest.fixture
def session(migrated_url: str) -> Iterator[Session]:
    """A session on new tables that commits each statement."""
    with psycopg.connect(migrated_url, autocommit=True) as connection:
        yield connection


# ---- Plans


STATEMENTS = (
    INSERT.replace("%s", "'one'"),
    "UPDATE scheduler_tasks SET task_key = 'two'",
    "DELETE FROM scheduler_tasks",
)


def plannings(session: Session) -> Iterator[list[int]]:
    """How often the server plans for each of the statements, each time that they are run."""
    told: list[str] = []
    session.add_notice_handler(lambda note: told.append(note.message_primary or ""))
    for setting in ("plan_cache_mode = force_generic_plan", "client_min_messages = log"):
        session.execute(f"SET {setting}".encode())
    while True:
        counts = []
        for statement in STATEMENTS:
            session.execute("SET log_planner_stats = on")
            told.clear()
            session.execute(statement.encode(), prepare=True)
            counts.append(sum("PLANNER STATISTICS" in text for text in told))
            session.execute("SET log_planner_stats = off")
        yield counts


def test_a_session_plans_once(session: Session) -> None:
    if not session.execute("SELECT 1 FROM pg_roles WHERE rolname = user AND rolsuper").fetchone():
        pytest.skip("only a superuser is told when the server plans")
    counts = plannings(session)
    # The statement's own plan, and at least one for the trigger.
    assert min(next(counts)) > 1
    for _ in range(OFTEN):
        next(counts)
    assert next(counts) == [0, 0, 0]


@pytest.mark.parametrize(
    "alter",
    [
        "scheduler_tasks ADD COLUMN more int",
        "scheduler_tasks DROP COLUMN task_text, ADD COLUMN task_text text",
        "scheduler_task_tombstones DROP COLUMN task_text, ADD COLUMN task_text text",
    ],
)
def test_a_plan_is_made_anew_for_a_table_that_has_changed(session: Session, alter: str) -> None:
    for number in range(OFTEN):
        come_and_go(session, f"before {number}")
    session.execute(f"ALTER TABLE {alter}".encode())
    come_and_go(session, "after")
    look = "SELECT task_text FROM scheduler_task_tombstones WHERE task_key LIKE 'after%' ORDER BY 1"
    assert session.execute(look.encode()).fetchall() == [("after",), (None,)]


# ---- Filling


def test_a_later_insert_writes_nothing_beside_it(session: Session) -> None:
    add(session, "first")
    look = """SELECT mode FROM pg_locks WHERE pid = pg_backend_pid()
        AND relation = 'scheduler_storage'::regclass"""
    with session.transaction():
        add(session, "second")
        assert session.execute(look).fetchall() == [("AccessShareLock",)]


@pytest.mark.parametrize("end", [psycopg.Connection.commit, psycopg.Connection.rollback])
def test_of_two_first_inserts_the_one_that_stays_fills(
    migrated_url: str, session: Session, end: Callable[[Session], None]
) -> None:
    with psycopg.connect(migrated_url) as first, ThreadPoolExecutor(1) as pool:
        add(first, "first")
        (filled_at,) = first.execute(FILLED).fetchone() or (None,)
        second = pool.submit(add, session, "second")
        wait_for(migrated_url, "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                 f" AND pid = {session.info.backend_pid}")  # fmt: skip
        end(first)
        second.result(10)
    now = value(migrated_url, FILLED)
    assert now is not None
    assert (now == filled_at) is (end is psycopg.Connection.commit)


# ---- There and back


FUNCTIONS = """
SELECT proname, pg_get_functiondef(p.oid), proowner::regrole::text, proacl::text FROM pg_proc p
WHERE proname ~ '^scheduler' AND pronamespace = 'public'::regnamespace ORDER BY 1"""
REPLACED = {"scheduler_tasks_bury", "scheduler_tasks_bury_old_key", "scheduler_tasks_note_filling"}


@pytest.fixture
def owner(role: str, database_url: str) -> Iterator[str]:
    """A role that may be given what is in the database."""
    yield role
    # What is left would keep the role from being dropped.
    query(database_url, f"DROP OWNED BY {role} CASCADE")


def step(url: str, to: str, by_script: bool) -> None:
    if not by_script:
        (upgrade if to == "0007" else downgrade)(url, to)
    elif to == "0007":
        support.apply_script(url, script_of("upgrade", "0006:0007", x=[]))
    else:
        support.apply_script(url, script_of("downgrade", "0007:0006", x=[]))


@pytest.mark.parametrize("by_script", [False, True])
def test_the_way_back_puts_the_former_functions_in_place(
    database_url: str, owner: str, by_script: bool
) -> None:
    upgrade(database_url, "0006")
    for name in REPLACED:
        query(database_url, f"ALTER FUNCTION {name}() OWNER TO {owner}")
    query(database_url, "GRANT EXECUTE ON FUNCTION scheduler_tasks_bury() TO pg_monitor")
    before = query(database_url, FUNCTIONS)
    found = []
    for _ in range(2):
        step(database_url, "0007", by_script)
        found.append(query(database_url, FUNCTIONS))
        step(database_url, "0006", by_script)
        assert query(database_url, FUNCTIONS) == before
    assert found[0] == found[1]
    assert {new[0] for old, new in zip(before, found[0], strict=True) if old != new} == REPLACED
    # Neither their owner, nor who may call them.
    assert [(name, *rest) for name, _, *rest in found[0]] == [
        (name, *rest) for name, _, *rest in before
    ]


def test_an_open_session_goes_on_over_both_steps(session: Session, migrated_url: str) -> None:
    come_and_go(session, "start")
    for to in ("0006", "0007", "0006", "0007"):
        (upgrade if to == "0007" else downgrade)(migrated_url, to)
        filled_at = value(migrated_url, FILLED)
        query(migrated_url, "TRUNCATE scheduler_task_tombstones")
        come_and_go(session, f"at {to}")
        assert query(migrated_url, TOMBSTONES) == [(key,) for key in both(f"at {to}")]
        assert value(migrated_url, FILLED) == filled_at
        query(migrated_url, "UPDATE scheduler_storage SET filled_at = NULL")
        add(session, "again")
        assert value(migrated_url, FILLED) > filled_at
        change(session, "DELETE FROM {}")


def test_neither_step_waits_for_a_table(database_url: str) -> None:
    upgrade(database_url, "0007")
    with psycopg.connect(database_url) as holder:
        holder.execute("LOCK TABLE scheduler_tasks, scheduler_runs, scheduler_task_tombstones,"
                       " scheduler_conflicts IN ACCESS EXCLUSIVE MODE")  # fmt: skip
        # Its column is read for the state of the schema.
        holder.execute("LOCK TABLE scheduler_storage IN EXCLUSIVE MODE")
        assert downgrade(database_url, "0006", lock_wait=0.0).found == "0006"
        assert upgrade(database_url, "0007", lock_wait=0.0).found == "0007"
