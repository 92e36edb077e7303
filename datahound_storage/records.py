"""Task and run records, the filter, and the enumerations: plain data, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID


class TaskStatus(StrEnum):
    """The states of a task; `paused` and `disabled` are set by the operator."""

    ACTIVE = "active"
    PAUSED = "paused"
    RUNNING = "running"
    ERROR = "error"
    DISABLED = "disabled"


class ScheduleType(StrEnum):
    """The ways in which a task is scheduled."""

    INTERVAL = "interval"
    DAILY_TIME = "daily_time"
    WEEKLY_SCHEDULE = "weekly_schedule"


@dataclass
class SchedulerTaskRecord:
    """A row of `scheduler_tasks`.

    `config_json` is the whole task object, with its keys in order and its values as they came in.
    Where a column and `config_json` differ, the column wins, here as in the table. `position`
    orders the listing; the store fills it, and the times, where they are None.
    """

    id: UUID
    task_key: str
    task_type: str
    company: str
    config_json: dict[str, Any]
    schedule_type: str
    schedule_expr: str
    timezone: str
    status: str
    created_at: datetime | None = None
    updated_at: datetime | None = None
    position: int | None = None


@dataclass
class SchedulerRunRecord:
    """A row of `scheduler_runs`. `success` is None while the run goes on; times are aware."""

    id: UUID
    task_id: UUID | None
    run_id: str
    started_at: datetime
    finished_at: datetime | None
    success: bool | None
    message: str | None
    duration_ms: int | None
    metadata_json: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SchedulerTaskFilter:
    """Which tasks to list. None means all of them; by default those with status `active`."""

    company: str | None = None
    status: str | None = "active"
