"""Kept versions become tasks again, through the store that serves. Prints nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

from datahound_storage.cli.kept import Kept, Places
from datahound_storage.codec import Task, decode, same
from datahound_storage.errors import (
    DatabaseUnavailableError,
    InvalidArgumentError,
    InvalidTaskError,
    StorageError,
)
from datahound_storage.fallback import StoreSwitch, close_switch, open_switch
from datahound_storage.halves import join_halves
from datahound_storage.health import StoreName
from datahound_storage.reconcile import HALF_NAMES
from datahound_storage.saving import TaskAdapter
from datahound_storage.settings import Settings
from datahound_storage.stamping import now_like
from datahound_storage.stores import all_once
from datahound_storage.tasks import check, columns_of
from datahound_storage.writes import BulkChange, Conflict, PreparedTask, TaskText, texts_by_key

_WHOLE = "task"


class Restored(NamedTuple):
    """A kept version, and what became of the task by it: `added`, `replaced`, or `the same`."""

    kept: Kept
    what: str


class Restoring:
    """The decision to make kept versions tasks again.

    Where one half of a task lost, that half comes back; else, or where the task is gone, all of it.
    What is replaced is kept as a conflict. Raises InvalidArgumentError for two versions of the same
    half of a task, InvalidTaskError for what is no task.
    """

    def __init__(self, found: Sequence[Kept]) -> None:
        _refuse_rivals(found)
        # Once for all: a store may ask for the decision more than once.
        self._wanted = [(kept, _stamped(kept)) for kept in found]
        self.done: list[Restored] = []

    def __call__(self, present: list[TaskText]) -> BulkChange:
        """The change to be made to the present tasks."""
        stored, lost = texts_by_key(present), []
        now, write = dict(stored), dict[str, PreparedTask]()
        self.done = []
        for kept, task in self._wanted:
            key = kept.conflict.task_key
            prepared = _restored(kept, task, now.get(key))
            what = _what(prepared, now.get(key))
            self.done.append(Restored(kept, what))
            if what == "replaced" and key in stored:
                lost.append(_replaced(kept, stored[key]))
            if what != "the same":
                now[key], write[key] = prepared.text, prepared
        return BulkChange(list(write.values()), [], None, tuple(lost))


def _refuse_rivals(found: Sequence[Kept]) -> None:
    versions = Counter((kept.conflict.task_key, half) for kept in found for half in _halves(kept))
    key, number = next(((k, n) for (k, _), n in versions.items() if n > 1), ("", 0))
    if number:
        ids = ", ".join(kept.id for kept in found if kept.conflict.task_key == key)
        raise InvalidArgumentError(
            f"conflicts {ids} are versions of the same task {key[:80]!r}: restore one of them "
            "(`--show ID` tells how each differs from the task as it is). Nothing was changed."
        )


def _halves(kept: Kept) -> tuple[str, ...]:
    return (kept.conflict.half,) if kept.conflict.half in HALF_NAMES else HALF_NAMES


def _stamped(kept: Kept) -> Task:
    """The version that lost, as a change that is made now."""
    try:
        task = check(decode(kept.conflict.lost_text))
    except ValueError as error:
        raise InvalidTaskError(f"conflict {kept.id} holds no task: nothing was changed.") from error
    return {**task, "updated_at": now_like(task.get("updated_at"), as_text=True)}


def _restored(kept: Kept, task: Task, stored: str | None) -> PreparedTask:
    if stored is not None and kept.conflict.half == HALF_NAMES[0]:
        task = join_halves(task, decode(stored))
    elif stored is not None and kept.conflict.half == HALF_NAMES[1]:
        task = join_halves(decode(stored), task)
    return PreparedTask(columns_of(task), TaskAdapter(None).text_of(task))


def _what(prepared: PreparedTask, stored: str | None) -> str:
    if stored is None:
        return "added"
    left, right = ({**decode(t), "updated_at": None} for t in (prepared.text, stored))
    return "the same" if same(left, right) else "replaced"


def _replaced(kept: Kept, stored: str) -> Conflict:
    reason = f"replaced by the version of conflict {kept.id}, which was restored"
    return Conflict(kept.conflict.task_key, kept.conflict.half, "later", stored, reason)


def preview(places: Places, found: Sequence[Kept]) -> list[Restored]:
    """What `restore` would do. Raises what it raises; nothing is changed."""
    restoring = Restoring(found)
    keys = dict.fromkeys(kept.conflict.task_key for kept in found)
    texts = [(key, places.stored_text(key)) for key in keys]
    restoring([TaskText(key, text) for key, text in texts if text is not None])
    return restoring.done


def restore(
    settings: Settings, places: Places, found: Sequence[Kept]
) -> tuple[StoreName, list[Restored]]:
    """Make kept versions tasks again and forget them as conflicts; return in which store.

    Files and database meet first, as at a start. All or nothing, and durable when it returns. Where
    it fails before they are forgotten they are kept once too often. Raises DatabaseError,
    FileStoreError, SnapshotError, LockTimeoutError.
    """
    restoring = Restoring(found)
    with _serving(settings, places) as switch:
        work = all_once(restoring)
        switch.run(lambda store: store.change_all(work), committed=None)
        store = switch.serving
    try:
        places.forget(found)
    except StorageError as error:
        raise StorageError(
            f"the versions are tasks again, in the {store}, but are still listed as conflicts: "
            f"{error}"
        ) from error
    return store, restoring.done


@contextmanager
def _serving(settings: Settings, places: Places) -> Iterator[StoreSwitch]:
    """The database where the table can be read, else the files."""
    url = None if places.dal is None else settings.url
    switch = open_switch(replace(settings, url=url), places.paths)
    try:
        if url is not None and switch.serving == "files":
            raise DatabaseUnavailableError(
                f"the database does not serve: {switch.health().reason} Nothing was restored."
            )
        yield switch
    finally:
        close_switch(switch)
