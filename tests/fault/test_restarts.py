"""A server that restarts, connections that break, rivals that force a retry: nobody falls back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import psycopg
import pytest

from datahound_storage.postgres.deadline import DeadlineConnection
from datahound_storage.postgres.pool import Database
from datahound_storage.testing import EmbeddedServer
from tests import servers
from tests.fault.fix_faults import (
    CALLS,
    Told,
    bounded,
    check_left,
    fill,
    impatient,
    secret_task,
)
from tests.fault.proxy import Proxy
from tests.fault.standby import execute, until, value
from tests.fix_persistence import MakePersistence

# Half of it is for retries: a busy machine may need some seconds to start a server.
PATIENT = 30.0
every_call = pytest.mark.parametrize("name", CALLS)


@pytest.fixture(scope="module")
def restarting() -> Iterator[EmbeddedServer]:
    """A server that tests stop and start."""
    with (
        servers.embedded_directory() as directory,
        EmbeddedServer(directory, settings={"fsync": "off"}) as server,
    ):
        yield server


@pytest.fixture
def restarting_url(restarting: EmbeddedServer) -> str:
    """An empty database on it."""
    restarting.start()
    execute(restarting.url, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    return restarting.url


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_between_two_calls(
    opened: MakePersistence,
    base: Path,
    restarting: EmbeddedServer,
    restarting_url: str,
    told: Told,
    mode: Literal["fast", "immediate"],
) -> None:
    persistence = opened(base, url=restarting_url)
    fill(persistence)
    for name in ("update_task", "get_task_history"):
        restarting.stop(mode)
        restarting.start()
        with bounded():
            assert CALLS[name].make(persistence) == CALLS[name].answer
    told.on_database(persistence)


def test_restarts_while_a_thread_works(
    opened: MakePersistence,
    base: Path,
    restarting: EmbeddedServer,
    restarting_url: str,
    told: Told,
) -> None:
    persistence = opened(base, url=restarting_url, settings=impatient(PATIENT))
    fill(persistence)
    done: list[Any] = []
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            number = len(done)
            persistence.log_task_execution("a", True, str(number))
            done.append(persistence.add_task(secret_task(f"new {number}")))

    worker = threading.Thread(target=work)
    worker.start()
    modes: list[Literal["fast", "immediate"]] = ["fast", "immediate", "fast"]
    try:
        for mode in modes:
            before = len(done)
            until(lambda: len(done) > before + 3)  # noqa: B023 - waited for in this round
            restarting.stop(mode)
            restarting.start()
        before = len(done)
        until(lambda: len(done) > before + 3)
    finally:
        stop.set()
        worker.join(60)
    told.on_database(persistence)
    assert done == [True] * len(done)
    assert len(persistence.load_tasks()) == 2 + len(done)
    count = "SELECT count(*) FROM scheduler_runs WHERE message <> 'before'"
    assert value(restarting_url, count) == len(done)
    assert len(persistence.history_file.read_text().splitlines()) == 1 + len(done)


@every_call
def test_dropped_connections_are_made_anew(
    opened: MakePersistence, base: Path, proxy: Proxy, told: Told, name: str
) -> None:
    persistence = opened(base, url=proxy.url)
    fill(persistence)
    proxy.drop()
    assert CALLS[name].make(persistence) == CALLS[name].answer
    check_left(persistence, CALLS[name])
    told.on_database(persistence)


@every_call
def test_terminated_sessions_are_made_anew(
    opened: MakePersistence, base: Path, migrated_url: str, told: Told, name: str
) -> None:
    persistence = opened(base, url=migrated_url)
    fill(persistence)
    ended = value(
        migrated_url,
        "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    assert ended
    assert CALLS[name].make(persistence) == CALLS[name].answer
    check_left(persistence, CALLS[name])
    told.on_database(persistence)


def test_a_connection_that_breaks_in_a_lock_is_made_anew(
    opened: MakePersistence, base: Path, migrated_url: str, told: Told
) -> None:
    persistence = opened(base, url=migrated_url, settings=impatient(PATIENT))
    fill(persistence)
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with psycopg.connect(migrated_url) as rival:
        rival.execute("UPDATE scheduler_tasks SET company = company WHERE task_key = 'a'")
        answers: list[bool] = []
        task = secret_task("a", name="changed")
        worker = threading.Thread(target=lambda: answers.append(persistence.update_task(task)))
        worker.start()
        until(lambda: value(migrated_url, waiting) == 1)
        execute(
            migrated_url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE wait_event_type = 'Lock' AND datname = current_database()",
        )
        rival.rollback()
        worker.join(PATIENT)
    assert answers == [True]
    check_left(persistence, CALLS["update_task"])
    told.on_database(persistence)


def test_a_serialization_failure_is_retried(
    opened: MakePersistence, base: Path, migrated_url: str, told: Told
) -> None:
    name = value(migrated_url, "SELECT current_database()")
    setting = "SET default_transaction_isolation = 'repeatable read'"
    execute(migrated_url, f"ALTER DATABASE {name} {setting}")
    persistence = opened(base, url=migrated_url, settings=impatient(PATIENT))
    fill(persistence)
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with psycopg.connect(migrated_url) as rival:
        rival.execute("UPDATE scheduler_tasks SET company = 'Bolt' WHERE task_key = 'a'")
        answers: list[bool] = []
        task = secret_task("a", name="changed")
        worker = threading.Thread(target=lambda: answers.append(persistence.update_task(task)))
        worker.start()
        until(lambda: value(migrated_url, waiting) == 1)
        rival.commit()
        worker.join(PATIENT)
    assert answers == [True]
    check_left(persistence, CALLS["update_task"])
    told.on_database(persistence)


def test_a_deadlock_is_retried(migrated_url: str) -> None:
    execute(
        migrated_url,
        "CREATE TABLE rivals (name text PRIMARY KEY, value integer)",
        "INSERT INTO rivals VALUES ('first', 0), ('second', 0)",
    )
    change = "UPDATE rivals SET value = value + 1 WHERE name = %s"
    attempts: list[int] = []
    database = Database(migrated_url, timeout=PATIENT)
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"

    def work(connection: DeadlineConnection) -> None:
        attempts.append(1)
        with connection.transaction():
            # It looks before the rival does, and once: when the rival has come to wait for it.
            connection.execute("SET LOCAL deadlock_timeout = '1s'")
            connection.execute(change, ["second"])
            connection.execute(change, ["first"])

    with psycopg.connect(migrated_url) as rival:
        rival.execute("SET deadlock_timeout = '1min'")
        rival.execute(change.encode(), ["first"])
        worker = threading.Thread(target=lambda: database.run(work))
        worker.start()
        until(lambda: value(migrated_url, waiting) == 1)
        rival.execute(change.encode(), ["second"])
        rival.commit()
        worker.join(PATIENT)
    assert len(attempts) > 1
    assert value(migrated_url, "SELECT min(value) FROM rivals") == 2
    database.close()
