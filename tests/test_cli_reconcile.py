"""`reconcile` on the command line: what it prints, its exit codes, and what it changes."""

from __future__ import annotations

import json
import logging
import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from datahound_storage.files import conflicts
from datahound_storage.migrations import downgrade
from datahound_storage.writes import Conflict
from tests import situations
from tests.fix_cli import DEAD_URL, Call, failed
from tests.fix_persistence import MakePersistence
from tests.scheduler import OldCode, make_task
from tests.servers import TestServer
from tests.situations import RESULTS, Installation


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """The command keeps the library's messages off the terminal, in its own process only."""
    logger = logging.getLogger("datahound_storage")
    before = list(logger.handlers)
    yield
    logger.handlers[:] = before


def rolled_back(mine: Installation) -> None:
    """Old code deleted a task and added one, with a secret; an operator renamed another one."""
    situations.yesterday(mine)
    old = OldCode(mine.base)
    tasks = [task for task in old.load() if task["task_id"] != "kept"]
    config = {"task_type": "download", "company": "Acme", "settings": {"api_key": "hush"}}
    tasks.append(make_task("added", task_config=config))
    tasks[0]["name"] = "in the files"
    old.save(tasks)
    mine.sql("UPDATE scheduler_tasks SET company = 'Bolt' WHERE task_key = 'edited'")


def value(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_nothing_to_do(call: Call, mine: Installation) -> None:
    situations.yesterday(mine)
    for arguments in ([], ["--dry-run"], ["--keep", "files"]):
        result = call("reconcile", *arguments, url=mine.url)
        assert result.exit_code == 0, result.output
        assert result.stdout == "nothing to do: files and database show the same\n"
    assert value(call("reconcile", "--json", url=mine.url))["nothing_to_do"] is True


def test_the_plan_and_then_the_deed(call: Call, mine: Installation) -> None:
    rolled_back(mine)
    before = mine.fingerprint()
    planned = call("reconcile", "--dry-run", url=mine.url)
    plan = value(call("reconcile", "--dry-run", "--json", url=mine.url))
    assert mine.fingerprint() == before
    assert planned.exit_code == 0
    first, *told = planned.stdout.splitlines()
    assert first == "This would be done:"
    assert [" ".join(line.split()) for line in told[:3]] == [
        "database: 1 task written, 1 task deleted",
        "files: 1 task written to the snapshot",
        "kept as conflicts: 1 version",
    ]
    done = call("reconcile", url=mine.url)
    assert done.exit_code == 0
    assert done.stdout.splitlines() == ["Done:", *(x.replace("would be ", "") for x in told)]
    assert [" ".join(line.split()) for line in told[-3:]] == [
        "added would be written to the database",
        "kept would be deleted in the database",
        "edited would be written to the snapshot; would be kept as a conflict: changed on both "
        "sides; the newer change was kept",
    ]
    assert "hush" not in planned.output + done.output
    assert (plan["done"], plan["nothing_to_do"], plan["lost"]) == (False, False, ["edited"])
    assert (plan["to_database"], plan["deleted_in_database"]) == (["added"], ["kept"])
    assert mine.lost() == [("edited", "in the files")]
    mine.require_equal()


def test_an_emptied_list_is_summed_up_and_each_task_named_once(
    call: Call, mine: Installation
) -> None:
    situations.yesterday(mine)
    OldCode(mine.base).save([])
    for arguments, words in ((["--dry-run"], "would be deleted"), ([], "were deleted")):
        result = call("reconcile", *arguments, url=mine.url)
        summary = f"  ALL 3 tasks of the database {words}, as none of them is in the files; "
        assert summary + "to bring them back: `datahound-storage conflicts --rest" in result.stdout
        assert "was deleted" not in result.stdout
        for key in ("kept", "edited", "deleted"):
            table = result.stdout.partition("\nTasks\n")[2]
            rows = [line for line in table.splitlines() if line.split()[:1] == [key]]
            assert f"task '{key}'" not in result.stdout
            assert len(rows) == 1
            assert "kept as a conflict: missing from the files, with all other tasks" in rows[0]
    assert len(mine.lost()) == 3


def test_the_plan_for_the_task_that_was_added_last(call: Call, mine: Installation) -> None:
    situations.yesterday(mine)
    old = OldCode(mine.base)
    old.save([task for task in old.load() if task["task_id"] != "deleted"])
    plan = value(call("reconcile", "--dry-run", "--json", url=mine.url))
    assert (plan["deleted_in_database"], plan["lost"]) == (["deleted"], [])
    assert call("reconcile", url=mine.url).exit_code == 0
    assert mine.lost() == []


def test_what_is_told_of_a_task_is_in_its_row(call: Call, mine: Installation) -> None:
    situations.yesterday(mine)
    old = OldCode(mine.base)
    tasks = [task for task in old.load() if task["task_id"] != "edited"]
    tasks[0]["name"] = "in the files"
    old.save(tasks)
    mine.sql("DELETE FROM scheduler_tasks WHERE task_key = 'kept'")
    mine.sql("UPDATE scheduler_tasks SET company = 'Bolt' WHERE task_key = 'edited'")
    result = call("reconcile", "--dry-run", url=mine.url)
    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert (
        "kept would be written to the database; was deleted in the database but edited in the "
        "files: it is kept"
    ) in rows
    assert (
        "edited would be written to the snapshot; was deleted in the files but edited in the "
        "database: it is kept"
    ) in rows


def test_json_says_what_was_done(call: Call, mine: Installation) -> None:
    rolled_back(mine)
    plan = value(call("reconcile", "--dry-run", "--json", url=mine.url))
    result = call("reconcile", "--json", url=mine.url)
    assert result.exit_code == 0
    assert value(result) == {**plan, "done": True}
    assert "hush" not in result.output
    mine.require_equal()


def test_only_so_many_tasks_are_shown(call: Call, mine: Installation) -> None:
    OldCode(mine.base).save([make_task(f"task {n}") for n in range(9)])
    result = call("reconcile", "--limit", "2", url=mine.url)
    assert result.stdout.count("written to the database") == 2
    assert "and 7 more" in result.stdout


def test_a_damaged_snapshot_is_told(call: Call, mine: Installation) -> None:
    situations.yesterday(mine)
    file = mine.paths.tasks_file
    file.write_text(file.read_text()[:-5])
    result = call("reconcile", "--dry-run", url=mine.url)
    assert "damaged: item 3" in result.stdout
    assert ".damaged-TIME" in result.stdout
    assert value(call("reconcile", "--dry-run", "--json", url=mine.url))["damage"]
    assert call("reconcile", url=mine.url).exit_code == 0
    mine.require_equal()


@pytest.mark.parametrize("keep", ["files", "database", "both"])
def test_a_choice_is_needed_and_carried_out(
    call: Call, mine: Installation, tmp_path: Path, keep: str
) -> None:
    situations.restored(mine, tmp_path)
    before = mine.fingerprint()
    for arguments in ([], ["--dry-run"]):
        refused = call("reconcile", *arguments, url=mine.url)
        assert refused.exit_code == 1, refused.output
        assert refused.stderr.startswith("error: the database is older than what ")
        assert refused.stderr.count("\n") == 1
        for choice in ("both", "files", "database"):
            assert f"--keep {choice}" in refused.stderr
            assert f"\n\n--keep {choice}: " in refused.stdout
    shown = value(call("reconcile", "--json", url=mine.url))
    plan = value(call("reconcile", "--keep", keep, "--dry-run", "--json", url=mine.url))
    assert mine.fingerprint() == before
    assert (shown["done"], shown["sides"]["tasks_in_files"]) == (False, 3)
    assert {name: plan[name] for name in shown["choices"][keep]} == shown["choices"][keep]
    result = call("reconcile", "--keep", keep, "--json", url=mine.url)
    assert result.exit_code == 0
    assert value(result) == {**plan, "done": True}
    assert mine.names() == RESULTS[keep][0]
    assert mine.lost() == RESULTS[keep][1]
    mine.require_equal()


def test_both_sides_are_shown(call: Call, mine: Installation, server: TestServer) -> None:
    situations.yesterday(mine)
    copy = Installation(mine.base, server.create_database(mine.url))
    try:
        situations.today(mine)
        shown = call("reconcile", url=copy.url).stdout
        sides = value(call("reconcile", "--json", url=copy.url))["sides"]
    finally:
        server.drop_database(copy.url)
    rows = [line.split() for line in shown.splitlines()]
    assert ["tasks", "3", "3"] in rows
    assert ["only", "here", "1", "1"] in rows
    assert ["different", "1", "1"] in rows
    (identity,) = mine.sql("SELECT identity::text FROM scheduler_storage")[0]
    assert ["database", identity, identity] in rows
    assert sides["database_newest"] < sides["files_show"]
    assert sides["files_newest"][:19] in shown


def test_files_that_are_not_whole_cannot_be_chosen(
    call: Call, mine: Installation, tmp_path: Path
) -> None:
    situations.restored(mine, tmp_path)
    file = mine.paths.tasks_file
    file.write_text(file.read_text()[:-5])
    before = mine.fingerprint()
    failed(call("reconcile", "--keep", "files", url=mine.url), "missing or damaged", "both")
    refused = call("reconcile", url=mine.url)
    assert refused.exit_code == 1
    assert "cannot be done" in refused.stdout
    assert "damaged" in value(call("reconcile", "--json", url=mine.url))["choices"]["files"]
    assert mine.fingerprint() == before


def test_it_needs_a_directory_a_server_and_a_schema(call: Call, mine: Installation) -> None:
    failed(call("reconcile", url=mine.url), "there is no directory", "--data-dir")
    assert not mine.base.exists()
    situations.yesterday(mine)
    failed(call("reconcile", url=DEAD_URL), "127.0.0.1:1/nowhere", "Check that the server runs")
    failed(call("reconcile"), "neither DATAHOUND_STORAGE_URL nor DATABASE_URL is set")
    downgrade(mine.url, "0002")
    failed(call("reconcile", url=mine.url), "run `datahound-storage upgrade`")
    assert mine.sql("SELECT version_num FROM datahound_storage_version") == [("0002",)]


@pytest.mark.parametrize("arguments", [[], ["--dry-run"], ["--keep", "both"]])
def test_a_standby_is_refused(call: Call, mine: Installation, arguments: list[str]) -> None:
    situations.yesterday(mine)
    separator = "&" if "?" in mine.url else "?"
    url = f"{mine.url}{separator}options=-cdefault_transaction_read_only%3Don"
    failed(call("reconcile", *arguments, url=url), "standby or read-only")


def test_what_root_does_leaves_the_files_to_the_schedulers_user(
    call: Call, mine: Installation, opened: MakePersistence
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to act for another user")
    situations.yesterday(mine)
    user = pwd.getpwnam("nobody")
    for path in [mine.base, *mine.base.rglob("*")]:
        os.chown(path, user.pw_uid, user.pw_gid)
    mine.paths.lock_file.unlink()
    mine.paths.sidecar_file.unlink()
    files = opened(mine.base)
    files.add_task(make_task("new"))
    lost = Conflict("new", "operator", "later", '{"task_id": "new"}', "a test")
    conflicts.append(mine.paths.conflicts_file, [lost])
    assert call("conflicts", "--forget", "f1").exit_code == 0
    assert call("reconcile", url=mine.url).exit_code == 0
    made = [path for path in mine.base.rglob("*") if path.is_file()]
    assert mine.paths.sidecar_file in made
    assert {path.name: path.owner() for path in made} == {path.name: "nobody" for path in made}


def test_a_snapshot_that_cannot_be_read(call: Call, mine: Installation) -> None:
    mine.paths.tasks_file.mkdir(parents=True)
    failed(call("reconcile", url=mine.url), "scheduled_tasks.json")
