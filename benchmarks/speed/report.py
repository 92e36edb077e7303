"""Writes the tables into a document: `python -m benchmarks.speed.report bench.json DOCUMENT`.

Only what stands between `<!-- generated: NAME -->` and `<!-- end: NAME -->` is replaced.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.speed.measure import Result
from benchmarks.speed.results import Results
from benchmarks.speed.tables import MEMORY_HEADER, cells, header_of, markdown, memory_cells

_PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end: \2 -->)", re.DOTALL)


def _measured_on(results: Results) -> str:
    on = results.measured_on
    return (
        f"Measured on {on['date']}: datahound-storage {on['package']}, PostgreSQL "
        f"{on['postgresql']} over its socket (`fsync` {on['fsync']}, `synchronous_commit` "
        f"{on['synchronous_commit']}), Python {on['python']}, psycopg {on['psycopg']}, "
        f"{on['cores']} cores, {on['system']}."
    )


def _table(results: Results, wanted: Callable[[Result], bool]) -> str:
    lines = [line for line in results.lines if wanted(line)]
    against = lines[0].against if lines else "floor"
    return markdown(header_of(against), map(cells, lines))


def _tasks(results: Results) -> str:
    return _table(results, lambda x: x.against == "floor" and x.of == "tasks")


def _runs(results: Results) -> str:
    return _table(results, lambda x: x.against == "floor" and x.of == "runs")


def _threads(results: Results) -> str:
    return _table(results, lambda x: x.against == "one thread")


def _peers(results: Results) -> str:
    return _table(results, lambda x: x.against.startswith("APScheduler"))


def _memory(results: Results) -> str:
    return markdown(MEMORY_HEADER, map(memory_cells, results.memory))


SECTIONS: dict[str, Callable[[Results], str]] = {
    "measured_on": _measured_on,
    "tasks": _tasks,
    "runs": _runs,
    "threads": _threads,
    "peers": _peers,
    "memory": _memory,
}


def rewrite(text: str, results: Results) -> str:
    """The document with its generated parts made anew. Raises KeyError for an unknown one."""

    def made_anew(found: re.Match[str]) -> str:
        return f"{found[1]}{SECTIONS[found[2]](results)}\n{found[3]}"

    return _PART.sub(made_anew, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("document", type=Path)
    given = parser.parse_args()
    before = given.document.read_text(encoding="utf-8")
    given.document.write_text(rewrite(before, Results.read(given.results)), encoding="utf-8")


if __name__ == "__main__":
    main()
