"""The database is lost while the process works: every call goes on with the files, in bound."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from datahound_storage import SchedulerPersistence
from datahound_storage.files.lock import locked
from datahound_storage.testing import EmbeddedServer
from tests import servers
from tests.fault.fix_faults import (
    CALLS,
    Told,
    bounded,
    check_files,
    check_left,
    fill,
    impatient,
    secret_task,
)
from tests.fault.proxy import Proxy
from tests.fault.standby import execute, until, value
from tests.fault.test_server_faults import frozen
from tests.fix_persistence import MakePersistence

FAULTS: dict[str, Callable[[Proxy], None]] = {"refused": Proxy.refuse, "stalled": Proxy.stall}
every_call = pytest.mark.parametrize("name", CALLS)


@pytest.mark.parametrize("fault", FAULTS)
@every_call
def test_every_call_goes_on_with_the_files(
    opened: MakePersistence, base: Path, proxy: Proxy, told: Told, fault: str, name: str
) -> None:
    persistence = opened(base, url=proxy.url, settings=impatient())
    fill(persistence)
    FAULTS[fault](proxy)
    with bounded():
        assert CALLS[name].make(persistence) == CALLS[name].answer
    told.fallen_back(persistence)
    check_left(persistence, CALLS[name])
    check_files(persistence, CALLS[name])


@pytest.fixture(scope="module")
def own_server() -> Iterator[EmbeddedServer]:
    """A server that may be frozen."""
    with (
        servers.embedded_directory() as directory,
        EmbeddedServer(directory, settings={"fsync": "off"}) as server,
    ):
        yield server


@pytest.fixture
def own_url(own_server: EmbeddedServer) -> str:
    """An empty database on it."""
    execute(own_server.url, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    return own_server.url


@every_call
def test_every_call_leaves_a_frozen_server(
    opened: MakePersistence,
    base: Path,
    own_server: EmbeddedServer,
    own_url: str,
    told: Told,
    name: str,
) -> None:
    persistence = opened(base, url=own_url, settings=impatient())
    fill(persistence)
    with frozen(own_server):
        with bounded():
            assert CALLS[name].make(persistence) == CALLS[name].answer
        told.fallen_back(persistence)
        check_left(persistence, CALLS[name])
        check_files(persistence, CALLS[name])
    persistence.close()
    # What it did in the files meets what the server did when it was thawed.
    persistence = opened(base, url=own_url)
    check_left(persistence, CALLS[name])
    assert persistence.health().store == "database"
    with psycopg.connect(own_url) as connection:
        assert connection.execute("SELECT * FROM scheduler_conflicts").fetchall() == []


@pytest.mark.parametrize("call", ["update_task", "save_tasks"])
def test_the_promised_five_seconds(
    opened: MakePersistence, base: Path, proxy: Proxy, told: Told, call: str
) -> None:
    persistence = opened(base, url=proxy.url)
    fill(persistence)
    proxy.stall()
    with bounded():
        assert CALLS[call].make(persistence) is True
    told.fallen_back(persistence)


def _at_once(work: list[Callable[[], object]]) -> list[object]:
    ready = threading.Barrier(len(work))

    def start(one: Callable[[], object]) -> object:
        ready.wait()
        return one()

    with ThreadPoolExecutor(len(work)) as threads:
        return list(threads.map(start, work))


@pytest.mark.parametrize("fault", FAULTS)
def test_threads_and_facades_fall_back_together(
    opened: MakePersistence, base: Path, proxy: Proxy, told: Told, fault: str
) -> None:
    facades = [opened(base, url=proxy.url, settings=impatient()) for _ in range(2)]
    fill(facades[0])
    FAULTS[fault](proxy)
    work = [_adding(facades[number % 2], f"new {number}") for number in range(8)]
    with bounded():
        assert _at_once(work) == [True] * 8
    for facade in facades:
        told.fallen_back(facade)
        assert {task["task_id"] for task in facade.load_tasks()} == {
            "a", "b", *(f"new {number}" for number in range(8)),
        }  # fmt: skip
    assert facades[0].health().reason == facades[1].health().reason


def _adding(persistence: SchedulerPersistence, key: str) -> Callable[[], bool]:
    return lambda: persistence.add_task(secret_task(key))


def test_what_was_acknowledged_is_in_the_files_when_the_server_freezes(
    opened: MakePersistence, base: Path, proxy: Proxy, migrated_url: str, told: Told
) -> None:
    persistence = opened(base, url=proxy.url, settings=impatient(3.0))
    fill(persistence)
    keys = {f"new {number}" for number in range(8)}
    with ThreadPoolExecutor(8) as threads, bounded():
        with locked(persistence.lock_file, 1.0):
            added = [threads.submit(_adding(persistence, key)) for key in keys]
            until(lambda: value(migrated_url, "SELECT count(*) FROM scheduler_tasks") == 10)
        # All are committed; the first that reads them for the snapshot gets no answer.
        proxy.lose_answer("SELECT", then=proxy.stall)
        assert all(one.result() for one in added)
    told.fallen_back(persistence)
    assert {task["task_id"] for task in persistence.load_tasks()} == {"a", "b", *keys}


def test_the_run_that_finds_the_database_gone_waits_too(
    opened: MakePersistence, base: Path, migrated_url: str
) -> None:
    with Proxy(migrated_url) as proxy:
        persistence = opened(base, url=proxy.url, settings=impatient())
        persistence.log_task_execution("a", True, "in the table")
        proxy.refuse()
        for number in range(2):
            persistence.log_task_execution("a", True, f"run {number}")
            assert persistence.health().waiting_runs == number + 1
        persistence.close()
