"""Where a database's schema stands, seen from this version of the code.

Neither Alembic nor the revisions are loaded for it: every start of a process asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from datahound_storage.errors import SchemaError
from datahound_storage.postgres.schema import VERSION_TABLE

UPGRADE_COMMAND = "datahound-storage upgrade"
UPDATE_COMMAND = "pip install --upgrade datahound-storage"

_FIND = f"""
SELECT current_schema(),
       to_regclass(quote_ident(current_schema()) || '.{VERSION_TABLE}') IS NOT NULL
"""


class SchemaState(StrEnum):
    """The four states in which a start can find the schema."""

    MISSING = "missing"
    BEHIND = "behind"
    CURRENT = "current"
    AHEAD = "ahead"


@dataclass(frozen=True)
class SchemaStatus:
    """The schema's state: the revision found in the database, and the newest that we know."""

    state: SchemaState
    found: str | None
    head: str

    @property
    def command(self) -> str:
        """What to run; empty where there is nothing to do."""
        if self.state is SchemaState.CURRENT:
            return ""
        return UPDATE_COMMAND if self.state is SchemaState.AHEAD else UPGRADE_COMMAND

    @property
    def message(self) -> str:
        """The state and the command in one sentence."""
        if self.state is SchemaState.MISSING:
            return f"the tables are missing: run `{self.command}` (or `alembic upgrade head`)."
        if self.state is SchemaState.BEHIND:
            return (
                f"the schema is at revision {self.found}, this version needs {self.head}: "
                f"run `{self.command}` (or `alembic upgrade head`)."
            )
        if self.state is SchemaState.AHEAD:
            return (
                f"the schema is at revision {self.found}, which this version does not know "
                f"(its newest is {self.head}): update this package, `{self.command}`."
            )
        return f"the schema is at revision {self.found}, the newest."


def scripts() -> Path:
    """The folder of the migration scripts: inside an installed package, else in the checkout.

    An editable install leaves a copy in site-packages; it is never found, as the search starts at
    this file.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_alembic", package.parent / "alembic"):
        if (folder / "versions").is_dir():
            return folder
    raise SchemaError(f"the migration scripts are missing beside {package}: install it again.")


@cache
def revisions() -> tuple[str, ...]:
    """All revisions, oldest first. Their ids are numbers and start the names of their files."""
    names = sorted(path.name for path in (scripts() / "versions").glob("[0-9]*_*.py"))
    return tuple(name.partition("_")[0] for name in names)


def inspect(connection: psycopg.Connection[Any]) -> SchemaStatus:
    """The schema's status, seen through an open connection.

    Only the schema in which tables would be made (`current_schema()`) counts, not the whole search
    path. A transaction is left open only if it was open before.
    """
    idle = connection.info.transaction_status == TransactionStatus.IDLE
    try:
        return status_of(_find(connection))
    finally:
        if idle and not connection.autocommit and not connection.closed:
            connection.rollback()


def _find(connection: psycopg.Connection[Any]) -> str | None:
    with connection.cursor(row_factory=tuple_row) as cursor:
        schema, exists = cursor.execute(_FIND).fetchone() or (None, False)
        if not exists:
            return None
        table = sql.Identifier(schema, VERSION_TABLE)
        found = cursor.execute(sql.SQL("SELECT max(version_num) FROM {}").format(table)).fetchone()
    return found[0] if found else None


def status_of(found: str | None) -> SchemaStatus:
    """The status of a schema at the revision `found`."""
    known = revisions()
    head = known[-1]
    if found is None:
        state = SchemaState.MISSING
    elif found == head:
        state = SchemaState.CURRENT
    else:
        state = SchemaState.BEHIND if found in known else SchemaState.AHEAD
    return SchemaStatus(state, found, head)
