"""What people and schedulers do to a task; each value that they write is new in the world."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.property.model import PAUSED
from tests.scheduler import make_task

New = Callable[[str], str]
EDITS = ("name", "interval", "pause", "resume")
RUNS = ("start", "end")


def new_task(key: str, new: New) -> dict[str, Any]:
    """A task as it is added."""
    names = {"name": new("name"), "description": new("life"), "note": new("resumed")}
    return make_task(key, **names, interval_minutes=_minutes(new))


def change(task: dict[str, Any], what: str, new: New) -> None:
    """Change a task in place; what makes no sense for it becomes a new name."""
    is_paused = task["status"] == PAUSED
    if what == "interval":
        task["interval_minutes"] = _minutes(new)
    elif what == "pause" and not is_paused:
        task.update(status=PAUSED, note=new("paused"))
    elif what == "resume" and is_paused:
        task.update(status="active", note=new("resumed"))
    elif what == "start" and not is_paused:
        task.update(status="running", last_run=new("run"))
    elif what == "end" and not is_paused:
        task.update(status="error", run_count=task["run_count"] + 1, last_error=new("error"))
    else:
        task["name"] = new("name")


def _minutes(new: New) -> int:
    return 1000 + int(new("").strip())
