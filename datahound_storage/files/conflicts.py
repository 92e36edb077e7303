"""Versions that lost while the files were the only store, one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from datahound_storage.codec import loads
from datahound_storage.files import history
from datahound_storage.tasks import Conflict, parse_time


class NotedConflict(NamedTuple):
    """A version that lost, and when that was noticed."""

    conflict: Conflict
    noticed_at: datetime


def append(path: Path, conflicts: Iterable[Conflict]) -> None:
    """Keep versions that lose. On disk when it returns; callers hold the file lock.

    Raises FileStoreError.
    """
    noticed = datetime.now(UTC).isoformat()
    lines = (json.dumps({**c._asdict(), "noticed_at": noticed}) for c in conflicts)
    history.append(path, lines, durable=True)


def read(path: Path) -> list[NotedConflict]:
    """The versions that were kept, oldest first. Raises FileStoreError."""
    return [noted for text in history.texts(path) if (noted := _noted(text)) is not None]


def _noted(text: str) -> NotedConflict | None:
    try:
        value = loads(text)
        noticed_at = parse_time(value["noticed_at"])
        conflict = Conflict(*(str(value[name]) for name in Conflict._fields))
    except (ValueError, KeyError, TypeError):
        return None  # torn by a crash
    return None if noticed_at is None else NotedConflict(conflict, noticed_at)
