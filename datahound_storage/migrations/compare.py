"""How the tables in the code are compared with those in a database (`alembic check`)."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy.dialects.postgresql.base import ischema_names

from datahound_storage.postgres import schema

_CAST = re.compile(r"::[a-z ]+(\[\])?")
_SEQUENCE = re.compile(r"nextval\('(?:\w+\.)?(\w+)'\)")


def _include_name(name: str | None, kind: str, _parents: Any) -> bool:
    # Other applications' tables live beside ours.
    return kind != "table" or name in schema.metadata.tables


def _include_object(
    _object: Any, name: str | None, kind: str, reflected: bool, counterpart: Any
) -> bool:
    # An index that a database administrator added is not ours to drop.
    foreign = kind == "index" and reflected and counterpart is None
    return not foreign or str(name).startswith("ix_scheduler_")


def _plain(default: str | None) -> str | None:
    if default is None:
        return None
    text = _SEQUENCE.sub(r"\1", _CAST.sub("", default))
    return text.strip("'")


def _server_default_differs(
    _context: Any,
    _inspected: Any,
    _column: Any,
    found: str | None,
    _wanted: Any,
    rendered: str | None,
) -> bool:
    """Compare the spellings: Alembic's own way evaluates both, and takes numbers from sequences.

    A default that the code does not have is harmless, and code of others may count on it. That of
    a sequence which its column owns is not reflected.
    """
    wanted = _plain(rendered)
    if wanted is None or (found is None and wanted.endswith("_seq")):
        return False
    return _plain(found) != wanted


# Without it the type would be unknown to reflection.
ischema_names["xid8"] = schema.Xid8

OPTIONS: dict[str, Any] = {
    "target_metadata": schema.metadata,
    "include_name": _include_name,
    "include_object": _include_object,
    "compare_type": True,
    "compare_server_default": _server_default_differs,
    # CHECK constraints are compared only by a plugin.
    "autogenerate_plugins": ["alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"],
}
