"""Where files and database meet: at a start, and when somebody else changed the snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from datahound_storage.codec import decode
from datahound_storage.dal import StorageDAL
from datahound_storage.errors import DivergedError, SnapshotError
from datahound_storage.files import atomic, sidecar, snapshot
from datahound_storage.files.paths import StatePaths
from datahound_storage.files.sidecar import Hashes, Sidecar, SidecarHeader
from datahound_storage.files.snapshot import Snapshot
from datahound_storage.halves import hashes_of
from datahound_storage.last_equal import Base
from datahound_storage.postgres.changes import Changes
from datahound_storage.postgres.task_table import Tombstone
from datahound_storage.postgres.watermark import Watermark
from datahound_storage.reconcile import (
    Meeting,
    Plan,
    Version,
    choose_database,
    choose_files,
    file_version,
)
from datahound_storage.reporting import Reporter
from datahound_storage.tasks import BulkChange

log = Reporter()


_CHOOSE = (
    "decide with `datahound-storage reconcile --keep both` (nothing is deleted), `--keep files` or "
    "`--keep database` (`--dry-run` shows what it would do), and start again"
)


@dataclass
class FilesSide:
    """The files as found, and what is known of the state that they were last equal in."""

    snapshot: Snapshot
    sidecar: Sidecar | None

    @property
    def is_complete(self) -> bool:
        """Whether the snapshot is there as a whole, so that what it lacks was deleted."""
        return self.snapshot.exists and not self.snapshot.damaged

    def is_of(self, changes: Changes) -> bool:
        """Whether the sidecar speaks of this database."""
        return self.sidecar is not None and self.sidecar.header.database == changes.state.identity

    def shows_the_same(self, changes: Changes) -> bool:
        """Whether the snapshot shows what is in the database, to the letter."""
        in_files = {item.task_key: item.text for item in self.snapshot.items}
        return self.is_complete and in_files == {s.task_key: s.text for s in changes.tasks}

    @property
    def unchanged(self) -> bool:
        """Whether the snapshot is one that we wrote: then the database has the last word.

        What was added while the files served and then deleted leaves no trace but in the sidecar.
        """
        if self.sidecar is None or not self.snapshot.exists or self.sidecar.shown_since:
            return False
        header = self.sidecar.header
        return header.recognises(self.snapshot.digest, self.snapshot.signature)


def read_files(paths: StatePaths) -> FilesSide:
    """Read snapshot and sidecar; a damaged snapshot is kept aside and reported. Under the lock."""
    found = snapshot.read(paths.tasks_file)
    if found.damaged:
        snapshot.report_damage(paths.tasks_file, found)
        snapshot.set_aside(paths.tasks_file)
    known = sidecar.read(paths.sidecar_file)
    unpublished = atomic.unpublished(paths.tasks_file)
    return FilesSide(found, known and known.settled(found.signature, unpublished))


class Keep(StrEnum):
    """What an operator chooses where files and database are not allowed to meet by themselves."""

    FILES = "files"
    DATABASE = "database"
    BOTH = "both"


# Callers hold the file lock, for which the files' users have more patience than this.
_PATIENCE = 1.0


def meet(dal: StorageDAL, paths: StatePaths, keep: Keep | None = None) -> None:
    """Carry over to the database what was written to the files while it was out of sight.

    One transaction: all or nothing. Callers hold the file lock. `keep` is the operator's choice of
    a side. Without one, raises DivergedError where the two sides do not belong together. Raises
    LockedError where others keep the table to themselves, DatabaseError, FileStoreError,
    SnapshotError.
    """
    side = read_files(paths)
    plans: list[Plan] = []

    def decide(changes: Changes) -> BulkChange:
        plan = plan_meeting(side, changes, dal, paths, keep)
        plans.append(plan)
        return plan.change

    dal.change_all(decide, min(_PATIENCE, dal.database.timeout))
    plan = plans[-1]
    for report in plan.reports:
        log.warning("%s", report)
    if plan.write or plan.delete:
        log.info(
            "carried over from %s: %d tasks written, %d deleted",
            paths.tasks_file,
            len(plan.write),
            len(plan.delete),
        )


def plan_meeting(
    side: FilesSide,
    changes: Changes,
    dal: StorageDAL,
    paths: StatePaths,
    keep: Keep | None = None,
) -> Plan:
    """What is to be done to the database. Raises DivergedError, SnapshotError."""
    if keep is None:
        _check_belongs(side, changes, dal, paths)
        if side.unchanged and side.is_of(changes):
            return Plan()
    base = None
    if side.sidecar is not None and side.is_of(changes) and changes.state.filled and keep is None:
        base = _base(side.sidecar)
    files = {i.task_key: file_version(i.text, i.task) for i in side.snapshot.items}
    ordered = sorted(changes.tasks, key=lambda stored: (stored.position, stored.task_key))
    database = {s.task_key: _version(s.text, s.changed_us, base) for s in ordered}
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
        buried=_buried(tombstones, side.sidecar) if base and side.sidecar else {},
    ).plan()


def _buried(tombstones: Mapping[str, Tombstone], known: Sidecar) -> dict[str, str | None]:
    """The tasks that were deleted since the sidecar was written, with their texts."""
    since = _shown_at(known.header)
    recent = {key: stone for key, stone in tombstones.items() if stone.deleted_at > since}
    return {key: stone.task_text for key, stone in recent.items()}


def _base(known: Sidecar) -> Base:
    return Base(known.tasks, known.previous, known.shown_since)


def _version(text: str, changed_us: int, base: Base | None) -> Version:
    task = decode(text)
    if base is None:
        # Strangers: both sides are judged by what the task says of itself.
        return file_version(text, task)
    return Version(text, task, datetime.fromtimestamp(changed_us / 1_000_000, UTC))


def _check_belongs(side: FilesSide, changes: Changes, dal: StorageDAL, paths: StatePaths) -> None:
    """Refuse a database that is another one, or that lies before what the files show."""
    if is_another(side, changes):
        raise DivergedError(
            f"{paths.tasks_file} shows the tasks of another database than the URL leads to. "
            f"Nothing was changed on either side. Correct the URL; or {_CHOOSE}."
        )
    if shows_newer(side, changes, dal):
        raise DivergedError(
            f"the database is older than what {paths.tasks_file} shows (a restored dump, a "
            f"standby that lagged). Nothing was changed on either side. Restore a newer state; or "
            f"{_CHOOSE}."
        )


def is_another(side: FilesSide, changes: Changes) -> bool:
    """Whether the snapshot is of another database, and one side would overwrite the other.

    Nothing can be overwritten in a database that was never filled, nor where both show the same.
    """
    if side.sidecar is None or side.is_of(changes) or not changes.state.filled:
        return False
    return not side.shows_the_same(changes)


def shows_newer(side: FilesSide, changes: Changes, dal: StorageDAL) -> bool:
    """Whether the snapshot shows a newer state of this database than the database has."""
    known = side.sidecar
    if known is None or not side.is_of(changes) or not changes.state.filled:
        return False
    return is_older(changes, known.header, known.tasks, dal)


def is_older(
    changes: Changes, header: SidecarHeader, shown: Mapping[str, Hashes], dal: StorageDAL
) -> bool:
    """Whether the database is older than the snapshot, which shows `shown`."""
    state = changes.state
    continues = header.incarnation == state.incarnation
    if continues and Watermark.parse(header.watermark).xmax <= state.watermark.xmax:
        return False
    if not changes.full:
        return False  # then an earlier reading was, and has been looked at
    # Transaction ids do not survive dump and restore, and a server that crashes forgets those of
    # transactions that changed nothing; the stamps' times last. But a single change after a restore
    # hides the dump's age.
    return header.shown_us > changes.newest_us or _has_forgotten(
        changes, header, shown, dal.tombstones()
    )


def _has_forgotten(
    changes: Changes,
    header: SidecarHeader,
    shown: Mapping[str, Hashes],
    tombstones: Mapping[str, Tombstone],
) -> bool:
    """Whether something is missing that the snapshot showed.

    What was not changed since then must be as shown, and what is not there deleted since then.
    """
    since = _shown_at(header)
    present = {task.task_key for task in changes.tasks}
    if any(
        task.changed_us <= header.shown_us and shown.get(task.task_key) != _hashes(task.text)
        for task in changes.tasks
    ):
        return True
    if header.epoch != changes.state.epoch:
        return False  # emptied since then, which leaves no trace of single tasks
    gone = (tombstones.get(key) for key in shown if key not in present)
    return any(stone is None or stone.deleted_at <= since for stone in gone)


def _shown_at(header: SidecarHeader) -> datetime:
    """The time of the newest change that the snapshot showed, by the database's clock."""
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=header.shown_us)


def _hashes(text: str) -> Hashes:
    return hashes_of(decode(text))


def waiting_tasks(paths: StatePaths) -> int | None:
    """How many tasks the files show otherwise than when they last met a database.

    None where they never did. Raises FileStoreError.
    """
    known = sidecar.read(paths.sidecar_file)
    found = snapshot.read(paths.tasks_file)
    if known is None:
        return None
    if known.header.recognises(found.digest, found.signature):
        return 0
    shown = {item.task_key: hashes_of(item.task) for item in found.items}
    base = _base(known)
    changed = sum(not base.had_exactly(key, hashes) for key, hashes in shown.items())
    return changed + len(known.tasks.keys() - shown.keys())
