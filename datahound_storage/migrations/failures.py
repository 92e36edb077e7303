"""What went wrong in an upgrade, in words of this package that name the next step."""

from __future__ import annotations

import psycopg
from psycopg import errors as pg
from sqlalchemy.exc import DBAPIError

from datahound_storage.advice import run_upgrade
from datahound_storage.errors import LockTimeoutError, SchemaError, StorageError
from datahound_storage.migrations.lock import UpgradeLock
from datahound_storage.postgres.errors import is_connection_lost, translate

# Classes in which the server repeats no values of rows: DDL that cannot be done, our own RAISE.
_WITHOUT_VALUES = ("0A", "2B", "42", "55", "P0")


def driver_error(error: BaseException) -> psycopg.Error | None:
    """The driver's error inside of SQLAlchemy's, if it is one."""
    inner = error.orig if isinstance(error, DBAPIError) else error
    return inner if isinstance(inner, psycopg.Error) else None


def is_busy(error: BaseException) -> bool:
    """Whether a table was in use for longer than a revision waits."""
    return isinstance(driver_error(error), pg.LockNotAvailable | pg.DeadlockDetected)


def explain(error: psycopg.Error, place: str, lock: UpgradeLock | None) -> StorageError:
    """The error to raise instead of the driver's; `lock` knows role and schema."""
    if isinstance(error, pg.InsufficientPrivilege) and lock is not None:
        return _not_permitted(lock)
    if isinstance(error, pg.LockNotAvailable | pg.DeadlockDetected):
        return LockTimeoutError(
            "the tables are in use by a long transaction: find it in pg_stat_activity "
            "(ORDER BY xact_start), end it, and run `datahound-storage upgrade` again."
        )
    if isinstance(error, pg.RaiseException):
        return SchemaError(f"{error.diag.message_primary}")
    if is_connection_lost(error) or isinstance(
        error, pg.ReadOnlySqlTransaction | pg.DiskFull | pg.TooManyConnections
    ):
        return translate(error, place)
    return SchemaError(
        f"the upgrade failed at {place}: {_words(error)}. What it had committed before that stays, "
        "the rest was rolled back: the next upgrade goes on from there."
    )


def _not_permitted(lock: UpgradeLock) -> SchemaError:
    what = "create tables in" if not lock.may_create else "change the tables of another owner in"
    grant = f", or GRANT CREATE ON SCHEMA {lock.schema} TO {lock.role}"
    return SchemaError(
        f"role {lock.role} may not {what} schema {lock.schema}: {run_upgrade()} once as the "
        f"owner{'' if lock.may_create else grant}."
    )


def _words(error: psycopg.Error) -> str:
    code = error.sqlstate or ""
    name = f"{type(error).__name__} {code}".strip()
    primary = error.diag.message_primary
    return f"{name}{_where(error)}" + (
        f", {primary}" if primary and code[:2] in _WITHOUT_VALUES else ""
    )


def _where(error: psycopg.Error) -> str:
    """What the error is about, by name: a server's message would show a row's values beside it."""
    found = {
        "table": error.diag.table_name,
        "column": error.diag.column_name,
        "constraint": error.diag.constraint_name,
    }
    named = ", ".join(f"{kind} {name}" for kind, name in found.items() if name)
    return f" ({named})" if named else ""
