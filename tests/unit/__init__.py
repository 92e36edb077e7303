"""Tests of the parts that need no database."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def make_task(task_id: str = "t1", **fields: Any) -> dict[str, Any]:
    """A task as the scheduler writes one, with other fields where they are given."""
    return {
        "task_id": task_id,
        "name": "Download - Acme",
        "description": "",
        "task_config": {"task_type": "download", "company": "Acme", "settings": {}},
        "schedule_type": "interval",
        "status": "active",
        "interval_minutes": 15,
        "daily_time": None,
        "weekly_schedule": None,
        "last_run": "2026-10-30T15:11:00.627903-07:00",
        "next_run": "2026-10-30T15:26:00.627903-07:00",
        "last_error": None,
        "run_count": 1,
        "consecutive_errors": 0,
        "created_at": "2026-09-07T15:11:00.624707",
        "updated_at": "2026-10-30T15:11:00.627903",
    } | fields


def as_file(tasks: list[Any]) -> bytes:
    """The bytes that the old code writes for a list of tasks."""
    return json.dumps(tasks, indent=2).encode()


def text_in_list(task: Any) -> str:
    """The text of a task as it stands in a file of the old code."""
    return json.dumps([task], indent=2)[len("[\n  ") : -len("\n]")]


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes, as on a disk that is full."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Make files under this umask."""
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


def mode_of(path: Path) -> int:
    """The permissions of a file."""
    return path.stat().st_mode & 0o7777


def make_shared(directory: Path) -> int:
    """Make a directory group-writable, for another group if we may; return its group."""
    if os.geteuid() == 0:
        os.chown(directory, -1, 4242)
    directory.chmod(0o775)
    return directory.stat().st_gid
