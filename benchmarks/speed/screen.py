"""Shows lines as they are measured: with rich on a terminal, plainly elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.speed.measure import Result
from benchmarks.speed.results import MemoryResult, Results
from benchmarks.speed.tables import MEMORY_HEADER, cells, header_of, memory_cells, parts

_WIDTHS = (42, 10, 10, 10, 18, 6, 7, 0)
_MEMORY_WIDTHS = (64, 10, 10, 10, 8)


class Screen:
    """Where a run is followed. On a terminal the tables come at the end."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._is_terminal = self._console.is_terminal
        self._status = self._console.status("making the first tables ...")
        self._against = ""
        if self._is_terminal:
            self._status.start()

    def line(self, result: Result) -> None:
        """A line that was measured just now."""
        if self._is_terminal:
            self._status.update(f"measured: {result.operation}, {result.size:,} {result.of}")
            return
        if result.against != self._against:
            self._against = result.against
            self._plain(header_of(result.against), _WIDTHS)
        self._plain((*cells(result), "OVER" if result.is_over else ""), _WIDTHS)

    def memory(self, result: MemoryResult, *, first: bool) -> None:
        """A line of the memory's table."""
        if self._is_terminal:
            self._status.update(f"measured: {result.operation}")
            return
        if first:
            self._plain(MEMORY_HEADER, _MEMORY_WIDTHS)
        self._plain(memory_cells(result), _MEMORY_WIDTHS)

    def _plain(self, values: Sequence[str], widths: Sequence[int]) -> None:
        padded = [f"{v:{w}}" if n == 0 else f"{v:>{w}}" for n, (v, w) in _with(values, widths)]
        print(" ".join(padded).rstrip(), flush=True)

    def end(self, results: Results) -> None:
        """All of it."""
        if not self._is_terminal:
            return
        self._status.stop()
        for title, lines in parts(results.lines):
            self._table(title, header_of(lines[0].against), [(cells(x), x.is_over) for x in lines])
        if results.memory:
            rows = [(memory_cells(line), False) for line in results.memory]
            self._table("Memory", MEMORY_HEADER, rows)

    def _table(
        self, title: str, header: Sequence[str], rows: Sequence[tuple[Sequence[str], bool]]
    ) -> None:
        table = Table(title=title)
        for number, name in enumerate(header):
            table.add_column(name, justify="right" if number else "left")
        for values, is_over in rows:
            table.add_row(*values, style="bold red" if is_over else None)
        self._console.print(table)

    def say(self, lines: Sequence[str]) -> None:
        """Plain sentences."""
        for line in lines:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _with(values: Sequence[str], widths: Sequence[int]) -> list[tuple[int, tuple[str, int]]]:
    return list(enumerate(zip(values, widths[: len(values)], strict=True)))
