"""Reconciling by hand: what a meeting would do, and a meeting on an operator's word."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property

from datahound_storage.attach import Keep, carried_before, plan_meeting
from datahound_storage.backup import SnapshotBackup
from datahound_storage.dal import StorageDAL
from datahound_storage.files import history
from datahound_storage.files.lock import cannot
from datahound_storage.files.paths import StatePaths
from datahound_storage.files_side import look_at_files
from datahound_storage.history_sync import sync_history
from datahound_storage.plan import Plan
from datahound_storage.tasks import parse_time
from datahound_storage.writes import TaskText, texts_by_key


@dataclass(frozen=True)
class Preview:
    """What a meeting would do; the lists of tasks hold their keys.

    `to_database` are written there from the files, `deleted_in_database` are deleted there;
    `to_files` are written to the snapshot from the database, `deleted_in_files` leave it;
    `reordered`: one side gets the other's order of the tasks. `lost` are the versions that lose
    and are kept as conflicts, each for its reason in `lost_reasons`. `emptied`: all tasks of the
    database are to be deleted, as none of them is in the files. `damage` is what cannot be read in
    the snapshot, which is kept aside. `runs_pruned` leave the table, as they were trimmed while the
    files were the only store.
    """

    to_database: list[str]
    deleted_in_database: list[str]
    to_files: list[str]
    deleted_in_files: list[str]
    lost: list[str]
    reports: list[str]
    runs_to_database: int
    runs_to_files: int
    runs_pruned: int = 0
    reordered: bool = False
    damage: list[str] = field(default_factory=list)
    lost_reasons: list[str] = field(default_factory=list)
    emptied: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not any(vars(self).values())


@dataclass(frozen=True)
class Standing:
    """How two sides compare that are not allowed to meet by themselves.

    `files_of` and `database` are the identities of the database that wrote the snapshot and of the
    one that the URL leads to; `files_show` and `database_newest` the times of their newest changes.
    """

    tasks_in_files: int
    tasks_in_database: int
    only_in_files: int
    only_in_database: int
    different: int
    files_of: str | None
    database: str
    files_show: datetime | None
    files_newest: datetime | None
    database_newest: datetime | None


class Sides:
    """Files and database as they are now. Only reads, without a lock.

    Raises DatabaseError, FileStoreError.
    """

    def __init__(self, dal: StorageDAL, paths: StatePaths) -> None:
        self._dal = dal
        self._paths = paths
        self._files = look_at_files(paths)
        self._changes = dal.read_changes(None)
        stored = sorted(self._changes.tasks, key=lambda task: (task.position, task.task_key))
        self._in_database = [TaskText(task.task_key, task.text) for task in stored]
        self._in_files = {item.task_key: item.text for item in self._files.snapshot.items}

    def preview(self, keep: Keep | None = None) -> Preview:
        """What a meeting would do. Raises DivergedError where a choice is needed, SnapshotError."""
        carried = carried_before(self._files, self._dal)
        plan = plan_meeting(self._files, self._changes, carried, self._dal, self._paths, keep)
        files, after = self._in_files, _carried_out(plan, self._in_database)
        to_database, to_files, pruned = self._runs
        return Preview(
            to_database=[version.task_key for version in plan.write],
            deleted_in_database=plan.delete,
            to_files=[key for key, text in after.items() if files.get(key) != text],
            deleted_in_files=[key for key in files if key not in after],
            lost=[conflict.task_key for conflict in plan.conflicts],
            reports=plan.reports,
            runs_to_database=to_database,
            runs_to_files=to_files,
            runs_pruned=pruned,
            reordered=plan.order is not None or _common(files, after) != _common(after, files),
            damage=self._files.snapshot.problems,
            lost_reasons=[conflict.reason for conflict in plan.conflicts],
            emptied=bool(plan.delete) and len(plan.delete) == len(self._in_database),
        )

    @cached_property
    def _runs(self) -> tuple[int, int, int]:
        """How many runs go to the database, how many to the files, how many leave the table."""
        dal, paths = self._dal, self._paths
        trimmed = history.remembered_cutoff(paths.history_state_file)
        # They leave the table before it is compared with the files.
        pruned = dal.run_ids_before(trimmed) if trimmed else set()
        recorded = dal.run_ids() - pruned
        shown = {line.run_id: line.ended_at for line in history.lines(paths.history_files)}
        cutoff = max((time for time in (dal.history_cutoff(), trimmed) if time), default=None)
        missing = [ended for run_id, ended in shown.items() if run_id not in recorded]
        to_database = sum(cutoff is None or ended >= cutoff for ended in missing)
        return to_database, len(recorded - shown.keys()), len(pruned)

    def standing(self) -> Standing:
        """How the sides compare."""
        database = texts_by_key(self._in_database)
        files, known, changes = self._in_files, self._files.sidecar, self._changes
        updates = (item.task.get("updated_at") for item in self._files.snapshot.items)
        return Standing(
            tasks_in_files=len(files),
            tasks_in_database=len(database),
            only_in_files=len(files.keys() - database.keys()),
            only_in_database=len(database.keys() - files.keys()),
            different=sum(database[k] != text for k, text in files.items() if k in database),
            files_of=known.header.database if known else None,
            database=changes.state.identity,
            files_show=_time(known.header.shown_us) if known else None,
            files_newest=max(filter(None, map(parse_time, updates)), default=None),
            database_newest=_time(changes.newest_us),
        )


def _carried_out(plan: Plan, database: list[TaskText]) -> dict[str, str]:
    gone = set(plan.delete)
    after = {key: text for key, text in texts_by_key(database).items() if key not in gone}
    after |= {version.task_key: version.text for version in plan.write}
    return {key: after[key] for key in plan.order or [] if key in after} | after


def _common(keys: Iterable[str], others: dict[str, str]) -> list[str]:
    return [key for key in keys if key in others]


def _time(microseconds: int) -> datetime | None:
    return datetime.fromtimestamp(microseconds / 1_000_000, UTC) if microseconds else None


def preview(dal: StorageDAL, paths: StatePaths, keep: Keep | None = None) -> Preview:
    """Work out what `reconcile` would do; nothing is written, no lock is taken.

    Raises DivergedError where a choice is needed; DatabaseError, FileStoreError, SnapshotError.
    """
    return Sides(dal, paths).preview(keep)


def reconcile(
    dal: StorageDAL, paths: StatePaths, patience: float, keep: Keep | None = None
) -> Preview:
    """Let files and database meet as a start does, or as the operator decided.

    Both are durable, and equal, when it returns what there was to do; what others changed in that
    moment is not in it. Raises DivergedError where a choice is needed; DatabaseError,
    FileStoreError, SnapshotError, LockTimeoutError.
    """
    # First of all: what is refused must not even keep a damaged snapshot aside.
    found = preview(dal, paths, keep)
    try:
        paths.make_directories()
    except OSError as error:
        raise cannot("create", paths.history_file.parent, error) from error
    SnapshotBackup(dal, paths, patience).attach(keep)
    sync_history(dal, paths, patience)
    return found
