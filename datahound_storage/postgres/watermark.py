"""A known state of the database, as Postgres itself describes one.

A plain counter loses a transaction that commits late. A `pg_snapshot` does not: it names the
transactions that were still running, and a row's stamp tells whether it was visible.
"""

from __future__ import annotations

from typing import NamedTuple


class Watermark(NamedTuple):
    """A `pg_snapshot`: which transactions a reader could see."""

    xmin: int
    xmax: int
    running: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> Watermark:
        """Read the text form, `xmin:xmax:xip,…`. Raises ValueError."""
        xmin, xmax, running = text.split(":")
        return cls(int(xmin), int(xmax), frozenset(int(x) for x in running.split(",") if x))

    def shows(self, stamp: int) -> bool:
        """Whether a change made by transaction `stamp` was visible."""
        return stamp < self.xmin or (stamp < self.xmax and stamp not in self.running)

    def __str__(self) -> str:
        return f"{self.xmin}:{self.xmax}:{','.join(str(x) for x in sorted(self.running))}"
