"""The backup hook: called after each commit and on each listing.

Only the snapshot's own hook belongs to the acknowledgement of a write; another one that fails is
reported and never fails the write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from datahound_storage.reporting import Reporter

log = Reporter()


@dataclass(frozen=True)
class BackupEvent:
    """Why a hook is called: after a commit, with the keys that it changed, or on a listing.

    `watermark` names the state of the database that `snapshot` shows (a `pg_snapshot` in text),
    empty while the files are the store.
    """

    reason: Literal["commit", "listing"]
    task_keys: tuple[str, ...]
    watermark: str
    snapshot: Path


@runtime_checkable
class BackupHook(Protocol):
    """Something that keeps a copy of the tasks, or wants to know that they changed."""

    def refresh(self, event: BackupEvent) -> None:
        """Called after the snapshot is durable. What it raises is logged."""


def notify(hooks: Sequence[BackupHook], event: BackupEvent) -> None:
    """Call the additional hooks; a failing one is reported and stops nothing."""
    for hook in hooks:
        try:
            hook.refresh(event)
        except Exception:
            log.warning("backup hook %s failed", type(hook).__name__, exc_info=True)
