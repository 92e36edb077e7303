"""The files take over while something is still owed to them, and locks that others hold."""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from dataclasses import replace as with_settings
from pathlib import Path
from typing import Any

import psycopg
import pytest

from datahound_storage import SchedulerPersistence
from datahound_storage.errors import LockTimeoutError
from tests.fault.fix_faults import impatient
from tests.fault.proxy import Proxy
from tests.fix_persistence import MakePersistence, as_another
from tests.scheduler import make_task


@contextmanager
def held(path: Path) -> Iterator[None]:
    """The file lock, in somebody else's hands."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def names(persistence: SchedulerPersistence) -> dict[str, str]:
    return {task["task_id"]: task["name"] for task in persistence.load_tasks()}


def change(persistence: SchedulerPersistence, task_key: str, **fields: Any) -> None:
    task = persistence.get_task(task_key)
    task.update(fields)
    assert persistence.update_task(task)


def cut(proxy: Proxy) -> None:
    proxy.refuse()
    proxy.drop()


def test_what_a_peer_has_shown_since_is_not_done_again(
    opened: MakePersistence, base: Path, migrated_url: str
) -> None:
    with Proxy(migrated_url) as proxy:
        mine = opened(base, url=proxy.url, settings=impatient())
        for key in ("edited", "deleted"):
            mine.add_task(make_task(key))
        with held(mine.lock_file):
            assert mine.add_task(make_task("revived"))
            change(mine, "edited", name="mine", run_count=1)
            assert mine.delete_task("deleted")
        peer = opened(base, url=migrated_url)
        assert peer.delete_task("revived")
        change(peer, "edited", name="the peer's")
        assert peer.add_task(make_task("deleted", name="added again"))
        cut(proxy)
        assert mine.get_task("edited")["run_count"] == 1
        assert mine.health().store == "files"
        expected = {"edited": "the peer's", "deleted": "added again"}
        assert names(mine) == names(peer) == expected
        mine.close()


def test_what_could_not_be_done_to_the_files_at_first_is_done_by_the_next_call(
    opened: MakePersistence, base: Path, migrated_url: str
) -> None:
    with Proxy(migrated_url) as proxy:
        persistence = opened(base, url=proxy.url, settings=impatient())
        persistence.add_task(make_task("kept"))
        task = persistence.get_task("kept")
        with held(persistence.lock_file):
            assert persistence.add_task(make_task("new"))
            task["status"] = "paused"
            assert persistence.update_task(task)
            cut(proxy)
            with pytest.raises(LockTimeoutError):
                persistence.get_task("kept")
        assert persistence.health().store == "files"
        assert persistence.get_task("kept")["status"] == "paused"
        assert persistence.get_task("new") is not None
        assert not persistence.add_task(make_task("new"))
        persistence.close()


def test_a_run_goes_in_without_the_lock_rather_than_not_at_all(
    opened: MakePersistence, base: Path
) -> None:
    persistence = opened(base, settings=impatient())
    persistence.log_task_execution("a", True, "before")
    with held(persistence.lock_file):
        persistence.log_task_execution("a", True, "during")
    assert [run["message"] for run in persistence.get_task_history()] == ["during", "before"]


def test_an_attach_that_waits_for_the_table_lets_others_have_the_files(
    opened: MakePersistence, base: Path, migrated_url: str
) -> None:
    """Two processes have fallen back, and both try the table that an operator keeps locked."""
    settings = with_settings(impatient(3.0), reattach_seconds=0.1)
    processes = [
        opened(base, url=as_another(migrated_url, name), settings=settings)
        for name in ("scheduler", "ui")
    ]
    processes[0].add_task(make_task("a"))
    with psycopg.connect(migrated_url) as operator:
        operator.execute("LOCK TABLE scheduler_tasks IN ACCESS EXCLUSIVE MODE")
        for number in range(6):
            for persistence in processes:
                assert len(persistence.get_active_tasks()) == 1
                persistence.log_task_execution("a", True, str(number))
        assert {persistence.health().store for persistence in processes} == {"files"}
    assert len(processes[0].get_task_history()) == 12


def test_closing_twice_leaves_the_other_facades_alone(
    opened: MakePersistence, base: Path, migrated_url: str
) -> None:
    first, second = opened(base, url=migrated_url), opened(base, url=migrated_url)
    first.close()
    first.close()
    third = opened(base, url=migrated_url)
    assert third._switch is second._switch


def test_logging_a_run_of_something_that_cannot_be_shown_does_not_raise(
    opened: MakePersistence, base: Path
) -> None:
    class Odd:
        def __str__(self) -> str:
            raise ValueError

    odd: Any = Odd()
    opened(base).log_task_execution(odd, True)


@dataclass(slots=True)
class Slotted:
    """A task class whose objects cannot be referred to weakly."""

    fields: dict[str, Any] = field(default_factory=dict)
    updated_at: str | None = None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Slotted:
        return cls(dict(data), data.get("updated_at"))

    def to_dict(self) -> dict[str, Any]:
        return {**self.fields, "updated_at": self.updated_at}


def test_objects_with_slots_are_known_too(
    opened: MakePersistence, base: Path, migrated_url: str
) -> None:
    scheduler = opened(base, url=migrated_url, task_class=Slotted)
    ui = opened(base, url=as_another(migrated_url, "ui"))
    ui.add_task(make_task("a"))
    task = scheduler.load_tasks()[0]
    change(ui, "a", status="paused", description="edited")
    scheduler.load_tasks()
    task.fields["run_count"] = 1
    assert scheduler.update_task(task)
    found = ui.get_task("a")
    assert (found["status"], found["description"], found["run_count"]) == ("paused", "edited", 1)


def test_threads_that_commit_while_another_falls_back(
    opened: MakePersistence, base: Path, migrated_url: str
) -> None:
    """All of them are answered, and what they were told is in the files."""
    with Proxy(migrated_url) as proxy:
        persistence = opened(base, url=proxy.url, settings=impatient())
        acknowledged: list[str] = []

        def add(name: str) -> None:
            keys = (f"{name}{number}" for number in range(20))
            acknowledged.extend(key for key in keys if persistence.add_task(make_task(key)))

        threads = [threading.Thread(target=add, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        while len(acknowledged) < 20:
            threads[0].join(0.001)
        cut(proxy)
        for thread in threads:
            thread.join()
        assert len(acknowledged) == 80
        assert set(names(persistence)) == set(acknowledged)
        persistence.close()


def test_a_committed_change_is_answered_though_the_files_cannot_take_over_yet(
    opened: MakePersistence, base: Path, migrated_url: str
) -> None:
    """The database goes away, and another call falls back, before the answer is given."""
    with Proxy(migrated_url) as proxy:

        class Meanwhile:
            def refresh(self, event: object) -> None:
                cut(proxy)
                with pytest.raises(LockTimeoutError):
                    persistence.get_task("a")

        persistence = opened(base, url=proxy.url, settings=impatient(), hooks=[Meanwhile()])
        with held(persistence.lock_file):
            assert persistence.add_task(make_task("a"))
        assert persistence.health().store == "files"
        assert names(persistence) == {"a": "Task a"}
        persistence.close()
