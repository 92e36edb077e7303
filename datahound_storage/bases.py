"""Which version of a task a caller's object shows: the base of its next change.

It is known of every object that was loaded here or submitted here, and stays known as long as the
object lives.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datahound_storage.codec import Task, decode
from datahound_storage.writes import TaskText, texts_by_key

# What cannot be referred to weakly, a dict of the caller's own or an object of a class with slots,
# has to be kept alive to be recognised: so many of them.
_MOST_KEPT = 20_000
_numbers = itertools.count()


class LoadedTask(dict[str, Any]):
    """A task as a plain dict, which can be recognised when it comes back."""

    __slots__ = ("__weakref__", "shows")
    # The store that it is of, and the version that it shows there.
    shows: tuple[Identities, str, str, int]

    def __reduce_ex__(self, _: Any) -> tuple[type[LoadedTask], tuple[Task]]:
        """A copy is another object: what it shows is known of this one only."""
        return LoadedTask, (dict(self),)


class _Reference(weakref.ref[Any]):
    """A weak reference that knows its object's identity when that is gone."""

    __slots__ = ("identity",)
    identity: int


class Shown(NamedTuple):
    """What an object shows; `number` tells what was later than what."""

    task_key: str
    text: str
    number: int


class _Known(NamedTuple):
    """An object that has no place for it itself, and what it shows."""

    reference: _Reference | None
    task: object
    shown: Shown


class Identities:
    """The versions that objects show. All facades of one store share it; safe between threads."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}
        self._kept: OrderedDict[int, _Known] = OrderedDict()

    def remember(self, task: object, task_key: str, text: str) -> None:
        """An object shows this version."""
        if isinstance(task, LoadedTask) and self._may_mark(task):
            task.shows = (self, task_key, text, next(_numbers))
            return
        shown = Shown(task_key, text, next(_numbers))
        try:
            reference = _Reference(task, self._forget)
        except TypeError:
            self._keep(_Known(None, task, shown))
            return
        reference.identity = id(task)
        self._known[id(task)] = _Known(reference, None, shown)

    def mark(self, tasks: Iterable[LoadedTask], texts: Iterable[TaskText]) -> None:
        """New objects show these versions."""
        number = next(_numbers)
        for task, (task_key, text, _) in zip(tasks, texts, strict=True):
            task.shows = (self, task_key, text, number)

    def _may_mark(self, task: LoadedTask) -> bool:
        """Whether the mark on a task is ours; it may be that of another store."""
        return not hasattr(task, "shows") or task.shows[0] is self

    def _keep(self, known: _Known) -> None:
        self._kept[id(known.task)] = known
        while len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)

    def of(self, task: object) -> Shown | None:
        """What an object shows."""
        if isinstance(task, LoadedTask) and hasattr(task, "shows") and task.shows[0] is self:
            return Shown(*task.shows[1:])
        kept = self._kept.get(id(task))
        if kept is not None and kept.task is task:
            return kept.shown
        known = self._known.get(id(task))
        if known is not None and known.reference is not None and known.reference() is task:
            return known.shown
        return None

    def _forget(self, reference: weakref.ref[Any]) -> None:
        identity = getattr(reference, "identity", 0)
        known = self._known.get(identity)
        if known is not None and known.reference is reference:
            del self._known[identity]


class _Seen(threading.local):
    """What one thread saw of each task last, and when it deleted one."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.deleted: dict[str, int] = {}


class Bases:
    """The bases of the objects that come to one facade. Safe between threads.

    A copy of a loaded task is another object. For it, the version counts that this thread saw
    last, if the copy has its `updated_at`.
    """

    def __init__(self, identities: Identities) -> None:
        self._identities = identities
        self._seen = _Seen()

    def loaded(self, task: object, task_key: str, text: str) -> None:
        """An object was made of this version."""
        self._identities.remember(task, task_key, text)
        self._seen.texts[task_key] = text

    def loaded_all(self, tasks: Iterable[LoadedTask], texts: Sequence[TaskText]) -> None:
        """New objects were made of these versions."""
        self._identities.mark(tasks, texts)
        self._seen.texts.update(texts_by_key(texts))

    def submitted(self, task: object, task_key: str, text: str, *, known: bool = False) -> None:
        """An object was stored; `known`: it, or what it is a copy of, had been loaded here."""
        self._identities.remember(task, task_key, text)
        if known:
            self._seen.texts[task_key] = text

    def deleted(self, task_key: str) -> None:
        """This thread deleted a task: an object of it that comes back is a new task."""
        self._seen.deleted[task_key] = next(_numbers)
        self._seen.texts.pop(task_key, None)

    def of(self, task: object, task_key: str, updated_at: object) -> str | None:
        """The version that an object showed when it was loaded or submitted last, if known."""
        known = self._identities.of(task)
        if known is not None and known.task_key == task_key:
            return None if known.number < self._seen.deleted.get(task_key, 0) else known.text
        text = self._seen.texts.get(task_key)
        if text is None or updated_at is None or _updated_at(text) != updated_at:
            return None
        return text


def _updated_at(text: str) -> object:
    task: Task = decode(text)
    return task.get("updated_at")


_by_store: dict[tuple[Path, str | None], Identities] = {}


def identities_of(data_dir: Path, url: str | None) -> Identities:
    """What the objects of this process show of one store."""
    return _by_store.setdefault((data_dir, url), Identities())
