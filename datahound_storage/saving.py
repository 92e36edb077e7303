"""Tasks on their way into a store: from the caller's objects to texts, and what they must keep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from datahound_storage.bases import LoadedTask
from datahound_storage.codec import Task, decode, encode, encode_lenient, same
from datahound_storage.errors import InvalidTaskError
from datahound_storage.halves import hashes_of
from datahound_storage.merge import half_of, merge
from datahound_storage.tasks import check, check_status, columns_of
from datahound_storage.writes import (
    BulkChange,
    Conflict,
    LazyWrites,
    PreparedTask,
    TaskChange,
    TaskText,
    texts_by_key,
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

    @property
    def keeps_dicts(self) -> bool:
        """Whether there is no class to make the tasks of."""
        return self._class is None

    def check(self, task: Any) -> None:
        """Raise InvalidTaskError for what is no task at all."""
        if not isinstance(task, dict) and not hasattr(task, "to_dict"):
            raise InvalidTaskError(
                f"a task must be a dict or have to_dict(), not {type(task).__name__}."
            )

    def to_dict(self, task: Any) -> Task:
        """A valid dict for a task. Raises InvalidTaskError."""
        self.check(task)
        shown = task if isinstance(task, dict) else task.to_dict()
        # A dict of another type would not be encoded as one.
        return check(dict(shown) if isinstance(shown, dict) else shown)

    def from_dict(self, task: Task) -> Any:
        """The caller's object for a dict; raises whatever its class raises."""
        return LoadedTask(task) if self._class is None else self._class.from_dict(task)

    def rejects(self, text: str) -> bool:
        """Whether the caller's class cannot be made from a task, so that it never saw it."""
        if self._class is None:
            return False
        try:
            self._class.from_dict(decode(text))
        except Exception:  # noqa: BLE001 - whatever a stranger's class raises means no
            return True
        return False

    def prepare(
        self, submitted: Task, stored: str | None = None, text: str | None = None
    ) -> PreparedTask:
        """A task ready to be stored; keys that the caller's class drops come from `stored`.

        `text` is that of `submitted`, where it is encoded already.
        """
        if stored is None:
            check_status(submitted)
            return PreparedTask(columns_of(submitted), text or encode(submitted))
        known = decode(stored)
        check_status(submitted, known)
        task, seen = submitted, self._seen_of(known)
        if seen is not known:
            task = _keep(known, seen, submitted)
        if task is not submitted or text is None:
            text = _encode(task, known)
        if text != stored and (task == known or "NaN" in stored) and same(task, known):
            # An unchanged task keeps its text, and with it the spelling of its numbers.
            text = stored
        return PreparedTask(columns_of(task), text)

    def change(
        self, submitted: Task, stored: str, base: str | None, text: str | None = None
    ) -> TaskChange:
        """What a caller's update makes of the stored task.

        `base` is the version that the caller's object showed; without one the task is replaced.
        """
        if base is None or base == stored:
            return TaskChange(self.prepare(submitted, stored, text))
        merged = merge(self._shown(base), submitted, self._shown(stored))
        lost = {half_of(field) for field in merged.collided}
        conflicts = tuple(_conflict(half, stored, merged.collided) for half in sorted(lost))
        return TaskChange(self.prepare(merged.task, stored), conflicts)

    def text_of(self, submitted: Task) -> str:
        """The text of what a caller's object shows."""
        # What a file of the old code held may stay.
        return self.strict_text_of(submitted) or encode_lenient(submitted)

    def strict_text_of(self, submitted: Task) -> str | None:
        """As `text_of`; None for what may not be stored anew."""
        try:
            return encode(submitted)
        except InvalidTaskError:
            return None

    def is_edited(self, submitted: Task, base: str) -> bool:
        """Whether a caller changed the operator's half of the version that its object showed."""
        return hashes_of(submitted)[0] != hashes_of(self._shown(base))[0]

    def _shown(self, text: str) -> Task:
        return self._seen_of(decode(text))

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


def _conflict(half: str, stored: str, collided: tuple[str, ...]) -> Conflict:
    fields = ", ".join(field for field in collided if half_of(field) == half)
    reason = f"{fields[:500]}: changed by two writers; the later change was kept"
    return Conflict(decode(stored)["task_id"], half, "later", stored, reason)


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


_DELETED = "changed by one writer, and deleted meanwhile by another one"


class WholeState:
    """Makes `submitted` the whole state: the decision for a change of all tasks.

    Tasks that are missing from it are deleted, but for those outside of `listed` (what the caller
    saw last; None: it never looked, so all are) and those which its class rejects. `bases` are the
    versions that the submitted tasks showed: what others changed since then stays, and what others
    deleted stays deleted; what the caller had changed in it is kept as a conflict.
    """

    def __init__(
        self,
        adapter: TaskAdapter,
        submitted: Iterable[Task],
        listed: set[str] | None,
        bases: Mapping[str, str] | None = None,
    ) -> None:
        self._adapter = adapter
        self._listed = listed
        self._bases = bases or {}
        self.wanted: dict[str, Task] = {}
        self._texts: dict[str, str | None] = {}
        self.deleted: list[str] = []
        for task in submitted:
            if task["task_id"] in self.wanted:
                raise InvalidTaskError(
                    f"task_id {task['task_id'][:80]!r} is twice in the list; nothing was saved."
                )
            self.wanted[task["task_id"]] = task

    def text_of(self, task_key: str) -> str:
        """The text of what was submitted."""
        return self._texts.get(task_key) or self._adapter.text_of(self.wanted[task_key])

    def __call__(self, present: list[TaskText]) -> BulkChange:
        """The change to be made to the present tasks."""
        stored = texts_by_key(present)
        missing = [key for key in stored if key not in self.wanted]
        self.deleted = [key for key in missing if self._may_delete(key, stored[key])]
        kept = [key for key in self.wanted if key in stored or key not in self._bases]
        lost: list[Conflict] = []
        return BulkChange(
            LazyWrites(lambda: self._writes(stored, lost)),
            self.deleted,
            _new_order(kept, missing, self.deleted, stored),
            lost,
        )

    def _writes(self, stored: dict[str, str], lost: list[Conflict]) -> Iterator[PreparedTask]:
        """What is to be written, and on the way what is lost by it."""
        lost.clear()
        for key, task in self.wanted.items():
            task, text = self._as_submitted(key, task)
            base = self._bases.get(key)
            if key in stored:
                change = self._adapter.change(task, stored[key], base, text)
                lost.extend(change.conflicts)
                if change.prepared.text != stored[key]:
                    yield change.prepared
                continue
            prepared = self._adapter.prepare(task, text=text)
            if base is None:
                yield prepared
            elif self._adapter.is_edited(task, base):
                # Somebody deleted it after the caller had loaded it.
                lost.append(Conflict(key, "task", "later", prepared.text, _DELETED))

    def _as_submitted(self, key: str, task: Task) -> tuple[Task, str | None]:
        """A task and its text, also where the caller has gone on with the object since."""
        text = self._texts.get(key)
        if text is not None:
            return decode(text), text
        text = self._texts[key] = self._adapter.strict_text_of(task)
        return task, text

    def _may_delete(self, key: str, text: str) -> bool:
        seen = self._listed is None or key in self._listed
        return seen and not self._adapter.rejects(text)


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
