"""What tests/property/test_model.py found: sequences in which something acknowledged was lost."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from datahound_storage.errors import FileStoreError
from datahound_storage.files import atomic
from tests.fix_persistence import MakePersistence
from tests.property.faults import KILL_AFTER, NO_ANSWER, Crash, Effects, Fault, install
from tests.scheduler import OldCode, make_task


def test_old_code_takes_back_what_was_written_last(
    opened: MakePersistence, base: Path, migrated_url: str
) -> None:
    persistence = opened(base, url=migrated_url)
    persistence.add_task(make_task("kept"))
    persistence.add_task(make_task("deleted"))
    persistence.close()
    # The file is what it was before the last write, to the byte.
    OldCode(base).save(OldCode(base).load()[:1])
    assert opened(base, url=migrated_url).load_tasks() == [make_task("kept")]


def test_a_meeting_whose_snapshot_could_not_be_written_is_repeated(
    opened: MakePersistence, base: Path, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    persistence = opened(base, url=migrated_url)
    OldCode(base).save([make_task("added in the files")])

    def fail(path: Path, content: bytes) -> atomic.Signature:
        raise FileStoreError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "prepare", fail)
        assert persistence.add_task(make_task("added meanwhile"))
    assert persistence.add_task(make_task("added later"))
    assert persistence.health().store == "database"
    assert OldCode(base).load() == persistence.load_tasks()
    assert len(OldCode(base).load()) == 3


@pytest.mark.parametrize("method", ["update_task", "save_tasks"])
def test_an_answer_that_gets_lost_makes_a_run_count_once(
    opened: MakePersistence,
    base: Path,
    migrated_url: str,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    effects = Effects(lambda: None)
    install(effects, monkeypatch)
    persistence = opened(base, url=migrated_url)
    persistence.add_task(make_task("a"))
    task = persistence.load_tasks()[0]
    for number in range(25):
        task["run_count"] += 1
        given = task if method == "update_task" else [task]
        with effects.during(Fault(NO_ANSWER, number)):
            assert getattr(persistence, method)(given)
        assert persistence.get_task("a")["run_count"] == number + 1


@pytest.mark.parametrize("writer", ["old code", "this package"])
def test_a_change_that_a_crash_kept_from_the_snapshot_is_not_taken_for_seen(
    opened: MakePersistence,
    base: Path,
    migrated_url: str,
    monkeypatch: pytest.MonkeyPatch,
    writer: str,
) -> None:
    effects = Effects(lambda: None)
    install(effects, monkeypatch)
    opened(base, url=migrated_url).add_task(make_task("a"))
    for number in range(12):
        persistence = opened(base, url=migrated_url)
        with psycopg.connect(migrated_url) as connection:
            name = f'{{"name": "sql {number}"}}'
            connection.execute("UPDATE scheduler_tasks SET config_json = config_json || %s", [name])
        with effects.during(Fault(KILL_AFTER, number)), suppress(Crash):
            persistence.load_tasks()
        persistence.close()
        if writer == "old code":
            OldCode(base).save([{**OldCode(base).load()[0], "description": f"file {number}"}])
        else:
            files = opened(base)
            task = files.load_tasks()[0]
            task["description"] = f"file {number}"
            assert files.update_task(task)
        persistence = opened(base, url=migrated_url)
        [task] = persistence.load_tasks()
        with psycopg.connect(migrated_url) as connection:
            rows = connection.execute("SELECT lost_text FROM scheduler_conflicts").fetchall()
        kept = f"{task} {rows}"
        assert f"sql {number}" in kept, number
        assert f"file {number}" in kept, number
        persistence.close()
