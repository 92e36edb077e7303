"""Prunes the runs: in batches with pauses, under a time limit each, by one process at a time."""

from __future__ import annotations

import time
from datetime import datetime
from functools import partial

from psycopg import errors as pg

from datahound_storage.errors import InvalidArgumentError, PruneRunningError, StorageError
from datahound_storage.postgres import pruning
from datahound_storage.postgres.deadline import DeadlineConnection
from datahound_storage.postgres.pool import Database
from datahound_storage.postgres.pruning import Batch, Connection, Place
from datahound_storage.reporting import Reporter, counted

log = Reporter()

# Others get the server, and its disk, for a share of the time for which a batch had it, up to this.
PAUSE_SHARE = 0.1
LONGEST_PAUSE = 1.0
# Where a statement with so few rows runs into its time limit, something else is wrong.
SMALLEST_BATCH = 100
_POLL = 0.2


def check_limit(value: int, name: str) -> None:
    """Raise InvalidArgumentError for a negative number."""
    if value < 0:
        raise InvalidArgumentError(f"{name} must not be negative, it is {value}.")


def prune(database: Database, cutoff: datetime, keep_last: int, patience: float) -> int:
    """Delete the runs before `cutoff` but for the newest `keep_last` of each task; return how many.

    Waits `patience` seconds for another pruner, then raises PruneRunningError. What was deleted
    before an error stays deleted, and is logged.
    """
    if not database.run(partial(pruning.any_before, cutoff=cutoff)).result:
        return 0
    work = _Pruning(database, cutoff, keep_last)
    try:
        database.run(partial(work.alone, patience=patience), bulk=True)
    except StorageError as error:
        if work.deleted:
            log.error("pruning stopped after %s: %s", counted(work.deleted, "run"), error)
        raise
    if work.in_use:
        number = counted(work.in_use, "old run")
        log.warning("%s in use: the next pruning takes what it left", number)
    return work.deleted


class _Pruning:
    def __init__(self, database: Database, cutoff: datetime, keep_last: int) -> None:
        self._database, self._cutoff, self._keep_last = database, cutoff, keep_last
        self._size = pruning.BATCH_KEEPING if keep_last else pruning.BATCH
        self._place = Place()
        self.deleted = self.in_use = 0

    def alone(self, holder: DeadlineConnection, patience: float) -> None:
        """Prune while `holder`, which is of no more use after that, keeps others from it."""
        pruning.begin_pruning(holder)
        deadline = time.monotonic() + patience
        while not pruning.try_prune_lock(holder):
            if time.monotonic() > deadline:
                raise PruneRunningError(
                    "another process is pruning the runs: wait until it is done, or look for it in "
                    "pg_locks (locktype 'advisory')."
                )
            time.sleep(_POLL)
        while self._prune_batch():
            # A lock that is lost raises here, before the next batch.
            holder.execute(b"SELECT 1")
        # A connection that is closed lets go of the lock some time after it.
        holder.execute(b"ROLLBACK")

    def _prune_batch(self) -> bool:
        began = time.monotonic()
        batch = self._database.run(self._try_batch, bulk=True).result
        if batch is None:
            self._size //= 2
            return True
        self.deleted += batch.deleted
        self.in_use += batch.in_use
        self._place = batch.place
        if batch.seen < self._size:
            return False
        time.sleep(min((time.monotonic() - began) * PAUSE_SHARE, LONGEST_PAUSE))
        return True

    def _try_batch(self, connection: Connection) -> Batch | None:
        """A batch; None where it took too long and is to be tried with fewer rows."""
        try:
            return pruning.prune_batch(
                connection, self._cutoff, self._keep_last, self._place, self._size
            )
        except pg.QueryCanceled:
            if self._size // 2 < SMALLEST_BATCH:
                raise
            return None
