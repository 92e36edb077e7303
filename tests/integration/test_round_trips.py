"""A run is one statement to keep and one to look up, whatever else happens around it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from datahound_storage import SchedulerPersistence
from tests.fix_persistence import MakePersistence
from tests.statements import Wire, traced

# Until then the driver prepares a statement, which takes one more.
PREPARED_AFTER = 10


@pytest.fixture
def wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    with traced(tmp_path / "trace", monkeypatch) as made:
        yield made


@pytest.fixture
def persistence(
    wire: Wire, opened: MakePersistence, base: Path, migrated_url: str
) -> SchedulerPersistence:
    made = opened(base, url=migrated_url)
    for _ in range(PREPARED_AFTER):
        made.log_task_execution("a", True)
        made.get_task_history("a", 5)
        made.get_task_history(limit=5)
    return made


def test_a_run_is_kept_in_one_round_trip(wire: Wire, persistence: SchedulerPersistence) -> None:
    for _ in range(3):
        assert wire.round_trips(lambda: persistence.log_task_execution("a", True)) == 1


@pytest.mark.parametrize("key", ["a", None])
def test_the_newest_runs_come_in_one_round_trip(
    wire: Wire, persistence: SchedulerPersistence, key: str | None
) -> None:
    for _ in range(3):
        assert wire.round_trips(lambda: persistence.get_task_history(key, 5)) == 1
