"""Which store serves: the database while it can, else the files, until the process ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

from datahound_storage.attach import sync_history
from datahound_storage.backup import BackupHook
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
from datahound_storage.files.file_store import FileStore
from datahound_storage.files.paths import StatePaths
from datahound_storage.reporting import Reporter
from datahound_storage.settings import Settings
from datahound_storage.stores import TaskStore

log = Reporter()

T = TypeVar("T")
StoreName = Literal["database", "files"]


@dataclass(frozen=True)
class Health:
    """Which store serves, since when and why, and how the backup is.

    `backup_problem` is None while the snapshot shows every acknowledged change; `backup_written_at`
    is when this process last wrote it, None if it did not have to.
    """

    store: StoreName
    since: datetime
    reason: str
    backup_written_at: datetime | None
    backup_problem: str | None


class StoreSwitch:
    """Runs operations on the store that serves. Shared by all facades of a process."""

    def __init__(self, settings: Settings, paths: StatePaths) -> None:
        self.paths = paths
        self._settings = settings
        self._files = FileStore(paths, settings.operation_timeout)
        self._database: DatabaseStore | None = None
        self._dal: StorageDAL | None = None
        self._mutex = threading.RLock()
        self._since = datetime.now(UTC)
        self._reason = "no URL is set"
        self._serves_database = False

    @property
    def serving(self) -> StoreName:
        """The store that serves now."""
        return "database" if self._serves_database else "files"

    def attach(self, url: str) -> None:
        """Connect, bring the schema to head, let files and database meet.

        Where the database does not serve, the files do, and that is reported. Raises FileStoreError
        and SnapshotError where the files cannot be used: then there is nothing to go on with.
        """
        with self._mutex:
            try:
                self._attach(url)
            except DatabaseError as error:
                self._fall_back(error)
            except BaseException:
                self.close()
                raise

    def _attach(self, url: str) -> None:
        settings = self._settings
        self._dal = make_dal(settings, url)
        prepare_schema(self._dal, auto_upgrade=settings.auto_upgrade)
        store = DatabaseStore(self._dal, self.paths, self._files, settings.operation_timeout / 2)
        store.backup.attach()
        sync_history(self._dal, self.paths, settings.operation_timeout)
        self._database = store
        self._serves_database = True
        self._since = datetime.now(UTC)
        self._reason = f"attached to {self._dal.database.place}"

    def renew_mutex(self) -> None:
        """Forget a lock that another thread held when this process was forked."""
        self._mutex = threading.RLock()

    def add_hooks(self, hooks: list[BackupHook]) -> None:
        """Register additional backup hooks."""
        if self._database is not None:
            self._database.hooks.extend(hooks)

    def run(self, operation: Callable[[TaskStore], T], *, committed: T) -> T:
        """Run an operation on the store that serves; if that is the database and it fails, on the
        files, and all later ones too.

        `committed` is the answer where the database has done it but failed before the snapshot
        showed it: then the files follow by themselves.
        """
        store = self._database
        if not self._serves_database or store is None:
            return operation(self._files)
        try:
            result = operation(store)
            if self.serving == "files":
                self._settle()  # another thread has fallen back meanwhile
            return result
        except CommittedError as error:
            self._fall_back(error)
            if error.files_follow:
                operation(self._files)
            return committed
        except DatabaseError as error:
            self._fall_back(error)
            return operation(self._files)

    def _fall_back(self, error: StorageError) -> None:
        with self._mutex:
            if not self._serves_database and self._database is not None:
                return  # another thread was first, and has reported it
            self._settle()
            self._serves_database = False
            self._since = datetime.now(UTC)
            self._reason = str(error)
            self.close()
        _report(
            "the database does not serve, going on with the JSON files until this process is "
            f"restarted: {error}"
        )

    def _settle(self) -> None:
        """Let the files show what was acknowledged before they take over."""
        try:
            with self._mutex:
                if self._database is not None:
                    self._database.settle()
        except (FileStoreError, SnapshotError, LockTimeoutError) as error:
            _report(f"the JSON files lack changes that only the database has: {error}")

    def health(self) -> Health:
        """The state of things."""
        backup = self._database.backup if self._database is not None else None
        written = backup.written_at if backup is not None else None
        return Health(
            store=self.serving,
            since=self._since,
            reason=self._reason,
            backup_written_at=None if written is None else datetime.fromtimestamp(written, UTC),
            backup_problem=None if backup is None else backup.problem,
        )

    def close(self) -> None:
        """Close the connections."""
        if self._dal is not None:
            self._dal.close()


def _report(message: str) -> None:
    """Tell the operator, whatever the state of the process's output is."""
    with suppress(Exception):  # a closed stderr: reporting a failure must not itself fail
        log.error("%s", message)


_Key = tuple[str, Path]
_switches: dict[_Key, tuple[StoreSwitch, int]] = {}
_registry = threading.RLock()


def _renew_registry_lock() -> None:
    global _registry
    _registry = threading.RLock()
    for switch, _ in _switches.values():
        switch.renew_mutex()


os.register_at_fork(after_in_child=_renew_registry_lock)


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
            switch.attach(settings.url)
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
