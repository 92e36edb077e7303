"""Between records and rows."""

from __future__ import annotations

from datahound_storage.codec import Task, decode, encode
from datahound_storage.postgres import task_table
from datahound_storage.postgres.run_table import StoredRun
from datahound_storage.postgres.stored import MIRROR_COLUMNS
from datahound_storage.records import SchedulerRunRecord, SchedulerTaskRecord
from datahound_storage.tasks import apply_columns, check, columns_of
from datahound_storage.writes import PreparedTask


def prepare(record: SchedulerTaskRecord) -> PreparedTask:
    """What to store for a record: where a column and `config_json` differ, the column wins."""
    task = {"task_id": record.task_key, **record.config_json}
    given = {name: getattr(record, name) for name in MIRROR_COLUMNS}
    shown = {name: value for name, value in given.items() if _has_field(task, name)}
    task = check(apply_columns({**task, "task_id": record.task_key}, shown))
    own = columns_of(task)
    columns = own._replace(
        created_at=own.created_at or record.created_at,
        updated_at=own.updated_at or record.updated_at,
        **given,
    )
    return PreparedTask(columns, encode(task))


def _has_field(task: Task, column: str) -> bool:
    if column in ("task_type", "company"):
        config = task.get("task_config")
        return isinstance(config, dict) and column in config
    return ("schedule_type" if column == "schedule_expr" else column) in task


def record_of(listed: task_table.ListedTask) -> SchedulerTaskRecord:
    """The record of a stored task."""
    columns = listed.row.columns
    return SchedulerTaskRecord(
        id=listed.row.id,
        task_key=columns.task_key,
        task_type=columns.task_type,
        company=columns.company,
        config_json=decode(listed.stored.text),
        schedule_type=columns.schedule_type,
        schedule_expr=columns.schedule_expr,
        timezone=listed.row.timezone,
        status=columns.status,
        created_at=columns.created_at,
        updated_at=columns.updated_at,
        position=listed.stored.position,
    )


def run_record(stored: StoredRun) -> SchedulerRunRecord:
    """The record of a stored run."""
    row = stored.row
    return SchedulerRunRecord(
        id=row.id,
        task_id=stored.task_id,
        run_id=row.run_id,
        started_at=row.started_at,
        finished_at=row.finished_at,
        success=row.success,
        message=row.message,
        duration_ms=row.duration_ms,
        metadata_json=stored.metadata,
    )
