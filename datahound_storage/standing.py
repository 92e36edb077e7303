"""The snapshot that stands, and the sidecar that tells what it shows."""

from __future__ import annotations

from datahound_storage.errors import FileStoreError
from datahound_storage.files import atomic, sidecar, snapshot
from datahound_storage.files.paths import StatePaths
from datahound_storage.files.sidecar import Hashes, SidecarHeader
from datahound_storage.files.snapshot import Snapshot
from datahound_storage.halves import hashes_of
from datahound_storage.postgres.changes import DatabaseState
from datahound_storage.postgres.watermark import Watermark
from datahound_storage.view import TaskView


class StandingSnapshot:
    """What is known of the snapshot, and how it is replaced. Callers hold the file lock.

    `header` and `shown` are what its sidecar says: of which state it is, and the hashes of each
    task. `stale`: it has to be written again, whatever it seems to show.
    """

    def __init__(self, paths: StatePaths) -> None:
        self.header = SidecarHeader()
        self.shown: dict[str, Hashes] = {}
        self.stale = False
        self._paths = paths
        self._signature: atomic.Signature | None = None
        # The one to be replaced, where somebody else wrote it.
        self._found: atomic.Signature | None = None
        # It is a peer's, who may have died before its name was on disk.
        self._is_adopted = False

    @property
    def stands(self) -> bool:
        """Whether the snapshot is the one that we wrote or looked at last."""
        found = atomic.signature(self._paths.tasks_file)
        return found is not None and found == self._signature

    def is_ours(self) -> bool:
        """Whether the snapshot is as we or a peer left it; takes note of a peer's."""
        if self.stands:
            return True
        found = atomic.signature(self._paths.tasks_file)
        theirs = sidecar.read(self._paths.sidecar_file)
        if found is None or theirs is None or theirs.header.file != found:
            return False
        self.header, self.shown = theirs.header, theirs.tasks
        self._signature, self._found = found, None
        self._is_adopted = True
        return True

    def shows(self, stamp: int) -> bool:
        """Whether it shows a change; no, where that is not known."""
        watermark = self.header.watermark
        return watermark != "" and Watermark.parse(watermark).shows(stamp)

    def is_of(self, state: DatabaseState) -> bool:
        """Whether stamps mean the same in it and in a state of the database."""
        return (self.header.incarnation, self.header.epoch) == (state.incarnation, state.epoch)

    def unlike(self, view: TaskView) -> set[str]:
        """The tasks that it does not show as they are."""
        now, shown = view.hashes(), self.shown
        return {key for key in {*now, *shown} if now.get(key) != shown.get(key)}

    def take_note(self, found: Snapshot, view: TaskView) -> None:
        """Take note of what somebody else has left there; it is to be written in any case."""
        self.shown = {
            item.task_key: view.hashes_of(item.task_key, item.text) or hashes_of(item.task)
            for item in found.items
        }
        self.header = SidecarHeader(after=found.digest)
        self._found, self._signature = found.signature, None
        self.stale = True

    def settle(self) -> None:
        """Make a peer's snapshot durable."""
        if self._is_adopted:
            self.stale = True
            atomic.settle(self._paths.tasks_file)
            self._is_adopted = self.stale = False

    def write(self, view: TaskView) -> None:
        """Sidecar first, so that the snapshot, old or new, is always recognised as ours."""
        self._settle_after_a_crash()
        content = snapshot.assemble(text.text for text in view.texts())
        made = atomic.prepare(self._paths.tasks_file, content)
        header = self._header_of(view, made, content)
        previous = {key: self.shown.get(key) for key in self.unlike(view)}
        before = sidecar.content(self._paths.sidecar_file)
        try:
            encoded = sidecar.encode(header, view.sidecar_lines(), previous)
            atomic.replace(self._paths.sidecar_file, encoded)
        except FileStoreError:
            # The name may have been replaced before the disk refused to keep it.
            if sidecar.content(self._paths.sidecar_file) == before:
                atomic.discard(self._paths.tasks_file)
            raise
        self.stale = True
        self._publish(made, before)
        self._is_adopted = self.stale = False
        self.header, self.shown = header, view.hashes()
        self._signature, self._found = made, None

    def _settle_after_a_crash(self) -> None:
        """Write down which snapshot stands, before what tells it is overwritten."""
        unpublished = atomic.unpublished(self._paths.tasks_file)
        if unpublished is not None:
            sidecar.settle(self._paths.sidecar_file, unpublished)

    def _header_of(self, view: TaskView, made: atomic.Signature, content: bytes) -> SidecarHeader:
        state, old = view.state, self._found or self._signature
        if state is None:
            raise AssertionError("nothing was read yet")
        return SidecarHeader(
            database=state.identity,
            incarnation=state.incarnation,
            epoch=state.epoch,
            watermark=str(state.watermark),
            shown_us=view.newest_us,
            file=(made.inode, made.size, made.mtime_ns),
            replaced=old and (old.inode, old.size, old.mtime_ns),
            before=self.header.after,
            after=snapshot.digest(content),
        )

    def _publish(self, made: atomic.Signature, before: bytes | None) -> None:
        """Rename the snapshot; where the disk refuses, the sidecar tells of the old one again.

        Where that is refused, too, the new snapshot stays beside the old one, as after a crash.
        """
        try:
            atomic.publish(self._paths.tasks_file)
        except FileStoreError:
            if before is not None and atomic.signature(self._paths.tasks_file) != made:
                atomic.replace(self._paths.sidecar_file, before)
            atomic.discard(self._paths.tasks_file)
            raise
