"""`conflicts --restore`: kept versions become tasks again, in either store, and nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from datahound_storage.cli.kept import Places
from datahound_storage.errors import DatabaseUnavailableError
from datahound_storage.files import conflicts
from datahound_storage.writes import Conflict
from tests import situations
from tests.fix_cli import DEAD_URL, Call, failed
from tests.fix_persistence import MakePersistence
from tests.scheduler import OldCode, make_task
from tests.situations import Installation
from tests.test_cli_conflicts import ids, in_file, in_table, unknown


def emptied(mine: Installation, count: int) -> list[dict[str, Any]]:
    """Old code takes its file for an empty one, and a start carries that over."""
    persistence = mine.open()
    for number in range(count):
        assert persistence.add_task(make_task(f"task {number}"))
    before: list[dict[str, Any]] = persistence.load_tasks()
    persistence.close()
    OldCode(mine.base).save([])
    persistence = mine.open()
    assert persistence.load_tasks() == []
    persistence.close()
    return before


def restored(result: Result) -> dict[str, str]:
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["done"] is True
    return {row["id"]: row["what"] for row in found["restored"]}


def without_time(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**task, "updated_at": None} for task in tasks]


def test_an_emptied_list_is_brought_back_in_bulk(call: Call, mine: Installation) -> None:
    before = emptied(mine, 30)
    kept = ids(call("conflicts", "--json", url=mine.url))
    result = call("conflicts", "--restore", *kept, url=mine.url)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("30 versions restored in the database\n")
    assert result.stdout.count("was gone, and is there again") == 30
    persistence = mine.open()
    after: list[dict[str, Any]] = persistence.load_tasks()
    persistence.close()
    assert without_time(after) == without_time(before)
    assert all(a["updated_at"] > b["updated_at"] for a, b in zip(after, before, strict=True))
    assert ids(call("conflicts", "--json", url=mine.url)) == []
    mine.require_equal()


def test_the_half_that_lost_comes_back_and_what_it_replaces_is_kept(
    call: Call, mine: Installation
) -> None:
    in_table(mine)
    mine.sql("UPDATE scheduler_tasks SET status = 'error' WHERE task_key = 'edited'")
    first, second = ids(call("conflicts", "--json", url=mine.url))
    arguments = ("conflicts", "--restore", first, "--json")
    assert restored(call(*arguments, url=mine.url)) == {first: "replaced"}
    persistence = mine.open()
    task = persistence.get_task("edited")
    persistence.close()
    assert task is not None
    assert (task["name"], task["task_config"]["settings"]["key"]) == ("first", "hush")
    assert task["status"] == "error"  # the scheduler's half stays
    left = json.loads(call("conflicts", "--json", url=mine.url).stdout)["conflicts"]
    assert (left[0]["id"], left[0]["kept"]) == (second, "database")
    assert (left[1]["half"], left[1]["kept"]) == ("operator", "later")
    assert f"conflict {first}, which was restored" in left[1]["reason"]
    mine.require_equal()
    # And back again.
    assert call("conflicts", "--restore", left[1]["id"], url=mine.url).exit_code == 0
    assert mine.names()["edited"] == "Task edited"
    mine.require_equal()


def test_the_schedulers_half_comes_back(
    call: Call, mine: Installation, opened: MakePersistence
) -> None:
    one = opened(mine.base)
    one.add_task(make_task("a", run_count=5))
    lost = json.dumps({**(one.get_task("a") or {}), "run_count": 9, "name": "not this"})
    conflicts.append(
        mine.paths.conflicts_file, [Conflict("a", "scheduler", "later", lost, "a test")]
    )
    assert restored(call("conflicts", "--restore", "f1", "--json")) == {"f1": "replaced"}
    task = one.get_task("a") or {}
    assert (task["run_count"], task["name"]) == (9, "Task a")


def test_in_the_files_what_is_replaced_is_kept_in_the_file(
    call: Call, mine: Installation, opened: MakePersistence
) -> None:
    in_file(mine, opened)
    result = call("conflicts", "--restore", "f2")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("1 version restored in the JSON files\n")
    assert "what stood there is kept as a conflict" in result.stdout
    assert "hush" not in result.output
    assert mine.names() == {"shared": "other 1"}
    assert ids(call("conflicts", "--json")) == ["f1", "f3", "f4"]
    shown = json.loads(call("conflicts", "--show", "f4", "--json").stdout)
    assert (shown["lost"]["name"], shown["stored"]["name"]) == ("mine 2", "other 1")


def test_in_the_files_a_deleted_task_comes_back(
    call: Call, mine: Installation, opened: MakePersistence
) -> None:
    one, two = opened(mine.base), opened(mine.base)
    for key in ("a", "b"):
        one.add_task(make_task(key))
    tasks = one.load_tasks()
    assert two.delete_task("a")
    tasks[0]["name"] = "an edit"
    one.save_tasks(tasks)
    assert list(mine.names()) == ["b"]
    # With a database that does not serve the files are the store, too.
    result = call("conflicts", "--restore", "f1", "--json", url=DEAD_URL)
    assert restored(result) == {"f1": "added"}
    assert mine.names() == {"b": "Task b", "a": "an edit"}
    assert ids(call("conflicts", "--json")) == []


def test_what_the_file_keeps_goes_to_the_database_that_serves(
    call: Call, mine: Installation, opened: MakePersistence
) -> None:
    in_file(mine, opened)
    result = call("conflicts", "--restore", "f1", "--json", url=mine.url)
    assert json.loads(result.stdout)["store"] == "database"
    assert restored(result) == {"f1": "replaced"}
    assert mine.names() == {"shared": "other 0"}
    assert mine.lost() == [("shared", "mine 2")]
    assert ids(call("conflicts", "--json")) == ["f2", "f3"]
    mine.require_equal()


def test_both_halves_of_a_task_can_come_back_at_once(
    call: Call, mine: Installation, opened: MakePersistence
) -> None:
    one = opened(mine.base)
    one.add_task(make_task("a", run_count=5))
    text = json.dumps({**(one.get_task("a") or {}), "run_count": 9, "name": "lost"})
    lost = [Conflict("a", half, "later", text, "a test") for half in ("operator", "scheduler")]
    conflicts.append(mine.paths.conflicts_file, lost)
    assert len(restored(call("conflicts", "--restore", "f1", "f2", "--json"))) == 2
    task = one.get_task("a") or {}
    assert (task["run_count"], task["name"]) == (9, "lost")
    for kept in conflicts.read(mine.paths.conflicts_file):
        assert json.loads(kept.conflict.lost_text)["name"] == "Task a"


def test_two_versions_of_a_task_are_refused(
    call: Call, mine: Installation, opened: MakePersistence
) -> None:
    in_file(mine, opened)
    before = mine.fingerprint()
    for arguments in (["--restore", "f1", "f3"], ["--restore", "f1", "--restore", "f3"]):
        result = call("conflicts", *arguments)
        failed(result, "conflicts f1, f3 are versions of the same task 'shared'", "--show ID")
    unknown(call("conflicts", "--restore", "f1", "f9"), "f9")
    failed(call("conflicts", "--restore", "1", "f1"), "conflict '1' would be in the table")
    assert mine.fingerprint() == before


def test_it_can_be_tried_first(call: Call, mine: Installation, opened: MakePersistence) -> None:
    in_table(mine)
    in_file(mine, opened)
    one = ids(call("conflicts", "--json", url=mine.url))[0]
    before = mine.fingerprint()
    arguments = ("conflicts", "--restore", one, "f1", "--dry-run")
    result = call(*arguments, url=mine.url)
    assert result.stdout.startswith("2 versions would be restored in the database\n")
    assert "what stands there would be kept as a conflict\n" in result.stdout
    assert "is gone, and would be there again\n" in result.stdout
    found = json.loads(call(*arguments, "--json", url=mine.url).stdout)
    assert found["done"] is False
    assert [row["what"] for row in found["restored"]] == ["replaced", "added"]
    assert "hush" not in result.output
    assert mine.fingerprint() == before


def test_sides_that_do_not_belong_together_are_left_alone(
    call: Call, mine: Installation, tmp_path: Path
) -> None:
    in_table(mine)
    one = ids(call("conflicts", "--json", url=mine.url))[0]
    mine.sql("UPDATE scheduler_storage SET identity = gen_random_uuid()")
    mine.sql("UPDATE scheduler_tasks SET company = 'another' WHERE task_key = 'edited'")
    before = mine.fingerprint()
    result = call("conflicts", "--restore", one, url=mine.url)
    failed(result, "shows the tasks of another database", "reconcile --keep", "was restored")
    assert mine.fingerprint() == before


def test_a_crash_before_they_are_forgotten_keeps_them_once_too_often(
    call: Call, mine: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied(mine, 2)
    kept = ids(call("conflicts", "--json", url=mine.url))

    def crash(*_: Any) -> None:
        raise DatabaseUnavailableError("crashed")

    with monkeypatch.context() as patched:
        patched.setattr(Places, "forget", crash)
        result = call("conflicts", "--restore", *kept, url=mine.url)
        failed(result, "are tasks again, in the database, but are still listed", "crashed")
    assert set(mine.names()) == {"task 0", "task 1"}
    assert ids(call("conflicts", "--json", url=mine.url)) == kept
    before = mine.sql("SELECT task_text, changed_xid::text FROM scheduler_tasks")
    result = call("conflicts", "--restore", *kept, "--json", url=mine.url)
    assert set(restored(result).values()) == {"the same"}
    assert mine.sql("SELECT task_text, changed_xid::text FROM scheduler_tasks") == before
    assert ids(call("conflicts", "--json", url=mine.url)) == []
    mine.require_equal()


@pytest.mark.parametrize("text", ["{torn", "7", '{"task_id": ""}'])
def test_what_is_no_task_is_refused(
    call: Call, mine: Installation, opened: MakePersistence, text: str
) -> None:
    in_file(mine, opened)
    conflicts.append(mine.paths.conflicts_file, [Conflict("x", "task", "later", text, "a test")])
    before = mine.fingerprint()
    failed(call("conflicts", "--restore", "f1", "f4"), "conflict f4 holds no task")
    assert mine.fingerprint() == before


def test_odd_values_come_back_as_they_were(
    call: Call, mine: Installation, opened: MakePersistence
) -> None:
    opened(mine.base).add_task(make_task("b"))
    text = '{"task_id": "a", "x": NaN, "status": "odd", "big": 12345678901234567890123}'
    conflicts.append(mine.paths.conflicts_file, [Conflict("a", "task", "later", text, "a test")])
    assert restored(call("conflicts", "--restore", "f1", "--json")) == {"f1": "added"}
    after = json.loads(mine.paths.tasks_file.read_text())[1]
    assert after.pop("updated_at")
    assert repr(after) == repr(json.loads(text))


@pytest.mark.parametrize(
    "arguments",
    [["f1"], ["--show", "f1", "f2"], ["--restore", "f1", "--forget", "f2"], ["--task", "a", "b"]],
)
def test_ids_belong_to_an_option(call: Call, mine: Installation, arguments: list[str]) -> None:
    result = call("conflicts", *arguments, url=mine.url)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


def test_several_can_be_forgotten_with_one_option(
    call: Call, mine: Installation, opened: MakePersistence
) -> None:
    in_file(mine, opened)
    assert call("conflicts", "--forget", "f1", "f3").stdout.startswith("2 conflicts forgotten\n")
    assert ids(call("conflicts", "--json")) == ["f2"]


def test_a_running_process_sees_it(call: Call, mine: Installation) -> None:
    situations.yesterday(mine)
    OldCode(mine.base).save([])
    running = mine.open()
    assert running.load_tasks() == []
    kept = ids(call("conflicts", "--json", url=mine.url))
    assert call("conflicts", "--restore", *kept, url=mine.url).exit_code == 0
    assert len(running.load_tasks()) == 3
    running.close()
