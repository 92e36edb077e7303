"""The schema's version: ask for it, upgrade it, go back; with or without a checkout.

status = migrations.upgrade(url)          # at start; any number of processes at once
status = migrations.inspect(connection)   # one look, by an open connection
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg

from datahound_storage.errors import LockTimeoutError, SchemaError, SnapshotError, StorageError
from datahound_storage.migrations.state import SchemaState, SchemaStatus, inspect
from datahound_storage.postgres.errors import translate
from datahound_storage.settings import describe_url

if TYPE_CHECKING:
    from alembic.config import Config

__all__ = ["SchemaState", "SchemaStatus", "downgrade", "inspect", "status", "upgrade"]

# Alembic keeps its state in module globals: two threads at once break each other.
_alembic_in_use = threading.Lock()


def status(url: str) -> SchemaStatus:
    """The status of the schema that a URL leads to."""
    from datahound_storage.migrations.config import connect

    try:
        with connect(url, autocommit=True) as connection:
            return inspect(connection)
    except psycopg.Error as error:
        raise translate(error, describe_url(url)) from error


def upgrade(
    url: str,
    revision: str = "head",
    *,
    x: Sequence[str] = (),
    import_files: bool = True,
    lock_wait: float = 120.0,
) -> SchemaStatus:
    """Bring the schema to `revision` and return where it is now.

    `x` are Alembic's `-x` arguments (`snapshot=PATH`, `history=PATH`, `on_error=quarantine`).
    `import_files=False` makes the tables only. A newer schema that this version can use is left as
    it is. `lock_wait` bounds, in seconds, the waiting for other processes. Raises SchemaError,
    SnapshotError, LockTimeoutError or DatabaseUnavailableError.
    """
    before = status(url)
    if before.usable and revision in ("head", before.head):
        return before
    from alembic import command

    try:
        _run(command.upgrade, url, revision, x, import_files, lock_wait)
    except SchemaError:
        # A newer release may have been at work while this one waited for the lock.
        after = status(url)
        if revision == "head" and after.state is SchemaState.AHEAD:
            return after
        raise
    return status(url)


def downgrade(
    url: str, revision: str, *, x: Sequence[str] = (), lock_wait: float = 120.0
) -> SchemaStatus:
    """Take the schema back to `revision` ("base": no tables) and return where it is now."""
    from alembic import command

    _run(command.downgrade, url, revision, x, False, lock_wait)
    return status(url)


def _run(
    action: Callable[[Config, str], Any],
    url: str,
    revision: str,
    x: Sequence[str],
    import_files: bool,
    lock_wait: float,
) -> None:
    from alembic.util import CommandError

    from datahound_storage.migrations.config import make_config

    with _one_thread(lock_wait):
        try:
            action(make_config(url, x, import_files, lock_wait), revision)
        except CommandError as error:
            raise _unwrapped(error) from error


@contextmanager
def _one_thread(wait: float) -> Iterator[None]:
    if not _alembic_in_use.acquire(timeout=wait):
        raise LockTimeoutError(f"another thread has been upgrading for over {wait:g} s.")
    try:
        yield
    finally:
        _alembic_in_use.release()


def _unwrapped(error: Exception) -> StorageError:
    if isinstance(error.__cause__, StorageError):
        return error.__cause__
    # A revision cannot import our errors: it marks its own.
    kind = SnapshotError if getattr(error, "about_files", False) else SchemaError
    return kind(str(error))
