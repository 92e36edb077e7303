"""Measures docs/performance.md: `python -m benchmarks.speed`, or `make bench`.

On an embedded PostgreSQL over its socket, its data on a disk, synchronous as by default.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.speed import memory
from benchmarks.speed.bounds import SIZES
from benchmarks.speed.environment import measured_on
from benchmarks.speed.groups import GROUPS, cases
from benchmarks.speed.measure import Case, measure
from benchmarks.speed.results import Results, verdict
from benchmarks.speed.screen import Screen
from benchmarks.speed.world import World
from datahound_storage.testing import EmbeddedServer

# How often a line that is over its bound is measured again; none are after so many seconds.
REPEATS, NO_MORE_REPEATS = 3, 20 * 60


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="numbers of tasks")
    parser.add_argument("--only", default="", help="operations whose name has this in it")
    parser.add_argument("--groups", nargs="*", default=(*GROUPS, "memory"), help="parts of it")
    parser.add_argument("--budget", type=float, help="seconds for each line; default: by size")
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--check", action="store_true", help="fail where a ratio is over its bound")
    parser.add_argument("--memory-tasks", type=int, default=100_000)
    parser.add_argument("--memory-runs", type=int, default=3_000_000)
    parser.add_argument("--directory", default="/var/tmp", help="on the disk to be measured")
    return parser.parse_args()


def budget_of(case: Case) -> float:
    """Seconds for the rounds of a case: more where a round takes longer."""
    return 6.0 if case.size <= 1_000 else 10.0 if case.size <= 10_000 else 15.0


def run(world: World, given: argparse.Namespace, screen: Screen, results: Results) -> None:
    """Measure everything that is wanted."""
    began = time.monotonic()
    for case in cases(world, given.groups, given.sizes):
        if given.only in case.operation:
            budget = given.budget or budget_of(case)
            again = given.check and time.monotonic() - began < NO_MORE_REPEATS
            results.lines.append(measure(case, budget, REPEATS if again else 0))
            screen.line(results.lines[-1])
    if "memory" in given.groups:
        for line in memory.lines(world, given.memory_tasks, given.memory_runs):
            screen.memory(line, first=not results.memory)
            results.memory.append(line)


def main() -> None:
    given = arguments()
    logging.disable(logging.WARNING)
    screen = Screen()
    with (
        tempfile.TemporaryDirectory(dir=given.directory) as name,
        EmbeddedServer(Path(name) / "server", settings={"max_wal_size": "4GB"}) as server,
    ):
        results = Results(measured_on(server.url))
        run(World(Path(name), server), given, screen, results)
    screen.end(results)
    if given.json:
        results.write(given.json)
    if given.check:
        code, said = verdict(results)
        screen.say(said)
        sys.exit(code)


if __name__ == "__main__":
    main()
