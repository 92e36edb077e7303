"""Runs the migrations for Alembic; `alembic/env.py` calls nothing else.

Online: take the upgrade lock, then apply each revision in a transaction of its own, with short
lock timeouts. A table in use ends an attempt, not the upgrade: the application keeps working while
we wait, and what is committed stays. Offline (`--sql`) the statements are printed.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, cast

import psycopg
from alembic import context
from alembic.util import CommandError
from psycopg import sql
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import SQLAlchemyError

from datahound_storage.errors import SchemaError, SettingsError, StorageError
from datahound_storage.migrations.compare import OPTIONS
from datahound_storage.migrations.config import LOCK_WAIT, driver_connection, make_engine
from datahound_storage.migrations.failures import driver_error, explain, is_busy
from datahound_storage.migrations.lock import UpgradeLock
from datahound_storage.migrations.offline import print_script
from datahound_storage.migrations.refusing import ask_before_the_first_step
from datahound_storage.migrations.state import SchemaState, SchemaStatus, inspect
from datahound_storage.postgres.schema import VERSION_TABLE
from datahound_storage.settings import (
    PLATFORM_URL_VARIABLE,
    URL_VARIABLE,
    describe_url,
    from_environment,
)

# Whoever waits for a strong lock makes all others wait behind it, and an operation of the
# application gives up after five seconds.
LOCK_TIMEOUT = "2s"
STATEMENT_TIMEOUT = "30min"
# Outside of a transaction, where others do not wait for what waits for them.
LOCK_TIMEOUT_ALONE = "60s"
# By way of a pooler there are no timeouts outside of a transaction, so we watch the time: seconds.
POOLED_TIMEOUT = 1800.0
# As `_lift` does, for a server whose version is not known.
_LIFT_IN_SCRIPT = """SELECT set_config(name, '0', false) FROM pg_settings
WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout')"""
_PAUSE = 1.0


def run() -> None:
    """Apply what Alembic was asked for; errors become one clear line of its command line."""
    try:
        if context.is_offline_mode():
            _run_offline()
        else:
            _run_online()
    except StorageError as error:
        raise CommandError(str(error)) from error


def _run_offline() -> None:
    print_script(
        f"SET lock_timeout = '{LOCK_TIMEOUT}';\nSET statement_timeout = '{STATEMENT_TIMEOUT}';\n"
        f"{_LIFT_IN_SCRIPT};\nSET default_transaction_isolation = 'read committed';\n"
    )


def _run_online() -> None:
    given = context.config.attributes.get("connection")
    url = None if given is not None else _url()
    target: Any = make_engine(url) if url is not None else given
    place = describe_url(url) if url is not None else "the database"
    engine = target if isinstance(target, Engine) else target.engine
    wait = float(context.config.attributes.get("lock_wait", LOCK_WAIT))
    deadline = time.monotonic() + wait
    lock = UpgradeLock(lambda: driver_connection(engine), wait)
    with _explained(place, None), lock, _explained(place, lock):
        bounds = partial(_begin, lock=lock, ours=url is not None and not lock.pooled)
        while not _migrate(target, lock, bounds, deadline):
            time.sleep(_PAUSE)


def _url() -> str:
    given = context.config.attributes.get("url")
    if given:
        return str(given)
    settings = from_environment()
    if settings.url is not None:
        return settings.url
    form = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
    if settings.url_variable == URL_VARIABLE:
        raise SettingsError(
            f"no database: {URL_VARIABLE} is set to an empty value, which means that the JSON "
            f"files are the store, whatever {PLATFORM_URL_VARIABLE} says. Set it to {form}, or "
            f"unset it to use {PLATFORM_URL_VARIABLE}."
        )
    raise SettingsError(f"no database: set {URL_VARIABLE} or {PLATFORM_URL_VARIABLE} to {form}.")


@contextmanager
def _explained(place: str, lock: UpgradeLock | None) -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, psycopg.Error) as error:
        inner = driver_error(error)
        if inner is None:
            raise SchemaError(f"the upgrade failed: {type(error).__name__}.") from error
        raise explain(inner, place, lock) from error


def _migrate(
    target: Engine | Connection, lock: UpgradeLock, bounds: Callable[..., None], deadline: float
) -> bool:
    """One attempt. False: a table was in use, and there is time for another one."""
    opened = target.connect() if isinstance(target, Engine) else nullcontext(target)
    try:
        with opened as connection, _cancelled_in_time(connection, lock):
            event.listen(connection, "begin", bounds)
            try:
                _apply(connection, lock)
            finally:
                event.remove(connection, "begin", bounds)
    except SQLAlchemyError as error:
        if is_busy(error) and time.monotonic() < deadline:
            return False
        raise
    return True


@contextmanager
def _cancelled_in_time(connection: Connection, lock: UpgradeLock) -> Iterator[None]:
    driver: Any = connection.connection.driver_connection
    timer = threading.Timer(POOLED_TIMEOUT, driver.cancel_safe)
    if lock.pooled:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _apply(connection: Connection, lock: UpgradeLock) -> None:
    # Nothing may be executed on the connection before `configure`: Alembic would take the
    # transaction that begins for somebody else's, and commit nothing.
    context.configure(
        connection=connection,
        version_table=VERSION_TABLE,
        version_table_schema=lock.schema,
        transaction_per_migration=True,
        on_version_apply=lambda **applied: _applied(lock, **applied),
        **OPTIONS,
    )
    ask_before_the_first_step()
    try:
        with context.begin_transaction():
            context.run_migrations()
    except CommandError as error:
        newer = _newer(connection)
        if newer is None:
            raise
        if not (newer.usable and _asked_to_upgrade()):
            raise SchemaError(newer.message) from error
        # A release that was rolled back runs its upgrade again: there is nothing to do.
        _tell(newer.message)


def _begin(connection: Connection, lock: UpgradeLock, ours: bool) -> None:
    driver: Any = connection.connection.driver_connection
    if not driver.autocommit:
        _bound_transaction(driver, lock.schema)
    elif ours:
        _bound_session(driver)


def _bound_transaction(driver: psycopg.Connection[Any], schema: str) -> None:
    # The role's default may be another one, in which an index waits for us, and we see what was.
    driver.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
    _lift(driver, "SET LOCAL")
    # A DROP must not find a table of the same name further on in the search path.
    driver.execute(sql.SQL("SET LOCAL search_path = {}").format(sql.Identifier(schema)))
    driver.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'".encode())
    driver.execute(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT}'".encode())


def _bound_session(driver: psycopg.Connection[Any]) -> None:
    _lift(driver, "SET")
    driver.execute(f"SET lock_timeout = '{LOCK_TIMEOUT_ALONE}'".encode())
    driver.execute(f"SET statement_timeout = '{STATEMENT_TIMEOUT}'".encode())
    # If this process is killed the server shall not go on for it. Not every system can tell.
    with suppress(psycopg.errors.InvalidParameterValue):
        driver.execute("SET client_connection_check_interval = '1s'")


def _lift(driver: psycopg.Connection[Any], verb: str) -> None:
    """Take away what ends transactions that are long, or that wait while a file is read."""
    driver.execute(f"{verb} idle_in_transaction_session_timeout = 0".encode())
    if driver.info.server_version >= 170000:
        driver.execute(f"{verb} transaction_timeout = 0".encode())


def _applied(lock: UpgradeLock, step: Any, **_: Any) -> None:
    lock.probe()
    way = "applied" if step.is_upgrade else "undone"
    _tell(f"revision {step.up_revision_id} {way}")


def _tell(text: str) -> None:
    """Say it where Alembic's command line runs; a program that upgrades is told nothing."""
    if getattr(context.config.cmd_opts, "cmd", None) is not None:
        print(text, file=sys.stderr)  # noqa: T201


def _asked_to_upgrade() -> bool:
    """Whether `upgrade head` is what runs: all others are about a revision that is unknown."""
    options = context.config.cmd_opts
    function = (getattr(options, "cmd", None) or (None,))[0]
    name = getattr(function, "__name__", "")
    return name == "upgrade" and getattr(options, "revision", "") in ("head", "heads")


def _newer(connection: Connection) -> SchemaStatus | None:
    """The status where the database has a revision that this version does not know."""
    connection.rollback()
    status = inspect(cast("psycopg.Connection[Any]", connection.connection.driver_connection))
    return status if status.state in (SchemaState.AHEAD, SchemaState.BREAKING) else None
