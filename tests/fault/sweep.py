"""The sweep: each operation of the facade, with a fault at each of its system calls.

    python -m tests.fault.sweep OPERATION MODE BASE [--url URL] [--lane I --lanes N]

Traces the operation once to learn its system calls, then tries for each of them that the process
is killed there, and for those on files and sockets that they fail. After each trial both sides are
looked at, raw and by a new facade. Prints a report as JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psycopg

from datahound_storage import StorageError
from tests.fault.sweep_checks import Checks
from tests.fault.sweep_meetings import Attach, AttachToFiles, LoadAfterFileEdit, LoadAfterRowEdit
from tests.fault.sweep_operations import (
    AddTask,
    ClearHistory,
    DeleteTask,
    LogRun,
    Operation,
    SaveTasks,
    UpdateTask,
)
from tests.fault.sweep_trial import (
    Outcome,
    Point,
    Process,
    calls_of,
    traced,
    was_injected,
)
from tests.fault.sweep_world import World

ALL: tuple[Operation, ...] = (
    AddTask(),
    UpdateTask(),
    DeleteTask(),
    SaveTasks(),
    LogRun(),
    ClearHistory(),
    LoadAfterFileEdit(),
    LoadAfterRowEdit(),
    Attach(),
    AttachToFiles(),
)
# Of the calls that operations make, those on files and directories.
FILE_CALLS = re.compile(
    r"open(at)?|creat|p?(read|write)(64|v)?|f(data)?sync|(un|sym|read)?link(at)?|"
    r"renameat2?|rename|[lf]?stat|newfstatat|statx|f?truncate|close|f?ch(mod|own)(at)?|utimensat|"
    r"flock|lseek|mkdir(at)?|getdents64|f?access(at2?)?|copy_file_range|sendfile|fallocate"
)
SOCKET_CALLS = frozenset({"sendto", "recvfrom", "poll"})
# What was not sent is not answered, which looks like a server that is frozen; and a `close` that
# strace lets fail does not close, so that the file lock stays taken. Waiting for it is no use.
STALLING = frozenset({"sendto", "close"})
PATIENT, IMPATIENT = 5.0, 0.5
# More says nothing more.
_MOST_FAILURES = 20


@dataclass
class Report:
    """How many faults struck, how many found no call to strike, and what was wrong then."""

    points: int = 0
    missed: int = 0
    seconds: float = 0.0
    kinds: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Take in what another lane reports, which worked at the same time."""
        self.points += other.points
        self.missed += other.missed
        self.seconds = max(self.seconds, other.seconds)
        self.failures += other.failures
        for kind, count in other.kinds.items():
            self.kinds[kind] = self.kinds.get(kind, 0) + count


def why_not() -> str | None:
    """Why there can be no sweep here, found out by trying; None if there can be one."""
    if shutil.which("strace") is None:
        return "there is no strace"
    code = "from tests.fault.sweep_trial import let_trace; let_trace(); print(); input()"
    with (
        tempfile.NamedTemporaryFile() as log,
        subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1) as waiting,
    ):
        assert waiting.stdout is not None
        try:
            waiting.stdout.readline()
            with traced(waiting.pid, ["inject=close:error=EIO:when=100"], Path(log.name)):
                waiting.kill()
                waiting.wait()
        except OSError as error:
            return str(error)
        finally:
            waiting.kill()
    return None


@contextmanager
def _lane(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that does not outlive the block; what it has started does not outlive it."""
    with subprocess.Popen(command, stdout=-1, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def sweep(name: str, mode: str, directory: Path, urls: Sequence[str | None]) -> Report:
    """Sweep an operation, in as many processes at once as there are URLs (None: for the files)."""
    total = Report()
    with ExitStack() as lanes:
        processes = []
        for lane, url in enumerate(urls):
            command = [sys.executable, "-m", __name__, name, mode, str(directory / str(lane))]
            command += ["--lane", str(lane), "--lanes", str(len(urls))]
            command += ["--url", url] if url is not None else []
            processes.append(lanes.enter_context(_lane(command)))
        for process in processes:
            output, _ = process.communicate()
            if process.returncode != 0:
                raise AssertionError(f"the sweep itself failed: status {process.returncode}")
            total.add(Report(**json.loads(output)))
    return total


def find(name: str, mode: str) -> Operation:
    """The operation of a name in a mode."""
    return next(each for each in ALL if each.name == name and mode in each.modes)


class Sweep:
    """All trials of one operation in one world."""

    def __init__(self, world: World, operation: Operation, lane: int) -> None:
        self.report = Report()
        self._world = world
        self._operation = operation
        self._lane = lane
        self._count = 0
        self._log = world.base / "strace.log"

    def run(self, lanes: int) -> Report:
        """Try each point that is this lane's."""
        start = time.monotonic()
        self._world.populate()
        for point in self._points():
            if zlib.crc32(str(point).encode()) % lanes == self._lane:
                self._try(point)
            if len(self.report.failures) >= _MOST_FAILURES:
                break
        self._world.disconnect()
        self.report.seconds = time.monotonic() - start
        return self.report

    def _points(self) -> list[Point]:
        """The points of the operation, as a trace of it tells."""
        problems, _ = self._attempt(None)
        self.report.failures += [f"without any fault: {problem}" for problem in problems]
        calls = calls_of(self._log)
        return [
            Point(kind, call, number)
            for call in sorted(calls)
            for number in sorted(calls[call])
            for kind in _kinds(call)
        ]

    def _try(self, point: Point) -> None:
        problems, killed = self._attempt(point)
        if killed if point.kind == "KILL" else was_injected(self._log):
            self.report.points += 1
            self.report.kinds[point.kind] = self.report.kinds.get(point.kind, 0) + 1
        else:
            self.report.missed += 1
        self.report.failures += [f"{point}: {problem}" for problem in problems]

    def _attempt(self, point: Point | None) -> tuple[list[str], bool]:
        try:
            return self._trial(point)
        except (AssertionError, OSError, StorageError, psycopg.Error) as error:
            return [f"{type(error).__name__}: {error}"], False

    def _trial(self, point: Point | None) -> tuple[list[str], bool]:
        """What is wrong after the operation under strace, and whether its process was killed."""
        self._count += 1
        world, mark = self._world, f"{self._lane}-{self._count}"
        self._operation.prepare(world, mark)
        if self._operation.attaches:
            world.close()
        patience = IMPATIENT if point and point.call in STALLING else PATIENT
        expressions = point.expressions if point else ["trace=all"]
        with Process(world, self._operation, mark, patience) as process:
            self._operation.meddle(world, mark)
            checks = Checks(world, self._operation, mark)
            with traced(process.pid, expressions, self._log):
                is_alive = process.go()
                if is_alive:
                    checks.look(process.outcome())
                if is_alive and self._can_go_on(point):
                    process.go()
                    checks.look_at_next(process.outcome())
                process.end()
        world.close()
        world.wait_until_quiet()
        if not is_alive:
            checks.look(Outcome())
            checks.let_others_change()
        checks.look_afresh()
        world.forget_runs()
        return checks.problems, not is_alive

    def _can_go_on(self, point: Point | None) -> bool:
        """Not where the fault did not strike yet, as it would strike in what follows."""
        return point is None or (point.call != "close" and was_injected(self._log))


def _kinds(call: str) -> Iterator[str]:
    yield "KILL"
    on_file = FILE_CALLS.fullmatch(call) is not None
    if on_file or call in SOCKET_CALLS:
        yield "EIO"
    if on_file:
        yield "ENOSPC"


def main() -> None:
    """Sweep as the arguments say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("operation")
    parser.add_argument("mode", choices=("files", "database"))
    parser.add_argument("base", type=Path)
    parser.add_argument("--url")
    parser.add_argument("--lane", type=int, default=0)
    parser.add_argument("--lanes", type=int, default=1)
    options = parser.parse_args()
    operation = find(options.operation, options.mode)
    options.base.mkdir(parents=True, exist_ok=True)
    # What the package reports is expected here, and none of the reader's business.
    for name in ("datahound_storage", "psycopg"):
        logging.getLogger(name).addHandler(logging.NullHandler())
    report = Sweep(World(options.base, options.url), operation, options.lane).run(options.lanes)
    print(json.dumps(asdict(report)))


if __name__ == "__main__":
    main()
