"""Which store serves: the database while it can, else the files.

A process that has fallen back stays on the files until its end, or, where it is told to
(DATAHOUND_STORAGE_REATTACH_SECONDS), until the database serves again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from datahound_storage.attach import waiting_tasks
from datahound_storage.backup import ATTACH_PATIENCE
from datahound_storage.bootstrap import make_dal, prepare_schema
from datahound_storage.dal import StorageDAL
from datahound_storage.database_store import CommittedError, DatabaseStore
from datahound_storage.errors import (
    DatabaseError,
    FileStoreError,
    LockTimeoutError,
    SnapshotError,
    StorageError,
)
from datahound_storage.files.file_store import FileStore, MovedError
from datahound_storage.files.lock import locked
from datahound_storage.files.paths import StatePaths
from datahound_storage.health import Health, StoreName
from datahound_storage.history_sync import sync_history, sync_last_runs
from datahound_storage.hooks import BackupHook
from datahound_storage.reporting import Reporter
from datahound_storage.settings import Settings, why_no_url
from datahound_storage.stores import TaskStore

log = Reporter()

T = TypeVar("T")


class StoreSwitch:
    """Runs operations on the store that serves. Shared by all facades of a process."""

    def __init__(self, settings: Settings, paths: StatePaths) -> None:
        self.paths = paths
        self._settings = settings
        self._files = FileStore(paths, settings.operation_timeout, lambda: self._database is None)
        # None while the files serve.
        self._database: DatabaseStore | None = None
        self._last: DatabaseStore | None = None
        self._dal: StorageDAL | None = None
        self._hooks: list[BackupHook] = []
        self._mutex = threading.RLock()
        self._prober: threading.Thread | None = None
        self._closed = threading.Event()
        self._since = datetime.now(UTC)
        self._reason = why_no_url(settings)
        self._unsettled = ""

    @property
    def serving(self) -> StoreName:
        """The store that serves now."""
        return "files" if self._database is None else "database"

    def attach(self) -> None:
        """Connect, bring the schema to head, let files and database meet.

        Where the database does not serve, the files do, and that is reported; so are files that
        cannot be written for now. Raises FileStoreError and SnapshotError where they cannot be
        read: nobody knows then what they have that the database has not.
        """
        try:
            self._attach()
        except DatabaseError as error:
            self._note(str(error))
            self._report_files(error)

    def _attach(self) -> None:
        settings = self._settings
        if settings.url is None:
            raise AssertionError("there is no URL to attach to")
        dal = make_dal(settings, settings.url)
        try:
            prepare_schema(dal, auto_upgrade=settings.auto_upgrade)
            files = FileStore(self.paths, settings.operation_timeout)
            store = DatabaseStore(dal, self.paths, files, settings.operation_timeout / 2)
            store.hooks = self._hooks
            store.backup.start()
            mark = sync_history(dal, self.paths, settings.operation_timeout, goes_on=True)
            with locked(self.paths.lock_file, ATTACH_PATIENCE):
                # Other threads may have gone on with the files: from here on they wait.
                store.backup.catch_up()
                sync_last_runs(dal, self.paths, mark)
                self._serve_from(store, dal)
        except BaseException:
            dal.database.retire()
            raise

    def _serve_from(self, store: DatabaseStore, dal: StorageDAL) -> None:
        with self._mutex:
            if self._closed.is_set():
                raise DatabaseError("this store was closed meanwhile")
            self._dal, self._last, self._database = dal, store, store
            self._files.runs_logged = 0
            self._note(f"attached to {dal.database.place}")

    def _note(self, reason: str) -> None:
        self._since = datetime.now(UTC)
        self._reason = reason

    def renew_mutex(self) -> None:
        """Forget the locks that other threads held when this process was forked."""
        self._mutex = threading.RLock()
        if self._last is not None:
            self._last.renew_locks()

    def add_hooks(self, hooks: list[BackupHook]) -> None:
        """Register additional backup hooks."""
        self._hooks.extend(hooks)

    def run(self, operation: Callable[[TaskStore], T], *, committed: T) -> T:
        """Run an operation on the store that serves; if that is the database and it fails, on the
        files, and all later ones too.

        `committed` is the answer where the database has done it but failed before the snapshot
        showed it: then the files follow by themselves.
        """
        may_be_done = False
        while True:
            store = self._database
            try:
                if store is None:
                    self._prepare_files()
                    with self._files.redoing() if may_be_done else nullcontext():
                        result = operation(self._files)
                else:
                    result = operation(store)
            except MovedError:
                continue  # the database serves again
            except CommittedError as error:
                self._fall_back(store, error)
                self._files.runs_logged += error.runs
                result = committed
            except DatabaseError as error:
                self._fall_back(store, error)
                may_be_done = error.outcome_unknown
                continue
            if store is not None and self._database is None:
                # Fallen back meanwhile. The answer stands; what the files lack the next call does.
                with suppress(LockTimeoutError):
                    self._prepare_files()
            return result

    def _prepare_files(self) -> None:
        """Let the files show what was acknowledged, before they serve.

        Raises LockTimeoutError where another process keeps the files to itself.
        """
        self._keep_probing()
        if self._last is None or not self._last.owes:
            return
        try:
            self._last.settle()
        except (FileStoreError, SnapshotError) as error:
            if str(error) != self._unsettled:
                log.error("the JSON files lack changes that only the database has: %s", error)
            self._unsettled = str(error)

    def _fall_back(self, store: DatabaseStore | None, error: StorageError) -> None:
        with self._mutex:
            if store is None or self._database is not store:
                return  # another thread was first, and has reported it
            self._database = None
            self._note(str(error))
            if self._dal is not None:
                self._dal.database.retire()
        self._report_files(error)

    def _report_files(self, error: StorageError) -> None:
        seconds = self._settings.reattach_seconds
        until = (
            "until this process is restarted"
            if seconds is None
            else f"and trying the database again every {seconds:g} s"
        )
        log.error(
            "%s", f"the database does not serve, going on with the JSON files {until}: {error}"
        )
        self._keep_probing()

    def _keep_probing(self) -> None:
        """Have a thread that tries the database again, where that is wanted."""
        if self._settings.reattach_seconds is None or self._settings.url is None:
            return
        if self._prober is None or not self._prober.is_alive():
            with self._mutex:
                if self._prober is None or not self._prober.is_alive():
                    self._prober = threading.Thread(
                        target=self._probe, name="datahound-storage-reattach", daemon=True
                    )
                    self._prober.start()

    def _probe(self) -> None:
        while self._database is None and not self._closed.wait(self._settings.reattach_seconds):
            try:
                self._attach()
            except Exception as error:  # noqa: BLE001 - the next try may succeed
                self._note_failed_probe(error)
            else:
                log.warning("the database serves again; what the files had is carried over")

    def _note_failed_probe(self, error: Exception) -> None:
        known = isinstance(error, StorageError)
        reason = str(error) if known else f"{type(error).__name__} while attaching"
        if reason != self._reason and not self._closed.is_set():
            self._reason = reason
            log.error(
                "%s", f"the database does not serve yet, going on with the JSON files: {reason}"
            )

    def health(self) -> Health:
        """The state of things."""
        backup = self._last.backup if self._last is not None else None
        written = backup.written_at if backup is not None else None
        waiting: int | None = None
        with suppress(StorageError):
            waiting = waiting_tasks(self.paths)
        return Health(
            store=self.serving,
            since=self._since,
            reason=self._reason,
            backup_written_at=None if written is None else datetime.fromtimestamp(written, UTC),
            backup_problem=None if backup is None else backup.problem,
            waiting_tasks=waiting,
            waiting_runs=0 if self._database is not None else self._files.runs_logged,
        )

    def close(self) -> None:
        """Close the connections; stop trying."""
        with self._mutex:
            self._closed.set()
            if self._dal is not None:
                self._dal.close()


_Key = tuple[str, Path]
_switches: dict[_Key, tuple[StoreSwitch, int]] = {}
_registry = threading.RLock()


def _renew_locks() -> None:
    global _registry
    _registry = threading.RLock()
    for switch, _ in _switches.values():
        switch.renew_mutex()


os.register_at_fork(after_in_child=_renew_locks)


def open_switch(settings: Settings, paths: StatePaths) -> StoreSwitch:
    """The process's switch for a database and a data directory, attached if it is new.

    One for all facades, so that they agree: while one of them has fallen back, all have. It stays
    until each of them is closed.
    """
    if settings.url is None:
        return StoreSwitch(settings, paths)
    key = (settings.url, paths.data_dir)
    with _registry:
        switch, users = _switches.get(key, (None, 0))
        if switch is None:
            switch = StoreSwitch(settings, paths)
            switch.attach()
        _switches[key] = (switch, users + 1)
        return switch


def close_switch(switch: StoreSwitch) -> None:
    """Give up one use of a switch; the last one closes it."""
    with _registry:
        for key, (known, users) in list(_switches.items()):
            if known is switch and users > 1:
                _switches[key] = (known, users - 1)
            elif known is switch:
                del _switches[key]
                switch.close()
