"""Going back to the database without a restart, where that is switched on."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from datahound_storage import SchedulerPersistence
from datahound_storage.settings import from_environment
from datahound_storage.testing import EmbeddedServer
from tests.fix_persistence import MakePersistence
from tests.scheduler import OldCode, make_task

PROMPT = replace(from_environment({}), operation_timeout=3.0, reattach_seconds=0.1)
BOUND = 60.0


@pytest.fixture
def server(embedded_directory: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(embedded_directory, settings={"fsync": "off"}) as started:
        yield started


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOUND
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def serves_database(persistence: SchedulerPersistence) -> Callable[[], bool]:
    return lambda: persistence.health().store == "database"


def rows(url: str, query: str) -> list[Any]:
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute(query.encode())]


def test_after_an_outage_everything_is_carried_over_and_the_database_serves(
    opened: MakePersistence, base: Path, server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    persistence = opened(base, url=server.url, settings=PROMPT)
    for key in ("kept", "changed", "deleted"):
        persistence.add_task(make_task(key))
    persistence.log_task_execution("kept", True, "before")
    server.stop()
    task = persistence.get_task("changed")
    task["name"] = "during"
    assert persistence.update_task(task)
    assert persistence.add_task(make_task("added"))
    assert persistence.delete_task("deleted")
    persistence.log_task_execution("kept", True, "during")
    health = persistence.health()
    assert (health.store, health.waiting_tasks, health.waiting_runs) == ("files", 3, 1)
    assert "every 0.1 s" in caplog.text
    server.start()
    wait_until(serves_database(persistence))
    health = persistence.health()
    assert (health.waiting_tasks, health.waiting_runs) == (0, 0)
    names = rows(server.url, "SELECT task_text::json ->> 'name' FROM scheduler_tasks ORDER BY 1")
    assert names == ["Task added", "Task kept", "during"]
    runs = rows(server.url, "SELECT message FROM scheduler_runs ORDER BY seq")
    assert runs == ["before", "during"]
    assert [task["task_id"] for task in persistence.load_tasks()] == ["kept", "changed", "added"]
    assert "the database serves again" in caplog.text


def test_without_the_setting_a_process_stays_on_the_files(
    opened: MakePersistence, base: Path, server: EmbeddedServer
) -> None:
    settings = replace(PROMPT, reattach_seconds=None)
    persistence = opened(base, url=server.url, settings=settings)
    server.stop()
    persistence.add_task(make_task("a"))
    server.start()
    before = threading.active_count()
    assert persistence.load_tasks()
    assert persistence.health().store == "files"
    assert threading.active_count() == before


def test_a_start_during_an_outage_attaches_later(
    opened: MakePersistence, base: Path, server: EmbeddedServer
) -> None:
    OldCode(base).save([make_task("a")])
    server.stop()
    persistence = opened(base, url=server.url, settings=PROMPT)
    assert persistence.health().store == "files"
    server.start()
    wait_until(serves_database(persistence))
    assert rows(server.url, "SELECT task_key FROM scheduler_tasks") == ["a"]


def test_what_threads_write_during_an_attach_is_in_the_database_after_it(
    opened: MakePersistence, base: Path, server: EmbeddedServer
) -> None:
    persistence = opened(base, url=server.url, settings=PROMPT)
    acknowledged: list[str] = []
    over = threading.Event()

    def work(name: str) -> None:
        number = 0
        while not over.is_set():
            number += 1
            key = f"{name}-{number}"
            if persistence.add_task(make_task(key)):
                acknowledged.append(key)
            persistence.log_task_execution(key, True, key)
            # Whichever store serves by now shows it.
            assert persistence.get_task(key) is not None
            assert persistence.get_task_history(key)

    threads = [threading.Thread(target=work, args=(name,)) for name in "xy"]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            server.stop()
            wait_until(lambda: persistence.health().store == "files")
            seen = len(acknowledged)
            wait_until(lambda n=seen: len(acknowledged) > n + 5)
            server.start()
            wait_until(serves_database(persistence))
    finally:
        over.set()
        for thread in threads:
            thread.join()
    keys = rows(server.url, "SELECT task_key FROM scheduler_tasks")
    assert set(keys) == set(acknowledged)
    messages = rows(server.url, "SELECT message FROM scheduler_runs")
    assert sorted(messages) == sorted(acknowledged)
    assert {task["task_id"] for task in OldCode(base).load()} == set(acknowledged)


def test_hooks_are_called_again(
    opened: MakePersistence, base: Path, server: EmbeddedServer
) -> None:
    calls: list[str] = []

    class Hook:
        def refresh(self, event: Any) -> None:
            calls.append(event.reason)

    persistence = opened(base, url=server.url, settings=PROMPT, hooks=[Hook()])
    server.stop()
    persistence.load_tasks()
    server.start()
    wait_until(serves_database(persistence))
    before = len(calls)
    persistence.load_tasks()
    assert calls[before:] == ["listing"]


def test_a_forked_child_attaches_by_itself(
    opened: MakePersistence, base: Path, server: EmbeddedServer
) -> None:
    persistence = opened(base, url=server.url, settings=PROMPT)
    server.stop()
    persistence.add_task(make_task("a"))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            persistence.load_tasks()
            wait_until(serves_database(persistence))
            code = 0 if persistence.add_task(make_task("b")) else 2
        finally:
            sys.stderr.flush()
            os._exit(code)
    server.start()
    assert os.waitpid(child, 0)[1] == 0
    wait_until(serves_database(persistence))
    assert [task["task_id"] for task in persistence.load_tasks()] == ["a", "b"]


def test_closing_ends_the_trying(
    opened: MakePersistence, base: Path, server: EmbeddedServer
) -> None:
    server.stop()
    persistence = opened(base, url=server.url, settings=PROMPT)
    persistence.close()
    wait_until(
        lambda: not any(t.name == "datahound-storage-reattach" for t in threading.enumerate())
    )
    server.start()
    assert persistence.health().store == "files"
