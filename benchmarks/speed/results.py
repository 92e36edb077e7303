"""What was measured, as JSON and back, and whether it is within its bounds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks.speed.measure import Result


class MemoryResult(NamedTuple):
    """What an operation added to the memory of a process of its own, at its peak, in MB."""

    operation: str
    size: int
    of: str
    before_mb: float
    growth_mb: float
    seconds: float


@dataclass
class Results:
    """All lines of a run, and what it was made on."""

    measured_on: dict[str, str] = field(default_factory=dict)
    lines: list[Result] = field(default_factory=list)
    memory: list[MemoryResult] = field(default_factory=list)

    @property
    def over(self) -> list[Result]:
        """The lines whose ratio is over its bound."""
        return [line for line in self.lines if line.is_over]

    @property
    def repeated(self) -> list[Result]:
        """The lines that were measured more than once."""
        return [line for line in self.lines if line.repeats]

    def write(self, path: Path) -> None:
        """Write them as JSON."""
        plain = asdict(self)
        plain["lines"] = [line._asdict() for line in self.lines]
        plain["memory"] = [line._asdict() for line in self.memory]
        path.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read what `write` has written."""
        plain = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            plain["measured_on"],
            [Result(**line) for line in plain["lines"]],
            [MemoryResult(**line) for line in plain["memory"]],
        )


def verdict(results: Results) -> tuple[int, list[str]]:
    """The exit code of a check, and what it has to say."""
    said = [
        f"OVER: {line.operation}, {line.size:,} {line.of}: ratio to {line.against} "
        f"{line.ratio:.2f}, bound {line.bound:.2f}, measured {line.repeats + 1} times"
        for line in results.over
    ]
    promised = _count(line for line in results.lines if line.bound is not None)
    said.append(
        f"{promised - len(results.over)} of {promised} lines are within their bound; "
        f"{len(results.repeated)} measured again."
    )
    return (1 if results.over or not promised else 0), said


def _count(lines: Iterable[Result]) -> int:
    return sum(1 for _ in lines)
