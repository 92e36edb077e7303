"""The time of a task's last change, on the caller's own object."""

from __future__ import annotations

from datetime import datetime, tzinfo
from typing import Any

_ABSENT = object()


def get_updated_at(task: Any) -> Any:
    """The `updated_at` of a task, dict or object."""
    if isinstance(task, dict):
        return task.get("updated_at", _ABSENT)
    return getattr(task, "updated_at", None)


def set_updated_at(task: Any, value: Any) -> None:
    """Set the `updated_at` of a task; what a dict did not have is taken away again."""
    if value is _ABSENT:
        task.pop("updated_at", None)
    elif isinstance(task, dict):
        task["updated_at"] = value
    else:
        task.updated_at = value


def now_like(before: Any, *, as_text: bool) -> Any:
    """Now, as text or as a datetime and with or without an offset, as the task has it."""
    if isinstance(before, str):
        return datetime.now(_zone_of(before)).isoformat()
    # Without an offset unless there was one: the scheduler's own times are naive and local.
    now = datetime.now(before.tzinfo if isinstance(before, datetime) else None)
    return now.isoformat() if as_text else now


def _zone_of(time: str) -> tzinfo | None:
    try:
        return datetime.fromisoformat(time).tzinfo
    except ValueError:
        return None
