"""Processes that write as fast as they can, and tell what was acknowledged.

Run as `python -m tests.fault.writers BASE NAME`: each operation is a line on the standard output
when it begins and another one when it was acknowledged, until the input is closed or a call fails.
"""

from __future__ import annotations

import json
import logging
import os
import select
import subprocess
import sys
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import IO, Any

from datahound_storage import SchedulerPersistence
from datahound_storage.errors import FileStoreError
from tests.scheduler import make_task

ROOT = Path(__file__).resolve().parents[2]
_BOUND = 60
_KEPT = 5
_RUNS = 4
_DISK_FAILED = 3


@dataclass
class Told:
    """What a writer has told: the last version of each task, which ones may follow, and runs."""

    tasks: dict[str, int | None] = field(default_factory=dict)
    begun: defaultdict[str, set[int | None]] = field(default_factory=lambda: defaultdict(set))
    runs: set[str] = field(default_factory=set)

    def take(self, line: str, *, counts: bool = True) -> None:
        """Take note of a line; where it does not count, of what it says to have begun only."""
        what, key, version = json.loads(line)
        if what == "begun":
            self.begun[key].add(version)
        elif counts and what == "run":
            self.runs.add(key)
        elif counts:
            self.tasks[key] = version
            self.begun.pop(key, None)

    def misses(self, tasks: list[dict[str, Any]]) -> list[str]:
        """The keys of tasks that are neither as acknowledged nor as a later call makes them."""
        found: dict[str, int] = {task["task_id"]: task["run_count"] for task in tasks}
        return [
            key
            for key, version in self.tasks.items()
            if found.get(key) not in {version, *self.begun.get(key, ())}
        ]


class Writer:
    """A writing process, as its parent sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.told = Told()
        self._process = process

    def wait_for(self, lines: int) -> None:
        """Until it has told so many more things."""
        for _ in range(lines):
            line = self._output.readline()
            assert line, "the writer ended"
            self.told.take(line)

    def end(self, *, counts: bool = True) -> Told:
        """Let it end, by itself or by the failure that a test has made; all that it told.

        With `counts=False` what it tells from now on is no acknowledgement: in a power cut that is
        only played, a sync that is under way at that instant may be told that it is done.
        """
        assert self._process.stdin is not None
        self._process.stdin.close()
        for line in self._output:
            self.told.take(line, counts=counts)
        code = self._process.wait(_BOUND)
        assert code == 0 or (code == _DISK_FAILED and not counts), f"the writer failed: {code}"
        return self.told

    @property
    def _output(self) -> IO[str]:
        assert self._process.stdout is not None
        return self._process.stdout


@contextmanager
def writing(base: Path, name: str, url: str | None = None) -> Iterator[Writer]:
    """A process that writes tasks and runs below `base`, named after `name`."""
    environment = os.environ | {"DATAHOUND_STORAGE_URL": url or ""}
    with subprocess.Popen(
        [sys.executable, "-m", __name__, str(base), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    ) as process:
        try:
            yield Writer(process)
        finally:
            process.kill()


class _Failures(logging.Handler):
    """Counts what the package reports: `log_task_execution` tells a failure in no other way."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


def _tell(what: str, key: str, version: int | None) -> None:
    print(json.dumps([what, key, version]), flush=True)


class _Work:
    """Adds, updates and deletes tasks, and logs runs, one after the other."""

    def __init__(self, persistence: SchedulerPersistence, name: str) -> None:
        self._persistence = persistence
        self._name = name
        self._numbers = count()
        self._keys: deque[str] = deque()
        self._failures = _Failures()
        logging.getLogger("datahound_storage").addHandler(self._failures)

    @property
    def has_failed(self) -> bool:
        """Whether the package has reported a failure."""
        return self._failures.count > 0

    def go_on(self) -> bool:
        """Do some more; False to stop, where a failure was reported or the input is closed."""
        key = f"{self._name}-{next(self._numbers)}"
        self._keys.append(key)
        self._change(key, 0)
        self._change(key, 1)
        for run in range(_RUNS):
            self._run(f"{key}-{run}")
        if len(self._keys) > _KEPT:
            self._change(self._keys.popleft(), None)
        return not self.has_failed and not select.select([sys.stdin], [], [], 0)[0]

    def _change(self, key: str, version: int | None) -> None:
        _tell("begun", key, version)
        if version is None:
            done = self._persistence.delete_task(key)
        elif version == 0:
            done = self._persistence.add_task(make_task(key))
        else:
            done = self._persistence.update_task(make_task(key, run_count=version))
        assert done, f"lost: {key}, version {version}"
        if not self.has_failed:
            _tell("done", key, version)

    def _run(self, key: str) -> None:
        self._persistence.log_task_execution(key, True, message=key)
        if not self.has_failed:
            _tell("run", key, None)


def _main(base: Path, name: str) -> int:
    persistence = SchedulerPersistence(base / "data")
    work = _Work(persistence, name)
    try:
        while work.go_on():
            pass
    except FileStoreError:
        return _DISK_FAILED  # whoever reads has what was acknowledged before
    finally:
        persistence.close()
    return _DISK_FAILED if work.has_failed else 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), sys.argv[2]))
