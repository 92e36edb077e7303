"""Times that somebody put into a table by hand and that Python does not have."""

from __future__ import annotations

_FIRST = "'0001-01-03 00:00:00+00'::timestamptz"
_LAST = "'9999-12-29 00:00:00+00'::timestamptz"


def clamped(column: str) -> str:
    """The SQL for a time column within the years that Python has: `infinity` becomes the last."""
    return (
        f"CASE WHEN {column} > {_LAST} THEN {_LAST} WHEN {column} < {_FIRST} THEN {_FIRST} "
        f"ELSE {column} END"
    )
