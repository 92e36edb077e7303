"""Whether the files show what the database holds: task by task, run by run.

A scheduler may be writing: a change is in the database a moment before the snapshot, and a run in
the file before the table. So a difference counts only if a second reading, a moment later, finds it
again. The file lock is held while the snapshot is read, never while waiting for the database.
"""

from __future__ import annotations

import json
import time
from collections.abc import Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import Enum, auto
from hashlib import blake2b
from pathlib import Path
from typing import Any

from datahound_storage.codec import Task, decode, same
from datahound_storage.dal import StorageDAL
from datahound_storage.files import history, snapshot
from datahound_storage.files.lock import locked
from datahound_storage.files.paths import StatePaths
from datahound_storage.files.snapshot import Snapshot, SnapshotItem
from datahound_storage.postgres.run_table import StoredRun, entry_of_stored
from datahound_storage.postgres.stored import StoredTask
from datahound_storage.runs import HistoryEntry, Line, identify

# Named as a field where two tasks have the same fields, but not in the same order.
KEY_ORDER = "(order of the keys)"


@dataclass(frozen=True)
class TaskDifference:
    """A task that the two sides show differently: in which top-level fields, never their values."""

    task_key: str
    fields: tuple[str, ...]


@dataclass(frozen=True)
class UnreadTask:
    """A task that only a damaged snapshot names, this one or one that was kept aside: its file."""

    task_key: str
    file: str


@dataclass(frozen=True)
class VerifyReport:
    """What a comparison found.

    `tasks_unread` are named in a damaged snapshot, and in the database they neither are nor were.
    Runs count if they ended. `runs_trimmed`: lines of runs that the database has pruned since, a
    failed trim or another host left them, and they are never carried back. `lines_unusable`: lines
    that no reader can use, `in_motion`: differences that were gone or others a moment later. None
    of these three makes the sides unequal.
    """

    tasks_in_database: int
    tasks_in_snapshot: int
    runs_in_table: int
    runs_in_file: int
    tasks_only_in_database: tuple[str, ...] = ()
    tasks_only_in_snapshot: tuple[str, ...] = ()
    tasks_different: tuple[TaskDifference, ...] = ()
    order_differs: bool = False
    snapshot_problems: tuple[str, ...] = ()
    tasks_unread: tuple[UnreadTask, ...] = ()
    runs_only_in_table: tuple[str, ...] = ()
    runs_only_in_file: tuple[str, ...] = ()
    runs_different: tuple[str, ...] = ()
    runs_trimmed: int = 0
    lines_unusable: int = 0
    in_motion: int = 0

    @property
    def equal(self) -> bool:
        """Whether the files could take over now without a change that anybody would notice."""
        return not (
            self.tasks_only_in_database
            or self.tasks_only_in_snapshot
            or self.tasks_different
            or self.order_differs
            or self.snapshot_problems
            or self.tasks_unread
            or self.runs_only_in_table
            or self.runs_only_in_file
            or self.runs_different
        )

    def as_json(self) -> dict[str, Any]:
        """The report as plain JSON values, with `equal`."""
        return {"equal": self.equal, **asdict(self)}


class _Kind(Enum):
    TASK_ONLY_IN_DATABASE = auto()
    TASK_ONLY_IN_SNAPSHOT = auto()
    TASK_DIFFERENT = auto()
    ORDER = auto()
    PROBLEM = auto()
    TASK_UNREAD = auto()
    RUN_ONLY_IN_TABLE = auto()
    RUN_ONLY_IN_FILE = auto()
    RUN_DIFFERENT = auto()


@dataclass
class _Reading:
    """What one look at both sides found: for each difference, what proves it to be the same one."""

    counts: dict[str, int] = field(default_factory=dict)
    found: dict[tuple[_Kind, str], Hashable] = field(default_factory=dict)
    fields: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def add(self, kind: _Kind, name: str, evidence: Hashable = None) -> None:
        self.found[kind, name] = evidence

    def names(self, kind: _Kind) -> tuple[str, ...]:
        return tuple(name for found, name in self.found if found is kind)


def compare(
    dal: StorageDAL, paths: StatePaths, *, patience: float = 5.0, pause: float = 1.0
) -> VerifyReport:
    """Compare the database with the files of a data directory. Changes nothing on either side.

    `patience` bounds the wait for the file lock, `pause` is how long a change may be on its way
    from one side to the other; both in seconds. Takes memory for the ids of all runs. Raises
    DatabaseError, FileStoreError, LockTimeoutError.
    """
    reading = _read(dal, paths, patience)
    in_motion = 0
    if reading.found:
        earlier = reading.found
        time.sleep(pause)  # not to wait for something: to see whether it stays
        reading = _read(dal, paths, patience)
        confirmed = {k: v for k, v in reading.found.items() if k in earlier and earlier[k] == v}
        in_motion = len(earlier.keys() | reading.found.keys()) - len(confirmed)
        reading.found = confirmed
    return _report(reading, in_motion)


def _report(reading: _Reading, in_motion: int) -> VerifyReport:
    names = reading.names
    return VerifyReport(
        **reading.counts,
        tasks_only_in_database=names(_Kind.TASK_ONLY_IN_DATABASE),
        tasks_only_in_snapshot=names(_Kind.TASK_ONLY_IN_SNAPSHOT),
        tasks_different=tuple(
            TaskDifference(key, reading.fields[key]) for key in names(_Kind.TASK_DIFFERENT)
        ),
        order_differs=bool(names(_Kind.ORDER)),
        snapshot_problems=names(_Kind.PROBLEM),
        tasks_unread=tuple(
            UnreadTask(key, str(file))
            for (kind, key), file in reading.found.items()
            if kind is _Kind.TASK_UNREAD
        ),
        runs_only_in_table=names(_Kind.RUN_ONLY_IN_TABLE),
        runs_only_in_file=names(_Kind.RUN_ONLY_IN_FILE),
        runs_different=names(_Kind.RUN_DIFFERENT),
        in_motion=in_motion,
    )


def _read(dal: StorageDAL, paths: StatePaths, patience: float) -> _Reading:
    reading = _Reading()
    with _lock_if_any(paths, patience):
        found = snapshot.read(paths.tasks_file)
    _compare_tasks(reading, dal.read_changes(None).tasks, found)
    _find_unread(reading, dal, paths, found)
    lines = _read_lines(paths.history_files, dal.history_cutoff())
    runs = dal.read_runs(lambda stored: _compare_runs(stored, lines))
    reading.found.update(runs.found)
    reading.counts.update(runs.counts)
    return reading


def _lock_if_any(paths: StatePaths, patience: float) -> AbstractContextManager[None]:
    # Made here, it might belong to root and shut the scheduler out; without one nobody writes yet.
    return locked(paths.lock_file, patience) if paths.lock_file.exists() else nullcontext()


def _compare_tasks(reading: _Reading, stored: list[StoredTask], found: Snapshot) -> None:
    ordered = sorted(stored, key=lambda task: (task.position, task.task_key))
    database = {task.task_key: task for task in ordered}
    files = {item.task_key: item for item in found.items}
    reading.counts.update(tasks_in_database=len(database), tasks_in_snapshot=len(files))
    for problem in found.problems:
        reading.add(_Kind.PROBLEM, problem, found.digest)
    for key, task in database.items():
        if key in files:
            _compare_task(reading, task, files[key])
        else:
            reading.add(_Kind.TASK_ONLY_IN_DATABASE, key, task.stamp)
    for key, item in files.items():
        if key not in database:
            reading.add(_Kind.TASK_ONLY_IN_SNAPSHOT, key, item.text)
    orders = [key for key in database if key in files], [key for key in files if key in database]
    if orders[0] != orders[1]:
        reading.add(_Kind.ORDER, "", tuple(map(tuple, orders)))


def _find_unread(reading: _Reading, dal: StorageDAL, paths: StatePaths, found: Snapshot) -> None:
    """Tasks that neither side has: they are in a file that was damaged when it was imported."""
    damaged = [*snapshot.kept_aside(paths.tasks_file), *([paths.tasks_file] * found.damaged)]
    named = {key: path.name for path in damaged for key in snapshot.named_ids(path)}
    known = {item.task_key for item in found.items}
    if named.keys() - known:
        known |= {stored.task_key for stored in dal.read_changes(None).tasks}
        known |= dal.tombstones().keys()
    for key in (key for key in named if key not in known):
        reading.add(_Kind.TASK_UNREAD, key, named[key])


def _compare_task(reading: _Reading, stored: StoredTask, item: SnapshotItem) -> None:
    if stored.text == item.text:
        return
    task = decode(stored.text)
    if not same(task, item.task):
        reading.fields[item.task_key] = _different_fields(task, item.task)
        reading.add(_Kind.TASK_DIFFERENT, item.task_key, (stored.stamp, item.text))


def _different_fields(left: Task, right: Task) -> tuple[str, ...]:
    names = dict.fromkeys([*left, *right])
    differing = (n for n in names if n not in left or n not in right or not same(left[n], right[n]))
    return tuple(differing) or (KEY_ORDER,)


@dataclass
class _Lines:
    """The history files in short: a digest for each run, those before the cutoff by themselves."""

    digests: dict[str, int] = field(default_factory=dict)
    pruned: set[str] = field(default_factory=set)
    unusable: int = 0

    def add(self, line: Line, cutoff: datetime | None) -> None:
        if line.run_id in self.digests:
            return  # the same run once more: readers take the first line
        self.digests[line.run_id] = _digest(line.entry)
        if cutoff is not None and line.ended_at < cutoff:
            self.pruned.add(line.run_id)


def _digest(entry: HistoryEntry) -> int:
    digest = blake2b(json.dumps(entry).encode("ascii"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


class _Counted:
    """Texts on their way, counted."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.count = 0
        self._texts = texts

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.count += 1
            yield text


def _read_lines(paths: Iterable[Path], cutoff: datetime | None) -> _Lines:
    lines = _Lines()
    for path in paths:
        texts, usable = _Counted(history.texts(path)), 0
        for line in identify(texts):
            lines.add(line, cutoff)
            usable += 1
        lines.unusable += texts.count - usable
    return lines


def _compare_runs(stored: Iterator[StoredRun], lines: _Lines) -> _Reading:
    reading = _Reading()
    left, in_table = dict(lines.digests), 0
    for run in stored:
        in_table += 1
        expected = left.pop(run.row.run_id, None)
        if expected is None:
            reading.add(_Kind.RUN_ONLY_IN_TABLE, run.row.run_id)
        elif expected != _digest(entry_of_stored(run)):
            reading.add(_Kind.RUN_DIFFERENT, run.row.run_id)
    for run_id in left:
        if run_id not in lines.pruned:
            reading.add(_Kind.RUN_ONLY_IN_FILE, run_id)
    reading.counts = {
        "runs_in_table": in_table,
        "runs_in_file": len(lines.digests),
        "runs_trimmed": len(left.keys() & lines.pruned),
        "lines_unusable": lines.unusable,
    }
    return reading
