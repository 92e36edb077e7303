"""Where table and history file meet: each gets the runs that only the other one has."""

from __future__ import annotations

from collections.abc import Iterable

from datahound_storage.dal import StorageDAL
from datahound_storage.errors import FileStoreError, LockTimeoutError, PruneRunningError
from datahound_storage.files import history
from datahound_storage.files.history import Mark
from datahound_storage.files.lock import locked
from datahound_storage.files.paths import StatePaths
from datahound_storage.postgres.run_table import line_of
from datahound_storage.reporting import Reporter, counted
from datahound_storage.runs import row_of

log = Reporter()


def sync_history(
    dal: StorageDAL, paths: StatePaths, patience: float, *, goes_on: bool = False
) -> Mark:
    """Bring runs that only the files have into the table, and the other way round.

    Takes the file lock for the appending alone; what is appended meanwhile comes after the mark
    that it returns. Raises DatabaseError; FileStoreError too, but for a line that cannot be written
    where the caller `goes_on` without, which is reported.
    """
    mark = history.mark(paths.history_file)
    _repeat_trim(dal, paths)
    cutoff = dal.history_cutoff()
    recorded = dal.run_ids()
    missing = (
        row_of(line)
        for line in history.lines(paths.history_files)
        if line.run_id not in recorded and (cutoff is None or line.ended_at >= cutoff)
    )
    added = dal.add_runs(missing)
    if added:
        log.info("carried over from the history file: %s", counted(added, "run"))
    try:
        _append_missing(dal, paths, recorded, patience)
    except (LockTimeoutError, FileStoreError) as error:
        if isinstance(error, FileStoreError) and not goes_on:
            raise
        log.error("the history file could not follow, the next start mends it: %s", error)
    return mark


def sync_last_runs(dal: StorageDAL, paths: StatePaths, mark: Mark) -> None:
    """Bring the runs that were appended after `mark` into the table. Callers hold the file lock."""
    _repeat_trim(dal, paths)
    cutoff = dal.history_cutoff()
    dal.add_runs(
        row_of(line)
        for line in history.lines_after(paths.history_file, mark)
        if cutoff is None or line.ended_at >= cutoff
    )


def _repeat_trim(dal: StorageDAL, paths: StatePaths) -> None:
    """What was trimmed while the files were the only store is gone for good."""
    trimmed = history.remembered_cutoff(paths.history_state_file)
    if trimmed is not None:
        try:
            dal.purge_task_runs(older_than=trimmed, patience=dal.database.timeout)
        except PruneRunningError as error:
            log.warning("runs that the files have trimmed may stay for now: %s", error)


def _append_missing(
    dal: StorageDAL, paths: StatePaths, recorded: Iterable[str], patience: float
) -> None:
    with locked(paths.lock_file, patience):
        shown = {line.run_id for line in history.lines(paths.history_files)}
        ids = [run_id for run_id in recorded if run_id not in shown]
        if not ids:
            return
        runs = sorted(dal.runs_by_ids(ids), key=lambda r: r.row.finished_at or r.row.started_at)
        history.append(paths.history_file, map(line_of, runs), durable=True)
    log.info("carried over to %s: %s", paths.history_file, counted(len(ids), "run"))
