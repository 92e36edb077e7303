"""Two writers of one task: the difference that a caller made, applied to the task as it is now.

Three versions: the one that the caller had (`base`), the one that it submits, and the one that is
stored. What the caller did not change stays as somebody else made it meanwhile.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from datahound_storage.codec import Task, same
from datahound_storage.halves import OPERATOR_STATUSES, SCHEDULE_FIELDS, SCHEDULER_FIELDS

_ABSENT: Any = object()


class Merge(NamedTuple):
    """The merged task, and the fields in which a change of somebody else lost."""

    task: Task
    collided: tuple[str, ...]


class _Versions(NamedTuple):
    """The three versions of a task, of an object in it, or of one of its fields."""

    base: Any
    submitted: Any
    stored: Any

    def field(self, name: str) -> _Versions:
        return _Versions(*(version.get(name, _ABSENT) for version in self))

    @property
    def are_objects(self) -> bool:
        return all(isinstance(version, dict) for version in self)

    @property
    def settled(self) -> tuple[Any] | None:
        """The value, where at most one side changed it."""
        if _same(self.submitted, self.stored) or _same(self.stored, self.base):
            return (self.submitted,)
        return (self.stored,) if _same(self.submitted, self.base) else None


def merge(base: Task, submitted: Task, stored: Task) -> Merge:
    """Apply the difference from `base` to `submitted` to `stored`, field by field.

    Where both changed the same field the later change, the submitted one, wins; `run_count` adds
    up; `paused` and `disabled` are not undone by what the scheduler reports; a `next_run` that was
    computed from an old schedule loses to a new schedule.
    """
    collided: list[str] = []
    task = _Versions(base, submitted, stored)
    merged = {name: _task_field(task, name, collided) for name in {**submitted, **stored}}
    return Merge(_present(merged), tuple(collided))


def half_of(field: str) -> str:
    """The half that a field belongs to."""
    name = field.partition(".")[0]
    return "scheduler" if name in SCHEDULER_FIELDS or name == "status" else "operator"


def _task_field(task: _Versions, name: str, collided: list[str]) -> Any:
    """A field of the task itself: some have rules of their own."""
    field = task.field(name)
    if name == "next_run":
        field = _next_run(task, field)
    if name == "run_count" and all(type(count) is int for count in field):
        # Also where both are the same: then each of them has run once.
        return field.stored + (field.submitted - field.base)
    if field.settled is None:
        if name == "status":
            return _status(field, collided)
        if name == "updated_at":
            return field.submitted
    return _field(field, name, collided)


def _field(field: _Versions, path: str, collided: list[str]) -> Any:
    if field.settled is not None:
        return field.settled[0]
    if field.are_objects:
        names = {**field.submitted, **field.stored}
        inner = {name: _field(field.field(name), f"{path}.{name}", collided) for name in names}
        return _present(inner)
    collided.append(path)
    return field.submitted


def _present(fields: Task) -> Task:
    return {name: value for name, value in fields.items() if value is not _ABSENT}


def _status(status: _Versions, collided: list[str]) -> Any:
    """Three different states: who decided, the operator or the scheduler?"""
    base, submitted, stored = (state in OPERATOR_STATUSES for state in status)
    if not submitted and base != stored:
        # Paused meanwhile: a run that ends does not undo it. Or resumed by two: what the
        # scheduler has reported since then stays.
        return status.stored
    if base or stored or not submitted:
        collided.append("status")
    return status.submitted


def _next_run(task: _Versions, field: _Versions) -> _Versions:
    """Give the side with the new schedule the last word."""
    if _schedules_differ(task.submitted, task.base):
        return field._replace(stored=field.submitted)
    if _schedules_differ(task.stored, task.base):
        return field._replace(submitted=field.stored)
    return field


def _schedules_differ(left: Task, right: Task) -> bool:
    return any(not _same(left.get(name), right.get(name)) for name in SCHEDULE_FIELDS)


def _same(left: Any, right: Any) -> bool:
    if left is _ABSENT or right is _ABSENT:
        return left is right
    return left is right or same(left, right)
