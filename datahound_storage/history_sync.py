"""Where table and history file meet: each gets the runs that only the other one has.

However many there are, a few MB of them are in memory at a time: the server compares the ids, and
what it finds is streamed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import partial
from typing import Any

from datahound_storage.dal import StorageDAL
from datahound_storage.errors import (
    FileStoreError,
    LockedError,
    LockTimeoutError,
    PruneRunningError,
)
from datahound_storage.files import history
from datahound_storage.files.history import Mark
from datahound_storage.files.lock import locked
from datahound_storage.files.paths import StatePaths
from datahound_storage.files.shown_runs import FilesChangedError, Place, ShownRuns, open_runs
from datahound_storage.files.spool import Spool
from datahound_storage.postgres.run_table import StoredRun, line_of, line_of_columns
from datahound_storage.reporting import Reporter, counted
from datahound_storage.runs import Line, derived_from, parse_line, row_of

log = Reporter()

# How often it begins anew where somebody else writes the history file anew meanwhile.
_ATTEMPTS = 3
# What is appended while the file lock is held once, in bytes.
_AT_ONCE = 1 << 20


def sync_history(
    dal: StorageDAL, paths: StatePaths, patience: float, *, goes_on: bool = False
) -> Mark:
    """Bring runs that only the files have into the table, and the other way round.

    Takes the file lock for the appending alone; what is appended meanwhile comes after the mark
    that it returns. Raises DatabaseError; FileStoreError too, but for a line that cannot be written
    where the caller `goes_on` without, which is reported.
    """
    _repeat_trim(dal, paths)
    for _ in range(_ATTEMPTS):
        try:
            with open_runs(paths.history_files) as shown:
                return _Meeting(dal, paths, shown).hold(patience, goes_on=goes_on)
        except FilesChangedError as error:
            log.warning("the histories are compared again: %s", error)
    log.error("the history file is written anew again and again: it is compared at the next start")
    return Mark(0, 0)


class _Meeting:
    """One comparison of the table with the files as they are open."""

    def __init__(self, dal: StorageDAL, paths: StatePaths, shown: ShownRuns) -> None:
        self._dal, self._paths, self._shown = dal, paths, shown
        self._cutoff = dal.history_cutoff()
        self._problem: FileStoreError | None = None
        # Lines that came after the files were read, by their ids.
        self._since: dict[str, Line] = {}

    def hold(self, patience: float, *, goes_on: bool) -> Mark:
        """Carry over both ways; the place up to which both have all."""
        directory = self._paths.history_file.parent
        with Spool(directory) as spool, Spool(directory) as missing:
            self._spool, self._missing = spool, missing
            if self._shown.is_empty:
                self._dal.read_runs(self._keep)
            else:
                self._dal.compare_runs(self._shown, self._note, self._keep)
                self._add()
            place = self._shown.marks[-1]
            try:
                if self._problem is not None:
                    raise self._problem
                place = self._append_all(place, patience)
            except FilesChangedError:
                raise
            except (LockTimeoutError, FileStoreError) as error:
                if isinstance(error, FileStoreError) and not goes_on:
                    raise
                log.error("the history file could not follow, the next start mends it: %s", error)
        # Where there was none, all of a new file comes after the place.
        if place.inode and history.mark(self._paths.history_file).inode != place.inode:
            raise FilesChangedError(f"{self._paths.history_file} was trimmed meanwhile.")
        return place

    def _note(self, found: Iterator[tuple[Any, ...]]) -> None:
        """Set aside where the lines stand that the table lacks.

        They are inserted when the transaction of the comparison has ended: somebody who waits for
        the table in between would wait for that, and the insertion for him.
        """
        try:
            self._missing.fill(json.dumps(row) for row in found)
        except FileStoreError as error:
            self._problem = error

    def _add(self) -> None:
        """Insert the runs of lines that the table lacks."""
        noted = (text for texts in self._missing.batches(_AT_ONCE) for text in texts)
        lines = self._shown.lines_at(Place(*json.loads(text)) for text in noted)
        added = self._dal.add_runs(row_of(line) for line in lines if self._is_kept(line))
        if added:
            log.info("carried over from the history file: %s", counted(added, "run"))

    def _is_kept(self, line: Line) -> bool:
        return self._cutoff is None or line.ended_at >= self._cutoff

    def _keep(self, stored: Iterator[StoredRun]) -> None:
        """Set aside the runs that no line shows: nobody waits for a lock in a transaction."""
        try:
            self._spool.fill(self._lines_for(stored))
        except FileStoreError as error:
            self._problem = error

    def _lines_for(self, stored: Iterator[StoredRun]) -> Iterator[str]:
        """The lines of runs, but for those that a reader would not take for the run.

        They would be missed, and appended, again and again.
        """
        unfit = 0
        for run in stored:
            text = next(filter(partial(_shows, run), (line_of(run), line_of_columns(run))), None)
            if text is None:
                unfit += 1
            else:
                yield text
        if unfit:
            number = counted(unfit, "run")
            log.warning("the history file cannot show %s: no line can have their key or id", number)

    def _append_all(self, place: Mark, patience: float) -> Mark:
        appended = 0
        for texts in self._spool.batches(_AT_ONCE):
            with locked(self._paths.lock_file, patience):
                place, count = self._append(texts, place)
                appended += count
        if appended:
            log.info("carried over to %s: %s", self._paths.history_file, counted(appended, "run"))
        self._dal.add_runs(row_of(line) for line in self._since.values() if self._is_kept(line))
        return place

    def _append(self, texts: list[str], place: Mark) -> tuple[Mark, int]:
        """Append what the file still lacks; the new place, and how many lines. Under the lock."""
        path = self._paths.history_file
        now = history.mark(path)
        if place.inode and (now.inode != place.inode or now.size < place.size):
            raise FilesChangedError(f"{path} was trimmed meanwhile.")
        self._take_since(place if place.inode == now.inode else Mark(0, 0))
        # Read now: what is trimmed from here on is trimmed from these lines too.
        self._cutoff = _latest(
            self._dal.history_cutoff(), history.remembered_cutoff(self._paths.history_state_file)
        )
        wanted = [text for text in texts if self._is_wanted(text)]
        history.append(path, wanted, durable=True)
        return _after(history.mark(path), now, wanted), len(wanted)

    def _take_since(self, place: Mark) -> None:
        """Take note of the lines that came since.

        One without an id may be one that was read, and moved: the older code writes the file anew
        in its place, and for a moment it is empty.
        """
        path, was_read = self._paths.history_file, self._shown.is_torn
        for text in history.texts(path, place.size):
            line = parse_line(text)
            if line is not None and line.run_id:
                self._since[line.run_id] = line
            elif line is not None and not was_read:
                raise FilesChangedError(f"{path} was written by somebody else meanwhile.")
            # A last line without its end was read, and is the first one after the place.
            was_read = False

    def _is_wanted(self, text: str) -> bool:
        line = parse_line(text)
        return line is None or (line.run_id not in self._since and self._is_kept(line))


def _shows(run: StoredRun, text: str) -> bool:
    """Whether a line is taken for a run, and is one line."""
    line = None if "\n" in text else parse_line(text)
    if line is None:
        return False
    if line.run_id:
        return line.run_id == run.row.run_id
    return run.row.run_id.startswith(f"{derived_from(text)}-")


def _after(end: Mark, before: Mark, texts: Iterable[str]) -> Mark:
    """The place after what was appended; before it, where others came in without a lock."""
    length = sum(len(text.encode("utf-8", "surrogatepass")) + 1 for text in texts)
    is_alone = end.size - before.size - length in (0, 1)  # one more closes a torn line off
    return end if is_alone else Mark(end.inode, before.size)


def _latest(*times: datetime | None) -> datetime | None:
    return max((time for time in times if time is not None), default=None)


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
        except (LockedError, PruneRunningError) as error:
            log.warning("runs that the files have trimmed may stay for now: %s", error)
