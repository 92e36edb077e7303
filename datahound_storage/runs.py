"""What a history line means, and the row of `scheduler_runs` that stands for it.

A row gives back the line that it came from: it is rebuilt from the columns, and where that would
not be the same line (other keys, another spelling, U+0000), the row keeps the line's text.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import UUID, uuid4, uuid5

import orjson

from datahound_storage.codec import fits_text_column, for_jsonb, for_text_column, loads
from datahound_storage.records import SchedulerRunRecord
from datahound_storage.tasks import MAX_KEY, parse_time

HistoryEntry = dict[str, Any]

# Ids of lines that have none of their own: derived from their text, so that importing a line
# twice is harmless. The revisions derive them in the same way.
DERIVED_PREFIX = "line-"
# Logical task ids of runs whose task is not in the table.
TASK_ID_NAMESPACE = UUID("6d1c0f0e-8a3e-5d4b-9b57-3f6a2f0c7a11")
_LONGEST = timedelta(days=3650)
_METADATA = ("task_name", "task_type", "duration_seconds")


class RunRow(NamedTuple):
    """The values of a row of `scheduler_runs`, ready for the database."""

    id: UUID
    run_id: str
    task_key: str
    started_at: datetime
    finished_at: datetime | None
    success: bool | None
    message: str | None
    duration_ms: int | None
    metadata_text: str
    line_text: str | None


class Line(NamedTuple):
    """A usable line of the history file."""

    run_id: str
    ended_at: datetime
    text: str
    entry: HistoryEntry


def new_entry(
    task_id: str,
    success: bool,
    message: str,
    duration_seconds: float,
    task_name: str,
    task_type: str,
) -> HistoryEntry:
    """The history entry of a run that ends now, with a new run id."""
    return {
        "timestamp": datetime.now(UTC).isoformat(),
        "task_id": task_id,
        "task_name": task_name,
        "task_type": task_type,
        "success": success,
        "message": message,
        "duration_seconds": duration_seconds,
        "run_id": str(uuid4()),
    }


def line_text(entry: HistoryEntry) -> str:
    """A history entry as one line, without its end. NaN becomes null, objects their text."""
    try:
        return json.dumps(entry, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        plain = {k: v if isinstance(v, str | bool | int) else _plain(v) for k, v in entry.items()}
        return json.dumps(plain)


def _plain(value: object) -> object:
    if value is None or (isinstance(value, float) and math.isfinite(value)):
        return value
    return None if isinstance(value, float) else str(value)


def parse_line(text: str) -> Line | None:
    """The line of a text, None if it is no usable history entry. `run_id` is '' if it has none."""
    try:
        entry = loads(text)
    except (json.JSONDecodeError, orjson.JSONDecodeError, RecursionError, ValueError):
        return None
    if not isinstance(entry, dict) or not _usable_key(entry.get("task_id")):
        return None
    ended_at = parse_time(entry.get("timestamp"))
    if ended_at is None:
        return None
    run_id = entry.get("run_id")
    return Line(str(run_id) if _usable_key(run_id) else "", ended_at, text, entry)


def _usable_key(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_KEY and fits_text_column(value)


def identify(texts: Iterable[str]) -> Iterator[Line]:
    """The usable lines of one file, each with its run id.

    A line without one gets an id derived from its text and its number among equal lines.
    """
    seen: Counter[str] = Counter()
    for text in texts:
        line = parse_line(text)
        if line is None:
            continue
        yield line if line.run_id else line._replace(run_id=_derived_id(line.text, seen))


def _derived_id(text: str, seen: Counter[str]) -> str:
    derived = derived_from(text)
    seen[derived] += 1
    return f"{derived}-{seen[derived]}"


def derived_from(text: str) -> str:
    """What the ids of equal lines without an id of their own begin with; their number follows."""
    digest = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return f"{DERIVED_PREFIX}{digest}"


def row_of(line: Line) -> RunRow:
    """The row that stands for a line."""
    entry = line.entry
    seconds = _seconds(entry.get("duration_seconds"))
    success = entry.get("success")
    message = entry.get("message")
    row = RunRow(
        id=uuid4(),
        run_id=line.run_id,
        task_key=entry["task_id"],
        started_at=_started(line.ended_at, seconds),
        finished_at=line.ended_at,
        success=bool(success),
        message=for_text_column(message) if isinstance(message, str) else "",
        duration_ms=round(seconds * 1000),
        metadata_text=_metadata_text(entry),
        line_text=None,
    )
    return row if _gives_back(row, line) else row._replace(line_text=_storable(line))


def row_of_new(entry: HistoryEntry, text: str) -> RunRow | None:
    """The row of a `new_entry` with this text; None where its task_id is not usable.

    As `row_of` what `parse_line` makes of the text: without both where it is known what they do.
    """
    if not _is_plain(entry, text):
        line = parse_line(text)
        return None if line is None else row_of(line)
    seconds, ended_at = entry["duration_seconds"], datetime.fromisoformat(entry["timestamp"])
    metadata = {"task_key": entry["task_id"], **{name: entry[name] for name in _METADATA}}
    return RunRow(
        id=uuid4(),
        run_id=entry["run_id"],
        task_key=entry["task_id"],
        started_at=ended_at - timedelta(seconds=seconds),
        finished_at=ended_at,
        success=entry["success"],
        message=entry["message"],
        duration_ms=round(seconds * 1000),
        metadata_text=orjson.dumps(metadata).decode(),
        line_text=None,
    )


def _is_plain(entry: HistoryEntry, text: str) -> bool:
    """Whether text, columns and jsonb give a new entry's values back as they are."""
    seconds = entry["duration_seconds"]
    return (
        # Neither U+0000 nor a half of a surrogate pair.
        "\\u0000" not in text
        and "\\ud" not in text
        and _usable_key(entry["task_id"])
        and type(entry["success"]) is bool
        and all(type(entry[name]) is str for name in ("message", "task_name", "task_type"))
        # Neither NaN nor -0.0, nor what is spelled with an exponent.
        and (type(seconds) is int or type(seconds) is float)
        and ((seconds == 0 and type(seconds) is int) or 1e-3 < seconds < 1e8)
    )


def _gives_back(row: RunRow, line: Line) -> bool:
    """Whether the row's columns say the line, to the letter."""
    if not _survives_jsonb(line.entry):
        return False
    return json.dumps(entry_of(row.run_id, row, loads(row.metadata_text))) == line.text


def _survives_jsonb(entry: HistoryEntry) -> bool:
    """Whether jsonb gives the metadata back as it is.

    It spells out exponents, has no negative zero, and reorders the keys of objects.
    """
    plain = all(isinstance(entry.get(name, ""), str) for name in ("task_name", "task_type"))
    spelled = repr(entry.get("duration_seconds"))
    return plain and "e" not in spelled and spelled != "-0.0"


def _metadata_text(entry: HistoryEntry) -> str:
    metadata = {"task_key": entry["task_id"], **{k: entry[k] for k in _METADATA if k in entry}}
    return for_jsonb(json.dumps(metadata))


def _storable(line: Line) -> str:
    # A line in UTF-8 can hold no U+0000 outside of an escape, yet a text column must not fail.
    return line.text if fits_text_column(line.text) else json.dumps(line.entry)


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(_float(value)):
        return 0.0
    return min(max(_float(value), 0.0), _LONGEST.total_seconds())


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _started(ended_at: datetime, seconds: float) -> datetime:
    try:
        return ended_at - timedelta(seconds=seconds)
    except OverflowError:
        return ended_at


def entry_of(run_id: str, row: RunRow, metadata: dict[str, Any]) -> HistoryEntry:
    """The history entry that a row's columns say, with the keys of a history line in order."""
    ended_at = row.finished_at or row.started_at
    values = (row.task_key, ended_at, row.success, row.message, row.duration_ms)
    return entry_from(run_id, *values, metadata)


def entry_from(
    run_id: str,
    task_key: str,
    ended_at: datetime,
    success: bool | None,
    message: str | None,
    duration_ms: int | None,
    metadata: dict[str, Any],
) -> HistoryEntry:
    """As `entry_of`, from those of the columns that it needs."""
    seconds = metadata.get("duration_seconds", (duration_ms or 0) / 1000)
    entry: HistoryEntry = {
        "timestamp": ended_at.astimezone(UTC).isoformat(),
        "task_id": task_key,
        "task_name": metadata.get("task_name", ""),
        "task_type": metadata.get("task_type", ""),
        "success": success,
        "message": message or "",
        "duration_seconds": seconds,
    }
    if not run_id.startswith(DERIVED_PREFIX):
        entry["run_id"] = run_id
    return entry


def row_of_record(run: SchedulerRunRecord, task_key: str) -> RunRow:
    """The row of a run record."""
    return RunRow(
        id=run.id,
        run_id=run.run_id,
        task_key=task_key,
        started_at=run.started_at,
        finished_at=run.finished_at,
        success=run.success,
        message=None if run.message is None else for_text_column(run.message),
        duration_ms=run.duration_ms,
        metadata_text=for_jsonb(json.dumps(run.metadata_json)),
        line_text=None,
    )


@lru_cache(maxsize=4096)
def unknown_task_id(task_key: str) -> UUID:
    """The logical task id of a run whose task is not in the table."""
    return uuid5(TASK_ID_NAMESPACE, task_key)
