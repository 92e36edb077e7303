"""What a measurement is made on: one server, a database and a directory for each side."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from datahound_storage.codec import encode
from datahound_storage.migrations import upgrade
from datahound_storage.testing import EmbeddedServer
from tests.migrations.support import ROOT

Task = dict[str, Any]


def sample_tasks(count: int) -> list[Task]:
    """So many tasks, like those of the sample (about 1.3 KB each)."""
    path = ROOT / "examples/data/scheduler/scheduled_tasks.json"
    sample = json.loads(path.read_text(encoding="utf-8"))
    return [{**sample[n % len(sample)], "task_id": f"task-{n}"} for n in range(count)]


def write_snapshot(path: Path, texts: list[str]) -> None:
    """A snapshot as the old code writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[\n  " + ",\n  ".join(texts) + "\n]", encoding="ascii")


class World:
    """A server with its data on the disk to be measured, synchronous as by default."""

    def __init__(self, directory: Path, server: EmbeddedServer) -> None:
        self.directory, self._server = directory, server
        self._made = 0

    def database(self, template: str = "") -> str:
        """A new database: empty, at head; or a copy of the one at the URL `template`."""
        self._made += 1
        name = f"measured_{self._made}"
        source = f" TEMPLATE {_name_of(template)}" if template else ""
        with psycopg.connect(self._server.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}{source}".encode())
        url = self._server.url.replace("/postgres?", f"/{name}?")
        if not template:
            upgrade(url, import_files=False)
        return url

    def empty_database(self) -> str:
        """A new database without tables."""
        self._made += 1
        name = f"measured_{self._made}"
        with psycopg.connect(self._server.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self._server.url.replace("/postgres?", f"/{name}?")

    def drop(self, url: str) -> None:
        """Drop a database."""
        with psycopg.connect(self._server.url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {_name_of(url)} WITH (FORCE)".encode())

    def data_dir(self) -> Path:
        """A new data directory."""
        self._made += 1
        made = self.directory / f"files-{self._made}" / "data"
        (made / "scheduler").mkdir(parents=True)
        return made


def _name_of(url: str) -> str:
    return str(conninfo_to_dict(url)["dbname"])


def texts_of(tasks: list[Task]) -> list[str]:
    """The tasks as they stand in a snapshot."""
    return [encode(task) for task in tasks]


def picks(count: int) -> random.Random:
    """A choice of tasks that is the same in each run."""
    return random.Random(count)
