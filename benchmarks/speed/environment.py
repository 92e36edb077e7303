"""What a measurement was made on: versions, cores, durability. Names nothing of the machine."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version

import psycopg

_SETTINGS = ("server_version", "fsync", "synchronous_commit", "full_page_writes")


def measured_on(url: str) -> dict[str, str]:
    """What must be known to make sense of the figures."""
    with psycopg.connect(url, autocommit=True) as connection:
        rows = [connection.execute(f"SHOW {name}".encode()).fetchone() for name in _SETTINGS]
    shown = {name: str(row[0]) for name, row in zip(_SETTINGS, rows, strict=True) if row}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "package": version("datahound-storage"),
        "postgresql": shown.pop("server_version").split()[0],
        **shown,
        "python": platform.python_version(),
        "cores": str(len(os.sched_getaffinity(0))),
        "system": f"{platform.system()} {platform.machine()}",
        "psycopg": version("psycopg"),
    }
