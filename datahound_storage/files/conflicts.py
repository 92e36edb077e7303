"""Versions that lost while the files were the only store, one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from datahound_storage.codec import loads
from datahound_storage.files import atomic, history
from datahound_storage.files.lock import cannot
from datahound_storage.tasks import parse_time
from datahound_storage.writes import Conflict


class NotedConflict(NamedTuple):
    """A version that lost, when that was noticed, and its line in the file (the first is 1)."""

    conflict: Conflict
    noticed_at: datetime
    line: int


def append(path: Path, conflicts: Iterable[Conflict]) -> None:
    """Keep versions that lose. On disk when it returns; callers hold the file lock.

    Raises FileStoreError.
    """
    noticed = datetime.now(UTC).isoformat()
    lines = (json.dumps({**c._asdict(), "noticed_at": noticed}) for c in conflicts)
    history.append(path, lines, durable=True)


def read(path: Path) -> list[NotedConflict]:
    """The versions that were kept, oldest first. Raises FileStoreError."""
    numbered = enumerate(_lines(path), start=1)
    return [noted for number, raw in numbered if (noted := _noted(raw, number)) is not None]


def forget(path: Path, lines: Collection[int]) -> int:
    """Delete kept versions by their lines; return how many there were. Atomic and durable.

    Their lines stay, empty, so that the others keep their numbers while there are any. What cannot
    be parsed is kept. Callers hold the file lock. Raises FileStoreError.
    """
    wanted = {noted.line for noted in read(path)} & set(lines)
    if not wanted:
        return 0
    found = enumerate(_lines(path), start=1)
    left = [b"" if number in wanted else raw for number, raw in found]
    atomic.replace(path, b"\n".join(left) if any(left) else b"")
    return len(wanted)


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise cannot("read", path, error) from error


def _noted(raw: bytes, number: int) -> NotedConflict | None:
    try:
        value = loads(raw.decode())
        noticed_at = parse_time(value["noticed_at"])
        conflict = Conflict(*(str(value[name]) for name in Conflict._fields))
    except (ValueError, KeyError, TypeError):
        return None  # torn by a crash
    return None if noticed_at is None else NotedConflict(conflict, noticed_at, number)
