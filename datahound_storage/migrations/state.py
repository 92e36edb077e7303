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

from datahound_storage.advice import UPGRADE_COMMAND, run_upgrade
from datahound_storage.errors import SchemaError
from datahound_storage.postgres.schema import VERSION_TABLE

UPDATE_COMMAND = "pip install --upgrade datahound-storage"

_FIND = f"""
SELECT current_schema(),
       to_regclass(quote_ident(current_schema()) || '.{VERSION_TABLE}') IS NOT NULL
"""
_FIND_STORAGE = _FIND.replace(VERSION_TABLE, "scheduler_storage")


class SchemaState(StrEnum):
    """The five states in which a start can find the schema."""

    MISSING = "missing"
    BEHIND = "behind"
    CURRENT = "current"
    # Newer than this code; ahead: made so that this code can use it, breaking: not so.
    AHEAD = "ahead"
    BREAKING = "breaking"


@dataclass(frozen=True)
class SchemaStatus:
    """The schema's state: the revision found in the database, and the newest that we know."""

    state: SchemaState
    found: str | None
    head: str

    @property
    def usable(self) -> bool:
        """Whether this version of the code works on the schema as it is."""
        return self.state in (SchemaState.CURRENT, SchemaState.AHEAD)

    @property
    def upgradable(self) -> bool:
        """Whether an upgrade by this version of the code makes the schema fit."""
        return self.state in (SchemaState.MISSING, SchemaState.BEHIND)

    @property
    def command(self) -> str:
        """What to run, when there is time for it where the state is "ahead"; else empty."""
        if self.state is SchemaState.CURRENT:
            return ""
        return UPGRADE_COMMAND if self.upgradable else UPDATE_COMMAND

    @property
    def message(self) -> str:
        """The state and the command in one sentence."""
        if self.state is SchemaState.MISSING:
            return f"the tables are missing: {run_upgrade()}."
        if self.state is SchemaState.BEHIND:
            return (
                f"the schema is at revision {self.found}, this version needs {self.head}: "
                f"{run_upgrade()}."
            )
        newer = (
            f"the schema is at revision {self.found}, which this version does not know "
            f"(its newest is {self.head})"
        )
        if self.state is SchemaState.AHEAD:
            return f"{newer} but can use: update this package in due course, `{self.command}`."
        if self.state is SchemaState.BREAKING:
            return f"{newer} and cannot use: update this package, `{self.command}`."
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


def next_revision() -> str:
    """The number for a new revision."""
    return f"{int(revisions()[-1]) + 1:04}"


def inspect(connection: psycopg.Connection[Any]) -> SchemaStatus:
    """The schema's status, seen through an open connection.

    Only the schema in which tables would be made (`current_schema()`) counts, not the whole search
    path. A transaction is left open only if it was open before.
    """
    idle = connection.info.transaction_status == TransactionStatus.IDLE
    try:
        found = _find(connection)
        unknown = found is not None and found not in revisions()
        return status_of(found, _breaking_since(connection) if unknown else None)
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


def _breaking_since(connection: psycopg.Connection[Any]) -> str | None:
    """What the newer schema records; None where it records nothing that this version reads."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        schema, exists = cursor.execute(_FIND_STORAGE).fetchone() or (None, False)
        if not exists:
            return None
        table = sql.Identifier(schema, "scheduler_storage")
        # By way of jsonb, as a column that is not there would be an error.
        query = sql.SQL("SELECT to_jsonb(s) ->> 'breaking_since' FROM {} AS s").format(table)
        row = cursor.execute(query).fetchone()
    return row[0] if row else None


def status_of(found: str | None, breaking_since: str | None = None) -> SchemaStatus:
    """The status of a schema at the revision `found`.

    One at an unknown revision is newer: usable if what it records as the newest breaking revision
    is one that this version knows, and not where nothing is recorded.
    """
    known = revisions()
    head = known[-1]
    if found is None:
        state = SchemaState.MISSING
    elif found == head:
        state = SchemaState.CURRENT
    elif found in known:
        state = SchemaState.BEHIND
    else:
        state = SchemaState.AHEAD if breaking_since in known else SchemaState.BREAKING
    return SchemaStatus(state, found, head)
