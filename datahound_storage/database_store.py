"""The database as the store, with the files kept beside it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import NamedTuple

from datahound_storage.backup import NOTHING, News, SnapshotBackup
from datahound_storage.bulk_dal import own_writes
from datahound_storage.collecting import uncollected
from datahound_storage.dal import StorageDAL
from datahound_storage.errors import (
    DatabaseError,
    FileStoreError,
    LockedError,
    LockTimeoutError,
    PruneRunningError,
)
from datahound_storage.files import atomic, sidecar
from datahound_storage.files.file_store import FileStore
from datahound_storage.files.lock import locked
from datahound_storage.files.paths import StatePaths
from datahound_storage.files.sidecar import SidecarHeader
from datahound_storage.hooks import BackupEvent, BackupHook, notify
from datahound_storage.postgres.changes import Changes
from datahound_storage.postgres.watermark import Watermark
from datahound_storage.reporting import Reporter
from datahound_storage.runs import HistoryEntry, line_text, row_of_new
from datahound_storage.stores import Change, Decide
from datahound_storage.view import LookingAhead
from datahound_storage.writes import BulkChange, PreparedTask, TaskText

log = Reporter()

# A snapshot may be stamped with a time that lies a moment before it was written.
_STAMP_NS = 2_000_000


class Owed(NamedTuple):
    """A change that is committed: its stamp, what does it to the files, when it was begun (ns)."""

    stamp: int
    redo: Callable[[FileStore], object]
    begun: int
    tasks: int = 1

    def is_shown_by(self, header: SidecarHeader) -> bool:
        """Whether a snapshot shows it.

        One from before it does not, whatever the stamps say: a server that crashed counts anew.
        """
        if header.file is None or header.file[2] < self.begun - _STAMP_NS:
            return False
        return Watermark.parse(header.watermark).shows(self.stamp)


# A disk that is full for days must not use up the memory as well: so many tasks are remembered.
_MOST_OWED = 50_000


class CommittedError(DatabaseError):
    """The change is kept, then the database failed; `settle` lets the files show it.

    `runs`: how many runs are in the history file and not in the table.
    """

    runs = 0


class DatabaseStore:
    """Tasks and runs in the database; the snapshot and the history file follow.

    Methods raise DatabaseError where the database cannot serve, and CommittedError where it has
    committed but the snapshot cannot follow because the database then failed.
    """

    def __init__(
        self, dal: StorageDAL, paths: StatePaths, files: FileStore, patience: float
    ) -> None:
        self.backup = SnapshotBackup(dal, paths, patience)
        self.hooks: Sequence[BackupHook] = ()
        self._dal = dal
        self._paths = paths
        self._files = files
        # Committed, but perhaps not shown by the snapshot; each with its stamp.
        self._owed: deque[Owed] = deque()
        self._settling = threading.Lock()
        self._patience = patience

    def renew_locks(self) -> None:
        """After a fork: forget what another thread may have been at in the middle of it."""
        self._settling = threading.Lock()
        self.backup.begin_anew()

    def list_texts(self) -> list[TaskText]:
        """All tasks, in the order in which they were added; the snapshot shows them."""
        texts = self.backup.listing()
        self._notify("listing", ())
        return texts

    def get_text(self, task_key: str) -> str | None:
        """The text of a task, None if there is none."""
        return self._dal.fetch_text(task_key)

    def add(self, prepared: PreparedTask) -> bool:
        """Add a task at the end; False if the key exists."""
        begun = time.time_ns()
        with self.backup.arrivals.one():
            written = self._dal.add_task(prepared)
        if written is None:
            return False
        redo = Owed(written.stamp, lambda files: files.add(prepared), begun)
        self._follow(redo, [prepared.task_key])
        return True

    def update(self, task_key: str, change: Change) -> bool:
        """Change a task as it is now; False if there is none."""
        begun, known = time.time_ns(), self.backup.known(task_key)
        with self.backup.arrivals.one():
            written = self._dal.change_task(
                task_key, lambda stored: change(stored.text), known=known
            )
        if written is None:
            return False
        redo = Owed(written.stamp, lambda files: files.update(task_key, change), begun)
        self._follow(redo, [task_key])
        return True

    def delete(self, task_key: str) -> bool:
        """Delete a task, its runs stay; False if there is none."""
        begun, seen, before = time.time_ns(), self.backup.known(task_key), self.backup.watermark
        known = Watermark.parse(before) if before else None
        with self.backup.arrivals.one():
            stamp = self._dal.remove_task(task_key, known=known)
        if stamp is None:
            return False
        text = None if seen is None else seen.text
        redo = Owed(stamp, lambda files: files.delete_as_seen(task_key, text), begun)
        self._follow(redo, [task_key])
        return True

    def change_all(self, decide: Decide) -> None:
        """Change many tasks in one transaction."""
        wanted: list[BulkChange] = []
        held: list[int] = []

        def decide_changes(changes: Changes) -> BulkChange:
            held.append(max(1, len(changes.tasks)))
            ordered = sorted(changes.tasks, key=lambda task: (task.position, task.task_key))
            wanted.append(decide([TaskText(task.task_key, task.text) for task in ordered]))
            return wanted[-1]

        begun, ahead = time.time_ns(), LookingAhead()
        losses = self._dal.database.losses
        with uncollected():
            known = self.backup.known_tasks()
            done = self._dal.change_all(decide_changes, known=known, beside=ahead)
        change = wanted[-1]
        task_keys = [*change.texts, *change.delete]
        stamp = done.stamp
        redo = Owed(stamp, lambda files: files.change_all(decide), begun, held[-1])
        self._follow(redo, task_keys, News(own_writes(done, change), ahead.looks, losses))

    def _follow(self, owed: Owed, task_keys: Sequence[str], news: News = NOTHING) -> None:
        self._owe(owed)
        try:
            if self.backup.after_commit(owed.stamp, news):
                self._forget_shown()
        except DatabaseError as error:
            raise CommittedError(str(error)) from error
        except Exception as error:  # noqa: BLE001 - the change is committed: that is the answer
            self.backup.report(error)
        self._notify("commit", tuple(task_keys))

    def _owe(self, owed: Owed) -> None:
        self._owed.append(owed)
        while len(self._owed) > 1 and sum(one.tasks for one in list(self._owed)) > _MOST_OWED:
            self._owed.popleft()

    def _forget_shown(self) -> None:
        for owed in list(self._owed):
            if self.backup.shows(owed.stamp):
                self._forget(owed)

    def _forget(self, owed: Owed) -> None:
        with suppress(ValueError):  # another thread was first
            self._owed.remove(owed)

    @property
    def owes(self) -> bool:
        """Whether the files may lack something that was acknowledged."""
        return bool(self._owed)

    def settle(self) -> None:
        """Do what the snapshot does not show yet to the files: they take over.

        What it shows is what its sidecar says: a peer may have written it since. Raises
        FileStoreError, SnapshotError, LockTimeoutError; what is left is done by the next call.
        """
        with self._settling, locked(self._paths.lock_file, self._patience):
            header = self._published()
            files = FileStore(self._paths, self._patience, held=True)
            for owed in list(self._owed):
                if not owed.is_shown_by(header):
                    with files.redoing():
                        owed.redo(files)
                self._forget(owed)

    def _published(self) -> SidecarHeader:
        """What the snapshot shows; an empty header where it is not what its sidecar says."""
        known = sidecar.read(self._paths.sidecar_file)
        unpublished = atomic.unpublished(self._paths.tasks_file)
        stands = known is not None and known.is_published(unpublished)
        return known.header if known is not None and stands else SidecarHeader()

    def _notify(self, reason: str, task_keys: tuple[str, ...]) -> None:
        if self.hooks:
            event = BackupEvent(
                "commit" if reason == "commit" else "listing",
                task_keys,
                self.backup.watermark,
                self._paths.tasks_file,
            )
            notify(self.hooks, event)

    def log_run(self, entry: HistoryEntry) -> None:
        """Keep a run in the file and in the table.

        The line comes first: whatever dies in between, the next start finds it and makes the row,
        and nobody can take it for missing and append it twice.
        """
        text = line_text(entry)
        appended = self._try_files(lambda: self._files.append_run(text))
        row = row_of_new(entry, text)
        if row is None:
            log.warning("run %s has no usable task_id: it is in the file only", entry["run_id"])
            return
        try:
            self._dal.add_run(row)
        except DatabaseError as error:
            if not (appended and self._try_files(self._files.sync_history)):
                raise  # the files take over, and append it again under the same id
            committed = CommittedError(str(error))
            committed.runs = 1
            raise committed from error

    def history(self, task_key: str | None, limit: int) -> list[HistoryEntry]:
        """The newest `limit` entries (of one task), newest first."""
        return self._dal.newest_entries(task_key, limit)

    def trim_history(self, days: float) -> int:
        """Remove the runs that ended longer ago by the database's clock, from table and file.

        Nothing, with a warning, where another process is at it.
        """
        cutoff = self._dal.now() - timedelta(days=days)
        try:
            removed = self._dal.purge_task_runs(older_than=cutoff)
        except (PruneRunningError, LockedError) as error:
            log.warning("the history was not trimmed by this call: %s", error)
            return 0
        self._try_files(lambda: self._files.trim_before(cutoff))
        return removed

    def _try_files(self, work: Callable[[], object]) -> bool:
        """Do something to the files that the database makes up for; report a failure."""
        try:
            work()
        except (FileStoreError, LockTimeoutError) as error:
            log.error("the history file could not follow, the next start mends it: %s", error)
            return False
        return True
