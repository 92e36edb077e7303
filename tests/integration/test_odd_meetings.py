"""Meetings with what an editor, old code that cannot read, or a poor role leave."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.fault.test_lost_answers import no_room_for_snapshots
from tests.fix_persistence import MakePersistence
from tests.migrations.support import with_user
from tests.scheduler import OldCode, make_task


@pytest.mark.parametrize("ended", [True, False])
def test_an_editor_takes_back_what_was_written_last(
    opened: MakePersistence, base: Path, migrated_url: str, ended: bool
) -> None:
    """By replacing the file by a copy from before it: all that was changed since is taken back."""
    here = opened(base, url=migrated_url)
    for key in "ab":
        assert here.add_task(make_task(key))
    copy = here.tasks_file.read_bytes()
    assert here.update_task({**here.get_task("b"), "name": "changed"})
    assert here.delete_task("a")
    if ended:
        here.close()
    replace_by_another_file(here.tasks_file, copy)
    if ended:
        here = opened(base, url=migrated_url)
    assert {task["task_id"]: task["name"] for task in here.load_tasks()} == {
        "a": "Task a",
        "b": "Task b",
    }


def replace_by_another_file(path: Path, content: bytes) -> None:
    """As `mv` does. The blank makes it another content than that of the snapshot before."""
    new = path.with_name("new")
    new.write_bytes(content + b"\n")
    os.replace(new, path)


@pytest.mark.parametrize("number", [1, 2])
def test_what_old_code_empties_is_kept(
    opened: MakePersistence, base: Path, migrated_url: str, number: int
) -> None:
    """It takes a file that it cannot read for an empty one, and adds a task."""
    here = opened(base, url=migrated_url)
    for key in ["a", "b"][:number]:
        assert here.add_task(make_task(key))
    here.close()
    OldCode(base).save([make_task("new")])
    here = opened(base, url=migrated_url)
    assert [task["task_id"] for task in here.load_tasks()] == ["new"]
    with psycopg.connect(migrated_url) as connection:
        kept = connection.execute("SELECT task_key, half FROM scheduler_conflicts").fetchall()
    assert sorted(kept) == [("a", "task"), ("b", "task")][:number]


def test_a_damaged_snapshot_is_kept_aside_once(
    opened: MakePersistence, base: Path, migrated_url: str
) -> None:
    here = opened(base, url=migrated_url)
    assert here.add_task(make_task("a"))
    here.tasks_file.write_text("[{")
    with no_room_for_snapshots():
        for _ in range(3):
            here.load_tasks()
    assert len(list(here.tasks_file.parent.glob("*.damaged-*"))) == 1


def test_a_start_needs_one_connection(
    opened: MakePersistence, base: Path, migrated_url: str, own_role: str
) -> None:
    """What a meeting looks up belongs to its transaction."""
    (base / "data/scheduler").mkdir(parents=True)
    OldCode(base).save([make_task("a")])
    here = opened(base, url=own_role)
    assert here.health().store == "database"
    assert [task["task_id"] for task in here.load_tasks()] == ["a"]
    here.close()


@pytest.fixture
def own_role(migrated_url: str) -> Iterator[str]:
    """A URL with a role that may have a single connection."""
    name = f"datahound_test_{secrets.token_hex(8)}"
    with psycopg.connect(migrated_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{name}' CONNECTION LIMIT 1")
        connection.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}")
        connection.execute(f"GRANT EXECUTE ON FUNCTION pg_control_system() TO {name}")
        try:
            yield with_user(migrated_url, name, name)
        finally:
            connection.execute(f"DROP OWNED BY {name}")
            connection.execute(f"DROP ROLE {name}")


def test_what_many_deletions_are_told_in_is_bounded(
    opened: MakePersistence, base: Path, migrated_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    here = opened(base, url=migrated_url)
    assert here.save_tasks([make_task(f"t{number:02}") for number in range(50)])
    here.close()
    OldCode(base).save([])
    here = opened(base, url=migrated_url)
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 22
    assert told[-2].startswith("30 more like these")
    assert told[-1].endswith("0 tasks written, 50 tasks deleted")
