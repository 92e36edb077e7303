"""Reconciling by hand: what a meeting would do, and a meeting on an operator's word."""

from __future__ import annotations

from dataclasses import dataclass

from datahound_storage.attach import (
    FilesSide,
    Keep,
    plan_meeting,
    sync_history,
)
from datahound_storage.backup import SnapshotBackup
from datahound_storage.dal import StorageDAL
from datahound_storage.files import history, sidecar, snapshot
from datahound_storage.files.paths import StatePaths
from datahound_storage.reconcile import Plan
from datahound_storage.tasks import TaskText


@dataclass(frozen=True)
class Preview:
    """What a meeting would do; the lists hold task keys.

    `to_database` are written there from the files, `deleted_in_database` are deleted there;
    `to_files` are written to the snapshot from the database, `deleted_in_files` leave it. `lost`
    are the versions that lose and are kept as conflicts.
    """

    to_database: list[str]
    deleted_in_database: list[str]
    to_files: list[str]
    deleted_in_files: list[str]
    lost: list[str]
    reports: list[str]
    runs_to_database: int
    runs_to_files: int

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not any(vars(self).values())


def preview(dal: StorageDAL, paths: StatePaths, keep: Keep | None = None) -> Preview:
    """Work out what `reconcile` would do; nothing is written, no lock is taken.

    Raises DivergedError where a choice is needed; DatabaseError, FileStoreError, SnapshotError.
    """
    side = FilesSide(snapshot.read(paths.tasks_file), sidecar.read(paths.sidecar_file))
    changes = dal.read_changes(None)
    plan = plan_meeting(side, changes, dal, paths, keep)
    files = {item.task_key: item.text for item in side.snapshot.items}
    after = _carried_out(plan, [TaskText(s.task_key, s.text) for s in changes.tasks])
    runs = _runs(dal, paths)
    return Preview(
        to_database=[prepared.task_key for prepared in plan.write],
        deleted_in_database=plan.delete,
        to_files=[key for key, text in after.items() if files.get(key) != text],
        deleted_in_files=[key for key in files if key not in after],
        lost=[conflict.task_key for conflict in plan.conflicts],
        reports=plan.reports,
        runs_to_database=runs[0],
        runs_to_files=runs[1],
    )


def _carried_out(plan: Plan, database: list[TaskText]) -> dict[str, str]:
    gone = set(plan.delete)
    after = {key: text for key, text in database if key not in gone}
    return after | {prepared.task_key: prepared.text for prepared in plan.write}


def _runs(dal: StorageDAL, paths: StatePaths) -> tuple[int, int]:
    recorded, cutoff = dal.run_ids(), dal.history_cutoff()
    shown = {line.run_id: line.ended_at for line in history.lines(paths.history_files)}
    missing = [ended for run_id, ended in shown.items() if run_id not in recorded]
    to_database = sum(cutoff is None or ended >= cutoff for ended in missing)
    return to_database, len(recorded - shown.keys())


def reconcile(
    dal: StorageDAL, paths: StatePaths, patience: float, keep: Keep | None = None
) -> None:
    """Let files and database meet as a start does, or as the operator decided.

    Both are durable, and equal, when it returns. Raises DivergedError where a choice is needed;
    DatabaseError, FileStoreError, SnapshotError, LockTimeoutError.
    """
    SnapshotBackup(dal, paths, patience).attach(keep)
    sync_history(dal, paths, patience)
