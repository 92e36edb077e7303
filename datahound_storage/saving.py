"""Tasks on their way into a store: from the caller's objects to texts, and what they must keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from datahound_storage.codec import Task, decode, encode, encode_lenient, same
from datahound_storage.errors import InvalidTaskError
from datahound_storage.tasks import (
    BulkChange,
    PreparedTask,
    TaskText,
    check_from_caller,
    columns_of,
)


class TaskClass(Protocol):
    """What is needed of a scheduler's own class."""

    def to_dict(self) -> Task:
        """The task as a JSON object."""

    @classmethod
    def from_dict(cls, data: Task) -> Any:
        """The task of a JSON object."""


class TaskAdapter:
    """Turns the caller's tasks into dicts and back. Without a class, tasks are plain dicts."""

    def __init__(self, task_class: type[TaskClass] | None) -> None:
        self._class = task_class

    def check(self, task: Any) -> None:
        """Raise InvalidTaskError for what is no task at all."""
        if not isinstance(task, dict) and not hasattr(task, "to_dict"):
            raise InvalidTaskError(
                f"a task must be a dict or have to_dict(), not {type(task).__name__}."
            )

    def to_dict(self, task: Any) -> Task:
        """A valid dict for a task. Raises InvalidTaskError."""
        self.check(task)
        return check_from_caller(task if isinstance(task, dict) else task.to_dict())

    def from_dict(self, task: Task) -> Any:
        """The caller's object for a dict; raises whatever its class raises."""
        return task if self._class is None else self._class.from_dict(task)

    def rejects(self, text: str) -> bool:
        """Whether the caller's class cannot be made from a task, so that it never saw it."""
        if self._class is None:
            return False
        try:
            self._class.from_dict(decode(text))
        except Exception:  # noqa: BLE001 - whatever a stranger's class raises means no
            return True
        return False

    def prepare(self, submitted: Task, stored: str | None = None) -> PreparedTask:
        """A task ready to be stored; keys that the caller's class drops come from `stored`."""
        if stored is None:
            return PreparedTask(columns_of(submitted), encode(submitted))
        known = decode(stored)
        task = _keep(known, self._seen_of(known), submitted)
        text = _encode(task, known)
        # An unchanged task keeps its text, and with it the spelling of its numbers.
        return PreparedTask(columns_of(task), stored if same(task, known) else text)

    def _seen_of(self, stored: Task) -> Task:
        """What the caller's class shows of a stored task."""
        if self._class is None:
            return stored
        try:
            seen: Task = self._class.from_dict(decode(encode_lenient(stored))).to_dict()
        except Exception:  # noqa: BLE001 - a task that the class rejects has nothing to keep
            return stored
        return seen


def _keep(stored: Any, seen: Any, submitted: Any) -> Any:
    """`submitted`, with what the caller could not see of `stored`."""
    if not (isinstance(stored, dict) and isinstance(seen, dict) and isinstance(submitted, dict)):
        return submitted
    kept = {
        key: _keep(value, seen.get(key), submitted[key]) if key in submitted else value
        for key, value in stored.items()
        if key in submitted or key not in seen
    }
    hidden = [key for key in kept if key not in submitted]
    if not hidden:
        return {key: kept.get(key, value) for key, value in submitted.items()}
    return kept | {key: value for key, value in submitted.items() if key not in kept}


def _encode(task: Task, stored: Task) -> str:
    """The text of a task; NaN and infinities may stay where files of the old code had them."""
    try:
        return encode(task)
    except InvalidTaskError:
        changed = {k: v for k, v in task.items() if k not in stored or not _is_kept(v, stored[k])}
        encode({"task_id": task["task_id"], **changed})
        return encode_lenient(task)


def _is_kept(value: Any, stored: Any) -> bool:
    try:
        return same(value, stored)
    except (TypeError, ValueError, RecursionError):
        return False


def whole_state(
    adapter: TaskAdapter, submitted: Iterable[Task], listed: set[str] | None
) -> Callable[[list[TaskText]], BulkChange]:
    """The decision that makes `submitted` the whole state.

    Tasks that are missing from it are deleted, but for those outside of `listed` (what the caller
    saw last; None: it never looked, so all are) and those which its class rejects.
    """
    wanted: dict[str, Task] = {}
    for task in submitted:
        if task["task_id"] in wanted:
            raise InvalidTaskError(
                f"task_id {task['task_id'][:80]!r} is twice in the list; nothing was saved."
            )
        wanted[task["task_id"]] = task

    def decide(present: list[TaskText]) -> BulkChange:
        stored = dict(present)
        missing = [key for key in stored if key not in wanted]
        delete = [
            key
            for key in missing
            if (listed is None or key in listed) and not adapter.rejects(stored[key])
        ]
        prepared = {key: adapter.prepare(task, stored.get(key)) for key, task in wanted.items()}
        write = [p for key, p in prepared.items() if p.text != stored.get(key)]
        return BulkChange(write, delete, _new_order(list(wanted), missing, delete, stored))

    return decide


def _new_order(
    wanted: list[str], missing: list[str], delete: list[str], stored: dict[str, str]
) -> list[str] | None:
    """The order to set, None where leaving and appending gives it anyway."""
    gone = set(delete)
    spared = [key for key in missing if key not in gone]
    kept = set(wanted)
    natural = [key for key in stored if key in kept]
    added = [key for key in wanted if key not in stored]
    return None if [*natural, *added] == wanted else [*wanted, *spared]
