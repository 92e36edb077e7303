"""The snapshot: the first user of the backup hook, and the only one that a write waits for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from datahound_storage.arrivals import Arrivals
from datahound_storage.attach import Keep, meet
from datahound_storage.belonging import is_older
from datahound_storage.bulk_dal import KnownTasks
from datahound_storage.collecting import uncollected
from datahound_storage.dal import StorageDAL
from datahound_storage.errors import (
    DivergedError,
    FileStoreError,
    LockedError,
    LockTimeoutError,
    SnapshotError,
)
from datahound_storage.files import snapshot
from datahound_storage.files.lock import locked
from datahound_storage.files.paths import StatePaths
from datahound_storage.postgres.changes import Changes, OwnWrites
from datahound_storage.postgres.stored import StoredTask
from datahound_storage.postgres.watermark import Watermark
from datahound_storage.reporting import Reporter
from datahound_storage.standing import StandingSnapshot
from datahound_storage.view import Look, TaskView
from datahound_storage.writes import TaskText

# A peer that starts at the same time may be importing thousands of tasks.
ATTACH_PATIENCE = 60.0
_PAUSE = 0.1
# How long to wait for other writers that are about to commit: a part of what a snapshot takes.
_SHARE_WAITED, _LONGEST_WAIT = 0.25, 0.02
# The snapshot cannot follow for now; running out of patience for a lock is no failed database.
_BEHIND = (FileStoreError, SnapshotError, LockTimeoutError, LockedError)

log = Reporter()


class UnshownError(FileStoreError):
    """Files and database have met, and the snapshot cannot show it yet."""


class News(NamedTuple):
    """What a bulk change wrote, and looks at it. Stamps mean something as long as no connection
    breaks, since which there were `losses`.
    """

    own: OwnWrites | None = None
    looks: Mapping[str, Look] | None = None
    losses: int = 0


NOTHING = News()


class SnapshotBackup:
    """Keeps the snapshot file equal to the database, atomically and durably.

    Every process on the host shares the file; each keeps a view of its own, so that a refresh costs
    one small query and the writing. Everything happens under the file lock: a later holder reads a
    later state, so a newer snapshot is never replaced by an older one.
    """

    def __init__(self, dal: StorageDAL, paths: StatePaths, patience: float) -> None:
        self.arrivals = Arrivals()
        self.problem: str | None = None
        self.written_at: float | None = None
        self._dal = dal
        self._paths = paths
        self._patience = patience
        self._view = TaskView()
        self._losses = dal.database.losses
        self._standing = StandingSnapshot(paths)
        # Changed tasks that the snapshot may not show, with the stamp where one is known.
        self._pending: dict[str, int | None] = {}
        # Seconds that the last writing took.
        self._spent = 0.0

    def begin_anew(self) -> None:
        """Forget what is known of the database; the next refresh reads all of it."""
        self._view = TaskView()
        self.arrivals = Arrivals()

    @property
    def watermark(self) -> str:
        """The state of the database that the snapshot shows."""
        return self._standing.header.watermark

    def known(self, task_key: str) -> StoredTask | None:
        """The task as this process saw it last; it may have changed since."""
        return self._view.get(task_key)

    def known_tasks(self) -> KnownTasks | None:
        """All tasks as this process saw them last, None where that says nothing any more."""
        # In this order: what is read later may be newer, which does no harm.
        losses, view = self._losses, self._view
        state = view.state
        return None if state is None else KnownTasks(state, view.stored(), losses)

    def attach(self, keep: Keep | None = None) -> None:
        """Let files and database meet, then write the snapshot.

        Raises what `meet` raises, and UnshownError where only the writing failed.
        """
        self._patiently(lambda: self._meet(keep))

    def start(self) -> None:
        """As `attach`; a snapshot that cannot be written is reported, a later call writes it."""
        try:
            self.attach()
        except UnshownError as error:
            self.report(error)

    def _patiently(self, work: Callable[[], None]) -> None:
        """Work under the file lock; while the table is locked by others, others get the files."""
        deadline = time.monotonic() + self._dal.database.timeout
        while True:
            try:
                with locked(self._paths.lock_file, ATTACH_PATIENCE):
                    return work()
            except LockedError:
                if time.monotonic() >= deadline:
                    raise
            # Without a pause the lock would be taken again before anybody else can have it.
            time.sleep(_PAUSE)

    def catch_up(self) -> None:
        """As `start`, for what was written since then. Callers hold the file lock."""
        try:
            self._refresh()
        except FileStoreError as error:
            self.report(error)

    def after_commit(self, stamp: int, news: News = NOTHING) -> bool:
        """Make the snapshot show a committed change. Durable when it returns True.

        `news` is what is known already of what is new by it.

        A file that cannot be written is reported and left whole, and the next call tries again.
        Raises DatabaseError where the state could not be read.
        """
        try:
            with locked(self._paths.lock_file, self._patience):
                if not self._is_covered(stamp):
                    # Who comes a moment later would wait for this snapshot, and for one more.
                    self.arrivals.wait(min(self._spent * _SHARE_WAITED, _LONGEST_WAIT))
                    with uncollected():
                        self._refresh(news)
        except _BEHIND as error:
            self.report(error)
            return False
        return True

    def shows(self, stamp: int) -> bool:
        """Whether the snapshot shows a change; no, where that is not known."""
        return self._standing.shows(stamp)

    def listing(self) -> list[TaskText]:
        """All tasks as of now, in order; the snapshot shows them when it returns.

        Raises DatabaseError. A file that cannot be written is reported only.
        """
        try:
            with locked(self._paths.lock_file, self._patience):
                self._refresh()
                return self._view.texts()
        except _BEHIND as error:
            # The view may be behind, or another thread's: read past it.
            self.report(error)
            fresh = TaskView()
            fresh.apply(self._dal.read_changes(None))
            return fresh.texts()

    def report(self, error: Exception) -> None:
        """Tell, once for each problem, that the snapshot is behind."""
        if self.problem != str(error):
            log.error("the snapshot could not be refreshed, the next call tries again: %s", error)
        self.problem = str(error)

    def _is_covered(self, stamp: int) -> bool:
        """Whether the snapshot that we wrote last, and that still stands, shows a change."""
        state = self._view.state
        return (
            state is not None
            and not self._standing.stale
            and self._losses == self._dal.database.losses
            and self.watermark == str(state.watermark)
            and state.watermark.shows(stamp)
            and self._standing.stands
        )

    def _refresh(self, news: News = NOTHING) -> None:
        if self._view.state is None or not self._standing.is_ours():
            self._meet()
            return
        self._read(news)
        if self._needs_writing() or self._standing.stale:
            self._write()
        else:
            self._standing.settle()
        self.problem = None

    def _read(self, news: News) -> None:
        changes, losses = self._read_changes(news)
        self._check_not_before(changes)
        try:
            touched = self._view.apply(changes, news.looks)
        except BaseException:
            self._standing.note_doubt()
            raise
        self._standing.note_changed(touched)
        # Last: whoever sees this must find the view that belongs to it.
        self._losses = losses
        stamps: dict[str, int | None] = {task.task_key: task.stamp for task in changes.tasks}
        stamps.update(changes.deleted)
        # Not only what is new to this process: a peer may have shown what is gone again by now.
        unlike = touched | self._standing.unlike(self._view) if changes.full else stamps.keys()
        self._pending.update((key, stamps.get(key)) for key in unlike)

    def _read_changes(self, news: News) -> tuple[Changes, int]:
        """What changed since the view; everything where a connection broke since, or breaks now.

        Also how many had been lost when it was read.
        """
        while True:
            losses = self._dal.database.losses
            if losses != self._losses:
                # If the server crashed, new changes may have stamps that the snapshot takes for
                # old ones.
                self._standing.stale = True
            known = self._view.state if losses == self._losses else None
            own = news.own if losses == news.losses else None
            changes = self._dal.read_changes(known, own)
            if known is None or losses == self._dal.database.losses:
                return changes, losses

    def _check_not_before(self, changes: Changes) -> None:
        header = self._standing.header
        shown = self._standing.shown() if changes.full else {}
        if header.database != changes.state.identity or is_older(changes, header, shown, self._dal):
            raise DivergedError(
                f"the database is not the one, or older than the one, that "
                f"{self._paths.tasks_file} shows (a failover to a standby that lagged, a restored "
                "dump). Nothing was overwritten; check the server, then restart this process."
            )

    def _needs_writing(self) -> bool:
        """Whether something is not in the snapshot yet; a peer may have written it."""
        state = self._view.state
        if state is not None and self._standing.is_of(state):
            shown = Watermark.parse(self.watermark)
            self._pending = {
                key: stamp
                for key, stamp in self._pending.items()
                if stamp is None or not shown.shows(stamp)
            }
        return bool(self._pending)

    def _meet(self, keep: Keep | None = None) -> None:
        with uncollected():
            losses = self._dal.database.losses
            met = meet(self._dal, self._paths, keep)
            self._standing.note_doubt()
            self._view = TaskView()
            own = met.own if losses == self._dal.database.losses else None
            self._view.apply(self._dal.read_changes(None, own), met.looks())
        found = snapshot.read(self._paths.tasks_file, known=met.snapshot)
        self._standing.take_note(found, self._view)
        try:
            self._write()
        except FileStoreError as error:
            raise UnshownError(str(error)) from error
        if met.mark is not None:
            self._dal.forget_carried_over(met.mark)
        self.problem = None

    def _write(self) -> None:
        began = time.monotonic()
        self._standing.write(self._view)
        self._spent = time.monotonic() - began
        self._pending = {}
        self.written_at = time.time()
