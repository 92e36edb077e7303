"""The data-access object's part for changes of many tasks at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain
from typing import NamedTuple
from uuid import UUID, uuid4

from datahound_storage.errors import DuplicateTaskError
from datahound_storage.postgres import changes, memory, task_bulk, task_table
from datahound_storage.postgres.changes import Changes, DatabaseState, OwnWrites
from datahound_storage.postgres.deadline import DeadlineConnection
from datahound_storage.postgres.memory import Begun
from datahound_storage.postgres.pool import Database
from datahound_storage.postgres.stored import StoredTask
from datahound_storage.postgres.task_bulk import Beside
from datahound_storage.run_dal import RunDAL
from datahound_storage.writes import BulkChange, PreparedTask


class KnownTasks(NamedTuple):
    """All tasks as of a state, or of later ones; no connection broke since but for `losses`."""

    state: DatabaseState
    tasks: dict[str, StoredTask]
    losses: int


def own_writes(begun: Begun, change: BulkChange) -> OwnWrites | None:
    """What a bulk change wrote; None where it cannot know that of each row that it touched."""
    if change.order is not None or begun.is_meddled_with:
        return None
    return OwnWrites(begun.stamp, change.texts)


def _present_ones(
    write: Iterable[PreparedTask], present: Collection[str], others: list[PreparedTask]
) -> Iterator[PreparedTask]:
    for prepared in write:
        if prepared.task_key in present:
            yield prepared
        else:
            others.append(prepared)


class BulkDAL(RunDAL):
    """Many tasks at once in one database. Safe to share between threads."""

    def __init__(self, database: Database, timezone: str) -> None:
        super().__init__(database)
        self.timezone = timezone

    def change_all(
        self,
        decide: Callable[[Changes], BulkChange],
        patience: float | None = None,
        *,
        known: KnownTasks | None = None,
        beside: Beside | None = None,
    ) -> Begun:
        """Change many tasks in one transaction: all or nothing. Tells which one it was.

        Waits `patience` seconds (None: an operation's time) for other writers, then LockedError.

        `decide` gets all tasks, which nobody else can change meanwhile, and may be called again
        after a failure. What it raises undoes the change. `known` tasks need not be fetched,
        and `beside` is work to do while the server is busy.
        """
        wait = self.database.timeout if patience is None else patience
        attempts: list[tuple[UUID, Begun]] = []
        try:
            self.database.run(
                lambda c: self._change_all(c, decide, wait, attempts, known, beside), bulk=True
            )
        except DuplicateTaskError:
            if known is None:
                raise
            # Somebody has added it behind the back of the triggers that tell of it.
            return self.change_all(decide, patience, beside=beside)
        return attempts[-1][1]

    def _change_all(
        self,
        connection: DeadlineConnection,
        decide: Callable[[Changes], BulkChange],
        patience: float,
        attempts: list[tuple[UUID, Begun]],
        known: KnownTasks | None,
        beside: Beside | None,
    ) -> None:
        with connection.transaction():
            task_bulk.lock_for_bulk_change(connection, patience)
            # With the lock in hand, an attempt whose answer got lost has come to its end.
            if attempts and memory.is_committed(connection, attempts[-1][0]):
                return
            token = uuid4()
            begun = memory.begin_change(connection, token)
            attempts.append((token, begun))
            if begun.session != connection.info.backend_pid:
                # A pooler's: if the server crashed since, we have not heard of it.
                known = None
            found = self._read_all(connection, known)
            present = {task.task_key for task in found.tasks}
            self.apply(connection, decide(found), present, beside)

    def _new_rows(
        self, added: Iterable[PreparedTask], beside: Beside | None
    ) -> Iterator[task_table.TaskRow]:
        for prepared in added:
            yield task_table.new_row(*prepared, self.timezone)
            if beside is not None:
                # The server takes longer with a task than we do.
                beside.look(prepared)

    def _read_all(self, connection: DeadlineConnection, known: KnownTasks | None) -> Changes:
        """All tasks; only what is not known is fetched."""
        if known is None or known.losses != self.database.losses:
            return changes.read_all(connection)
        return changes.read_all_since(connection, known.state, known.tasks)

    def apply(
        self,
        connection: DeadlineConnection,
        change: BulkChange,
        present: set[str],
        beside: Beside | None,
    ) -> None:
        """Carry out a bulk change inside the caller's transaction."""
        if change.delete:
            task_bulk.delete_many(connection, change.delete)
            present.difference_update(change.delete)
        added: list[PreparedTask] = []
        changed = _present_ones(change.write, present, added)
        first = next(changed, None)
        if first is not None:
            task_bulk.update_many(connection, chain([first], changed), beside)
        if added:
            rows = self._new_rows(added, beside)
            task_bulk.insert_many(connection, rows)
        if change.order is not None:
            task_bulk.reorder(connection, change.order)
        if change.conflicts:
            task_table.insert_conflicts(connection, change.conflicts)
        if change.carried_over is not None:
            mark, tell = change.carried_over
            memory.remember_carried_over(connection, mark, tell())
