"""A scheduler as the field has it: its task class, its JSON code, and ways to make tasks."""

from __future__ import annotations

import fcntl
import json
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def make_task(task_id: str, **changes: Any) -> dict[str, Any]:
    """A task as the scheduler writes it."""
    task: dict[str, Any] = {
        "task_id": task_id,
        "name": f"Task {task_id}",
        "description": "made by a test",
        "task_config": {"task_type": "download", "company": "Acme", "settings": {"depth": 1}},
        "schedule_type": "interval",
        "status": "active",
        "interval_minutes": 15,
        "daily_time": None,
        "weekly_schedule": None,
        "last_run": None,
        "next_run": "2026-10-31T15:11:00.627903-07:00",
        "last_error": None,
        "run_count": 0,
        "consecutive_errors": 0,
        "created_at": "2026-09-07T15:11:00.624707",
        "updated_at": "2026-10-30T15:11:00.627903",
    }
    return {**task, **changes}


class TaskType(Enum):
    """Some of the scheduler's task types."""

    DOWNLOAD = "download"
    PREPARE = "prepare"


class Status(Enum):
    """The scheduler's own enumeration."""

    ACTIVE = "active"
    PAUSED = "paused"
    RUNNING = "running"
    ERROR = "error"
    DISABLED = "disabled"


@dataclass
class Config:
    """The part of a task's configuration that this version of the scheduler knows."""

    task_type: TaskType
    company: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Task:
    """The scheduler's task class. It drops the keys that it does not know."""

    task_id: str
    name: str
    task_config: Config
    status: Status
    run_count: int = 0
    updated_at: datetime | None = None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Task:
        config = data["task_config"]
        updated = data.get("updated_at")
        return cls(
            task_id=data["task_id"],
            name=data["name"],
            task_config=Config(
                TaskType(config["task_type"]), config["company"], config.get("settings", {})
            ),
            status=Status(data["status"]),
            run_count=data.get("run_count", 0),
            updated_at=datetime.fromisoformat(updated) if updated else None,
        )

    def to_dict(self) -> dict[str, Any]:
        data = asdict(self)
        data["task_config"]["task_type"] = self.task_config.task_type.value
        data["status"] = self.status.value
        data["updated_at"] = self.updated_at.isoformat() if self.updated_at else None
        return data


class OldCode:
    """What the scheduler does to its files without this package."""

    def __init__(self, base: Path) -> None:
        self.tasks_file = base / "data/scheduler/scheduled_tasks.json"
        self.lock_file = base / "data/scheduler/.scheduler.lock"

    def load(self) -> list[dict[str, Any]]:
        with self.lock_file.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with self.tasks_file.open() as file:
                return json.load(file)

    def save(self, tasks: list[dict[str, Any]]) -> None:
        self.tasks_file.parent.mkdir(parents=True, exist_ok=True)
        with self.lock_file.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with self.tasks_file.open("w") as file:
                json.dump(tasks, file, indent=2)
