"""Where files and database meet: at a start, and when somebody else changed the snapshot."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import NamedTuple

from datahound_storage.belonging import check_belongs, shown_at
from datahound_storage.bulk_dal import own_writes
from datahound_storage.carried_over import CarriedOver, carried_over
from datahound_storage.choosing import choose_database, choose_files
from datahound_storage.dal import StorageDAL
from datahound_storage.errors import SnapshotError
from datahound_storage.files.layout import text_digest
from datahound_storage.files.paths import StatePaths
from datahound_storage.files.sidecar import Sidecar, task_line
from datahound_storage.files.snapshot import Snapshot
from datahound_storage.files_side import FilesSide, look_at_files, take_files
from datahound_storage.last_equal import Base
from datahound_storage.plan import Plan, Version
from datahound_storage.postgres.changes import Changes, OwnWrites
from datahound_storage.postgres.stored import StoredTask
from datahound_storage.postgres.task_table import Tombstone
from datahound_storage.reconcile import Meeting
from datahound_storage.reporting import Reporter, counted
from datahound_storage.view import Look
from datahound_storage.writes import BulkChange, TaskText

log = Reporter()


class Keep(StrEnum):
    """What an operator chooses where files and database are not allowed to meet by themselves."""

    FILES = "files"
    DATABASE = "database"
    BOTH = "both"


_MOST_REPORTS = 20
# Callers hold the file lock, for which the files' users have more patience than this.
_PATIENCE = 1.0


class Met(NamedTuple):
    """The files that met a database, and what was written to that.

    `mark`: under which the database remembers it, if it does.
    """

    side: FilesSide
    mark: str | None
    own: OwnWrites | None

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot as it was found."""
        return self.side.snapshot

    def looks(self) -> dict[str, Look]:
        """What is known of the texts in the snapshot, so that it need not be worked out again."""
        hashes = self.side.hashes
        return {
            item.task_key: Look(
                TaskText(item.task_key, item.text, item.is_read_alike),
                task_line(item.task_key, hashes[item.task_key]),
                item.digest or text_digest(item.text),
            )
            for item in self.snapshot.items
        }


def meet(dal: StorageDAL, paths: StatePaths, keep: Keep | None = None) -> Met:
    """Carry over to the database what was written to the files while it was out of sight.

    One transaction: all or nothing. Callers hold the file lock. The database remembers it until the
    snapshot is written, where it has to. `keep` is the operator's choice of a side. Without one,
    raises DivergedError where the two sides do not belong together. Raises LockedError where others
    keep the table to themselves, DatabaseError, FileStoreError, SnapshotError.
    """
    side = take_files(paths)
    plans: list[Plan] = []
    made: list[BulkChange] = []

    def decide(changes: Changes) -> BulkChange:
        carried = carried_before(side, dal)
        plans.append(plan_meeting(side, changes, carried, dal, paths, keep))
        kept = _to_remember(side, changes, is_known=carried is not None)
        made.append(plans[-1].change._replace(carried_over=kept))
        return made[-1]

    begun = dal.change_all(decide, min(_PATIENCE, dal.database.timeout), beside=side)
    _report(plans[-1], paths)
    mark = side.mark if made[-1].carried_over is not None else None
    return Met(side, mark, own_writes(begun, made[-1]))


def _report(plan: Plan, paths: StatePaths) -> None:
    for report in plan.reports[:_MOST_REPORTS]:
        log.warning("%s", report)
    if len(plan.reports) > _MOST_REPORTS:
        more = len(plan.reports) - _MOST_REPORTS
        log.warning("%d more like these; `datahound-storage conflicts` lists what was kept", more)
    if plan.write or plan.delete:
        written, deleted = counted(len(plan.write), "task"), counted(len(plan.delete), "task")
        # A file that is emptied by mistake deletes all tasks: whoever reads the log should see it.
        level = logging.WARNING if len(plan.delete) > 1 else logging.INFO
        log.log(
            level,
            "carried over from %s: %s written, %s deleted",
            paths.tasks_file,
            written,
            deleted,
        )


def _to_remember(
    side: FilesSide, changes: Changes, *, is_known: bool
) -> tuple[str, Callable[[], str | None]] | None:
    """What the database is to keep of a meeting until the snapshot was written; None: as it is.

    `is_known`: it keeps something of an earlier one.
    """
    if side.mark is None or (side.is_as_written_for(changes) and not is_known):
        return None
    # When all is written: until then there is time for hashing beside it.
    return side.mark, lambda: _told(side, changes)


def _told(side: FilesSide, changes: Changes) -> str | None:
    known = side.known(changes)
    shown = side.hashes
    reordered = known is not None and _base(known).was_reordered(shown)
    carried = carried_over(known, side.snapshot, shown, changes.newest_us, reordered=reordered)
    return None if carried.is_empty else carried.encode()


def carried_before(side: FilesSide, dal: StorageDAL) -> CarriedOver | None:
    """What an earlier meeting has carried over, which these files do not show yet."""
    return None if side.mark is None else CarriedOver.decode(dal.carried_over(side.mark))


def plan_meeting(
    side: FilesSide,
    changes: Changes,
    carried: CarriedOver | None,
    dal: StorageDAL,
    paths: StatePaths,
    keep: Keep | None = None,
) -> Plan:
    """What is to be done to the database. Raises DivergedError, SnapshotError."""
    if keep is None:
        if carried is None or side.is_of(changes):
            # Otherwise a meeting with this database is remembered.
            check_belongs(side, changes, dal, paths)
        if side.is_as_written_for(changes) and carried is None:
            return Plan()
    known = _last_equal(side, changes, carried) if changes.state.filled and keep is None else None
    base = None if known is None else _base(known)
    files = {i.task_key: Version(i.task_key, i.text) for i in side.snapshot.items}
    ordered = sorted(changes.tasks, key=lambda stored: (stored.position, stored.task_key))
    database = {s.task_key: _version(s, base) for s in ordered}
    if keep is Keep.DATABASE:
        return choose_database(files, database)
    if keep is Keep.FILES:
        if not side.is_complete:
            raise SnapshotError(
                f"{paths.tasks_file} is missing or damaged: it cannot become the whole state. "
                "Mend it, or keep `both` or `database`."
            )
        return choose_files(files, database)
    # Who chose `both` was promised that nothing is deleted.
    heeds_deletions = changes.state.filled and keep is None
    tombstones = dal.tombstones() if heeds_deletions else {}
    return Meeting(
        base=base,
        files=files,
        database=database,
        files_complete=side.is_complete,
        deleted_at={key: tombstone.deleted_at for key, tombstone in tombstones.items()},
        buried=_buried(tombstones, known) if known is not None else {},
        was_emptied=known is not None and known.header.epoch != changes.state.epoch,
    ).plan()


def _last_equal(side: FilesSide, changes: Changes, carried: CarriedOver | None) -> Sidecar | None:
    known = side.known(changes)
    if carried is None:
        return known
    return carried.translated(side.translation(changes)).added_to(known)


def _buried(tombstones: Mapping[str, Tombstone], known: Sidecar) -> dict[str, str | None]:
    """The tasks that were deleted since the sidecar was written, with their texts."""
    since = shown_at(known.header)
    recent = {key: stone for key, stone in tombstones.items() if stone.deleted_at > since}
    return {key: stone.task_text for key, stone in recent.items()}


def _base(known: Sidecar) -> Base:
    return Base(known.tasks, known.shown_since, shown_at(known.header))


def _version(stored: StoredTask, base: Base | None) -> Version:
    if base is None:
        # Strangers: both sides are judged by what the task says of itself.
        return Version(stored.task_key, stored.text)
    changed_at = datetime.fromtimestamp(stored.changed_us / 1_000_000, UTC)
    return Version(stored.task_key, stored.text, changed_at)


def waiting_tasks(paths: StatePaths) -> int | None:
    """How many tasks the files show otherwise than when they last met a database.

    None where they never did. Raises FileStoreError.
    """
    side = look_at_files(paths)
    found, known = side.snapshot, side.sidecar
    if known is None:
        return None
    if known.header.recognises(found.digest, found.signature):
        return 0
    shown = side.hashes
    known = side.translation(None).sidecar(known)
    base = _base(known)
    changed = sum(not base.had_exactly(key, hashes) for key, hashes in shown.items())
    return changed + len(known.tasks.keys() - shown.keys())
