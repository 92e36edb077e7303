"""What a store does for the facade. The database and the files each do it, observably the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from datahound_storage.runs import HistoryEntry
from datahound_storage.writes import BulkChange, PreparedTask, TaskChange, TaskText, texts_by_key

# Makes the new version of a task from the text of the one that is stored.
Change = Callable[[str], TaskChange]
# Makes the new state of all tasks from the present one.
Decide = Callable[[list[TaskText]], BulkChange]


class TaskStore(Protocol):
    """Tasks and history. What a method changed is durable when it returns.

    A `change` is called again where another try is needed, on another store perhaps: see `once`.
    """

    def list_texts(self) -> list[TaskText]:
        """All tasks, in the order in which they were added."""

    def get_text(self, task_key: str) -> str | None:
        """The text of a task, None if there is none."""

    def add(self, prepared: PreparedTask) -> bool:
        """Add a task at the end; False if the key exists."""

    def update(self, task_key: str, change: Change) -> bool:
        """Change a task as it is now; False if there is none."""

    def delete(self, task_key: str) -> bool:
        """Delete a task; False if there is none."""

    def change_all(self, decide: Decide) -> None:
        """Change many tasks: all or nothing."""

    def log_run(self, entry: HistoryEntry) -> None:
        """Keep a run."""

    def history(self, task_key: str | None, limit: int) -> list[HistoryEntry]:
        """The newest `limit` entries (of one task), newest first."""

    def trim_history(self, days: float) -> int:
        """Remove the runs that ended longer ago; return how many."""


def once(change: Change) -> Change:
    """The same change, which leaves a text alone that it has made itself.

    An attempt whose answer got lost may have been done, and be shown by the other store already.
    """
    made: list[TaskChange] = []

    def change_once(text: str) -> TaskChange:
        if made and text == made[-1].prepared.text:
            return TaskChange(made[-1].prepared)
        made.append(change(text))
        return made[-1]

    return change_once


def all_once(decide: Decide) -> Decide:
    """The same change of many tasks, which does nothing where it was done as a whole."""
    made: list[BulkChange] = []

    def decide_once(texts: list[TaskText]) -> BulkChange:
        if made and _does_something(made[-1]) and _is_done(made[-1], texts):
            return BulkChange([], [])
        made.append(decide(texts))
        return made[-1]

    return decide_once


def _does_something(change: BulkChange) -> bool:
    # What only keeps a conflict is not done as long as nobody knows that it was committed.
    return bool(change.texts or change.delete or change.order is not None)


def _is_done(change: BulkChange, texts: list[TaskText]) -> bool:
    found = texts_by_key(texts)
    return (
        all(found.get(task_key) == text for task_key, text in change.texts.items())
        and not found.keys() & set(change.delete)
        and (change.order is None or change.order == list(found))
    )
