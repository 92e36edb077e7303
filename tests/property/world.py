"""The real world of the machine: two processes, an operator, old code, a server, and what fails.

Two facades of one Python process stand for two processes: their URLs differ in `application_name`,
so that they share nothing but the database and the files. The model hears of every write what its
writer had seen, and whether it was acknowledged.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from datahound_storage import SchedulerPersistence
from datahound_storage.codec import decode
from datahound_storage.dal import StorageDAL
from datahound_storage.errors import FileStoreError, LockTimeoutError, SnapshotError
from datahound_storage.files import conflicts, history
from datahound_storage.files.paths import StatePaths
from datahound_storage.postgres.pool import Database
from datahound_storage.runs import parse_line
from datahound_storage.settings import Settings
from datahound_storage.verify import compare
from tests.property.faults import DISK_FULL, Crash, Effects, Fault, Server
from tests.property.model import Found, Lost, Model, Task, law
from tests.scheduler import OldCode

FAILURES = (FileStoreError, SnapshotError, LockTimeoutError)
KEYS = "ab"
_FEW = 6
_RESET = """
DO $$ BEGIN
DELETE FROM scheduler_tasks; DELETE FROM scheduler_task_tombstones; DELETE FROM scheduler_runs;
DELETE FROM scheduler_conflicts;
UPDATE scheduler_storage SET identity = gen_random_uuid(), epoch = 0, filled_at = NULL,
    history_cutoff = NULL;
END $$"""
_EMPTY = """
TRUNCATE scheduler_tasks, scheduler_task_tombstones, scheduler_runs, scheduler_conflicts;
VACUUM FULL scheduler_storage"""
_EMPTY_EVERY = 100


class Stood(NamedTuple):
    """A task that a call found, for sure or perhaps."""

    task: Task
    is_sure: bool


def surely(found: list[Stood]) -> bool:
    """Whether a task stood there, whichever store it was: in the one that served, or in both."""
    return len(found) == 2 or any(stood.is_sure for stood in found)


@dataclass
class Held:
    """A task object that a process keeps, and what it showed when it was loaded or stored last."""

    task: dict[str, Any]
    seen: dict[str, Any]


@dataclass
class Process:
    """A process with its facade, None while it does not run, and the objects that it holds."""

    name: str
    with_url: bool = True
    facade: SchedulerPersistence | None = None
    held: list[Held] = field(default_factory=list)
    listed: list[Held] = field(default_factory=list)
    # What its facade takes for listed, None before the first listing: a saved list that lacks such
    # a task deletes it.
    known: set[str] | None = None
    files_may_lack: bool = False

    def end(self) -> None:
        """Close its sockets and forget what it held."""
        if self.facade is not None:
            self.facade.close()
        self.facade, self.held, self.listed, self.known = None, [], [], None

    def has_listed(self, keys: Iterable[str]) -> None:
        """These tasks are the whole state for its facade."""
        self.known = set(keys)

    def knows(self, key: str, *, is_there: bool) -> None:
        """Its facade was told whether a task is there."""
        if self.known is not None:
            (self.known.add if is_there else self.known.discard)(key)

    def hold(self, task: dict[str, Any]) -> Held:
        self.held = [*self.held, Held(task, dict(task))][-_FEW:]
        return self.held[-1]

    def drop(self, gone: Callable[[Held], bool]) -> None:
        self.held = [held for held in self.held if not gone(held)]
        self.listed = [held for held in self.listed if not gone(held)]

    @property
    def store(self) -> str:
        return self.facade.health().store if self.facade is not None else "none"


class World:
    """Everything outside of the model. One for all examples; `begin` makes it new."""

    def __init__(self, server: Server, effects: Effects, base: Path) -> None:
        self.server = server
        self.effects = effects
        self.base = base
        self.paths = StatePaths.below(base / "data")
        self.examples = 0
        self._dal = StorageDAL(Database(server.url))
        self.begin()

    def begin(self) -> None:
        """A new world: empty tables, no files, nobody runs."""
        self.model = Model()
        self.broken = False
        self.old_code = OldCode(self.base)
        self.processes = [Process("scheduler"), Process("web")]
        self._numbers = itertools.count(1)
        self.end_outage()
        self.examples += 1
        if self.examples % _EMPTY_EVERY == 0:
            for statement in _EMPTY.split(";"):
                self.sql(statement)
        self.sql(_RESET)
        shutil.rmtree(self.base, ignore_errors=True)
        self.paths.make_directories()

    def end_outage(self) -> None:
        """Let the database serve again."""
        self.server.end_outage()
        self._dal.close()  # its connections are dead

    def sql(self, statement: str) -> None:
        """Run a statement."""
        self._dal.database.run(lambda c: c.execute(statement.encode()))

    def _url_of(self, name: str) -> str:
        mark = "&" if "?" in self.server.url else "?"
        return f"{self.server.url}{mark}application_name={name}"

    def end(self) -> None:
        for process in self.processes:
            process.end()

    def close(self) -> None:
        self.end()
        self._dal.close()
        self.server.close()

    # What stands where.

    def row(self, key: str) -> Task | None:
        """A task in the database; None also while that is out of reach."""
        stored = None if self.server.is_out else self._dal.fetch_task(key)
        return None if stored is None else decode(stored.text)

    def has_lost_row(self, key: str) -> bool:
        """Whether a task is seen to be no more in the database."""
        return not self.server.is_out and self.row(key) is None

    def items(self) -> dict[str, dict[str, Any]]:
        """The tasks of the snapshot."""
        if not self.paths.tasks_file.exists():
            return {}
        return {task["task_id"]: task for task in json.loads(self.paths.tasks_file.read_bytes())}

    def append_line(self, line: str) -> None:
        """Append to the history as the old code does. A torn last line would be its own loss."""
        path = self.paths.history_file
        is_torn = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
        with path.open("a") as file:
            file.write(f"\n{line}\n" if is_torn else f"{line}\n")

    def new(self, what: str) -> str:
        """A value that no other write uses."""
        return f"{what} {next(self._numbers)}"

    # Calls.

    def start(self, process: Process, fault: Fault | None = None) -> None:
        """Start a process, if it survives that."""
        url = self._url_of(process.name) if process.with_url else None
        settings = Settings(url=url)
        try:
            with self.effects.during(fault):
                process.facade = SchedulerPersistence(self.base / "data", settings=settings)
        except (Crash, *FAILURES):
            process.facade = None

    def call(
        self, process: Process, do: Callable[[SchedulerPersistence], Any], fault: Fault | None
    ) -> Any:
        """A call of a process: its answer, or None where it was killed or failed."""
        self.ready(process)
        assert process.facade is not None
        try:
            process.files_may_lack |= fault is not None and fault.kind == DISK_FULL
            with self.effects.during(fault):
                return do(process.facade)
        except Crash:
            process.end()
        except FAILURES:
            assert fault is not None
        return None

    def ready(self, process: Process) -> None:
        """See that a process runs."""
        if process.facade is None:
            self.start(process)

    def before(self, process: Process, key: str) -> Callable[[], list[Stood]]:
        """What the next call will have found of a task; to be asked after it, when it is known
        which store served. Where the database failed in the middle, either may have."""
        if self.server.is_out and process.store == "database" and process.files_may_lack:
            # What the files lack of the acknowledged comes into them when they take over.
            self.call(process, lambda p: p.get_task(key), None)
        on_files = process.store == "files" or self.server.is_out
        row, item = self.row(key), self.items().get(key)

        def found() -> list[Stood]:
            if on_files or process.store != "files":
                task = item if on_files else row
                return [] if task is None else [Stood(task, True)]
            tasks = [task for task in (row, item) if task is not None]
            return [Stood(task, row == item) for task in tasks]

        return found

    def read_back(self, process: Process, task: Task, names: tuple[str, ...]) -> None:
        """Whoever was told that something is stored finds it there."""
        found = self.call(process, lambda p: p.get_task(task["task_id"]), None)
        shown = found and {name: found[name] for name in names}
        stored = {name: task[name] for name in names}
        self.law(shown == stored, f"{task['task_id']!r}: stored {stored}, found {shown}")

    # The end.

    def meet(self) -> None:
        """End the outage, start both processes with the database, and see that all is well."""
        self.end_outage()
        for process in self.processes:
            process.end()
        for process in self.processes:
            process.with_url = True
            self.start(process)
            self.law(process.store == "database", f"the database does not serve: {self._reason()}")
        lists = [self.call(process, lambda p: p.load_tasks(), None) for process in self.processes]
        in_file = list(self.items().values())
        for listed in lists:
            self.law(json.dumps(listed) == json.dumps(in_file), f"listed {listed}, file {in_file}")
        report = compare(self._dal, self.paths, pause=0)
        self.law(report.equal, f"the sides differ: {report}")
        self.model.check(self._found())

    def law(self, holds: object, otherwise: str) -> None:
        """Something that must be true."""
        self.broken = self.broken or not holds
        law(holds, otherwise)

    def _reason(self) -> list[str]:
        return [p.facade.health().reason if p.facade else "it died" for p in self.processes]

    def _found(self) -> Found:
        tasks = {stored.task_key: stored for stored in self._dal.read_changes(None).tasks}
        return Found(
            {key: decode(stored.text) for key, stored in tasks.items()},
            self._lost(),
            [run.row.message or "" for run in self._dal.newest_runs(None, 10_000)],
            _messages(self.paths.history_file),
        )

    def _lost(self) -> list[Lost]:
        query = b"SELECT task_key, half, kept, lost_text FROM scheduler_conflicts"
        rows = self._dal.database.run(lambda c: c.execute(query).fetchall()).result
        noted = (noted.conflict for noted in conflicts.read(self.paths.conflicts_file))
        rows += [(c.task_key, c.half, c.kept, c.lost_text) for c in noted]
        return [Lost(key, half, kept, json.loads(text)) for key, half, kept, text in rows]


def _messages(path: Path) -> list[str]:
    lines = (parse_line(text) for text in history.texts(path))
    return [line.entry["message"] for line in lines if line is not None]
