"""The snapshot that stands, and the sidecar that tells what it shows."""

from __future__ import annotations

from datahound_storage.errors import FileStoreError
from datahound_storage.files import atomic, layout, sidecar
from datahound_storage.files.paths import StatePaths
from datahound_storage.files.sidecar import Hashes, SidecarHeader, line_hashes, task_line
from datahound_storage.files.snapshot import Snapshot
from datahound_storage.halves import hashes_of
from datahound_storage.postgres.changes import DatabaseState
from datahound_storage.postgres.watermark import Watermark
from datahound_storage.view import TaskView


class StandingSnapshot:
    """What is known of the snapshot, and how it is replaced. Callers hold the file lock.

    `header` is what its sidecar says: of which state it is. `stale`: it has to be written again,
    whatever it seems to show.
    """

    def __init__(self, paths: StatePaths) -> None:
        self.header = SidecarHeader()
        self.stale = False
        # What the sidecar says of each task: its line there.
        self._lines: dict[str, str] = {}
        # The tasks that may be shown otherwise than they are; None where nobody knows which.
        self._changed: set[str] | None = None
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
        if theirs.format != sidecar.FORMAT:
            return False  # a meeting understands it
        self.header = theirs.header
        self._lines = {key: task_line(key, hashes) for key, hashes in theirs.tasks.items()}
        self._changed = None
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

    def shown(self) -> dict[str, Hashes]:
        """The hashes of each task that it shows."""
        return {key: line_hashes(line) for key, line in self._lines.items()}

    def note_changed(self, task_keys: set[str]) -> None:
        """These tasks are others by now than it may show."""
        if self._changed is not None:
            self._changed |= task_keys

    def note_doubt(self) -> None:
        """Any task may be another by now than it shows."""
        self._changed = None

    def unlike(self, view: TaskView) -> set[str]:
        """The tasks that it does not show as they are."""
        shown, changed = self._lines, self._changed
        if changed is not None:
            return {key for key in changed if view.line(key) != shown.get(key)}
        now = view.lines()
        return {key for key in {*now, *shown} if now.get(key) != shown.get(key)}

    def take_note(self, found: Snapshot, view: TaskView) -> None:
        """Take note of what somebody else has left there; it is to be written in any case."""
        self._lines = {
            item.task_key: view.line_for(item.task_key, item.text)
            or task_line(item.task_key, hashes_of(item.task))
            for item in found.items
        }
        self._changed = None
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
        made = atomic.prepare(self._paths.tasks_file, layout.assemble(view.plain_texts()))
        digest = view.digest() or layout.digest(b"".join(layout.assemble(view.plain_texts())))
        header = self._header_of(view, made, digest)
        unlike = self.unlike(view)
        with sidecar.Previous(self._paths.sidecar_file) as before:
            self._write_sidecar(header, view, unlike, before)
            self.stale = True
            self._publish(made, before)
        self._is_adopted = self.stale = False
        self.header = header
        self._signature, self._found = made, None
        self._take_over(view, unlike)

    def _write_sidecar(
        self, header: SidecarHeader, view: TaskView, unlike: set[str], before: sidecar.Previous
    ) -> None:
        shown = ((key, self._lines.get(key)) for key in unlike)
        previous = {key: None if line is None else line_hashes(line) for key, line in shown}
        try:
            encoded = sidecar.encode(header, view.sidecar_lines(), previous)
            atomic.replace(self._paths.sidecar_file, encoded)
        except FileStoreError:
            # The name may have been replaced before the disk refused to keep it.
            if sidecar.content(self._paths.sidecar_file) == before.content():
                atomic.discard(self._paths.tasks_file)
            raise

    def _take_over(self, view: TaskView, changed: set[str]) -> None:
        """It shows the view by now."""
        if self._changed is None:
            self._lines = view.lines()
        else:
            for key in changed:
                line = view.line(key)
                if line is None:
                    self._lines.pop(key, None)
                else:
                    self._lines[key] = line
        self._changed = set()

    def _settle_after_a_crash(self) -> None:
        """Write down which snapshot stands, before what tells it is overwritten."""
        unpublished = atomic.unpublished(self._paths.tasks_file)
        if unpublished is not None:
            sidecar.settle(self._paths.sidecar_file, unpublished)

    def _header_of(self, view: TaskView, made: atomic.Signature, digest: str) -> SidecarHeader:
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
            after=digest,
        )

    def _publish(self, made: atomic.Signature, before: sidecar.Previous) -> None:
        """Rename the snapshot; where the disk refuses, the sidecar tells of the old one again.

        Where that is refused, too, the new snapshot stays beside the old one, as after a crash.
        """
        try:
            atomic.publish(self._paths.tasks_file)
        except FileStoreError:
            content = before.content()
            if content is not None and atomic.signature(self._paths.tasks_file) != made:
                atomic.replace(self._paths.sidecar_file, content)
            atomic.discard(self._paths.tasks_file)
            raise
