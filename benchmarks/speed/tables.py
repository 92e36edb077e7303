"""The tables, in cells: for the terminal and for the document alike."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.speed.measure import Result
from benchmarks.speed.results import MemoryResult

Cells = tuple[str, ...]
MEMORY_HEADER: Cells = ("operation, in a process of its own", "size", "before", "growth", "takes")


def header_of(against: str) -> Cells:
    """The header of a table whose second figure is of `against`."""
    return (
        "operation",
        "tasks/runs",
        "ours ms",
        f"{against} ms",
        "ratio (quartiles)",
        "bound",
        "rounds",
    )


def number(value: float) -> str:
    """A figure with as many digits as mean something: 0.123, 1.23, 12.3, 1,234."""
    digits = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f}"


def cells(result: Result) -> Cells:
    """A line of a table of ratios."""
    return (
        result.operation,
        f"{result.size:,}",
        number(result.ours_ms),
        number(result.floor_ms),
        f"{result.ratio:.2f} ({result.low:.2f}-{result.high:.2f})",
        "" if result.bound is None else f"{result.bound:.2f}",
        str(result.rounds),
    )


def memory_cells(result: MemoryResult) -> Cells:
    """A line of the memory's table."""
    return (
        result.operation,
        f"{result.size:,}",
        f"{result.before_mb:.0f} MB",
        f"{result.growth_mb:+.0f} MB",
        f"{result.seconds:.1f} s",
    )


def parts(lines: Iterable[Result]) -> list[tuple[str, list[Result]]]:
    """The lines by what they stand beside, each with a title, in the order of their first lines."""
    by_peer: dict[str, list[Result]] = {}
    for line in lines:
        by_peer.setdefault(line.against, []).append(line)
    return [(f"Beside the {against}", some) for against, some in by_peer.items()]


def markdown(header: Cells, rows: Iterable[Cells]) -> str:
    """A table of a document."""
    rule = "|---" + "|---:" * (len(header) - 1) + "|"
    return "\n".join([_row(header), rule, *map(_row, rows)])


def _row(values: Cells) -> str:
    return f"| {' | '.join(values)} |"
