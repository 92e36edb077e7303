"""Every error that the package raises on purpose.

Each says what happened and what to do next. None carries a password or a task's settings: the
messages are built from names, keys and server codes, never from a URL or a statement's values.
"""

from __future__ import annotations


class StorageError(Exception):
    """The storage layer could not do what was asked."""


class SettingsError(StorageError, ValueError):
    """A setting has a value that cannot be used; the message names the variable."""


class InvalidTaskError(StorageError, ValueError):
    """A task that no store can hold: an empty id, a value too long, NaN, a wrong type."""


class InvalidArgumentError(StorageError, ValueError):
    """An argument outside of its range, such as a negative limit."""


class DuplicateTaskError(StorageError):
    """A task with this key exists already."""


class TaskNotFoundError(StorageError, LookupError):
    """There is no task with this key."""


class SnapshotError(StorageError):
    """The snapshot file cannot be used as it is; the message names the file and the place."""


class FileStoreError(StorageError):
    """A file could not be read or written; the message names it."""


class LockTimeoutError(StorageError, TimeoutError):
    """Another process held a lock for longer than the wait is allowed to take."""


class PruneRunningError(LockTimeoutError):
    """Another process prunes the runs; this one has deleted nothing."""


class DatabaseError(StorageError):
    """The database could not serve; the process can go on with the files.

    `outcome_unknown`: the change may have been done all the same, as its answer got lost.
    """

    def __init__(self, message: str, *, outcome_unknown: bool = False) -> None:
        super().__init__(message)
        self.outcome_unknown = outcome_unknown


class DatabaseUnavailableError(DatabaseError):
    """No usable answer: refused, timed out, not permitted, read-only, out of disk."""


class LockedError(DatabaseUnavailableError):
    """Another transaction holds a lock for longer than the wait is allowed to take."""


class SchemaError(DatabaseError):
    """The schema is missing, behind or ahead of this code; the message has the command to run."""


class DivergedError(DatabaseError):
    """Files and database do not belong together, so neither is allowed to overwrite the other."""
