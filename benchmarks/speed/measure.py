"""Measures an operation and its floor alternately, so that a noisy machine disturbs both."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

WARM_UP = 3
# A ratio of medians of few rounds says nothing; more than this only takes time.
FEWEST, MOST = 5, 500
# Above this many tasks a round takes seconds: fewer of them have to do.
LARGE, FEWEST_LARGE = 50_000, 3
# Seconds that the rounds of one case may take, its warm-up not counted.
BUDGET = 10.0
# What a warm-up may take of that: where a round takes long, one is enough.
_WARM_UP_SHARE = 0.2

Pair = tuple[float, float]


def _nothing(_: int) -> None:
    return None


@dataclass(frozen=True)
class Case:
    """A line of the table: `ours` beside `floor`, both called with the number of the round.

    `before` makes ready for a round and is not measured. `bound` is the most that the ratio may be,
    None where nothing is promised. `most` is how many rounds there may be. `size` counts what `of`
    names, `against` names what stands beside ours. `self_timed`: the two return the seconds that
    count. A case can be measured again, its rounds numbered on, for as long as its set-up stands.
    """

    operation: str
    size: int
    ours: Callable[[int], Any]
    floor: Callable[[int], Any]
    bound: float | None = None
    before: Callable[[int], Any] = field(default=_nothing)
    most: int = MOST
    against: str = "floor"
    of: str = "tasks"
    self_timed: bool = False


class Result(NamedTuple):
    """Milliseconds (medians) and the ratio: its median over the rounds, and its quartiles."""

    operation: str
    size: int
    against: str
    ours_ms: float
    floor_ms: float
    ratio: float
    low: float
    high: float
    bound: float | None
    rounds: int
    of: str = "tasks"
    # How often it was measured again, being over its bound before.
    repeats: int = 0

    @property
    def is_over(self) -> bool:
        """Whether the ratio is over its bound."""
        return self.bound is not None and self.ratio > self.bound


def result_of(case: Case, pairs: list[Pair], repeats: int = 0) -> Result:
    """What the seconds of ours and of the floor come to, a pair a round."""
    ours, floor = zip(*pairs, strict=True)
    ratios = [a / b for a, b in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return Result(
        case.operation,
        case.size,
        case.against,
        statistics.median(ours) * 1000,
        statistics.median(floor) * 1000,
        middle,
        low,
        high,
        case.bound,
        len(pairs),
        case.of,
        repeats,
    )


class Measuring:
    """Runs a case, as often as is wanted; the numbers of its rounds go on."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self._number = 0

    def once(self, budget: float, repeats: int = 0) -> Result:
        """A warm-up at the first time, then rounds until the budget of seconds is used up.

        There may be more rounds at each repeat: of a quick operation they are over in a moment, in
        which somebody else may be at work.
        """
        if not self._number:
            self._warm_up(budget * _WARM_UP_SHARE)
        gc.collect()
        fewest = min(FEWEST if self.case.size < LARGE else FEWEST_LARGE, self.case.most)
        pairs: list[Pair] = []
        ends = time.perf_counter() + budget
        while len(pairs) < self.case.most * (repeats + 1) and (
            len(pairs) < fewest or time.perf_counter() < ends
        ):
            pairs.append(self._round())
        return result_of(self.case, pairs, repeats)

    def _warm_up(self, seconds: float) -> None:
        ends = time.perf_counter() + seconds
        for _ in range(min(WARM_UP, self.case.most)):
            self._round()
            if time.perf_counter() > ends:
                break

    def _round(self) -> Pair:
        number, case = self._number, self.case
        self._number += 1
        case.before(number)
        if number % 2:
            floor = self._seconds(case.floor, number)
            return self._seconds(case.ours, number), floor
        ours = self._seconds(case.ours, number)
        return ours, self._seconds(case.floor, number)

    def _seconds(self, act: Callable[[int], Any], number: int) -> float:
        began = time.perf_counter()
        made = act(number)
        spent = time.perf_counter() - began
        if self.case.self_timed:
            return float(made)
        del made  # what giving it back costs is nobody's
        return spent


def measure(case: Case, budget: float = BUDGET, repeats: int = 0, longer: float = 2.0) -> Result:
    """Run a case; up to `repeats` times more, `longer` each, while its ratio is over the bound.

    The last result is the answer: the one that is within, or else the last that is over.
    """
    measuring = Measuring(case)
    result = measuring.once(budget)
    while result.is_over and result.repeats < repeats:
        result = measuring.once(budget * longer, result.repeats + 1)
    return result
