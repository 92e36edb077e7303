"""Measures docs/scaling.md: `python -m benchmarks.scaling`, or `make scaling`.

On an embedded PostgreSQL with its data on a disk, synchronous as by default.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import psycopg

from benchmarks import history, imports, live, tables
from benchmarks.bystanders import LOG_SETTINGS
from datahound_storage.migrations import upgrade
from datahound_storage.testing import EmbeddedServer


def show(title: str, header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    print(f"\n{title}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}", flush=True)
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def databases(server: EmbeddedServer) -> Iterator[str]:
    with psycopg.connect(server.url, autocommit=True) as connection:
        for number in range(99):
            connection.execute(f"CREATE DATABASE measured_{number}".encode())
            yield server.url.replace("/postgres?", f"/measured_{number}?")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3_000_000, help="rows of the old table")
    parser.add_argument("--tasks", type=int, default=100_000, help="tasks of the snapshot")
    parser.add_argument("--lines", type=int, default=1_000_000, help="lines of the history file")
    parser.add_argument("--directory", default="/var/tmp", help="on the disk to be measured")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    settings = {"max_wal_size": "4GB", **LOG_SETTINGS}
    with (
        tempfile.TemporaryDirectory(dir=given.directory) as name,
        EmbeddedServer(Path(name) / "server", settings=settings) as server,
    ):
        urls, log = databases(server), Path(name) / "server" / "server.log"
        url = next(urls)
        tables.make_old(url, given.runs)
        title = f"{given.runs:,} runs in old tables, a reader and a writer beside"
        show(title, live.HEADER, live.rows(url, log))
        upgrade(url, import_files=False)
        show(f"The newest of {given.runs:,} runs", history.HEADER, history.look_ups(url))
        show("Pruning, a reader and a writer beside", live.HEADER, history.prunings(url, log))
        rows = imports.rows(urls, Path(name), given.tasks, given.lines)
        show("Import", imports.HEADER, rows)


if __name__ == "__main__":
    main()
