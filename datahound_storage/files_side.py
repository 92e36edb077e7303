"""The files' side of a meeting: what they show, and the state in which both sides were equal."""

from __future__ import annotations

import socket
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from itertools import chain

from datahound_storage.errors import FileStoreError
from datahound_storage.files import atomic, sidecar, snapshot
from datahound_storage.files.paths import StatePaths
from datahound_storage.files.sidecar import FORMAT, Hashes, Sidecar
from datahound_storage.files.snapshot import Snapshot, SnapshotItem
from datahound_storage.former import Translation, with_digest_of_now
from datahound_storage.halves import hashes_of
from datahound_storage.postgres.changes import Changes
from datahound_storage.writes import PreparedTask


@dataclass
class FilesSide:
    """The files as found, and what is known of the state that they were last equal in.

    `mark` tells them from other files, and from themselves once the snapshot was written anew; it
    stays the same while others change the snapshot. None where there is no sidecar to tell it.
    """

    snapshot: Snapshot
    sidecar: Sidecar | None
    mark: str | None = None
    _hashed: dict[str, Hashes] = field(default_factory=dict, repr=False, compare=False)
    _translated: tuple[Changes, Translation] | None = field(default=None, repr=False, compare=False)

    @cached_property
    def hashes(self) -> dict[str, Hashes]:
        """The hashes of each task in the snapshot."""
        known = self.sidecar
        if known is not None and self._is_described_by(known):
            # What was written beside this very content need not be worked out again.
            return {
                i.task_key: known.tasks.get(i.task_key) or _hashes(i) for i in self.snapshot.items
            }
        found = self._hashed
        return {i.task_key: found.get(i.task_key) or _hashes(i) for i in self.snapshot.items}

    def _is_described_by(self, known: Sidecar) -> bool:
        # One that was settled may name this content, and tell of the one before.
        header = known.header
        is_of_it = header.file is not None and header.after == self.snapshot.digest
        return is_of_it and known.format == FORMAT

    def look(self, prepared: PreparedTask) -> None:
        """Hash a task of the snapshot, as there is time for it now."""
        item = self._items.get(prepared.task_key)
        if item is not None:
            self._hashed[item.task_key] = _hashes(item)

    def note(self, prepared: PreparedTask) -> None:
        """Nothing to do now."""

    def looking(self) -> AbstractContextManager[None]:
        """Nothing to do meanwhile."""
        return nullcontext()

    @cached_property
    def _items(self) -> dict[str, SnapshotItem]:
        return {item.task_key: item for item in self.snapshot.items}

    @property
    def is_complete(self) -> bool:
        """Whether the snapshot is there as a whole, so that what it lacks was deleted."""
        return self.snapshot.exists and not self.snapshot.damaged

    def is_of(self, changes: Changes) -> bool:
        """Whether the sidecar speaks of this database."""
        return self.sidecar is not None and self.sidecar.header.database == changes.state.identity

    def known(self, changes: Changes) -> Sidecar | None:
        """The sidecar, in the hashes of this version, if it speaks of this database."""
        if self.sidecar is None or not self.is_of(changes):
            return None
        return self.translation(changes).sidecar(self.sidecar)

    def translation(self, changes: Changes | None) -> Translation:
        """From hashes of format 1, for what is in the files, and in the database if it is known."""
        in_files = (item.text for item in self.snapshot.items)
        if changes is None:
            return Translation(in_files)
        if self._translated is None or self._translated[0] is not changes:
            in_database = (task.text for task in changes.tasks)
            self._translated = (changes, Translation(chain(in_files, in_database)))
        return self._translated[1]

    def shows_the_same(self, changes: Changes) -> bool:
        """Whether the snapshot shows what is in the database, to the letter."""
        in_files = {item.task_key: item.text for item in self.snapshot.items}
        return self.is_complete and in_files == {s.task_key: s.text for s in changes.tasks}

    def is_as_written_for(self, changes: Changes) -> bool:
        """Whether the snapshot is one that we wrote for this database: it has the last word then.

        What was added while the files served and then deleted leaves no trace but in the sidecar.
        """
        known = self.sidecar
        if known is None or not self.snapshot.exists or known.shown_since:
            return False
        recognised = known.header.recognises(self.snapshot.digest, self.snapshot.signature)
        return recognised and self.is_of(changes)


def _hashes(item: SnapshotItem) -> Hashes:
    return hashes_of(item.task, is_finite=item.is_read_alike)


def look_at_files(paths: StatePaths, found: Snapshot | None = None) -> FilesSide:
    """Snapshot (`found`, if it was read already) and sidecar as they are. Raises FileStoreError."""
    found = found or snapshot.read(paths.tasks_file)
    known = sidecar.read(paths.sidecar_file)
    if known is not None:
        settled = known.settled(atomic.unpublished(paths.tasks_file))
        known = with_digest_of_now(settled, found, paths.tasks_file)
    return FilesSide(found, known, _mark(paths))


def _mark(paths: StatePaths) -> str | None:
    digest = sidecar.header_digest(paths.sidecar_file)
    try:
        lock = paths.lock_file.stat()
    except OSError:
        return None
    # A copy of the directory has the same sidecar; its lock is another file, or on another host.
    place = f"{socket.gethostname()}:{lock.st_ino}"
    return None if digest is None else blake2b(f"{place} {digest}".encode()).hexdigest()[:40]


def take_files(paths: StatePaths) -> FilesSide:
    """As `look_at_files`, to let them meet a database. Callers hold the lock.

    A damaged snapshot is kept aside. Where there is no sidecar one is begun, so that the files are
    known again after the meeting. Raises FileStoreError, SnapshotError.
    """
    found = snapshot.read(paths.tasks_file)
    if found.damaged:
        snapshot.report_damage(paths.tasks_file, found)
        snapshot.set_aside(paths.tasks_file)
    if found.exists and sidecar.header_digest(paths.sidecar_file) is None:
        with suppress(FileStoreError):  # no room: then a crash makes strangers of them once more
            sidecar.begin(paths.sidecar_file)
    return look_at_files(paths, found)
