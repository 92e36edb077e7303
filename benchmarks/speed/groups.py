"""The groups of cases. Each is made when its turn comes, and put away before the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

from benchmarks.speed import run_cases
from benchmarks.speed.measure import Case
from benchmarks.speed.peers import PeerCases
from benchmarks.speed.task_cases import TaskCases
from benchmarks.speed.threads import ThreadCases
from benchmarks.speed.world import World

Group = Callable[[World, Sequence[int]], Iterator[Case]]


def tasks(world: World, sizes: Sequence[int]) -> Iterator[Case]:
    """The operations on tasks, for each number of them."""
    for size in sizes:
        with closing(TaskCases(world, size)) as made:
            for group in (made.single, made.listing, made.saving, made.importing):
                yield from group()


def runs(world: World, _: Sequence[int]) -> Iterator[Case]:
    """The operations on runs, with short and long histories; logging, with few and many tasks."""
    for case in run_cases.cases(world):
        of = "tasks" if case.operation == "log_task_execution" else "runs"
        yield replace(case, of=of)


def threads(world: World, _: Sequence[int]) -> Iterator[Case]:
    """Many threads beside one."""
    with closing(ThreadCases(world)) as made:
        yield from made.cases()


def peers(world: World, _: Sequence[int]) -> Iterator[Case]:
    """APScheduler's job store beside ours, without and with the snapshot."""
    for with_hook in (False, True):
        with closing(PeerCases(world, with_hook=with_hook)) as made:
            yield from made.cases()


GROUPS: dict[str, Group] = {"tasks": tasks, "runs": runs, "threads": threads, "peers": peers}


def cases(world: World, names: Sequence[str], sizes: Sequence[int]) -> Iterator[Case]:
    """The cases of the groups. A case's set-up stands until the next one is asked for."""
    for name in GROUPS:
        if name in names:
            yield from GROUPS[name](world, sizes)
