"""The files' side of a meeting: what they show, and the state in which both sides were equal."""

from __future__ import annotations

from dataclasses import dataclass

from datahound_storage.files import atomic, sidecar, snapshot
from datahound_storage.files.paths import StatePaths
from datahound_storage.files.sidecar import Sidecar
from datahound_storage.files.snapshot import Snapshot
from datahound_storage.postgres.changes import Changes


@dataclass
class FilesSide:
    """The files as found, and what is known of the state that they were last equal in."""

    snapshot: Snapshot
    sidecar: Sidecar | None

    @property
    def is_complete(self) -> bool:
        """Whether the snapshot is there as a whole, so that what it lacks was deleted."""
        return self.snapshot.exists and not self.snapshot.damaged

    def is_of(self, changes: Changes) -> bool:
        """Whether the sidecar speaks of this database."""
        return self.sidecar is not None and self.sidecar.header.database == changes.state.identity

    def shows_the_same(self, changes: Changes) -> bool:
        """Whether the snapshot shows what is in the database, to the letter."""
        in_files = {item.task_key: item.text for item in self.snapshot.items}
        return self.is_complete and in_files == {s.task_key: s.text for s in changes.tasks}

    @property
    def unchanged(self) -> bool:
        """Whether the snapshot is one that we wrote: then the database has the last word.

        What was added while the files served and then deleted leaves no trace but in the sidecar.
        """
        if self.sidecar is None or not self.snapshot.exists or self.sidecar.shown_since:
            return False
        header = self.sidecar.header
        return header.recognises(self.snapshot.digest, self.snapshot.signature)


def read_files(paths: StatePaths) -> FilesSide:
    """Read snapshot and sidecar; a damaged snapshot is kept aside and reported. Under the lock."""
    found = snapshot.read(paths.tasks_file)
    if found.damaged:
        snapshot.report_damage(paths.tasks_file, found)
        snapshot.set_aside(paths.tasks_file)
    known = sidecar.read(paths.sidecar_file)
    unpublished = atomic.unpublished(paths.tasks_file)
    return FilesSide(found, known and known.settled(found.signature, unpublished))
