"""Where the time of an operation goes: `make profile PROFILE_ARGS="--only update_task"`.

Its own rounds only, without the floor's, sampled by pyinstrument.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

from pyinstrument import Profiler

from benchmarks.speed.groups import GROUPS, cases
from benchmarks.speed.measure import WARM_UP, Case
from benchmarks.speed.world import World
from datahound_storage.testing import EmbeddedServer

ROUNDS = 200


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="update_task", help="operations whose name has this")
    parser.add_argument("--sizes", type=int, nargs="*", default=[1_000], help="numbers of tasks")
    parser.add_argument("--groups", nargs="*", default=["tasks"], choices=[*GROUPS])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--directory", default="/var/tmp", help="on the disk to be measured")
    return parser.parse_args()


def profile(case: Case, rounds: int) -> str:
    """The tree of calls of some rounds of ours."""
    profiler = Profiler(interval=0.0002)
    for number in range(WARM_UP + min(rounds, case.most)):
        case.before(number)
        if number < WARM_UP:
            case.ours(number)
            continue
        profiler.start()
        case.ours(number)
        profiler.stop()
    return profiler.output_text(show_all=False)


def main() -> None:
    given = arguments()
    logging.disable(logging.WARNING)
    with (
        tempfile.TemporaryDirectory(dir=given.directory) as name,
        EmbeddedServer(Path(name) / "server", settings={"max_wal_size": "4GB"}) as server,
    ):
        for case in cases(World(Path(name), server), given.groups, given.sizes):
            if given.only in case.operation:
                print(f"{case.operation}, {case.size:,}\n{profile(case, given.rounds)}", flush=True)


if __name__ == "__main__":
    main()
