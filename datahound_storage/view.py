"""This process's picture of the tasks: their texts in order, the state they show, their hashes.

It makes a refresh cheap: what changed is fetched, the rest is joined from texts at hand. Not safe
for threads by itself; its user holds the file lock.
"""

from __future__ import annotations

from typing import NamedTuple

from datahound_storage.codec import decode
from datahound_storage.files.sidecar import Hashes, task_line
from datahound_storage.halves import hashes_of
from datahound_storage.postgres.changes import Changes, DatabaseState
from datahound_storage.postgres.stored import StoredTask
from datahound_storage.tasks import TaskText


class Entry(NamedTuple):
    """A task as the view keeps it."""

    stored: StoredTask
    hashes: Hashes
    sidecar_line: str


class TaskView:
    """The tasks of the database as of `state`; `state` is None before the first reading."""

    def __init__(self) -> None:
        self.state: DatabaseState | None = None
        self.newest_us = 0
        self._entries: dict[str, Entry] = {}
        self._sorted = True

    def apply(self, changes: Changes) -> set[str]:
        """Take in a reading; return the keys whose task is another than before, or gone."""
        touched = self._drop(changes)
        for stored in changes.tasks:
            old = self._entries.get(stored.task_key)
            if old is None or old.stored.position != stored.position:
                self._sorted = False
            if old is None or (old.stored.text, old.stored.position) != (
                stored.text,
                stored.position,
            ):
                touched.add(stored.task_key)
            self._entries[stored.task_key] = _entry(stored, old)
        self.state = changes.state
        self.newest_us = max(self.newest_us, changes.newest_us)
        self._sort()
        return touched

    def _drop(self, changes: Changes) -> set[str]:
        if changes.full:
            present = {stored.task_key for stored in changes.tasks}
            gone = [key for key in self._entries if key not in present]
        else:
            gone = [key for key, _ in changes.deleted if key in self._entries]
        for key in gone:
            del self._entries[key]
        return set(gone)

    def _sort(self) -> None:
        if not self._sorted:
            ordered = sorted(self._entries.items(), key=lambda e: (e[1].stored.position, e[0]))
            self._entries = dict(ordered)
            self._sorted = True

    def get(self, task_key: str) -> StoredTask | None:
        """The task as last seen; it may have changed since."""
        entry = self._entries.get(task_key)
        return None if entry is None else entry.stored

    def texts(self) -> list[TaskText]:
        """The tasks in their order."""
        return [TaskText(key, entry.stored.text) for key, entry in self._entries.items()]

    def hashes(self) -> dict[str, Hashes]:
        """The hashes of the halves of each task."""
        return {key: entry.hashes for key, entry in self._entries.items()}

    def hashes_of(self, task_key: str, text: str) -> Hashes | None:
        """The hashes of a task if this is its text here."""
        entry = self._entries.get(task_key)
        return entry.hashes if entry is not None and entry.stored.text == text else None

    def sidecar_lines(self) -> list[str]:
        """The lines of the sidecar, in the order of the tasks."""
        return [entry.sidecar_line for entry in self._entries.values()]


def _entry(stored: StoredTask, old: Entry | None) -> Entry:
    if old is not None and old.stored.text == stored.text:
        return Entry(stored, old.hashes, old.sidecar_line)
    hashes = hashes_of(decode(stored.text))
    return Entry(stored, hashes, task_line(stored.task_key, hashes))
