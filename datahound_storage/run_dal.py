"""The data-access object's part for runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, Protocol, TypeVar

from psycopg import errors as pg

from datahound_storage.errors import InvalidTaskError
from datahound_storage.mapping import run_record
from datahound_storage.postgres import run_compare, run_table
from datahound_storage.postgres.deadline import DeadlineConnection
from datahound_storage.postgres.pool import Database
from datahound_storage.postgres.run_table import StoredRun
from datahound_storage.pruning import check_limit, prune
from datahound_storage.records import SchedulerRunRecord
from datahound_storage.runs import HistoryEntry, RunRow, row_of_record
from datahound_storage.tasks import MAX_KEY

T = TypeVar("T")


class Shown(Protocol):
    """What history files show, ready for COPY."""

    has_unnamed: bool

    def rows(self, encoding: str) -> Iterator[bytes]:
        """The rows (file, place, run id, digest), from the first; then `has_unnamed` is known."""
        ...


class RunDAL:
    """Runs in one database. Safe to share between threads."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def record_task_run(self, run: SchedulerRunRecord) -> SchedulerRunRecord:
        """Store a run; return it. Sending it again is harmless, a run without an end gets it."""
        task_key = run.metadata_json.get("task_key") if run.metadata_json else None
        if not isinstance(task_key, str) or len(task_key) > MAX_KEY:
            raise InvalidTaskError(f"run {run.run_id[:80]!r} needs metadata_json['task_key'].")
        self.add_run(row_of_record(run, task_key))
        return replace(run)

    def add_run(self, row: RunRow) -> None:
        """Store a run, ready for the table; harmless when repeated."""
        self.database.run(lambda c: run_table.insert(c, row))

    def add_runs(self, rows: Iterable[RunRow]) -> int:
        """Store many runs, in batches that are a transaction each; return how many were new."""
        return sum(
            self.database.run(partial(run_table.insert_many, rows=batch), bulk=True).result
            for batch in run_table.batches(rows)
        )

    def list_task_runs(
        self, *, task_key: str | None = None, limit: int = 100
    ) -> list[SchedulerRunRecord]:
        """The newest `limit` runs (of one task), newest first, by end (or start)."""
        check_limit(limit, "limit")
        outcome = self.database.run(lambda c: run_table.newest(c, task_key, limit))
        return [run_record(stored) for stored in outcome.result]

    def newest_runs(self, task_key: str | None, limit: int) -> list[StoredRun]:
        """The newest `limit` runs that ended (of one task), newest first."""
        return self.database.run(
            lambda c: run_table.newest(c, task_key, limit, ended_only=True)
        ).result

    def newest_entries(self, task_key: str | None, limit: int) -> list[HistoryEntry]:
        """The history entries of the newest `limit` runs that ended (of one task), newest first."""
        return self.database.run(lambda c: run_table.newest_entries(c, task_key, limit)).result

    def run_ids(self) -> set[str]:
        """The ids of all runs that ended."""
        return self.database.run(run_table.run_ids, bulk=True).result

    def run_ids_before(self, cutoff: datetime) -> set[str]:
        """The ids of the runs that `purge_task_runs` would delete."""
        return self.database.run(lambda c: run_table.ids_before(c, cutoff), bulk=True).result

    def compare_runs(
        self,
        shown: Shown,
        only_shown: Callable[[Iterator[tuple[Any, ...]]], None],
        only_stored: Callable[[Iterator[StoredRun]], None],
    ) -> None:
        """Compare the table with what history files show, both streamed.

        `only_shown` gets (file, place, run id) of the lines that the table lacks. `only_stored`
        then gets the runs that ended and that no line shows, oldest first. Both are called again,
        from the start, after a connection that broke.
        """

        def compare(connection: DeadlineConnection) -> None:
            try:
                compare_there(connection)
            except pg.InsufficientPrivilege:
                # A role that may not make temporary tables: in memory, then.
                with connection.transaction():
                    found = run_compare.compare_here(connection, shown.rows("utf-8"))
                    only_shown(iter(found.only_shown))
                    only_stored(found.only_stored)

        def compare_there(connection: DeadlineConnection) -> None:
            with connection.transaction():
                blocks = shown.rows(connection.info.encoding)
                run_compare.load_shown(connection, blocks)
                if shown.has_unnamed:
                    run_compare.name_unnamed(connection)
                run_compare.analyze(connection)
                only_shown(run_compare.only_shown(connection))
                only_stored(run_compare.only_stored(connection))

        self.database.run(compare, bulk=True)

    def read_runs(self, read: Callable[[Iterator[StoredRun]], T]) -> T:
        """What `read` makes of all runs that ended, oldest first and streamed.

        It is called again, from the start, after a connection that broke.
        """

        def stream(connection: DeadlineConnection) -> T:
            with connection.transaction():
                return read(run_table.ended_runs(connection))

        return self.database.run(stream, bulk=True).result

    def history_cutoff(self) -> datetime | None:
        """The time before which runs are gone for good."""
        return self.database.run(run_table.history_cutoff).result

    def purge_task_runs(
        self, *, older_than: datetime, keep_last: int = 0, patience: float = 0.0
    ) -> int:
        """Delete the runs that ended before a time; return how many.

        A run without an end counts by its start: whatever started it has died. `keep_last` spares
        the newest so many runs of each task, a run without a task is none of them. Done in batches
        with pauses, each committed by itself, by one process at a time: waits `patience` seconds
        for another one, then raises PruneRunningError. The time is remembered first, so that no
        file can bring back what is deleted.
        """
        check_limit(keep_last, "keep_last")
        cutoff = older_than if older_than.tzinfo else older_than.astimezone()
        self.database.run(lambda c: run_table.remember_cutoff(c, cutoff))
        return prune(self.database, cutoff, keep_last, patience)

    def now(self) -> datetime:
        """The database's clock."""
        return self.database.run(run_table.clock).result

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        self.database.close()
