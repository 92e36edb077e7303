"""Whether files and database belong together: neither may overwrite the other's newer state."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from datahound_storage.codec import decode
from datahound_storage.dal import StorageDAL
from datahound_storage.errors import DivergedError
from datahound_storage.files.paths import StatePaths
from datahound_storage.files.sidecar import Hashes, SidecarHeader
from datahound_storage.files_side import FilesSide
from datahound_storage.halves import hashes_of
from datahound_storage.postgres.changes import Changes
from datahound_storage.postgres.task_table import Tombstone
from datahound_storage.postgres.watermark import Watermark

_CHOOSE = (
    "decide with `datahound-storage reconcile --keep both` (nothing is deleted), `--keep files` or "
    "`--keep database` (`--dry-run` shows what it would do), and start again"
)


def check_belongs(side: FilesSide, changes: Changes, dal: StorageDAL, paths: StatePaths) -> None:
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
    known = side.known(changes) if changes.state.filled else None
    if known is None:
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
    since = shown_at(header)
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


def _hashes(text: str) -> Hashes:
    return hashes_of(decode(text))


def shown_at(header: SidecarHeader) -> datetime:
    """The time of the newest change that the snapshot showed, by the database's clock."""
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=header.shown_us)
