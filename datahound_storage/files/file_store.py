"""The JSON files as the store: where there is no database, or none that serves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta

from datahound_storage.codec import decode
from datahound_storage.errors import FileStoreError, LockTimeoutError
from datahound_storage.files import atomic, conflicts, history, layout, sidecar, snapshot
from datahound_storage.files.lock import locked
from datahound_storage.files.paths import StatePaths
from datahound_storage.files.snapshot import Snapshot
from datahound_storage.files.trimming import trim
from datahound_storage.halves import hashes_of, same_half
from datahound_storage.reporting import Reporter
from datahound_storage.runs import HistoryEntry, line_text
from datahound_storage.writes import (
    BulkChange,
    Conflict,
    PreparedTask,
    TaskChange,
    TaskText,
    texts_by_key,
)

log = Reporter()

Texts = dict[str, str]


class MovedError(Exception):
    """The files stopped being the store while an operation waited for their lock."""


class FileStore:
    """Tasks in the snapshot, runs in the history file. Safe between threads and processes.

    The lock spans read, change and write, so that no two writers lose each other's changes.
    `patience` bounds the wait for it, in seconds. `serves` is asked under the lock whether the
    files are still the store. `held`: the caller holds the lock already. Methods raise
    FileStoreError, LockTimeoutError, MovedError.
    """

    def __init__(
        self,
        paths: StatePaths,
        patience: float,
        serves: Callable[[], bool] = lambda: True,
        *,
        held: bool = False,
    ) -> None:
        self._held = held
        self._paths = paths
        self._patience = patience
        self._serves = serves
        self._reported = ""
        self._redoing = threading.local()
        self.runs_logged = 0

    @contextmanager
    def redoing(self) -> Iterator[None]:
        """Around a change of this thread that the database has done, or may have done, as well."""
        self._redoing.is_on = True
        try:
            yield
        finally:
            self._redoing.is_on = False

    @property
    def _is_redoing(self) -> bool:
        return getattr(self._redoing, "is_on", False)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with nullcontext() if self._held else locked(self._paths.lock_file, self._patience):
            if not self._serves():
                raise MovedError
            yield

    def list_texts(self) -> list[TaskText]:
        """All tasks that can be read, in the order of the file."""
        with self._locked():
            found = self._read()
        return [TaskText(item.task_key, item.text) for item in found.items]

    def get_text(self, task_key: str) -> str | None:
        """The text of a task, None if there is none."""
        return texts_by_key(self.list_texts()).get(task_key)

    def add(self, prepared: PreparedTask) -> bool:
        """Add a task at the end; False if the key exists."""

        def change(texts: Texts, _: list[Conflict]) -> bool:
            if prepared.task_key in texts:
                # What the lost attempt has added may be shown already, by whoever came first.
                return self._is_redoing and texts[prepared.task_key] == prepared.text
            texts[prepared.task_key] = prepared.text
            return True

        return self._change(change)

    def update(self, task_key: str, change_task: Callable[[str], TaskChange]) -> bool:
        """Change a task; False if there is none."""

        def change(texts: Texts, lost: list[Conflict]) -> bool:
            if task_key not in texts:
                return False
            wanted = change_task(texts[task_key])
            texts[task_key] = wanted.prepared.text
            lost.extend(wanted.conflicts)
            return True

        return self._change(change)

    def delete(self, task_key: str) -> bool:
        """Delete a task; False if there is none."""
        return self._change(lambda texts, _: texts.pop(task_key, None) is not None)

    def delete_as_seen(self, task_key: str, seen: str | None) -> bool:
        """As `delete`; what was edited since it was `seen` (None: never) is kept as a conflict."""

        def change(texts: Texts, lost: list[Conflict]) -> bool:
            text = texts.pop(task_key, None)
            if text is not None and (seen is None or _is_edited(text, seen)):
                reason = "deleted in the database, before the files could show it"
                lost.append(Conflict(task_key, "task", "database", text, reason))
            return text is not None

        return self._change(change)

    def change_all(self, decide: Callable[[list[TaskText]], BulkChange]) -> None:
        """Change many tasks: all or nothing."""

        def change(texts: Texts, lost: list[Conflict]) -> bool:
            wanted = decide([TaskText(*item) for item in texts.items()])
            is_changed = _apply(wanted, texts)
            lost.extend(wanted.conflicts)
            return is_changed or bool(lost)

        if not self._change(change):
            # What is acknowledged stands there already, perhaps by code that did not sync it.
            atomic.settle(self._paths.tasks_file)

    def log_run(self, entry: HistoryEntry) -> None:
        """Append a run to the history; on disk when it returns.

        A run cannot be done again: if somebody holds the lock for too long it goes in without.
        """
        lines = [line_text(entry)]
        try:
            with self._locked():
                history.append(self._paths.history_file, lines, durable=True)
        except LockTimeoutError:
            history.append_unlocked(self._paths.history_file, lines)
        self.runs_logged += 1

    def append_run(self, text: str) -> None:
        """Append a run's line to the history, without waiting for the disk; a table has it too."""
        with locked(self._paths.lock_file, self._patience):
            history.append(self._paths.history_file, [text], durable=False)

    def sync_history(self) -> None:
        """Put appended runs on disk."""
        with locked(self._paths.lock_file, self._patience):
            history.sync(self._paths.history_file)

    def history(self, task_key: str | None, limit: int) -> list[HistoryEntry]:
        """The newest `limit` entries (of one task), newest first."""
        with self._locked():
            found = history.newest(self._paths.history_files, task_key, limit)
        return [line.entry for line in found]

    def trim_history(self, days: float) -> int:
        """Remove the lines of runs that ended longer ago; remember that they are gone."""
        cutoff = datetime.now(UTC) - timedelta(days=days)
        with self._locked():
            history.remember_cutoff(self._paths.history_state_file, cutoff)
            return self._trim(cutoff)

    def trim_before(self, cutoff: datetime) -> int:
        """Remove the lines of runs that ended before a time, which another store remembers."""
        with locked(self._paths.lock_file, self._patience):
            return self._trim(cutoff)

    def _trim(self, cutoff: datetime) -> int:
        return sum(trim(path, cutoff) for path in self._paths.history_files)

    def _change(self, change: Callable[[Texts, list[Conflict]], bool]) -> bool:
        with self._locked():
            found = self._read()
            before = {item.task_key: item.text for item in found.items}
            texts = dict(before)
            lost: list[Conflict] = []
            if not change(texts, lost):
                return False
            if found.damaged:
                snapshot.set_aside(self._paths.tasks_file)
            if found.damaged or not found.exists:
                # What is written now lacks tasks that nobody has deleted: the sides are to meet as
                # strangers, which deletes nothing.
                sidecar.forget(self._paths.sidecar_file)
            # What loses is kept first: a crash in between has it once too often, not never.
            conflicts.append(self._paths.conflicts_file, lost)
            unpublished = atomic.unpublished(self._paths.tasks_file)
            sidecar.settle(self._paths.sidecar_file, unpublished)
            atomic.replace(self._paths.tasks_file, layout.assemble(texts.values()))
            if self._is_redoing:
                changed = (key for key in before | texts if before.get(key) != texts.get(key))
                self._note({key: texts.get(key) for key in changed})
            return True

    def _note(self, texts: dict[str, str | None]) -> None:
        """After the snapshot: what it never showed must not be taken for deleted there."""
        try:
            sidecar.note_shown(self._paths.sidecar_file, texts)
        except FileStoreError as error:
            # The change itself is durable. Without the note it survives its deletion, at worst.
            log.error("a change that the database may have as well could not be noted: %s", error)

    def _read(self) -> Snapshot:
        found = snapshot.read(self._paths.tasks_file)
        if found.damaged and found.digest != self._reported:
            snapshot.report_damage(self._paths.tasks_file, found)
            self._reported = found.digest
        return found


def _is_edited(text: str, seen: str) -> bool:
    """Whether the operator's half is another one."""
    return not same_half(hashes_of(decode(text))[0], hashes_of(decode(seen))[0])


def _apply(wanted: BulkChange, texts: Texts) -> bool:
    """Carry out a bulk change; return whether there was something to do."""
    for key in wanted.delete:
        texts.pop(key, None)
    texts.update(wanted.texts)
    if wanted.order is not None:
        ordered = {key: texts.pop(key) for key in wanted.order if key in texts}
        rest = dict(texts)
        texts.clear()
        texts.update(ordered | rest)
    return bool(wanted.texts or wanted.delete or wanted.order is not None)
