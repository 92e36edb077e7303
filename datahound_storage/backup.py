"""The snapshot: the first user of the backup hook, and the only one that a write waits for."""

from __future__ import annotations

import time
from collections.abc import Callable

from datahound_storage.attach import Keep, meet
from datahound_storage.belonging import is_older
from datahound_storage.dal import StorageDAL
from datahound_storage.errors import (
    DivergedError,
    FileStoreError,
    LockedError,
    LockTimeoutError,
    SnapshotError,
)
from datahound_storage.files import atomic, sidecar, snapshot
from datahound_storage.files.lock import locked
from datahound_storage.files.paths import StatePaths
from datahound_storage.files.sidecar import Hashes, SidecarHeader
from datahound_storage.halves import hashes_of
from datahound_storage.postgres.changes import Changes
from datahound_storage.postgres.stored import StoredTask
from datahound_storage.postgres.watermark import Watermark
from datahound_storage.reporting import Reporter
from datahound_storage.tasks import TaskText
from datahound_storage.view import TaskView

# A peer that starts at the same time may be importing thousands of tasks.
ATTACH_PATIENCE = 60.0
_PAUSE = 0.1
# The snapshot cannot follow for now; running out of patience for a lock is no failed database.
_BEHIND = (FileStoreError, SnapshotError, LockTimeoutError, LockedError)

log = Reporter()


class SnapshotBackup:
    """Keeps the snapshot file equal to the database, atomically and durably.

    Every process on the host shares the file; each keeps a view of its own, so that a refresh costs
    one small query and the writing. Everything happens under the file lock: a later holder reads a
    later state, so a newer snapshot is never replaced by an older one.
    """

    def __init__(self, dal: StorageDAL, paths: StatePaths, patience: float) -> None:
        self.problem: str | None = None
        self.written_at: float | None = None
        self._dal = dal
        self._paths = paths
        self._patience = patience
        self._view = TaskView()
        self._losses = dal.database.losses
        self._shown: dict[str, Hashes] = {}
        self._header = SidecarHeader()
        self._signature: atomic.Signature | None = None
        # The snapshot that stands is a peer's, who may have died before its name was on disk; or
        # the disk refused to keep the name, so that the file has to be written again.
        self._adopted = False
        self._refused = False
        # Changed tasks that the snapshot may not show, with the stamp where one is known.
        self._pending: dict[str, int | None] = {}

    def begin_anew(self) -> None:
        """Forget what is known of the database; the next refresh reads all of it."""
        self._view = TaskView()

    @property
    def watermark(self) -> str:
        """The state of the database that the snapshot shows."""
        return self._header.watermark

    def known(self, task_key: str) -> StoredTask | None:
        """The task as this process saw it last; it may have changed since."""
        return self._view.get(task_key)

    def attach(self, keep: Keep | None = None) -> None:
        """Let files and database meet, then write the snapshot. Raises what `meet` raises."""
        self._patiently(lambda: self._meet(keep))

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
        """As `attach`, for what was written since then. Callers hold the file lock."""
        self._refresh()

    def after_commit(self, stamp: int) -> bool:
        """Make the snapshot show a committed change. Durable when it returns True.

        A file that cannot be written is reported and left whole, and the next call tries again.
        Raises DatabaseError where the state could not be read.
        """
        try:
            with locked(self._paths.lock_file, self._patience):
                if not self._is_covered(stamp):
                    self._refresh()
        except _BEHIND as error:
            self.report(error)
            return False
        return True

    def shows(self, stamp: int) -> bool:
        """Whether the snapshot shows a change; no, where that is not known."""
        watermark = self._header.watermark
        return watermark != "" and Watermark.parse(watermark).shows(stamp)

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
            and not self._refused
            and self._losses == self._dal.database.losses
            and self._header.watermark == str(state.watermark)
            and state.watermark.shows(stamp)
            and atomic.signature(self._paths.tasks_file) == self._signature
        )

    def _refresh(self) -> None:
        if self._view.state is None or not self._is_ours():
            self._meet()
            return
        self._read()
        if self._needs_writing() or self._refused:
            self._write()
        elif self._adopted:
            self._settle()
        self.problem = None

    def _settle(self) -> None:
        self._refused = True
        atomic.settle(self._paths.tasks_file)
        self._adopted = self._refused = False

    def _is_ours(self) -> bool:
        """Whether the snapshot is as we or a peer left it; takes note of a peer's."""
        found = atomic.signature(self._paths.tasks_file)
        if found is not None and found == self._signature:
            return True
        theirs = sidecar.read(self._paths.sidecar_file)
        if found is None or theirs is None or theirs.header.file != found:
            return False
        self._header, self._shown, self._signature = theirs.header, theirs.tasks, found
        self._adopted = True
        return True

    def _read(self) -> None:
        losses = self._dal.database.losses
        if losses != self._losses:
            # If the server crashed, new changes may have stamps that the snapshot takes for old.
            self._refused = True
        known = self._view.state if losses == self._losses else None
        changes = self._dal.read_changes(known)
        self._losses = losses
        self._check_not_before(changes)
        touched = self._view.apply(changes)
        stamps: dict[str, int | None] = {task.task_key: task.stamp for task in changes.tasks}
        stamps.update(changes.deleted)
        # Not only what is new to this process: a peer may have shown what is gone again by now.
        unlike = touched | self._unlike_shown() if changes.full else stamps.keys()
        self._pending.update((key, stamps.get(key)) for key in unlike)

    def _unlike_shown(self) -> set[str]:
        """The tasks that the snapshot does not show as they are."""
        now = self._view.hashes()
        return {key for key in {*now, *self._shown} if now.get(key) != self._shown.get(key)}

    def _check_not_before(self, changes: Changes) -> None:
        header = self._header
        if header.database != changes.state.identity or is_older(
            changes, header, self._shown, self._dal
        ):
            raise DivergedError(
                f"the database is not the one, or older than the one, that "
                f"{self._paths.tasks_file} shows (a failover to a standby that lagged, a restored "
                "dump). Nothing was overwritten; check the server, then restart this process."
            )

    def _needs_writing(self) -> bool:
        """Whether something is not in the snapshot yet; a peer may have written it."""
        state = self._view.state
        header = self._header
        if state and (header.incarnation, header.epoch) == (state.incarnation, state.epoch):
            shown = Watermark.parse(header.watermark)
            self._pending = {
                key: stamp
                for key, stamp in self._pending.items()
                if stamp is None or not shown.shows(stamp)
            }
        return bool(self._pending)

    def _meet(self, keep: Keep | None = None) -> None:
        meet(self._dal, self._paths, keep)
        self._view = TaskView()
        self._view.apply(self._dal.read_changes(None))
        found = snapshot.read(self._paths.tasks_file)
        self._shown = self._hashes_in(found)
        self._header = SidecarHeader(after=found.digest)
        self._write(found.signature)
        self.problem = None

    def _hashes_in(self, found: snapshot.Snapshot) -> dict[str, Hashes]:
        """The hashes of what the file shows; those of the view where the text is the same."""
        return {
            item.task_key: self._view.hashes_of(item.task_key, item.text) or hashes_of(item.task)
            for item in found.items
        }

    def _write(self, replaced: atomic.Signature | None = None) -> None:
        """Sidecar first, so that the snapshot, old or new, is always recognised as ours."""
        state = self._view.state
        if state is None:
            raise AssertionError("nothing was read yet")
        content = snapshot.assemble(text.text for text in self._view.texts())
        old = replaced or self._signature
        made = atomic.prepare(self._paths.tasks_file, content)
        header = SidecarHeader(
            database=state.identity,
            incarnation=state.incarnation,
            epoch=state.epoch,
            watermark=str(state.watermark),
            shown_us=self._view.newest_us,
            file=(made.inode, made.size, made.mtime_ns),
            replaced=old and (old.inode, old.size, old.mtime_ns),
            before=self._header.after,
            after=snapshot.digest(content),
        )
        hashes = self._view.hashes()
        lines = self._view.sidecar_lines()
        before = sidecar.content(self._paths.sidecar_file)
        try:
            atomic.replace(
                self._paths.sidecar_file, sidecar.encode(header, lines, self._previous(hashes))
            )
        except FileStoreError:
            atomic.discard(self._paths.tasks_file)
            raise
        self._refused = True
        self._publish(made, before)
        self._adopted = self._refused = False
        self._header, self._shown, self._signature = header, hashes, made
        self._pending = {}
        self.written_at = time.time()

    def _publish(self, made: atomic.Signature, before: bytes | None) -> None:
        """Rename the snapshot; where the disk refuses, the sidecar tells of the old one again."""
        try:
            atomic.publish(self._paths.tasks_file)
        except FileStoreError:
            if before is not None and atomic.signature(self._paths.tasks_file) != made:
                atomic.replace(self._paths.sidecar_file, before)
            raise

    def _previous(self, hashes: dict[str, Hashes]) -> dict[str, Hashes | None]:
        """What the snapshot that is about to be replaced shows, where it differs."""
        shown = self._shown
        return {
            key: shown.get(key) for key in {*shown, *hashes} if shown.get(key) != hashes.get(key)
        }
