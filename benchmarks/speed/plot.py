"""Draws the curves: `python -m benchmarks.speed.plot bench.json docs/performance.svg`.

Small multiples, one for each operation: ours and the floor over the number of tasks or runs, both
axes logarithmic, the ratio at each point. One file without scripts, fonts or other files; it is
light or dark as the reader's screen is.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

from benchmarks.speed.measure import Result
from benchmarks.speed.results import Results

# In units of the drawing, which is shown at any width: a phone shows it at about 360.
COLUMNS, WIDTH, HEIGHT = 2, 264, 248
_HEAD, _LEFT, _RIGHT, _TOP, _BOTTOM = 40, 50, 24, 68, 48
# Where a label would be cut off by the edge of its panel.
_EDGE = 18
_STYLE = """
text { font: 15px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600; font-size: 16px }
.label { fill: #57606a }
.back { fill: #ffffff }
.grid { stroke: #d8dee4 }
.line { fill: none; stroke-width: 2 }
.ours { stroke: #0969da } .floor { stroke: #9a6700; stroke-dasharray: 4 3 }
.dot.ours { fill: #0969da } .dot.floor { fill: #ffffff; stroke-width: 1.5; stroke-dasharray: none }
.ratio { font-weight: 600; fill: #0550ae; stroke: #ffffff; stroke-width: 3; paint-order: stroke }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .label { fill: #9198a1 }
  .back { fill: #0d1117 }
  .grid { stroke: #30363d }
  .ours { stroke: #4493f8 } .floor { stroke: #d29922 }
  .dot.ours { fill: #4493f8 } .dot.floor { fill: #0d1117 }
  .ratio { fill: #79c0ff; stroke: #0d1117 }
}"""


class Axis(NamedTuple):
    """A logarithmic axis: from `low` to `high` (powers of ten for the ticks) on the drawing."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Where a value is."""
        share = (math.log10(value) - math.log10(self.low)) / math.log10(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """The powers of ten; every other one where there are many."""
        first, last = round(math.log10(self.low)), round(math.log10(self.high))
        return [10.0**n for n in range(first, last + 1, 2 if last - first > 5 else 1)]


def axis_of(values: Iterable[float], start: float, end: float) -> Axis:
    """An axis from the power of ten below the values to the one above them."""
    logs = [math.log10(value) for value in values]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    return Axis(10.0**low, 10.0 ** max(high, low + 1), start, end)


def short(value: float) -> str:
    """A number of tasks or of milliseconds, short: 0.1, 10, 100k, 3M."""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"


def _text(x: float, y: float, words: str, kind: str, anchor: str = "start") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(words)}</text>'


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="grid"/>'


class Panel:
    """One operation."""

    def __init__(self, lines: Sequence[Result]) -> None:
        self.lines = sorted(lines, key=lambda line: line.size)
        self.operation, self._of = self.lines[0].operation, self.lines[0].of
        self._x = axis_of((line.size for line in lines), _LEFT, WIDTH - _RIGHT)
        milliseconds = [ms for line in lines for ms in (line.ours_ms, line.floor_ms)]
        self._y = axis_of(milliseconds, HEIGHT - _BOTTOM, _TOP)

    def draw(self) -> Iterator[str]:
        """The panel, at the origin."""
        yield from self._titles()
        yield from self._grid()
        for kind, value in (("floor", _floor), ("ours", _ours)):
            yield from self._curve(kind, value)
        yield from map(self._ratio, self.lines)

    def _titles(self) -> Iterator[str]:
        name, _, rest = self.operation.partition(", ")
        yield _text(8, 18, name, "title")
        yield _text(8, 35, rest, "label")
        yield _text(_LEFT - 8, _TOP - 13, "ms", "label", "end")
        yield _text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 10, self._of, "label", "middle")

    def _grid(self) -> Iterator[str]:
        for value in self._y.ticks():
            y = self._y.at(value)
            yield _rule(_LEFT, y, WIDTH - _RIGHT, y)
            yield _text(_LEFT - 8, y + 4, short(value), "label", "end")
        for value in self._x.ticks():
            x = self._x.at(value)
            yield _rule(x, _TOP, x, HEIGHT - _BOTTOM)
            yield _text(x, HEIGHT - _BOTTOM + 19, short(value), "label", "middle")

    def _curve(self, kind: str, value: Callable[[Result], float]) -> Iterator[str]:
        points = [(self._x.at(line.size), self._y.at(value(line))) for line in self.lines]
        given = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        yield f'<polyline points="{given}" class="line {kind}"/>'
        for x, y in points:
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="dot {kind}"/>'

    def _ratio(self, line: Result) -> str:
        x, y = self._x.at(line.size), self._y.at(line.ours_ms)
        # A curve that rises leaves room above it on the left, and below it on the right.
        if line.ours_ms < line.floor_ms and y + 22 < HEIGHT - _BOTTOM:
            return _text(x + 8, y + 19, f"{line.ratio:.2f}", "ratio", "middle")
        y = min(y, self._y.at(line.floor_ms)) - 9
        if x < _LEFT + _EDGE:
            return _text(x - 6, y - 4, f"{line.ratio:.2f}", "ratio", "start")
        return _text(x - 6, y, f"{line.ratio:.2f}", "ratio", "middle")


def _ours(line: Result) -> float:
    return line.ours_ms


def _floor(line: Result) -> float:
    return line.floor_ms


def panels(results: Results) -> list[Panel]:
    """A panel for each operation that has a floor, in the order of the table."""
    by_operation: dict[tuple[str, str], list[Result]] = {}
    for line in results.lines:
        if line.against == "floor":
            by_operation.setdefault((line.of, line.operation), []).append(line)
    return [Panel(lines) for lines in by_operation.values()]


def _legend() -> Iterator[str]:
    for x, kind, words in ((8, "ours", "ours"), (90, "floor", "floor")):
        yield f'<polyline points="{x},20 {x + 26},20" class="line {kind}"/>'
        yield f'<circle cx="{x + 13}" cy="20" r="3.5" class="dot {kind}"/>'
        yield _text(x + 32, 24, words, "label")
    yield _text(170, 24, "1.23", "ratio")
    yield _text(210, 24, "ours / floor, the median of the rounds", "label")


def svg(results: Results) -> str:
    """The whole drawing."""
    made = panels(results)
    width, height = COLUMNS * WIDTH, _HEAD + math.ceil(len(made) / COLUMNS) * HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'width="{width * 1.4:.0f}" height="{height * 1.4:.0f}">',
        "<title>Milliseconds of each operation and of its floor</title>",
        f"<style>{_STYLE}\n</style>",
        f'<rect width="{width}" height="{height}" class="back"/>',
        *_legend(),
    ]
    for number, panel in enumerate(made):
        x, y = number % COLUMNS * WIDTH, _HEAD + number // COLUMNS * HEIGHT
        parts.append(f'<g transform="translate({x} {y})" aria-label={quoteattr(panel.operation)}>')
        parts += [*panel.draw(), "</g>"]
    return "\n".join([*parts, "</svg>\n"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("drawing", type=Path)
    given = parser.parse_args()
    given.drawing.write_text(svg(Results.read(given.results)), encoding="utf-8")


if __name__ == "__main__":
    main()
