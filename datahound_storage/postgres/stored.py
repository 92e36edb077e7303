"""Rows of `scheduler_tasks` as the rest of the package sees them: a key and an exact text.

A row that somebody edited by hand (or that code without the text wrote) is rebuilt: the edit is
laid over the text, so that whatever was not edited keeps its order and spelling.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NamedTuple

from datahound_storage.codec import (
    Json,
    as_in_snapshot,
    decode,
    encode_lenient,
    for_jsonb,
    for_text_column,
    loads,
)
from datahound_storage.tasks import apply_columns, in_field_order

MIRROR_COLUMNS = ("task_type", "company", "schedule_type", "schedule_expr", "status")
TIME_COLUMNS = ("created_at", "updated_at")

# NULL but for edited rows.
_EDITS = """
    CASE WHEN task_text IS NULL OR edited_columns <> '{}' THEN jsonb_build_object(
        'edited', edited_columns, 'config', config_json, 'task_key', task_key,
        'task_type', task_type, 'company', company, 'schedule_type', schedule_type,
        'schedule_expr', schedule_expr, 'status', status,
        'created_at', created_at, 'updated_at', updated_at)::text END"""
# What tells the text of a row.
TEXT_COLUMNS = f"task_text, {_EDITS}"


def stored_columns(text: str) -> str:
    """What a reader needs of a row; `text` is the SQL for its text."""
    changed_us = "(extract(epoch FROM changed_at) * 1000000)::bigint"
    return f"task_key, position, changed_xid::text, {changed_us}, {text}, {_EDITS}"


STORED_COLUMNS = stored_columns("task_text")


class StoredTask(NamedTuple):
    """A task in the database. `stamp` is the transaction that last changed it."""

    task_key: str
    position: int
    stamp: int
    changed_us: int
    text: str


def stored_from_row(row: tuple[Any, ...]) -> StoredTask:
    """The stored task of a row of STORED_COLUMNS."""
    task_key, position, stamp, changed_us, text, edits = row
    return StoredTask(task_key, position, int(stamp), changed_us, text_from_row(text, edits))


def text_from_row(text: str | None, edits: str | None) -> str:
    """The text of a row of TEXT_COLUMNS."""
    if edits is not None or text is None:
        text = rebuild(text, json.loads(edits or ""))
    # Put there by hand: a snapshot is ASCII.
    return text if text.isascii() else as_in_snapshot(text)


def rebuild(text: str | None, edits: dict[str, Any]) -> str:
    """The text of a row whose columns say something else than its text (or that has none)."""
    edited = set(edits["edited"])
    key = {"task_id": edits["task_key"]}
    if text is None:
        task = in_field_order(edits["config"]) if isinstance(edits["config"], dict) else key
        columns = MIRROR_COLUMNS
    else:
        task = decode(text)
        if "config_json" in edited and isinstance(edits["config"], dict):
            task = _overlay(task, loads(for_jsonb(text)), edits["config"])
        columns = MIRROR_COLUMNS if "config_json" in edited else tuple(edited)
    values = {name: edits[name] for name in columns if name in MIRROR_COLUMNS}
    values |= {name: _instant(edits[name]) for name in TIME_COLUMNS if name in edited}
    return encode_lenient(
        apply_columns(key | task if "task_id" not in task else task | key, values)
    )


def _instant(value: str) -> datetime | None:
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        return None  # infinity, or a year that only Postgres knows: the task keeps its own time


def _overlay(task: Json, shown: Json, edited: Json) -> Json:
    """`task` with the changes that were made from `shown` (its form in jsonb) to `edited`."""
    if not (isinstance(task, dict) and isinstance(shown, dict) and isinstance(edited, dict)):
        return task if _equal(shown, edited) else edited
    names = {for_text_column(key): key for key in task}
    kept = {
        key: _overlay(task[key], shown.get(name), edited[name])
        for name, key in names.items()
        if name in edited
    }
    return kept | {name: value for name, value in edited.items() if name not in names}


def _equal(left: Json, right: Json) -> bool:
    """Whether two values are the same to jsonb, which spells numbers in its own way."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, int | float) and isinstance(right, int | float):
        return left == right or _equal_as_floats(left, right)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_equal, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_equal(left[k], right[k]) for k in left)
    return bool(left == right)


def _equal_as_floats(left: Json, right: Json) -> bool:
    """1e+23 comes back from jsonb as an integer that no float is exactly equal to."""
    if not (isinstance(left, float) or isinstance(right, float)):
        return False
    try:
        return float(left) == float(right)
    except OverflowError:
        return False
