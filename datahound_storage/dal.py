"""The data-access object: tasks and runs in the database, by records or by exact text.

Every method raises errors of this package only: DatabaseError (or a subclass) where the database
could not serve, InvalidTaskError for values that it cannot hold. What a method changed is
committed when it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from uuid import UUID

from datahound_storage.bulk_dal import BulkDAL
from datahound_storage.errors import DuplicateTaskError, LockTimeoutError, TaskNotFoundError
from datahound_storage.mapping import prepare, record_of
from datahound_storage.postgres import changes, memory, task_table
from datahound_storage.postgres.changes import Changes, DatabaseState, OwnWrites
from datahound_storage.postgres.pool import Database
from datahound_storage.postgres.stored import StoredTask
from datahound_storage.postgres.task_table import KeptConflict, Tombstone, Written
from datahound_storage.postgres.watermark import Watermark
from datahound_storage.records import SchedulerTaskFilter, SchedulerTaskRecord
from datahound_storage.writes import PreparedTask, TaskChange

# An update that loses the race against another one this often has found a bug, not a rival.
_MAX_RACES = 100
# An update does not change the id of a row.
NO_ID = UUID(int=0)


class StorageDAL(BulkDAL):
    """Tasks and runs in one database. Safe to share between threads."""

    def __init__(self, database: Database, *, timezone: str = "UTC") -> None:
        super().__init__(database, timezone)

    # Tasks as records.

    def create_task(self, record: SchedulerTaskRecord) -> SchedulerTaskRecord:
        """Store a new task; return the stored record. Raises DuplicateTaskError."""
        prepared = prepare(record)
        row = task_table.TaskRow(record.id, prepared.columns, prepared.text, record.timezone)
        if self._insert(row) is None:
            raise DuplicateTaskError(f"task {record.task_key[:80]!r} exists already.")
        return self._stored_record(record.task_key)

    def update_task(self, record: SchedulerTaskRecord) -> SchedulerTaskRecord:
        """Replace a stored task; return the stored record. Raises TaskNotFoundError."""
        prepared = prepare(record)
        change = TaskChange(prepared)
        written = self.change_task(record.task_key, lambda _: change, timezone=record.timezone)
        if written is None:
            raise TaskNotFoundError(f"there is no task {record.task_key[:80]!r}.")
        return self._stored_record(record.task_key)

    def delete_task(self, task_key: str) -> bool:
        """Delete a task, however many runs it has; they stay. False if there is none."""
        return self.remove_task(task_key) is not None

    def get_task(self, task_key: str) -> SchedulerTaskRecord | None:
        """A task by its key, None if there is none."""
        found = self._list(task_key=task_key)
        return found[0] if found else None

    def list_tasks(
        self, task_filter: SchedulerTaskFilter | None = None
    ) -> list[SchedulerTaskRecord]:
        """The tasks that fit the filter (all without one), in the order of adding."""
        wanted = task_filter or SchedulerTaskFilter(status=None)
        return self._list(company=wanted.company, status=wanted.status)

    def _list(self, **filters: str | None) -> list[SchedulerTaskRecord]:
        outcome = self.database.run(lambda c: task_table.list_rows(c, **filters))
        return [record_of(listed) for listed in outcome.result]

    def _stored_record(self, task_key: str) -> SchedulerTaskRecord:
        record = self.get_task(task_key)
        if record is None:
            raise TaskNotFoundError(f"task {task_key[:80]!r} was deleted meanwhile.")
        return record

    # Tasks by their exact text, as the facade needs them.

    def add_task(self, prepared: PreparedTask) -> Written | None:
        """Add a task; None if the key exists."""
        return self._insert(task_table.new_row(*prepared, self.timezone))

    def _insert(self, row: task_table.TaskRow) -> Written | None:
        outcome = self.database.run(lambda c: task_table.insert(c, row))
        if outcome.result is None and outcome.repeated:
            # The attempt whose answer got lost may be what stands in the way of the second one.
            outcome = self.database.run(lambda c: task_table.inserted(c, row), repeated=True)
        return outcome.result

    def change_task(
        self,
        task_key: str,
        change: Callable[[StoredTask], TaskChange],
        *,
        known: StoredTask | None = None,
        timezone: str | None = None,
    ) -> Written | None:
        """Apply `change` to a task as it is now; return what was written, None if there is no task.

        `known` saves reading it, if it is still current; otherwise it is read again, and `change`
        called again.
        """
        stored, repeated = known or self.fetch_task(task_key), False
        for _ in range(_MAX_RACES):
            if stored is None:
                return None
            wanted = change(stored)
            row = task_table.TaskRow(NO_ID, *wanted.prepared, self.timezone)
            statement = partial(
                task_table.update,
                row=row,
                expected=stored.stamp,
                timezone=timezone,
                conflicts=wanted.conflicts,
            )
            outcome = self.database.run(statement, repeated=repeated)
            if outcome.result is not None:
                return outcome.result
            repeated = outcome.repeated
            stored = self.fetch_task(task_key, repeated=repeated)
            if repeated and stored is not None and stored.text == wanted.prepared.text:
                # The attempt whose answer got lost has done it.
                return Written(stored.stamp, stored.position)
        raise LockTimeoutError(f"task {task_key[:80]!r} is changed by others without a pause.")

    def remove_task(self, task_key: str, *, known: Watermark | None = None) -> int | None:
        """Delete a task; return the transaction's stamp, None if there was none.

        `known`: a state from before. After a broken connection what it shows of the key's deletion
        is not taken for the work of the attempt whose answer got lost.
        """
        outcome = self.database.run(lambda c: task_table.delete(c, task_key))
        if outcome.result is not None or not outcome.repeated:
            return outcome.result
        outcome = self.database.run(lambda c: task_table.deleted(c, task_key), repeated=True)
        stamp = outcome.result
        return None if stamp is None or (known is not None and known.shows(stamp)) else stamp

    def fetch_task(self, task_key: str, *, repeated: bool = False) -> StoredTask | None:
        """A task's text and stamp, None if there is none. `repeated`: see `Database.run`."""
        return self.database.run(lambda c: task_table.fetch(c, task_key), repeated=repeated).result

    def fetch_text(self, task_key: str) -> str | None:
        """A task's text, None if there is none."""
        return self.database.run(lambda c: task_table.fetch_text(c, task_key)).result

    def read_changes(self, known: DatabaseState | None, own: OwnWrites | None = None) -> Changes:
        """What changed since a known state, or everything; the texts of `own` are not fetched."""
        return self.database.run(
            lambda c: (
                changes.read_all(c, own) if known is None else changes.read_since(c, known, own)
            ),
            bulk=known is None,
        ).result

    def tombstones(self) -> dict[str, Tombstone]:
        """The tombstone of each deleted key; the key may be there again."""
        return self.database.run(task_table.tombstones, joins=True).result

    def carried_over(self, mark: str) -> str | None:
        """What is kept of a meeting with the files of this mark, None where nothing is."""
        return self.database.run(lambda c: memory.carried_over(c, mark), joins=True).result

    def forget_carried_over(self, mark: str) -> None:
        """Forget what is kept of a meeting: the snapshot shows it."""
        self.database.run(lambda c: memory.forget_carried_over(c, mark))

    def conflicts(self) -> list[KeptConflict]:
        """The versions that lost and were kept, oldest first."""
        return self.database.run(task_table.conflicts).result

    def forget_conflicts(self, ids: Sequence[int]) -> int:
        """Delete kept versions; return how many there were."""
        return self.database.run(lambda c: task_table.delete_conflicts(c, ids)).result
