"""No revision blocks a reader or a writer: their longest waits while old tables are upgraded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.bystanders import Waits, bystanders, lock_waits
from datahound_storage import migrations
from datahound_storage.migrations.state import revisions

HEADER = ("what happens", "takes", "longest wait of the reader", "of the writer", "for a lock")
Row = tuple[str, ...]


def row_of(what: str, seconds: float, waits: dict[str, Waits], for_lock: int) -> Row:
    for name, found in waits.items():
        if found.errors:
            raise RuntimeError(f"{name} failed: {found.errors[0]}")
    reader, writer = waits["read"], waits["write"]
    return (
        what,
        f"{seconds:.1f} s",
        f"{reader.longest:.0f} ms",
        f"{writer.longest:.0f} ms",
        f"{for_lock} over 20 ms" if for_lock else "none over 20 ms",
    )


def beside(url: str, log: Path, what: str, act: Callable[[], object]) -> Row:
    """Do something while a reader and a writer work; `log` is the server's."""
    before = lock_waits(log)
    with bystanders(url) as waits:
        began = time.monotonic()
        act()
        spent = time.monotonic() - began
        time.sleep(0.5)  # whatever it leaves to be waited for
    return row_of(what, spent, waits, lock_waits(log) - before)


def rows(url: str, log: Path) -> Iterator[Row]:
    """Peace, then each revision from the old tables on, and back to the first."""
    yield beside(url, log, "nothing else", lambda: time.sleep(10))
    for number in revisions():
        yield beside(
            url,
            log,
            f"upgrade to {number}",
            lambda n=number: migrations.upgrade(url, n, import_files=False),  # type: ignore[misc]
        )
    for number in reversed(revisions()[:-1]):
        yield beside(
            url,
            log,
            f"downgrade to {number}",
            lambda n=number: migrations.downgrade(url, n),  # type: ignore[misc]
        )
