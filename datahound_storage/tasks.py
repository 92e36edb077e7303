"""What a task object means: its columns and its rules.

A task is a dict as the scheduler writes it. The columns of `scheduler_tasks` mirror parts of it;
where somebody changed a column by hand, `apply_columns` writes the change back into the task.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from datahound_storage.codec import Task, fits_text_column, for_text_column
from datahound_storage.errors import InvalidTaskError
from datahound_storage.records import ScheduleType, TaskStatus

MAX_KEY = 255
SHORT_DAYS = {
    day[:3]: day
    for day in ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
}
# The order in which the scheduler writes a task; a row without text is listed in it.
FIELD_ORDER = (
    "task_id",
    "name",
    "description",
    "task_config",
    "schedule_type",
    "status",
    "interval_minutes",
    "daily_time",
    "weekly_schedule",
    "last_run",
    "next_run",
    "last_error",
    "run_count",
    "consecutive_errors",
    "created_at",
    "updated_at",
)
CONFIG_ORDER = (
    "task_type",
    "company",
    "settings",
    "file_types",
    "archive_existing",
    "dedup_after",
    "mark_as_read",
    "prepare_types",
    "write_parquet",
    "write_csv",
    "backup_files",
    "dry_run",
    "write_mode",
    "event_type",
    "scan_all_events",
    "execute_all_enabled",
    "extraction_configs",
    "include_rfm",
    "include_demographics",
    "include_permits",
    "include_marketable",
    "include_segments",
    "processing_limit",
)
WEEK_ORDER = ("days", "time_window", "interval_minutes")


class TaskColumns(NamedTuple):
    """The columns that mirror a task. A time is None where the task has none that can be read."""

    task_key: str
    task_type: str
    company: str
    schedule_type: str
    schedule_expr: str
    status: str
    created_at: datetime | None
    updated_at: datetime | None


def columns_of(task: Task) -> TaskColumns:
    """The columns of a valid task (see `check`)."""
    config = _object(task.get("task_config"))
    return TaskColumns(
        task_key=task["task_id"],
        task_type=for_text_column(_text(config.get("task_type"))),
        company=for_text_column(_text(config.get("company"))),
        schedule_type=for_text_column(_text(task.get("schedule_type"))),
        schedule_expr=for_text_column(schedule_expr(task))[:255],
        status=for_text_column(_text(task.get("status"))),
        created_at=parse_time(task.get("created_at")),
        updated_at=parse_time(task.get("updated_at")),
    )


def _object(value: object) -> Task:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def schedule_expr(task: Task) -> str:
    """The schedule in short: `interval:15`, `daily:01:00:00`, `weekly:mon,wed@60`."""
    kind = task.get("schedule_type")
    if kind == ScheduleType.INTERVAL:
        return f"interval:{_number(task.get('interval_minutes'))}"
    if kind == ScheduleType.DAILY_TIME:
        return f"daily:{_text(task.get('daily_time'))}"
    if kind == ScheduleType.WEEKLY_SCHEDULE:
        week = _object(task.get("weekly_schedule"))
        days = week.get("days")
        names = [str(day)[:3].lower() for day in days] if isinstance(days, list) else []
        return f"weekly:{','.join(names)}@{_number(week.get('interval_minutes'))}"
    return ""


def _number(value: object) -> str:
    try:
        return "" if value is None else str(value)[:32]
    except ValueError:
        raise InvalidTaskError("interval_minutes has more digits than JSON can hold.") from None


def parse_time(value: object) -> datetime | None:
    """The instant of an ISO time; a naive one is the process's local time. None if unreadable."""
    if not isinstance(value, str):
        return None
    try:
        return datetime.fromisoformat(value).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def check_key(key: object) -> str:
    """Return a usable task key; raise InvalidTaskError for any other value."""
    if not isinstance(key, str) or not key.strip():
        raise InvalidTaskError("a task needs a task_id that is a text and not empty.")
    if len(key) > MAX_KEY:
        raise InvalidTaskError(
            f"task_id {key[:40]!r}... has {len(key)} characters; {MAX_KEY} are allowed."
        )
    if not fits_text_column(key):
        raise InvalidTaskError(f"task_id {key!r} holds U+0000 or half a surrogate pair.")
    return key


def check(task: object) -> Task:
    """Return the task if a store can hold it; raise InvalidTaskError that names task and field."""
    if not isinstance(task, dict):
        raise InvalidTaskError(f"a task must be an object, not {type(task).__name__}.")
    key = check_key(task.get("task_id"))
    config = task.get("task_config")
    if config is not None and not isinstance(config, dict):
        raise _invalid(key, "task_config", "must be an object")
    _check_text(key, "task_config.task_type", (config or {}).get("task_type"), 64)
    _check_text(key, "task_config.company", (config or {}).get("company"), 255)
    _check_text(key, "schedule_type", task.get("schedule_type"), 32)
    _check_text(key, "status", task.get("status"), 32)
    return task


_STATUSES = frozenset(TaskStatus)


def check_status(task: Task, stored: Task | None = None) -> None:
    """Raise InvalidTaskError for a status that the scheduler does not know, unless it is stored."""
    status = task.get("status")
    if status is None or (isinstance(status, str) and status in _STATUSES):
        return
    if stored is None or status != stored.get("status"):
        known = ", ".join(TaskStatus)
        raise _invalid(task["task_id"], "status", f"must be one of {known}")


def _check_text(key: str, name: str, value: object, limit: int) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise _invalid(key, name, f"must be a text, not {type(value).__name__}")
    if len(value) > limit:
        raise _invalid(key, name, f"has {len(value)} characters; {limit} are allowed")


def _invalid(key: str, name: str, problem: str) -> InvalidTaskError:
    return InvalidTaskError(f"task {key[:80]!r}: {name} {problem}.")


def apply_columns(task: Task, columns: Mapping[str, Any]) -> Task:
    """The task with `columns` (name to value) written into it wherever they say something else."""
    own = columns_of(task)._asdict()
    changed = {name: value for name, value in columns.items() if name in own and own[name] != value}
    result = dict(task)
    for name in ("task_type", "company"):
        if name in changed:
            result["task_config"] = {**_object(result.get("task_config")), name: changed[name]}
    if "schedule_type" in changed:
        result["schedule_type"] = changed["schedule_type"]
    if "schedule_expr" in changed:
        result.update(_schedule_fields(changed["schedule_expr"], result))
    if "status" in changed:
        result["status"] = changed["status"]
    for name in ("created_at", "updated_at"):
        if changed.get(name) is not None:
            result[name] = _spelled_like(changed[name], task.get(name))
    return result


def _schedule_fields(expr: str, task: Task) -> Task:
    """The fields that an edited `schedule_expr` stands for; none where it cannot be read."""
    kind, _, rest = expr.partition(":")
    if kind == "interval" and rest.strip().isdecimal():
        return {"schedule_type": "interval", "interval_minutes": int(rest)}
    if kind == "daily" and rest:
        return {"schedule_type": "daily_time", "daily_time": rest}
    days, _, minutes = rest.partition("@")
    names = [SHORT_DAYS.get(day.strip()[:3].lower()) for day in days.split(",")]
    if kind != "weekly" or None in names:
        return {}
    week = {"days": [], "time_window": None, **_object(task.get("weekly_schedule"))}
    week["days"] = names
    week["interval_minutes"] = int(minutes) if minutes.strip().isdecimal() else None
    return {"schedule_type": "weekly_schedule", "weekly_schedule": week}


def _spelled_like(instant: datetime, old: object) -> str:
    """An instant as ISO text, naive local where the old text was, else with its offset."""
    try:
        zone = datetime.fromisoformat(old).tzinfo if isinstance(old, str) else None
    except ValueError:
        zone = None
    try:
        spelled = instant.astimezone(zone)
    except OverflowError:
        return instant.isoformat()
    return (spelled if zone is not None else spelled.replace(tzinfo=None)).isoformat()


def in_field_order(task: Task) -> Task:
    """The task with its keys in the order in which the scheduler writes them."""
    ordered = _ordered(task, FIELD_ORDER)
    for name, order in (("task_config", CONFIG_ORDER), ("weekly_schedule", WEEK_ORDER)):
        if isinstance(ordered.get(name), dict):
            ordered[name] = _ordered(ordered[name], order)
    return ordered


def _ordered(value: Task, order: tuple[str, ...]) -> Task:
    known = [name for name in order if name in value]
    return {name: value[name] for name in [*known, *(n for n in value if n not in order)]}
