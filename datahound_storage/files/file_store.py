"""The JSON files as the store: where there is no database, or none that serves."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from datahound_storage.files import atomic, history, snapshot
from datahound_storage.files.lock import locked
from datahound_storage.files.paths import StatePaths
from datahound_storage.files.snapshot import Snapshot
from datahound_storage.runs import HistoryEntry, line_text
from datahound_storage.tasks import BulkChange, PreparedTask, TaskText


class FileStore:
    """Tasks in the snapshot, runs in the history file. Safe between threads and processes.

    The lock spans read, change and write, so that no two writers lose each other's changes.
    `patience` bounds the wait for it, in seconds. Methods raise FileStoreError, LockTimeoutError.
    """

    def __init__(self, paths: StatePaths, patience: float) -> None:
        self._paths = paths
        self._patience = patience
        self._reported = ""

    def list_texts(self) -> list[TaskText]:
        """All tasks that can be read, in the order of the file."""
        with locked(self._paths.lock_file, self._patience):
            found = self._read()
        return [TaskText(item.task_key, item.text) for item in found.items]

    def get_text(self, task_key: str) -> str | None:
        """The text of a task, None if there is none."""
        return dict(self.list_texts()).get(task_key)

    def add(self, prepared: PreparedTask) -> bool:
        """Add a task at the end; False if the key exists."""

        def change(texts: dict[str, str]) -> bool:
            if prepared.task_key in texts:
                return False
            texts[prepared.task_key] = prepared.text
            return True

        return self._change(change)

    def update(self, task_key: str, change_task: Callable[[str], PreparedTask]) -> bool:
        """Change a task; False if there is none."""

        def change(texts: dict[str, str]) -> bool:
            if task_key not in texts:
                return False
            texts[task_key] = change_task(texts[task_key]).text
            return True

        return self._change(change)

    def delete(self, task_key: str) -> bool:
        """Delete a task; False if there is none."""
        return self._change(lambda texts: texts.pop(task_key, None) is not None)

    def change_all(self, decide: Callable[[list[TaskText]], BulkChange]) -> None:
        """Change many tasks: all or nothing."""

        def change(texts: dict[str, str]) -> bool:
            wanted = decide([TaskText(*item) for item in texts.items()])
            for key in wanted.delete:
                texts.pop(key, None)
            texts.update((prepared.task_key, prepared.text) for prepared in wanted.write)
            if wanted.order is not None:
                ordered = [key for key in wanted.order if key in texts]
                kept = {key: texts.pop(key) for key in ordered}
                rest = dict(texts)
                texts.clear()
                texts.update(kept | rest)
            return bool(wanted.write or wanted.delete or wanted.order is not None)

        if not self._change(change):
            # What is acknowledged stands there already, perhaps by code that did not sync it.
            atomic.settle(self._paths.tasks_file)

    def log_run(self, entry: HistoryEntry) -> None:
        """Append a run to the history; on disk when it returns."""
        self.append_run(entry, durable=True)

    def append_run(self, entry: HistoryEntry, *, durable: bool) -> None:
        """Append a run to the history."""
        with locked(self._paths.lock_file, self._patience):
            history.append(self._paths.history_file, [line_text(entry)], durable=durable)

    def sync_history(self) -> None:
        """Put appended runs on disk."""
        history.sync(self._paths.history_file)

    def history(self, task_key: str | None, limit: int) -> list[HistoryEntry]:
        """The newest `limit` entries (of one task), newest first."""
        with locked(self._paths.lock_file, self._patience):
            found = history.newest(self._paths.history_files, task_key, limit)
        return [line.entry for line in found]

    def trim_history(self, days: float) -> int:
        """Remove the lines of runs that ended longer ago; remember that they are gone."""
        cutoff = datetime.now(UTC) - timedelta(days=days)
        with locked(self._paths.lock_file, self._patience):
            history.remember_cutoff(self._paths.history_state_file, cutoff)
        return self.trim_before(cutoff)

    def trim_before(self, cutoff: datetime) -> int:
        """Remove the lines of runs that ended before a time."""
        with locked(self._paths.lock_file, self._patience):
            return sum(history.trim(path, cutoff) for path in self._paths.history_files)

    def _change(self, change: Callable[[dict[str, str]], bool]) -> bool:
        with locked(self._paths.lock_file, self._patience):
            found = self._read()
            texts = {item.task_key: item.text for item in found.items}
            if not change(texts):
                return False
            if found.damaged:
                snapshot.set_aside(self._paths.tasks_file)
            atomic.replace(self._paths.tasks_file, snapshot.assemble(texts.values()))
            return True

    def _read(self) -> Snapshot:
        found = snapshot.read(self._paths.tasks_file)
        if found.damaged and found.digest != self._reported:
            snapshot.report_damage(self._paths.tasks_file, found)
            self._reported = found.digest
        return found
