"""Measures docs/performance.md: `python -m benchmarks.speed`, or `make bench`.

On an embedded PostgreSQL over its socket, its data on a disk, synchronous as by default.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.speed.measure import BUDGET, Case, Result, measure
from benchmarks.speed.task_cases import SIZES, TaskCases
from benchmarks.speed.world import World
from datahound_storage.testing import EmbeddedServer


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="numbers of tasks")
    parser.add_argument("--only", default="", help="operations whose name has this in it")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for each line")
    parser.add_argument("--directory", default="/var/tmp", help="on the disk to be measured")
    return parser.parse_args()


def cases(world: World, given: argparse.Namespace) -> Iterator[Case]:
    for size in given.sizes:
        tasks = TaskCases(world, size)
        for group in (tasks.single, tasks.listing, tasks.saving, tasks.importing):
            yield from group()
        tasks.close()


def show(result: Result) -> None:
    bound = "" if result.bound is None else f"{result.bound:.2f}"
    mark = " OVER" if result.is_over else ""
    print(
        f"{result.operation:40} {result.size:8,} {result.ours_ms:10.2f} {result.floor_ms:10.2f} "
        f"{result.ratio:7.2f} ({result.low:.2f}–{result.high:.2f}) {bound:>6} n={result.rounds}{mark}",
        flush=True,
    )


def main() -> None:
    given = arguments()
    logging.disable(logging.WARNING)
    with (
        tempfile.TemporaryDirectory(dir=given.directory) as name,
        EmbeddedServer(Path(name) / "server", settings={"max_wal_size": "4GB"}) as server,
    ):
        world = World(Path(name), server)
        over = [
            result
            for case in cases(world, given)
            if given.only in case.operation
            for result in [measure(case, given.budget)]
            if (show(result) or result.is_over)
        ]
    sys.exit(1 if over else 0)


if __name__ == "__main__":
    main()
