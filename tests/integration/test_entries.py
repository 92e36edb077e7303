"""The entries of runs whose columns somebody has changed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fix_persistence import MakePersistence
from tests.migrations.support import query


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ('{"duration_seconds": 9007199254740993}', 9007199254740993),
        ('{"duration_seconds": 12345678901234567890123}', 12345678901234567890123),
        ('{"duration_seconds": 1.50}', 1.5),
        ('{"duration_seconds": 1e3}', 1000),
        ('{"duration_seconds": [12345678901234567890123]}', [12345678901234567890123]),
        ('{"duration_seconds": null}', None),
        ("{}", 5.25),
        ("[]", 5.25),
        ('"text"', 5.25),
        ("null", 5.25),
        (None, 5.25),
        # What orjson can read and json cannot, and what neither can.
        (f'{{"more": {"[" * 1010}{"]" * 1010}}}', 5.25),
        (f'{{"duration_seconds": 5.25, "more": {"[" * 1500}{"]" * 1500}}}', 5.25),
    ],
)
def test_numbers_are_read_exactly_whatever_the_metadata_are(
    opened: MakePersistence, base: Path, migrated_url: str, metadata: str | None, expected: object
) -> None:
    persistence = opened(base, url=migrated_url)
    persistence.log_task_execution("a", True, "done", 5.25)
    query(migrated_url, "UPDATE scheduler_runs SET metadata_json = %s::jsonb", [metadata])
    (entry,) = persistence.get_task_history("a")
    assert json.dumps(entry["duration_seconds"]) == json.dumps(expected)
    assert (entry["task_id"], entry["task_name"], entry["message"]) == ("a", "", "done")
