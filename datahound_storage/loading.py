"""From stored texts to the objects that a caller gets, each with the version that it shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from datahound_storage.bases import Bases, LoadedTask
from datahound_storage.codec import Task
from datahound_storage.collecting import uncollected
from datahound_storage.reporting import Reporter
from datahound_storage.saving import TaskAdapter
from datahound_storage.writes import TaskText, decode_all, decode_item

log = Reporter()

IsWanted = Callable[[Task], bool]


class Loader:
    """Makes objects of the caller's class, or plain dicts. Safe between threads."""

    def __init__(self, adapter: TaskAdapter, bases: Bases) -> None:
        self._adapter = adapter
        self._bases = bases

    def load_all(self, texts: list[TaskText], is_wanted: IsWanted | None = None) -> list[Any]:
        """The objects for the wanted tasks, in order, but for those that `load` reports."""
        with uncollected():
            if self._adapter.keeps_dicts:
                return self._load_dicts(texts, is_wanted)
            pairs = ((item, decode_item(item)) for item in texts)
            return [
                made
                for item, task in pairs
                if is_wanted is None or is_wanted(task)
                if (made := self._made(item, task)) is not None
            ]

    def load(self, item: TaskText) -> Any | None:
        """The caller's object for a task; None where its class rejects it, which is reported."""
        return self._made(item, decode_item(item))

    def _load_dicts(self, texts: list[TaskText], is_wanted: IsWanted | None) -> list[LoadedTask]:
        # One by one: what a task is made of goes again at once, which is faster than all together.
        if is_wanted is None:
            loaded, seen = list(map(LoadedTask, decode_all(texts))), texts
        else:
            # What the caller does not get it has not seen.
            pairs = zip(texts, decode_all(texts), strict=True)
            wanted = [(item, LoadedTask(task)) for item, task in pairs if is_wanted(task)]
            loaded, seen = [task for _, task in wanted], [item for item, _ in wanted]
        self._bases.loaded_all(loaded, seen)
        return loaded

    def _made(self, item: TaskText, task: Task) -> Any | None:
        try:
            loaded = self._adapter.from_dict(task)
        except Exception as error:  # noqa: BLE001 - one bad task must not hide the others
            # The message of a stranger's exception may quote settings: its kind has to do.
            log.error(
                "task %r cannot be made into a task object (%s): left out, kept as it is",
                item.task_key,
                type(error).__name__,
            )
            return None
        self._bases.loaded(loaded, item.task_key, item.text)
        return loaded
