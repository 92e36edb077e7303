"""Killed, or failed by the disk, at every system call of every operation: nothing is lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests import servers
from tests.fault import sweep

LANES = min(os.cpu_count() or 1, 4)
# An operation that durably changes something makes more system calls than this.
FEWEST = 30


@pytest.fixture(scope="session")
def tracer() -> None:
    """What the sweep needs."""
    reason = sweep.why_not()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def urls(request: pytest.FixtureRequest, mode: str) -> Iterator[list[str | None]]:
    """A database for each lane; for the files none."""
    if mode == "files":
        yield [None] * LANES
        return
    server = request.getfixturevalue("server")
    template = request.getfixturevalue("migrated_template")
    made = [server.create_database(template) for _ in range(LANES)]
    yield made
    for url in made:
        server.drop_database(url)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("tracer")
@pytest.mark.parametrize(
    ("name", "mode"),
    [(operation.name, mode) for operation in sweep.ALL for mode in operation.modes],
)
def test_no_fault_loses_anything(
    name: str,
    mode: str,
    urls: list[str | None],
    record_property: Callable[[str, object], None],
) -> None:
    with servers.embedded_directory() as directory:
        report = sweep.sweep(name, mode, directory, urls)
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(report.kinds.items()))
    found = f"{report.points} points ({kinds}) in {report.seconds:.0f} s"
    record_property("faults", f"{name} ({mode}): {found}")
    assert not report.failures, "\n".join(report.failures)
    assert set(report.kinds) == {"KILL", "EIO", "ENOSPC"}
    assert report.points >= FEWEST
    # How often a process waits varies, so that a fault can come too late.
    assert report.missed <= report.points // 10
