"""This process's picture of the tasks: their texts in order, the state they show, their hashes.

It makes a refresh cheap: what changed is fetched, the rest is joined from texts at hand. Nothing
but that joining goes through all tasks where one of them changed. Not safe for threads by itself;
its user holds the file lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from operator import itemgetter
from threading import Thread
from typing import NamedTuple

from datahound_storage.codec import read
from datahound_storage.files import layout
from datahound_storage.files.sidecar import task_line
from datahound_storage.halves import hashes_of
from datahound_storage.postgres.changes import Changes, DatabaseState
from datahound_storage.postgres.stored import StoredTask
from datahound_storage.writes import PreparedTask, TaskText

# So few are looked at before a thread has begun.
_FEW = 200


class Look(NamedTuple):
    """What a text says; `digest` is None of one in another layout."""

    item: TaskText
    sidecar_line: str
    digest: bytes | None


class Entry(NamedTuple):
    """A task as the view keeps it, with the `Look` of its text."""

    item: TaskText
    sidecar_line: str
    digest: bytes | None
    stored: StoredTask
    text: str

    @property
    def place(self) -> tuple[int, str]:
        """What the tasks are sorted by."""
        return self.stored.position, self.stored.task_key


# By their places, as that is the fastest way through all of them.
_item, _line, _digest, _text = map(itemgetter, (0, 1, 2, 4))


class TaskView:
    """The tasks of the database as of `state`; `state` is None before the first reading."""

    def __init__(self) -> None:
        self.state: DatabaseState | None = None
        self.newest_us = 0
        self._entries: dict[str, Entry] = {}
        # The tasks whose text has no digest.
        self._odd: set[str] = set()
        self._last_place = (-(2**63), "")
        self._sorted = True

    def apply(self, changes: Changes, looks: Mapping[str, Look] | None = None) -> set[str]:
        """Take in a reading; return the keys whose task is another than before, or gone.

        `looks` are what is known already of texts that it may have.
        """
        touched = self._drop(changes)
        known = looks or {}
        for stored in changes.tasks:
            if self._take(stored, known.get(stored.task_key)):
                touched.add(stored.task_key)
        self.state = changes.state
        self.newest_us = max(self.newest_us, changes.newest_us)
        self._sort()
        return touched

    def _take(self, stored: StoredTask, look: Look | None) -> bool:
        """Take in a task; return whether it is another than before."""
        old = self._entries.get(stored.task_key)
        entry = self._entries[stored.task_key] = _entry(stored, old, look)
        if entry.digest is None:
            self._odd.add(stored.task_key)
        else:
            self._odd.discard(stored.task_key)
        if old is None:
            self._sorted = self._sorted and entry.place > self._last_place
            self._last_place = max(self._last_place, entry.place)
            return True
        moved = old.stored.position != stored.position
        self._sorted = self._sorted and not moved
        return moved or old.stored.text != stored.text

    def _drop(self, changes: Changes) -> set[str]:
        if changes.full:
            present = {stored.task_key for stored in changes.tasks}
            gone = [key for key in self._entries if key not in present]
        else:
            gone = [key for key, _ in changes.deleted if key in self._entries]
        for key in gone:
            del self._entries[key]
            self._odd.discard(key)
        return set(gone)

    def _sort(self) -> None:
        if not self._sorted:
            ordered = sorted(self._entries.items(), key=lambda e: e[1].place)
            self._entries = dict(ordered)
            self._last_place = ordered[-1][1].place if ordered else (-(2**63), "")
            self._sorted = True

    def get(self, task_key: str) -> StoredTask | None:
        """The task as last seen; it may have changed since."""
        entry = self._entries.get(task_key)
        return None if entry is None else entry.stored

    def stored(self) -> dict[str, StoredTask]:
        """All tasks, of `state` or of later states: safe while another thread applies changes."""
        entries = self._entries.copy()
        return {key: entry.stored for key, entry in entries.items()}

    def texts(self) -> list[TaskText]:
        """The tasks in their order."""
        return list(map(_item, self._entries.values()))

    def plain_texts(self) -> Iterator[str]:
        """The texts of the tasks, in their order."""
        return map(_text, self._entries.values())

    def digest(self) -> str | None:
        """The digest of a snapshot that shows them; None where only its content can tell."""
        if self._odd:
            return None
        return layout.digest_of_texts(map(_digest, self._entries.values()))

    def line(self, task_key: str) -> str | None:
        """The line of a task in the sidecar, None where there is no such task."""
        entry = self._entries.get(task_key)
        return None if entry is None else entry.sidecar_line

    def line_for(self, task_key: str, text: str) -> str | None:
        """The line of a task in the sidecar if this is its text here."""
        entry = self._entries.get(task_key)
        return entry.sidecar_line if entry is not None and entry.stored.text == text else None

    def lines(self) -> dict[str, str]:
        """The line of each task in the sidecar."""
        return {key: entry.sidecar_line for key, entry in self._entries.items()}

    def sidecar_lines(self) -> Iterator[str]:
        """The lines of the sidecar, in the order of the tasks."""
        return map(_line, self._entries.values())


def _entry(stored: StoredTask, old: Entry | None, look: Look | None) -> Entry:
    if old is not None and old.stored.text == stored.text:
        return old._replace(stored=stored)
    if look is None or look.item.text != stored.text:
        look = look_at(stored.task_key, stored.text)
    # The text that came with the row is given up for the one that is known.
    return Entry(*look, stored._replace(text=look.item.text), look.item.text)


def look_at(task_key: str, text: str) -> Look:
    """What the text of a task says."""
    task, is_read_alike = read(text)
    item = TaskText(task_key, text, is_read_alike)
    line = task_line(task_key, hashes_of(task, is_finite=is_read_alike))
    return Look(item, line, layout.text_digest(text))


class LookingAhead:
    """Looks at the texts that are being written, while the server is busy with them."""

    def __init__(self) -> None:
        self.looks: dict[str, Look] = {}
        self._noted: list[PreparedTask] = []

    def look(self, prepared: PreparedTask) -> None:
        """Look at a text."""
        self.looks[prepared.task_key] = look_at(prepared.task_key, prepared.text)

    def note(self, prepared: PreparedTask) -> None:
        """A text to be looked at later."""
        self._noted.append(prepared)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look at what was noted, in a thread; where that is little, leave it to later."""
        noted, self._noted = self._noted, []
        if len(noted) < _FEW:
            yield
            return
        thread = Thread(target=lambda: deque(map(self.look, noted), 0), daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # No more threads, or the interpreter is shutting down.
            yield
            return
        try:
            yield
        finally:
            thread.join()
