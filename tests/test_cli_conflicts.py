"""`conflicts` on the command line: the table's and the file's, with every exit code."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import Result

from datahound_storage.cli.kept import differences
from datahound_storage.files import conflicts
from datahound_storage.writes import Conflict
from tests import situations
from tests.fix_cli import DEAD_URL, Call, failed
from tests.fix_persistence import MakePersistence
from tests.migrations.support import make_newer
from tests.scheduler import OldCode, make_task
from tests.situations import Installation

SECRET = {"task_type": "download", "company": "Acme", "settings": {"depth": 2, "key": "hush"}}


def in_table(mine: Installation) -> None:
    """Two writers, one of them the old code: the operator's half of a task lost twice."""
    situations.yesterday(mine)
    for name in ("first", "second"):
        old = OldCode(mine.base)
        tasks = old.load()
        tasks[1] |= {"name": name, "task_config": SECRET}
        old.save(tasks)
        mine.sql(f"UPDATE scheduler_tasks SET company = 'not {name}' WHERE task_key = 'edited'")
        mine.open().close()


def in_file(mine: Installation, opened: MakePersistence) -> None:
    """Two writers while the files are the only store: the same field, three times."""
    one = opened(mine.base)
    one.add_task(make_task("shared", task_config=SECRET))
    for number in range(3):
        other = one.get_task("shared")
        mine_now = one.get_task("shared")
        assert one.update_task({**other, "name": f"other {number}"})
        mine_now["name"] = f"mine {number}"
        assert one.update_task(mine_now)


def listed(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    assert "hush" not in result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)["conflicts"]
    return found


def ids(result: Result) -> list[str]:
    return [kept["id"] for kept in listed(result)]


def unknown(result: Result, wanted: str) -> None:
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: there is no conflict '{wanted}'")


def test_none_are_kept(call: Call, mine: Installation) -> None:
    result = call("conflicts", url=mine.url)
    assert (result.exit_code, result.stdout) == (0, "0 conflicts kept\n")
    mine.paths.scheduler_dir.mkdir(parents=True)
    result = call("conflicts")
    assert result.exit_code == 0
    assert result.stdout.endswith("0 conflicts kept\n")


def test_those_in_the_table_are_listed(call: Call, mine: Installation) -> None:
    in_table(mine)
    first, second = listed(call("conflicts", "--json", url=mine.url))
    assert (first["task_key"], first["half"], first["kept"]) == ("edited", "operator", "database")
    assert "changed on both sides" in first["reason"]
    assert first["noticed_at"] < second["noticed_at"]
    result = call("conflicts", url=mine.url)
    assert "2 conflicts kept" in result.stdout
    row = next(line.split() for line in result.stdout.splitlines() if "edited" in line)
    assert row[:4] == [first["id"], "edited", "operator", "database"]
    assert "hush" not in result.output
    assert call("conflicts", "--task", "kept", url=mine.url).stdout == "0 conflicts kept\n"
    assert len(listed(call("conflicts", "--task", "edited", "--json", url=mine.url))) == 2


def test_those_in_the_file_are_listed(
    call: Call, mine: Installation, opened: MakePersistence
) -> None:
    in_file(mine, opened)
    result = call("conflicts", "--json")
    assert ids(result) == ["f1", "f2", "f3"]
    assert "neither" in json.loads(result.stdout)["problem"]
    result = call("conflicts")
    assert result.stdout.startswith("only those in the file; the table is not read: no database")
    assert "hush" not in result.output
    result = call("conflicts", url=DEAD_URL)
    assert result.exit_code == 0
    assert "the table is not read: cannot connect to 127.0.0.1:1/nowhere" in result.stdout
    assert "3 conflicts kept" in result.stdout
    assert "hush" not in result.output


def test_table_and_file_together(call: Call, mine: Installation, opened: MakePersistence) -> None:
    in_table(mine)
    in_file(mine, opened)
    result = call("conflicts", "--json", url=mine.url)
    assert json.loads(result.stdout)["problem"] is None
    one, two, *files = ids(result)
    assert files == ["f1", "f2", "f3"]
    forgotten = call("conflicts", "--forget", two, "--forget", "f2", url=mine.url)
    assert forgotten.exit_code == 0
    assert forgotten.stdout.startswith("2 conflicts forgotten\n")
    assert ids(call("conflicts", "--json", url=mine.url)) == [one, "f1", "f3"]


def test_a_schema_that_does_not_fit_is_a_table_that_is_not_read(
    call: Call, mine: Installation, opened: MakePersistence
) -> None:
    in_file(mine, opened)
    make_newer(mine.url, breaking=True)
    result = call("conflicts", url=mine.url)
    assert result.exit_code == 0
    assert "the table is not read: the schema is at revision 9999" in result.stdout


def test_one_is_shown_with_its_settings_and_what_differs(call: Call, mine: Installation) -> None:
    in_table(mine)
    kept = ids(call("conflicts", "--json", url=mine.url))[0]
    shown = json.loads(call("conflicts", "--show", kept, "--json", url=mine.url).stdout)
    assert (shown["id"], shown["lost"]["name"]) == (kept, "first")
    assert shown["lost"]["task_config"] == SECRET
    assert shown["stored"]["task_config"]["company"] == "not second"
    differing = {d.pop("field"): d for d in shown["differences"]}
    assert differing["name"] == {"half": "operator", "lost": "first", "stored": "Task edited"}
    assert differing["task_config.settings.depth"] == {"half": "operator", "lost": 2, "stored": 1}
    assert differing["task_config.settings.key"] == {"half": "operator", "lost": "hush"}
    assert "run_count" not in differing
    result = call("conflicts", "--show", kept, url=mine.url)
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["task_config.settings.key", "operator", '"hush"', "(none)"] in rows
    assert ["half:", "operator"] in rows
    text = result.stdout.split("\n\nThe version that lost\n")[1]
    assert json.loads(text) == shown["lost"]


def test_one_of_the_file_is_shown_beside_the_snapshots_task(
    call: Call, mine: Installation, opened: MakePersistence
) -> None:
    in_file(mine, opened)
    shown = json.loads(call("conflicts", "--show", "f1", "--json").stdout)
    assert (shown["lost"]["name"], shown["stored"]["name"]) == ("other 0", "mine 2")
    assert opened(mine.base).delete_task("shared")
    result = call("conflicts", "--show", "f1")
    assert result.exit_code == 0
    assert "\n\nThe task is not stored any more.\n" in result.stdout
    assert json.loads(call("conflicts", "--show", "f1", "--json").stdout)["stored"] is None


def test_forgetting_can_be_tried_first(
    call: Call, mine: Installation, opened: MakePersistence
) -> None:
    in_table(mine)
    in_file(mine, opened)
    one = ids(call("conflicts", "--json", url=mine.url))[0]
    before = mine.fingerprint()
    arguments = ["conflicts", "--forget", one, "--forget", "f1", "--dry-run"]
    result = call(*arguments, url=mine.url)
    assert result.stdout.startswith("2 conflicts would be forgotten\n")
    assert len(json.loads(call(*arguments, "--json", url=mine.url).stdout)["forgotten"]) == 2
    assert "hush" not in result.output
    assert mine.fingerprint() == before


def test_the_ids_of_the_file_stay_when_one_is_forgotten(
    call: Call, mine: Installation, opened: MakePersistence
) -> None:
    in_file(mine, opened)
    assert call("conflicts", "--forget", "f1").exit_code == 0
    unknown(call("conflicts", "--forget", "f1"), "f1")
    assert ids(call("conflicts", "--json")) == ["f2", "f3"]
    shown = json.loads(call("conflicts", "--show", "f2", "--json").stdout)
    assert shown["lost"]["name"] == "other 1"


def test_an_unknown_id_changes_nothing(
    call: Call, mine: Installation, opened: MakePersistence
) -> None:
    in_table(mine)
    in_file(mine, opened)
    one = ids(call("conflicts", "--json", url=mine.url))[0]
    before = mine.fingerprint()
    for wanted in ("99999", "f9", "0" + one, "9" * 30, "x", ""):
        unknown(call("conflicts", "--show", wanted, url=mine.url), wanted)
        known = ["--forget", one, "--forget", "f1"]
        unknown(call("conflicts", *known, "--forget", wanted, url=mine.url), wanted)
    assert mine.fingerprint() == before
    unknown(call("conflicts", "--show", "f9"), "f9")


def test_an_id_of_the_table_needs_the_database(call: Call, mine: Installation) -> None:
    mine.paths.scheduler_dir.mkdir(parents=True)
    failed(call("conflicts", "--show", "1", url=DEAD_URL), "cannot connect to 127.0.0.1:1")
    failed(call("conflicts", "--forget", "1"), "no database: neither")


def test_without_files_and_without_a_database(call: Call, mine: Installation) -> None:
    failed(call("conflicts"), "there is no directory", "--data-dir")
    failed(call("conflicts", url=DEAD_URL), "there is no directory")
    mine.paths.conflicts_file.mkdir(parents=True)
    failed(call("conflicts"), ".scheduled_tasks.conflicts.jsonl")


@pytest.mark.parametrize(
    "arguments",
    [["--dry-run"], ["--show", "1", "--forget", "1"], ["--task", "a", "--forget", "1"]],
)
def test_options_that_do_not_fit_together(
    call: Call, mine: Installation, arguments: list[str]
) -> None:
    result = call("conflicts", *arguments, url=mine.url)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


def test_differences_tell_types_and_absent_fields_apart() -> None:
    lost = {"a": 1, "b": None, "c": {"x": [1]}, "status": "paused", "run_count": 2}
    stored = {"a": 1.0, "c": {"x": [1], "y": {}}, "status": "active", "run_count": 2}
    found = {d.field: (d.half, d.values) for d in differences(lost, stored)}
    assert found == {
        "a": ("operator", {"lost": 1, "stored": 1.0}),
        "b": ("operator", {"lost": None}),
        "c.y": ("operator", {"stored": {}}),
        "status": ("operator", {"lost": "paused", "stored": "active"}),
    }
    assert differences(stored, stored) == []


def test_a_terminal_gets_no_control_characters(
    call: Call, mine: Installation, opened: MakePersistence
) -> None:
    in_file(mine, opened)
    noted = conflicts.read(mine.paths.conflicts_file)[0].conflict
    bad = Conflict("\x1b[31mkey", "operator", "later", noted.lost_text, "\x1b]0;")
    conflicts.append(mine.paths.conflicts_file, [bad])
    for arguments in ([], ["--show", "f4"]):
        assert "\x1b" not in call("conflicts", *arguments).stdout
