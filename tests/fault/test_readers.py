"""Readers while several processes write as fast as they can: no half file, nothing lost."""

from __future__ import annotations

import fcntl
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from datahound_storage.files import history
from tests.fault.writers import Told, Writer, writing
from tests.fix_persistence import MakePersistence
from tests.scheduler import OldCode, make_task

READS = 3000
LINES = 60
TRIMS = 60
BOUND = 60.0
# So long that a reader would meet a file that is half written.
LONG = "x" * 50_000


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting long for the lock, beside so many others on a busy machine, is no failure here."""
    monkeypatch.setenv("DATAHOUND_STORAGE_TIMEOUT_SECONDS", "60")


@contextmanager
def writers(base: Path, url: str | None, *names: str) -> Iterator[list[Writer]]:
    """Processes that have begun to write."""
    with ExitStack() as resources:
        started = [resources.enter_context(writing(base, name, url)) for name in names]
        for writer in started:
            writer.wait_for(1)
        yield started


def end_all(started: list[Writer]) -> list[Told]:
    """Let each of them write some more; what they were told."""
    for writer in started:
        writer.wait_for(LINES)
    return [writer.end() for writer in started]


def read_without_lock(tasks_file: Path) -> int:
    """Read as a dashboard does; how many different states it saw."""
    seen = set()
    for _ in range(READS):
        content = tasks_file.read_bytes()
        tasks = json.loads(content)
        assert tasks[0]["description"] == LONG
        seen.add(tasks[-1]["task_id"])
    return len(seen)


def read_with_lock(old: OldCode, done: threading.Event) -> int:
    """Read as the old code does; how often."""
    times = 0
    while not done.is_set():
        assert old.load()[0]["description"] == LONG
        times += 1
    return times


def follow(history_file: Path, done: threading.Event) -> list[str]:
    """Tail a file as a dashboard does: whole lines, from where it stopped."""
    found: list[str] = []
    rest = b""
    with history_file.open("rb") as file:
        is_last = False
        while not is_last:
            is_last = done.is_set()
            *lines, rest = (rest + file.read()).split(b"\n")
            found += [json.loads(line)["message"] for line in lines]
    assert rest == b""
    return found


def test_readers_see_whole_files_and_no_writer_loses_what_was_acknowledged(
    make: MakePersistence, base: Path, store_url: str | None
) -> None:
    persistence = make()
    persistence.add_task(make_task("first", description=LONG))
    persistence.history_file.touch()
    start, done = time.monotonic(), threading.Event()
    with ThreadPoolExecutor() as pool, writers(base, store_url, "v", "w") as started:
        locking = pool.submit(read_with_lock, OldCode(base), done)
        following = pool.submit(follow, persistence.history_file, done)
        try:
            assert read_without_lock(persistence.tasks_file) > 1
            told = end_all(started)
        finally:
            done.set()
        assert locking.result() > 1
        followed = following.result()
    tasks = persistence.load_tasks()
    assert json.loads(persistence.tasks_file.read_bytes()) == tasks
    messages = [run["message"] for run in persistence.get_task_history(limit=100_000)]
    assert len(followed) == len(set(followed))
    for writer in told:
        assert writer.misses(tasks) == []
        assert writer.runs <= set(followed)
        assert writer.runs <= set(messages)
    assert time.monotonic() - start < BOUND


def log_as_old_code(base: Path) -> None:
    """Append a run of long ago, under the lock, and close the file."""
    old = {"timestamp": "2020-01-01T00:00:00Z", "task_id": "old", "message": "old"}
    with OldCode(base).lock_file.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with (base / "logging/scheduler/task_history.jsonl").open("a") as file:
            file.write(json.dumps(old) + "\n")


def line_of_today(number: int) -> str:
    return json.dumps(
        {"timestamp": datetime.now(UTC).isoformat(), "task_id": "a", "message": str(number)}
    )


def test_a_trim_loses_no_run_that_is_logged_meanwhile(base: Path, opened: MakePersistence) -> None:
    persistence = opened(base)
    # So many that rewriting them takes a while.
    history.append(persistence.history_file, map(line_of_today, range(3000)), durable=False)
    with writers(base, None, "v", "w") as started:
        for _ in range(TRIMS):
            log_as_old_code(base)
            assert persistence.clear_old_history(30) == 1
            for writer in started:
                writer.wait_for(1)
        told = end_all(started)
    messages = [run["message"] for run in persistence.get_task_history(limit=100_000)]
    assert "old" not in messages
    assert len(messages) == len(set(messages))
    for writer in told:
        assert writer.runs <= set(messages)
