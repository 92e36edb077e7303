"""Tasks on their way into a store, and out of it: what both stores take and give."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import orjson

from datahound_storage.codec import Task, decode
from datahound_storage.tasks import TaskColumns


class PreparedTask(NamedTuple):
    """A valid task, ready to be stored: its columns and its text."""

    columns: TaskColumns
    text: str

    @property
    def task_key(self) -> str:
        """The task's key."""
        return self.columns.task_key


class Conflict(NamedTuple):
    """A version that lost: `kept` names the side whose version stays."""

    task_key: str
    half: str
    kept: str
    lost_text: str
    reason: str


class TaskChange(NamedTuple):
    """A new version of a stored task, and what of the stored one loses by it."""

    prepared: PreparedTask
    conflicts: tuple[Conflict, ...] = ()


class LazyWrites(Iterable[PreparedTask]):
    """Tasks to write that are prepared one by one, while the store takes in those before.

    They are not kept, but for their texts: each iteration prepares them anew.
    """

    def __init__(self, prepare: Callable[[], Iterable[PreparedTask]]) -> None:
        self._prepare = prepare
        self._texts: dict[str, str] | None = None

    def __iter__(self) -> Iterator[PreparedTask]:
        texts = {}
        for prepared in self._prepare():
            texts[prepared.task_key] = prepared.text
            yield prepared
        self._texts = texts

    @property
    def texts(self) -> dict[str, str]:
        """The text of each task."""
        if self._texts is None:
            deque(self, maxlen=0)
        return self._texts or {}


class BulkChange(NamedTuple):
    """Tasks to write, new ones in this order; keys to delete; the order of all, if it changes.

    `conflicts` are versions that lose by it, to be kept for the operator; they are complete when
    `write` was gone through. `carried_over` tells what is to be remembered of a meeting (None:
    nothing), after the mark of its files; it is asked when all is written.
    """

    write: Sequence[PreparedTask] | LazyWrites
    delete: list[str]
    order: list[str] | None = None
    conflicts: Sequence[Conflict] = ()
    carried_over: tuple[str, Callable[[], str | None]] | None = None

    @property
    def texts(self) -> dict[str, str]:
        """The text of each task to write."""
        if isinstance(self.write, LazyWrites):
            return self.write.texts
        return {prepared.task_key: prepared.text for prepared in self.write}


class TaskText(NamedTuple):
    """A stored task: its key and its exact text.

    `is_read_alike`: orjson is known to give what `json` gives.
    """

    task_key: str
    text: str
    is_read_alike: bool = False


def decode_all(items: Iterable[TaskText]) -> Iterator[Task]:
    """The values of stored tasks, one by one."""
    loads = orjson.loads  # a look-up less for each
    return (loads(text) if alike else decode(text) for _, text, alike in items)


def decode_item(item: TaskText) -> Task:
    """The value of a stored task."""
    # Looking through the text for odd numbers takes as long as reading it.
    task: Task = orjson.loads(item.text) if item.is_read_alike else decode(item.text)
    return task


def texts_by_key(texts: Iterable[TaskText]) -> dict[str, str]:
    """The text of each key, in the same order."""
    return {item.task_key: item.text for item in texts}
