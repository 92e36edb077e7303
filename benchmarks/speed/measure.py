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
FEWEST, MOST = 5, 200
# Seconds that the rounds of one case may take.
BUDGET = 20.0


def _nothing(_: int) -> None:
    return None


@dataclass(frozen=True)
class Case:
    """A line of the table: `ours` beside `floor`, both called with the number of the round.

    `before` makes ready for a round and is not measured. `bound` is the most that the ratio may be,
    None where nothing is promised. `per` is how many operations one call does.
    """

    operation: str
    size: int
    ours: Callable[[int], Any]
    floor: Callable[[int], Any]
    bound: float | None = None
    before: Callable[[int], Any] = field(default=_nothing)
    most: int = MOST
    against: str = "floor"


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

    @property
    def is_over(self) -> bool:
        """Whether the ratio is over its bound."""
        return self.bound is not None and self.ratio > self.bound


def _timed(act: Callable[[int], Any], number: int) -> float:
    began = time.perf_counter()
    made = act(number)
    spent = time.perf_counter() - began
    del made  # what giving it back costs is nobody's
    return spent


def _round(case: Case, number: int) -> tuple[float, float]:
    case.before(number)
    if number % 2:
        floor = _timed(case.floor, number)
        return _timed(case.ours, number), floor
    ours = _timed(case.ours, number)
    return ours, _timed(case.floor, number)


def measure(case: Case, budget: float = BUDGET) -> Result:
    """Run a case: a warm-up, then rounds until the budget of seconds is used up."""
    warm_up = min(WARM_UP, case.most)
    for number in range(warm_up):
        _round(case, number)
    gc.collect()
    pairs: list[tuple[float, float]] = []
    ends = time.perf_counter() + budget
    fewest = min(FEWEST, case.most)
    while len(pairs) < case.most and (len(pairs) < fewest or time.perf_counter() < ends):
        pairs.append(_round(case, warm_up + len(pairs)))
    ours, floor = zip(*pairs, strict=True)
    ratios = sorted(a / b for a, b in pairs)
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
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
    )
