"""What the tests of faults share: the calls of a scheduler, and what each must do in a fault."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from datahound_storage import SchedulerPersistence
from datahound_storage.settings import Settings, from_environment
from tests.fault.proxy import Proxy
from tests.scheduler import make_task

# Five seconds are promised; the rest is for a busy machine.
BOUND = 15.0
PASSWORD = "hunter2"
SETTING = "a-setting-that-is-secret"
_FALLEN_BACK = "the database does not serve"


def secret_task(task_id: str, **changes: Any) -> dict[str, Any]:
    """A task with settings that nobody may read in a log."""
    config = {"task_type": "download", "company": "Acme", "settings": {"token": SETTING}}
    return make_task(task_id, **{"task_config": config, **changes})


def impatient(seconds: float = 1.0) -> Settings:
    """Settings for tests in which the bound of five seconds is not what is tested."""
    return replace(from_environment(), operation_timeout=seconds)


class Call(NamedTuple):
    """A call of the scheduler, its right answer, and what it leaves in the store."""

    make: Callable[[SchedulerPersistence], Any]
    answer: Any
    keys: tuple[str, ...] = ("a", "b")
    name: str = "Task a"
    runs: tuple[str, ...] = ("before",)


CALLS: dict[str, Call] = {
    "get_task": Call(lambda p: p.get_task("a")["name"], "Task a"),
    "load_tasks": Call(lambda p: [task["task_id"] for task in p.load_tasks()], ["a", "b"]),
    "get_active_tasks": Call(lambda p: [task["task_id"] for task in p.get_active_tasks()], ["a"]),
    "get_task_history": Call(lambda p: [e["message"] for e in p.get_task_history()], ["before"]),
    "clear_old_history": Call(lambda p: p.clear_old_history(0), 1, runs=()),
    "log_task_execution": Call(
        lambda p: p.log_task_execution("a", True, "during"), None, runs=("during", "before")
    ),
    "add_task": Call(lambda p: p.add_task(secret_task("c")), True, keys=("a", "b", "c")),
    "update_task": Call(
        lambda p: p.update_task(secret_task("a", name="changed")), True, name="changed"
    ),
    "delete_task": Call(lambda p: p.delete_task("b"), True, keys=("a",)),
    "save_tasks": Call(
        lambda p: p.save_tasks([secret_task("a", name="saved"), secret_task("c")]),
        True,
        keys=("a", "c"),
        name="saved",
    ),
}


def fill(persistence: SchedulerPersistence) -> None:
    """Put there what the calls expect."""
    assert persistence.add_task(secret_task("a"))
    assert persistence.add_task(secret_task("b", status="paused"))
    # The sidecar cannot tell whether a file that was changed since had shown its last change.
    assert persistence.add_task(secret_task("gone"))
    assert persistence.delete_task("gone")
    persistence.log_task_execution("a", True, "before")
    assert persistence.health().store == "database"


def check_left(persistence: SchedulerPersistence, call: Call) -> None:
    """The store holds what the call leaves, each once."""
    tasks = {task["task_id"]: task["name"] for task in persistence.load_tasks()}
    assert tuple(tasks) == call.keys
    assert tasks["a"] == call.name
    assert tuple(entry["message"] for entry in persistence.get_task_history()) == call.runs


def check_files(persistence: SchedulerPersistence, call: Call) -> None:
    """The files by themselves hold what the call leaves, each once."""
    tasks = json.loads(persistence.tasks_file.read_text())
    assert tuple(task["task_id"] for task in tasks) == call.keys
    lines = persistence.history_file.read_text().splitlines()
    assert sorted(json.loads(line)["message"] for line in lines) == sorted(call.runs)


@contextmanager
def bounded(seconds: float = BOUND) -> Iterator[None]:
    """What is done within takes no longer than that."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


class Told:
    """What the package told the operator during a test."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def errors(self) -> list[str]:
        """The errors that were logged."""
        return self._texts(logging.ERROR)

    def warnings(self) -> list[str]:
        """The warnings and errors that were logged."""
        return self._texts(logging.WARNING)

    def _texts(self, level: int) -> list[str]:
        return [
            record.getMessage()
            for record in self._caplog.records
            if record.levelno >= level and record.name.startswith("datahound_storage")
        ]

    def fallen_back(self, persistence: SchedulerPersistence) -> str:
        """Assert that the process fell back and said so once; return the reason."""
        health = persistence.health()
        assert health.store == "files", health
        reports = [text for text in self.errors() if _FALLEN_BACK in text]
        assert len(reports) == 1, reports
        assert health.reason in reports[0]
        self.check_secrets(health.reason)
        return health.reason

    def on_database(self, persistence: SchedulerPersistence) -> None:
        """Assert that the database serves and that nobody reported anything else."""
        assert persistence.health().store == "database", persistence.health()
        assert self.errors() == []

    def check_secrets(self, *texts: str) -> None:
        """Assert that neither a password nor a task's setting is in the logs or in `texts`."""
        shown = "\n".join([self._caplog.text, *texts])
        assert PASSWORD not in shown
        assert SETTING not in shown


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[Told]:
    """What is told during the test; whatever it is, there are no secrets in it."""
    caplog.set_level(logging.DEBUG)
    told = Told(caplog)
    yield told
    told.check_secrets()


@pytest.fixture
def proxy(migrated_url: str) -> Iterator[Proxy]:
    """A proxy in front of a migrated, empty database."""
    with Proxy(migrated_url) as proxy:
        yield proxy
