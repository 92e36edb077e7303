"""One operation in a process of its own, with a fault at one of its system calls.

The process is a fork of a warm one. `strace` attaches while it waits for a signal; calls that
nothing else makes mark where the operation begins and ends, and the answer travels in shared
memory, so that telling it is no system call.
"""

from __future__ import annotations

import ctypes
import json
import logging
import mmap
import os
import re
import select
import signal
import subprocess
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

from datahound_storage import SchedulerPersistence, StorageError
from datahound_storage.postgres import deadline, pool
from tests.fault.sweep_operations import Operation
from tests.fault.sweep_world import World
from tests.scheduler import make_task

# Five seconds are promised; the rest is for a busy machine.
BOUND = 15.0
_MARK = "getpgid"
_SHARED = 1 << 20
_PR_SET_PDEATHSIG = 1
_PR_SET_PTRACER = 0x59616D61
_CALL = re.compile(r"^(\d+) +(\w+)\(")


class Point(NamedTuple):
    """A fault at the n-th call of a name since the process was attached to."""

    kind: str
    call: str
    number: int

    def __str__(self) -> str:
        return f"{self.kind} at {self.call} #{self.number}"

    @property
    def expressions(self) -> list[str]:
        """The fault in strace's words."""
        fault = "signal=KILL" if self.kind == "KILL" else f"error={self.kind}"
        inject = f"inject={self.call}:{fault}:when={self.number}"
        return [f"trace={self.call},{_MARK}", inject]


@dataclass
class Outcome:
    """What the process told. `error` is the class of what the operation raised."""

    finished: bool = False
    answer: Any = None
    error: str = ""
    is_ours: bool = False
    store: str = ""
    backup_problem: str | None = None
    reports: list[str] = field(default_factory=list)
    next_answer: bool | None = None
    next_error: str = ""
    next_problem: str | None = None


class Process:
    """The process of a trial: it waits for a signal before the operation and before the next one.

    The next one, an update of the task `witness`, shows whether the process goes on after a fault.
    """

    def __init__(self, world: World, operation: Operation, mark: str, patience: float) -> None:
        self._shared = mmap.mmap(-1, _SHARED)
        self._told, tell = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._told)
            try:
                _run(world, operation, mark, patience, tell, self._shared)
            except BaseException:  # noqa: BLE001 - a fork never returns into its parent's code
                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(tell)
        self._ended = False
        if not self.wait():
            raise AssertionError("the process of a trial died before it")

    def wait(self) -> bool:
        """Wait until a step is done; False if the process ended instead. Raises TimeoutError."""
        if not select.select([self._told], [], [], BOUND)[0]:
            raise TimeoutError(f"no answer within {BOUND:g} s")
        return os.read(self._told, 1) != b""

    def go(self) -> bool:
        """Let it do the next step, and wait for that."""
        os.kill(self.pid, signal.SIGUSR1)
        return self.wait()

    def outcome(self) -> Outcome:
        """What it told so far."""
        size = int.from_bytes(self._shared[:4], "big")
        return Outcome(**json.loads(self._shared[4 : 4 + size])) if size else Outcome()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        os.close(self._told)
        self._shared.close()

    def end(self) -> None:
        """Kill it if it still runs."""
        if not self._ended:
            self._ended = True
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def _run(
    world: World, operation: Operation, mark: str, patience: float, tell: int, shared: mmap.mmap
) -> None:
    """The life of the process of a trial."""
    let_trace()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    outcome, facade = Outcome(), world.facade
    _wait_at_most(patience)
    _listen(outcome.reports)
    tasks = [] if facade is None else facade.load_tasks()
    _tell_and_wait(tell)
    open_facade = partial(world.open, patience)
    work = partial(operation.perform, mark=mark, tasks=tasks)
    os.getpgid(0)
    facade = _perform(facade, open_facade, work, outcome)
    os.getpgid(0)
    _share(shared, outcome)
    _tell_and_wait(tell)
    if facade is not None:
        _perform_next(facade, mark, outcome)
        _share(shared, outcome)
    _tell_and_wait(tell)


def _wait_at_most(seconds: float) -> None:
    """Bound operations, also bulk ones, for the databases that there are already."""
    deadline.BULK_STALL = seconds
    for database in list(pool._databases):
        database.timeout = seconds


def _listen(reports: list[str]) -> None:
    """Take the package's error reports; writing them would be a system call."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            reports.append(record.getMessage())

    logger = logging.getLogger("datahound_storage")
    logger.handlers[:] = [Handler(logging.ERROR)]
    logger.propagate = False


def let_trace() -> None:
    """Let strace trace this process, where otherwise only a parent may."""
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)


def _tell_and_wait(tell: int) -> None:
    os.write(tell, b".")
    signal.sigwait({signal.SIGUSR1})


def _perform(
    facade: SchedulerPersistence | None,
    open_facade: Callable[[], SchedulerPersistence],
    work: Callable[[SchedulerPersistence], Any],
    outcome: Outcome,
) -> SchedulerPersistence | None:
    try:
        facade = facade or open_facade()
        outcome.answer = work(facade)
    except Exception as error:  # noqa: BLE001 - what it is, is what the trial wants to know
        outcome.error = f"{type(error).__name__}: {error}"[:300]
        outcome.is_ours = isinstance(error, StorageError)
    outcome.finished = True
    if facade is not None:
        health = facade.health()
        outcome.store, outcome.backup_problem = health.store, health.backup_problem
    return facade


def _perform_next(facade: SchedulerPersistence, mark: str, outcome: Outcome) -> None:
    try:
        outcome.next_answer = facade.update_task(make_task("witness", name=mark))
        outcome.next_problem = facade.health().backup_problem
    except Exception as error:  # noqa: BLE001 - as above
        outcome.next_error = f"{type(error).__name__}: {error}"[:300]


def _share(shared: mmap.mmap, outcome: Outcome) -> None:
    data = json.dumps(asdict(outcome)).encode()
    shared[: 4 + len(data)] = len(data).to_bytes(4, "big") + data


# The tracer.


@contextmanager
def traced(pid: int, expressions: list[str], log: Path) -> Iterator[None]:
    """Have strace attached to a process, which has to end inside of the block."""
    command = ["strace", "-f", "-s", "0", "-e", "signal=none", "-o", str(log), "-p", str(pid)]
    for expression in expressions:
        command += ["-e", expression]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        said = strace.stderr.readline()
        try:
            if "attached" not in said:
                raise OSError(f"strace cannot attach to a process here: {said.strip()}")
            yield
            strace.communicate(timeout=BOUND)
        finally:
            strace.kill()


def calls_of(log: Path) -> dict[str, set[int]]:
    """The system calls of the operation by name, each with its number in its own thread.

    The tracer counts for each thread by itself, from the moment in which it is attached.
    """
    counts: Counter[tuple[str, str]] = Counter()
    calls: dict[str, set[int]] = {}
    marks = 0
    for line in log.read_text().splitlines():
        found = _CALL.match(line)
        if found is None:
            continue
        thread, name = found.groups()
        counts[thread, name] += 1
        if name == _MARK:
            marks += 1
        elif marks == 1:
            calls.setdefault(name, set()).add(counts[thread, name])
    if marks < 2:
        raise AssertionError("the operation did not come to its end without a fault")
    return calls


def was_injected(log: Path) -> bool:
    """Whether an error struck inside of the operation."""
    after = log.read_text().partition(f"{_MARK}(")[2]
    return "(INJECTED)" in after.partition(f"{_MARK}(")[0]
