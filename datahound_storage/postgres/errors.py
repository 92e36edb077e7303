"""The one place where driver errors become errors of this package.

They are told apart by SQLSTATE and by class, never by the server's words, which are in the server's
language and can quote values.
"""

from __future__ import annotations

import psycopg
from psycopg import errors as pg

from datahound_storage.advice import run_upgrade
from datahound_storage.errors import (
    DatabaseError,
    DatabaseUnavailableError,
    DuplicateTaskError,
    InvalidTaskError,
    LockedError,
    SchemaError,
    StorageError,
)


class ConnectError(psycopg.OperationalError):
    """No connection could be made, so nothing was sent."""


# What a session says that a pooler gave to others meanwhile.
_NOT_PREPARED = (pg.DuplicatePreparedStatement, pg.InvalidSqlStatementName)
_AGAIN = (pg.SerializationFailure, pg.DeadlockDetected, *_NOT_PREPARED)

# What the operator should do, by the class of the error. The first match counts.
_MENDS: tuple[tuple[type[psycopg.Error], str], ...] = (
    (pg.InvalidPassword, "check user and password in the URL"),
    (
        pg.InvalidAuthorizationSpecification,
        "check the user in the URL and the server's pg_hba.conf",
    ),
    (pg.InvalidCatalogName, "create the database, or correct its name in the URL"),
    (
        pg.InsufficientPrivilege,
        "grant this role SELECT, INSERT, UPDATE and DELETE on the tables, and TEMPORARY on the "
        "database",
    ),
    (
        pg.ReadOnlySqlTransaction,
        "the server is a standby or read-only: let the URL lead to the primary",
    ),
    (pg.DiskFull, "free space on the server"),
    (pg.TooManyConnections, "raise max_connections or close other clients"),
    (pg.QueryCanceled, "the statement was cancelled or ran into its timeout: look for locks"),
    (pg.LockNotAvailable, "another transaction holds a lock: look at pg_stat_activity"),
    (pg.AdminShutdown, "the server was stopped or restarted"),
    (pg.CannotConnectNow, "the server is starting up or shutting down"),
)


def is_transient(error: psycopg.Error) -> bool:
    """Whether the same statement can succeed when it is sent again on the same connection."""
    return isinstance(error, _AGAIN)


def is_not_prepared(error: psycopg.Error) -> bool:
    """Whether a prepared statement is not that of this session; nothing was done then."""
    return isinstance(error, _NOT_PREPARED)


def is_connection_lost(error: psycopg.Error) -> bool:
    """Whether the connection broke, so that another one may serve."""
    if isinstance(error, psycopg.InterfaceError):
        return True
    return isinstance(error, psycopg.OperationalError) and (
        error.sqlstate is None or error.sqlstate[:2] == "08" or error.sqlstate[:3] == "57P"
    )


def may_have_been_done(error: psycopg.Error) -> bool:
    """Whether the statement may have taken effect, though it was not answered."""
    if isinstance(error, ConnectError):
        return False
    if isinstance(error, pg.AdminShutdown | pg.IdleSessionTimeout):
        # A server that ends a session says so before the commit or, to the next statement, after
        # it: what was sent is not done. A pooler uses the code too, and names no function.
        return error.diag.source_function != "ProcessInterrupts"
    return is_connection_lost(error) or isinstance(error, pg.StatementCompletionUnknown)


def translate(error: psycopg.Error, place: str, outcome_unknown: bool = False) -> StorageError:
    """The error to raise instead of a driver's. `place` names the database without secrets."""
    told = _told(error, place)
    if isinstance(told, DatabaseError):
        told.outcome_unknown = outcome_unknown
    return told


def _told(error: psycopg.Error, place: str) -> StorageError:
    if isinstance(error, pg.UniqueViolation):
        return DuplicateTaskError("a task with this task_id exists already.")
    if isinstance(error, pg.UndefinedTable | pg.UndefinedColumn | pg.UndefinedFunction):
        return SchemaError(f"the tables in {place} do not fit this version: {run_upgrade()}.")
    if isinstance(error, psycopg.DataError):
        return InvalidTaskError(f"the database cannot hold a value ({_code(error)}).")
    if isinstance(error, ConnectError):
        return DatabaseUnavailableError(
            f"cannot connect to {place}: {_first_line(error)}. "
            "Check that the server runs, and host, port, user and password in the URL."
        )
    if is_connection_lost(error):
        advice = _mend(error) or "check that the server runs and can be reached"
        return DatabaseUnavailableError(
            f"lost the connection to {place} ({_code(error)}): {advice}."
        )
    if (mend := _mend(error)) is not None:
        kind = LockedError if isinstance(error, pg.LockNotAvailable) else DatabaseUnavailableError
        return kind(f"{place} refused ({_code(error)}): {mend}.")
    return DatabaseError(f"{place} failed ({_code(error)}); see the server's log.")


def _first_line(error: psycopg.Error) -> str:
    # libpq's words about a failed connection name host, port and user, never the password.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")[:300]


def _code(error: psycopg.Error) -> str:
    return f"{type(error).__name__}{f' {error.sqlstate}' if error.sqlstate else ''}"


def _mend(error: psycopg.Error) -> str | None:
    return next((mend for kind, mend in _MENDS if isinstance(error, kind)), None)
