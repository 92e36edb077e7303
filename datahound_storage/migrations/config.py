"""What Alembic needs to be told, and the connections that it works with."""

from __future__ import annotations

import io
from argparse import Namespace
from collections.abc import Sequence
from typing import Any, cast

import psycopg
from alembic.config import Config
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Engine, NullPool, create_engine

from datahound_storage.migrations.state import scripts
from datahound_storage.postgres.errors import ConnectError

LOCK_WAIT = 120.0
_CONNECT_TIMEOUT = 5


def make_config(url: str, x: Sequence[str], import_files: bool, lock_wait: float) -> Config:
    """A configuration without a file; nothing that Alembic says reaches the program's output."""
    config = Config(stdout=io.StringIO(), cmd_opts=Namespace(x=list(x)))
    config.set_main_option("script_location", str(scripts()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes.update(url=url, import_files=import_files, lock_wait=lock_wait)
    return config


def connect(url: str, **options: Any) -> psycopg.Connection[Any]:
    """A connection for bulk work. libpq reads the URL: sockets, several hosts, `options`."""
    timeout = conninfo_to_dict(url).get("connect_timeout") or _CONNECT_TIMEOUT
    try:
        return psycopg.connect(url, connect_timeout=int(timeout), prepare_threshold=None, **options)
    except psycopg.OperationalError as error:
        raise ConnectError(str(error)) from error


def make_engine(url: str) -> Engine:
    """An engine whose connections are made by `connect` and closed after use."""
    return create_engine("postgresql+psycopg://", creator=lambda: connect(url), poolclass=NullPool)


def driver_connection(engine: Engine) -> psycopg.Connection[Any]:
    """A connection as the engine makes them, of its own: whoever asks for it closes it."""
    pooled = engine.raw_connection()
    connection = cast("psycopg.Connection[Any]", pooled.driver_connection)
    pooled.detach()
    return connection
