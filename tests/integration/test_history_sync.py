"""Table and history file get what only the other one has, whatever happens meanwhile."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from datahound_storage.dal import StorageDAL
from datahound_storage.files import history
from datahound_storage.files.paths import StatePaths
from datahound_storage.history_sync import sync_history, sync_last_runs
from datahound_storage.runs import identify, new_entry, row_of
from tests.migrations.support import query, value

NOW = datetime.now(UTC)
COUNT = "SELECT count(*) FROM scheduler_runs"


def line(name: str, days_ago: float = 1, **changes: object) -> str:
    """A line of a run with its name for an id."""
    entry = new_entry("a", True, name, 1.5, "Task", "download")
    time = (NOW - timedelta(days=days_ago)).isoformat()
    return json.dumps(entry | {"timestamp": time, "run_id": name} | changes)


def unnamed(text: str) -> str:
    return json.dumps({k: v for k, v in json.loads(text).items() if k != "run_id"})


def write(path: Path, *lines: str) -> None:
    path.write_text("".join(f"{text}\n" for text in lines))


def store(dal: StorageDAL, *lines: str) -> None:
    dal.add_runs(map(row_of, identify(lines)))


def stored(url: str) -> list[str]:
    return [name for (name,) in query(url, "SELECT run_id FROM scheduler_runs ORDER BY seq")]


def test_each_side_gets_what_only_the_other_has(
    dal: StorageDAL, paths: StatePaths, migrated_url: str
) -> None:
    both = [line(f"both {n}") for n in range(3)]
    write(paths.history_file, line("file 1"), *both, line("file 2"))
    store(dal, line("table 2", 1), *both, line("table 1", 2))
    sync_history(dal, paths, 5)
    assert stored(migrated_url)[-2:] == ["file 1", "file 2"]
    messages = [json.loads(text)["message"] for text in history.texts(paths.history_file)]
    assert messages == ["file 1", "both 0", "both 1", "both 2", "file 2", "table 1", "table 2"]
    before = paths.history_file.read_bytes()
    mark = sync_history(dal, paths, 5)
    assert (paths.history_file.read_bytes(), value(migrated_url, COUNT)) == (before, 7)
    assert mark == history.mark(paths.history_file)


def test_lines_without_ids_are_numbered_as_they_are_elsewhere(
    dal: StorageDAL, paths: StatePaths, migrated_url: str
) -> None:
    """Among equal ones of their file: what was copied to the other file is the same run."""
    one, two = unnamed(line("1")), unnamed(line("2"))
    odd = one.replace('": ', '":')
    write(paths.legacy_history_file, one, two, one)
    write(paths.history_file, one, odd, one, line("named"), one)
    expected = {found.run_id for found in history.lines(paths.history_files)}
    sync_history(dal, paths, 5)
    assert set(stored(migrated_url)) == expected
    assert len(expected) == 6
    before = paths.history_file.read_bytes()
    sync_history(dal, paths, 5)
    assert (paths.history_file.read_bytes(), value(migrated_url, COUNT)) == (before, 6)


@pytest.mark.parametrize("name", ["tab\there", "back\\slash", "\\N", "line\nend\r", "日本", '"'])
def test_any_id_can_be_compared(
    dal: StorageDAL, paths: StatePaths, migrated_url: str, name: str
) -> None:
    write(paths.history_file, line(name), line("other"))
    for _ in range(2):
        sync_history(dal, paths, 5)
        assert stored(migrated_url) == [name, "other"]
    assert len(list(history.texts(paths.history_file))) == 2


def test_what_is_no_line_is_passed_over(
    dal: StorageDAL, paths: StatePaths, migrated_url: str
) -> None:
    good = [line("1").encode(), line("2").encode() + b"\r", b"  " + line("3").encode()]
    bad = [b"{torn", b"\x00" * 30, b"\xff\xfe", b"", b"[1]"]
    torn = line("4")[:-1].encode()
    paths.history_file.write_bytes(b"\n".join([bad[0], good[0], *bad[1:], *good[1:], torn]))
    mark = sync_history(dal, paths, 5)
    assert stored(migrated_url) == ["1", "2", "3"]
    # The torn one may be in the middle of being written.
    with paths.history_file.open("a") as file:
        file.write("}\n")
    sync_last_runs(dal, paths, mark)
    assert stored(migrated_url) == ["1", "2", "3", "4"]


@pytest.mark.parametrize("named", [True, False])
def test_a_last_line_without_its_end_counts(
    dal: StorageDAL, paths: StatePaths, migrated_url: str, named: bool
) -> None:
    last = line("last") if named else unnamed(line("last"))
    paths.history_file.write_text(f"{line('first')}\n{last}")
    store(dal, line("table"))
    sync_history(dal, paths, 5)
    assert value(migrated_url, COUNT) == 3
    assert [json.loads(t)["message"] for t in history.texts(paths.history_file)] == [
        "first",
        "last",
        "table",
    ]
    sync_history(dal, paths, 5)
    assert value(migrated_url, COUNT) == 3


def test_what_was_trimmed_is_not_carried_back(
    dal: StorageDAL, paths: StatePaths, migrated_url: str
) -> None:
    write(paths.history_file, line("old", 40), line("new"))
    dal.purge_task_runs(older_than=NOW - timedelta(days=30))
    sync_history(dal, paths, 5)
    assert stored(migrated_url) == ["new"]


def test_a_run_without_an_end_is_in_neither(
    dal: StorageDAL, paths: StatePaths, migrated_url: str
) -> None:
    write(paths.history_file, line("1"))
    query(migrated_url, "INSERT INTO scheduler_runs (id, run_id, task_key, started_at)"
          " VALUES (gen_random_uuid(), 'goes on', 'a', now())")  # fmt: skip
    sync_history(dal, paths, 5)
    assert [json.loads(t)["message"] for t in history.texts(paths.history_file)] == ["1"]
