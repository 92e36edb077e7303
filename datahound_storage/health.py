"""The state of things, as an operator wants to see it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

StoreName = Literal["database", "files"]


@dataclass(frozen=True)
class Health:
    """Which store serves, since when and why, how the backup is, and what waits.

    `backup_problem` is None while the snapshot shows every acknowledged change; `backup_written_at`
    is when this process last wrote it, None if it did not have to. `waiting_tasks` are the tasks
    whose change in the files no database has seen yet (None: the files never met one, or cannot be
    read), `waiting_runs` the runs that this process has kept in the file only.
    """

    store: StoreName
    since: datetime
    reason: str
    backup_written_at: datetime | None
    backup_problem: str | None
    waiting_tasks: int | None
    waiting_runs: int
