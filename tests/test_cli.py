"""The command line: what it prints, and every exit code."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from click.testing import CliRunner, Result

from datahound_storage import __version__
from datahound_storage.cli import COMMANDS, cli
from datahound_storage.cli.output import printable
from datahound_storage.migrations import downgrade, upgrade
from datahound_storage.migrations.state import revisions
from tests.fix_cli import DEAD_URL, URL, failed
from tests.fix_persistence import MakePersistence
from tests.migrations.support import make_newer
from tests.scheduler import EXAMPLES, make_task

HEAD = revisions()[-1]

SCRIPT = Path(sys.executable).with_name("datahound-storage")

Run = Callable[..., Result]


@pytest.fixture
def run(base: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in the base directory, beside the sample's files."""
    shutil.copytree(EXAMPLES / "data", base / "data")
    shutil.copytree(EXAMPLES / "logging", base / "logging")
    monkeypatch.chdir(base)

    def run(*arguments: str, url: str | None = None) -> Result:
        # The command may set variables: they end with the test.
        monkeypatch.setenv("DATAHOUND_DATA_DIR", "data")
        env = {} if url is None else {URL: url}
        return CliRunner(env=env).invoke(cli, arguments)

    return run


def sql(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


# All commands.


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_every_command_explains_itself(run: Run, command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    for option in ("--url", "--data-dir", "--json"):
        assert option in result.stdout
    assert "Exit code" in result.stdout
    assert command in run("--help").stdout


@pytest.mark.parametrize("command", ["upgrade", "status", "verify", "reconcile", "conflicts"])
@pytest.mark.parametrize("url", ["mysql://user:hush@host/x", "postgresql://user:hu/sh@host:x/y"])
def test_a_url_that_cannot_be_used_is_an_error(run: Run, command: str, url: str) -> None:
    failed(run(command, url=url), URL)
    failed(run(command, "--url", url), "--url")


@pytest.mark.parametrize("command", ["upgrade", "verify", "reconcile"])
def test_a_command_on_the_database_needs_a_url(run: Run, command: str) -> None:
    failed(run(command), "neither DATAHOUND_STORAGE_URL nor DATABASE_URL is set")
    failed(run(command, url=" "), "DATAHOUND_STORAGE_URL is empty")
    failed(run(command, "--url", ""), "--url is empty")


def test_an_empty_url_is_not_called_unset(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "")
    told = "neither DATAHOUND_STORAGE_URL nor DATABASE_URL is set to a URL"
    assert told in run("status").stdout
    failed(run("verify"), told)


@pytest.mark.parametrize("command", ["upgrade", "verify", "reconcile"])
def test_a_command_on_the_database_needs_a_server(run: Run, command: str) -> None:
    failed(run(command, url=DEAD_URL), "127.0.0.1:1/nowhere", "Check that the server runs")


def test_a_wrong_option_is_an_error(run: Run) -> None:
    result = run("verify", "--unknown")
    assert result.exit_code == 2
    assert "--unknown" in result.stderr


# The console script.


def script(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *arguments],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


def test_the_console_script_knows_its_version() -> None:
    done = script("--version")
    assert done.returncode == 0
    assert done.stdout.strip() == f"datahound-storage, version {__version__}"


def test_the_console_script_ends_without_a_traceback() -> None:
    done = script("verify", DATAHOUND_STORAGE_URL="nonsense")
    assert done.returncode == 2
    assert done.stderr.startswith("error: DATAHOUND_STORAGE_URL")
    assert "Traceback" not in done.stderr


def test_the_module_is_the_console_script() -> None:
    command = [sys.executable, "-m", "datahound_storage.cli", "--version"]
    assert subprocess.check_output(command, text=True) == script("--version").stdout


def test_a_terminal_that_cannot_show_a_name_gets_an_escape(run: Run, base: Path) -> None:
    path = base / "logging/scheduler/task_history.jsonl"
    lines = path.read_text().splitlines()
    path.write_text(lines[-1].replace("Historical", "\\u4e2d\\ud800\\u001b[31m") + "\n")
    done = script("status", "--data-dir", str(base / "data"), PYTHONIOENCODING="latin-1")
    assert done.returncode == 0
    assert "\\u4e2d\\ud800\\x1b[31m Event Scan" in done.stdout


def test_tables_are_drawn_on_a_terminal_only(run: Run, base: Path) -> None:
    arguments = ["status", "--data-dir", str(base / "data")]
    leader, follower = pty.openpty()
    with os.fdopen(leader, "rb", buffering=0) as terminal:
        subprocess.run([SCRIPT, *arguments], stdout=follower, check=True, env=_terminal())
        os.close(follower)
        drawn = _read_all(terminal.fileno())
    assert "┃" in drawn
    assert "┃" not in script(*arguments).stdout


def _terminal() -> dict[str, str]:
    return {**os.environ, "TERM": "xterm", "COLUMNS": "120", "PYTHONIOENCODING": "utf-8"}


def _read_all(descriptor: int) -> str:
    content = b""
    while True:
        try:
            piece = os.read(descriptor, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        if not piece:
            break
        content += piece
    return content.decode()


# upgrade


def test_upgrade_makes_the_tables_and_imports_the_files(run: Run, database_url: str) -> None:
    result = run("upgrade", url=database_url)
    assert result.exit_code == 0, result.output
    assert f"upgraded from no tables to revision {HEAD}" in result.stdout
    assert "The tables hold 40 tasks and 1,500 runs." in result.stdout
    assert sql(database_url, "SELECT count(*) FROM scheduler_tasks") == [(40,)]


def test_upgrade_has_nothing_to_do_at_head(run: Run, migrated_url: str) -> None:
    result = run("upgrade", url=migrated_url)
    assert result.exit_code == 0
    assert f"the schema is at revision {HEAD}, the newest: nothing to do." in result.stdout
    assert "The tables hold 0 tasks and 0 runs." in result.stdout


def test_upgrade_at_head_tells_what_brings_the_files_in(
    run: Run, migrated_url: str, base: Path
) -> None:
    result = run("upgrade", url=migrated_url)
    last = result.stdout.splitlines()[-1]
    assert last.startswith("The files were not imported: files are imported only where this run")
    assert f"carries over what {base}/data holds; to do it now: `datahound-storage rec" in last
    assert json.loads(run("upgrade", "--json", url=migrated_url).stdout)["note"] == last
    assert run("reconcile", url=migrated_url).exit_code == 0
    assert sql(migrated_url, "SELECT count(*) FROM scheduler_tasks") == [(40,)]
    result = run("upgrade", url=migrated_url)
    assert result.stdout.splitlines()[-1] == "The tables hold 40 tasks and 1,500 runs."


@pytest.mark.parametrize("revision", ["head", "0001", HEAD])
def test_upgrade_refuses_files_that_it_would_not_import(
    run: Run, migrated_url: str, base: Path, revision: str
) -> None:
    files = {"--snapshot": base / "data/scheduler/scheduled_tasks.json"}
    files["--history"] = base / "logging/scheduler/task_history.jsonl"
    given = [str(word) for pair in files.items() for word in pair]
    if revision == "0001":
        downgrade(migrated_url, "base")
    result = run("upgrade", "--revision", revision, *given, url=migrated_url)
    failed(result, "--snapshot and --history would have no effect", "`datahound-storage reconcile`")
    for path in files.values():
        assert str(path) in result.stderr
    result = run("upgrade", "--revision", revision, *given[2:], url=migrated_url)
    failed(result, "error: --history would have no effect")


def test_upgrade_with_files_can_be_repeated(run: Run, database_url: str, base: Path) -> None:
    arguments = ("upgrade", "--snapshot", str(base / "data/scheduler/scheduled_tasks.json"))
    assert "had no effect" not in run(*arguments, url=database_url).stdout
    result = run(*arguments, url=database_url)
    assert result.exit_code == 0
    assert "--snapshot had no effect: the tables were filled before.\n" in result.stdout


def test_upgrade_asks_about_files_that_are_not_there(
    run: Run, database_url: str, base: Path
) -> None:
    path = base / "data/scheduler/scheduled_tasks.json"
    path.unlink()
    result = run("upgrade", url=database_url)
    assert f"No tasks were imported: there is no {path}." in result.stdout


def test_upgrade_with_options_that_exclude_each_other(run: Run, database_url: str) -> None:
    path = "data/scheduler/scheduled_tasks.json"
    result = run("upgrade", "--no-import", "--snapshot", path, url=database_url)
    assert result.exit_code == 2
    assert "--no-import excludes" in result.stderr


def test_upgrade_stops_where_it_is_told_and_goes_on(run: Run, database_url: str) -> None:
    first = run("upgrade", "--revision", "0001", url=database_url)
    assert "to revision 0001" in first.stdout
    assert "not imported: that is what revision 0003 does" in first.stdout
    assert "at revision 0001 already: nothing to do" in (
        run("upgrade", "--revision", "0001", url=database_url).stdout
    )
    result = run("upgrade", "--json", url=database_url)
    done = {"from": "0001", "to": HEAD, "tasks": 40, "runs": 1500, "note": None}
    assert json.loads(result.stdout) == done


def test_upgrade_makes_the_tables_only(run: Run, database_url: str) -> None:
    result = run("upgrade", "--no-import", "--json", url=database_url)
    note = "The files were not imported, as --no-import says."
    done = {"from": None, "to": HEAD, "tasks": 0, "runs": 0, "note": note}
    assert json.loads(result.stdout) == done


def test_upgrade_imports_the_given_files(run: Run, database_url: str, tmp_path: Path) -> None:
    snapshot, history = tmp_path / "tasks.json", tmp_path / "runs.jsonl"
    snapshot.write_text(json.dumps([make_task("only")]))
    history.write_text('{"timestamp": "2026-01-01T00:00:00+00:00", "task_id": "only"}\n')
    files = ("--snapshot", str(snapshot), "--history", str(history))
    result = run("upgrade", *files, "--json", url=database_url)
    done = {"from": None, "to": HEAD, "tasks": 1, "runs": 1, "note": None}
    assert json.loads(result.stdout) == done
    assert sql(database_url, "SELECT task_key FROM scheduler_tasks") == [("only",)]


def test_upgrade_imports_from_the_given_directory_and_no_other(
    run: Run, database_url: str, tmp_path: Path
) -> None:
    other = tmp_path / "other" / "data"
    (other / "scheduler").mkdir(parents=True)
    result = run("upgrade", "--data-dir", str(other), "--json", url=database_url)
    done = json.loads(result.stdout)
    assert (done["tasks"], done["runs"]) == (0, 0)
    assert f"there is no {other}/scheduler/scheduled_tasks.json" in done["note"]


def test_upgrade_leaves_out_what_is_faulty_if_it_may(
    run: Run, database_url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    snapshot = tmp_path / "tasks.json"
    snapshot.write_text(json.dumps([make_task("good"), {"task_id": 7}]))
    arguments = ("upgrade", "--snapshot", str(snapshot), "--json")
    stopped = run(*arguments, url=database_url)
    assert stopped.exit_code == 2
    assert "item 2 (line 1) needs a task_id" in stopped.stderr
    assert "run `datahound-storage upgrade --on-error quarantine`, which lists" in stopped.stderr
    assert "the tables stand at revision 0002" in stopped.stderr
    assert "--snapshot PATH and --history PATH name other files, --no-import" in stopped.stderr
    assert "-x " not in stopped.stderr
    result = run(*arguments, "--on-error", "quarantine", url=database_url)
    assert json.loads(result.stdout)["tasks"] == 1
    said = result.stderr + capfd.readouterr().err
    assert "left out: " in said
    assert "imported 1 task and 1,500 runs, left out 1 task and 0 lines of the history" in said


def test_upgrade_counts_the_tasks_that_a_torn_item_costs(
    run: Run, database_url: str, base: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = base / "data/scheduler/scheduled_tasks.json"
    first, *middle, last = path.read_text().split("\n  {")
    middle[19] = middle[19][:60]
    path.write_text("\n  {".join([first, *middle, last]))
    result = run("upgrade", "--on-error", "quarantine", url=database_url)
    said = result.stderr + capfd.readouterr().err
    assert "imported 19 tasks and 1,500 runs, left out 21 tasks and 0 lines of the history" in said
    assert "The tables hold 19 tasks and 1,500 runs." in result.stdout


def test_upgrade_stops_at_a_bad_snapshot(run: Run, database_url: str, base: Path) -> None:
    (base / "data/scheduler/scheduled_tasks.json").write_text('[{"task_id": "a"}, {"settings": "hu')
    result = run("upgrade", url=database_url)
    assert result.exit_code == 2
    assert "scheduled_tasks.json: item 2 (line 1) is torn" in result.stderr
    assert sql(database_url, "SELECT count(*) FROM scheduler_tasks") == [(0,)]


def test_upgrade_refuses_a_newer_schema(run: Run, migrated_url: str) -> None:
    make_newer(migrated_url, breaking=True)
    failed(run("upgrade", url=migrated_url), "9999", "pip install --upgrade")


# status


def test_status_without_a_url(run: Run) -> None:
    result = run("status")
    assert result.exit_code == 0
    assert "JSON files\n" in result.stdout
    assert "neither DATAHOUND_STORAGE_URL nor DATABASE_URL is set" in result.stdout
    assert "40 tasks (25 active" in result.stdout
    assert "1,500 runs" in result.stdout
    assert result.stdout.count("2026-11-06T") == 5


@pytest.mark.parametrize("with_database", [True, False])
def test_status_counts_tasks_and_runs_that_lack_something(
    run: Run, base: Path, migrated_url: str, opened: MakePersistence, with_database: bool
) -> None:
    url = migrated_url if with_database else None
    tasks = [{"task_id": "a"}, {"task_id": "b", "status": None}, make_task("c")]
    (base / "data/scheduler/scheduled_tasks.json").write_text(json.dumps(tasks))
    line = {"timestamp": "2026-11-07T00:00:00+00:00", "task_id": "a", "message": None}
    line |= {"task_name": None, "task_type": None, "success": True, "duration_seconds": None}
    with (base / "logging/scheduler/task_history.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    if with_database:
        opened(base, url=url)
    result = run("status", url=url)
    assert result.exit_code == 0
    assert "3 tasks (2 without a status, 1 active)" in result.stdout
    assert "None" not in result.stdout
    assert "  2026-11-07T00:00:00  a " in result.stdout
    found = json.loads(run("status", "--json", url=url).stdout)
    assert found["tasks"] == {"without a status": 2, "active": 1}


def test_status_of_somebody_who_rolled_back(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", DEAD_URL)
    result = run("status", "--json", url="")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert (found["store"], found["reason"]) == ("files", "DATAHOUND_STORAGE_URL is empty")


def test_status_with_a_database_at_head(
    run: Run, migrated_url: str, base: Path, opened: MakePersistence
) -> None:
    opened(base, url=migrated_url)
    result = run("status", "--json", url=migrated_url)
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert (found["store"], found["serves"]) == ("database", True)
    assert found["schema"] == {"state": "current", "found": HEAD, "head": HEAD}
    assert found["tasks"] == {"active": 25, "paused": 6, "error": 5, "disabled": 4}
    assert found["runs"] == 1500
    assert found["snapshot"]["ours"] is True
    assert len(found["last_runs"]) == 5


def test_status_shows_what_the_database_holds(
    run: Run, migrated_url: str, base: Path, opened: MakePersistence
) -> None:
    persistence = opened(base, url=migrated_url)
    persistence.log_task_execution("key", False, "no answer " * 20, 2.5, "Nightly", "download")
    result = run("status", url=migrated_url)
    name = urlsplit(migrated_url).path
    assert f"{name})\n" in result.stdout.splitlines(keepends=True)[0]
    assert "as this package wrote it" in result.stdout
    newest = result.stdout.split("MESSAGE\n")[1].splitlines()[0]
    assert newest.split()[1:5] == ["Nightly", "download", "FAILED", "2.5"]
    assert newest.endswith("...")


def test_status_sees_that_somebody_changed_the_snapshot(
    run: Run, migrated_url: str, base: Path, opened: MakePersistence
) -> None:
    opened(base, url=migrated_url)
    path = base / "data/scheduler/scheduled_tasks.json"
    path.write_text(path.read_text() + "\n")
    assert "changed since it was last equal" in run("status", url=migrated_url).stdout


def test_status_before_the_first_upgrade(
    run: Run, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run("status", url=database_url)
    assert result.exit_code == 0
    assert "the start upgrades the schema" in result.stdout
    monkeypatch.setenv("DATAHOUND_STORAGE_AUTO_UPGRADE", "off")
    result = run("status", url=database_url)
    assert result.exit_code == 1
    assert "AS THE DATABASE CANNOT SERVE" in result.stdout
    assert "run `datahound-storage upgrade`" in result.stdout


def test_status_behind_head(run: Run, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    upgrade(database_url, import_files=False)
    downgrade(database_url, "0001")
    assert run("status", url=database_url).exit_code == 0
    monkeypatch.setenv("DATAHOUND_STORAGE_AUTO_UPGRADE", "off")
    result = run("status", "--json", url=database_url)
    assert result.exit_code == 1
    assert json.loads(result.stdout)["schema"]["state"] == "behind"


def test_status_with_a_newer_schema(run: Run, migrated_url: str) -> None:
    make_newer(migrated_url, breaking=True)
    result = run("status", url=migrated_url)
    assert result.exit_code == 1
    assert "pip install --upgrade" in result.stdout


def test_a_newer_schema_that_can_be_used(run: Run, migrated_url: str) -> None:
    assert run("upgrade", url=migrated_url).exit_code == 0
    make_newer(migrated_url, breaking=False)
    result = run("status", "--json", url=migrated_url)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["schema"]["state"] == "ahead"
    # An older release that is deployed again has nothing to upgrade, and goes on.
    result = run("upgrade", url=migrated_url)
    assert result.exit_code == 0
    assert "nothing to do: the schema is at revision 9999, which this version does not" in (
        result.stdout
    )
    assert "but can use: update this package in due course" in result.stdout
    result = run("upgrade", "--revision", "0001", url=migrated_url)
    failed(result, "9999", "pip install --upgrade")


def test_status_without_a_server(run: Run) -> None:
    result = run("status", url=DEAD_URL)
    assert result.exit_code == 1
    assert "cannot connect to 127.0.0.1:1/nowhere" in result.stdout
    assert "40 tasks" in result.stdout
    assert "hush" not in result.output


def test_status_with_a_read_only_server(run: Run, migrated_url: str) -> None:
    separator = "&" if urlsplit(migrated_url).query else "?"
    url = f"{migrated_url}{separator}options=-cdefault_transaction_read_only%3Don"
    result = run("status", url=url)
    assert result.exit_code == 1
    assert "read-only" in result.stdout


def test_status_with_another_database_than_the_snapshot_shows(
    run: Run, migrated_url: str, base: Path, opened: MakePersistence
) -> None:
    opened(base, url=migrated_url).add_task(make_task("a"))
    sql(migrated_url, "UPDATE scheduler_storage SET identity = gen_random_uuid()")
    sql(migrated_url, "UPDATE scheduler_tasks SET status = 'paused'")
    result = run("status", url=migrated_url)
    assert result.exit_code == 1
    assert "another database" in result.stdout
    assert "datahound-storage reconcile --dry-run" in result.stdout


def test_status_with_a_database_that_is_older_than_the_snapshot(
    run: Run, migrated_url: str, base: Path, opened: MakePersistence
) -> None:
    opened(base, url=migrated_url)
    path = base / "data/scheduler/.scheduled_tasks.state.json"
    text = path.read_text()
    watermark = json.loads(text)["watermark"]
    later = ":".join(str(int(part) + 10**6) for part in watermark.split(":")[:2])
    shown = json.loads(text)["shown_us"]
    text = text.replace(f'"{watermark}"', f'"{later}:"')
    path.write_text(text.replace(f'"shown_us":{shown}', f'"shown_us":{shown + 10**9}'))
    result = run("status", url=migrated_url)
    assert result.exit_code == 1
    assert "older than what the snapshot shows" in result.stdout
    assert "datahound-storage reconcile --dry-run" in result.stdout


def damage_told(result: Result) -> dict[str, str]:
    """What `status` says of a damaged snapshot, by its headings."""
    assert "DAMAGED (see below)" in result.stdout
    assert "written it yet" not in result.stdout
    told = result.stdout.split("\n\nThe snapshot is damaged\n")[1].splitlines()
    lines = (line.strip().partition(":") for line in told)
    return {name: text.strip() for name, _, text in lines}


def test_status_names_what_is_damaged_what_would_be_used_and_what_to_do(
    run: Run, base: Path
) -> None:
    path = base / "data/scheduler/scheduled_tasks.json"
    path.write_text(path.read_text()[:-3])
    result = run("status")
    assert result.exit_code == 0
    told = damage_told(result)
    assert told["damaged"].startswith("item 40")
    assert told["used"] == "the 39 tasks that can be read, and nothing else"
    assert "scheduled_tasks.json.damaged-TIME" in told["kept"]
    assert told["to do"].startswith("mend the file before a process writes")
    told = damage_told(run("status", url=DEAD_URL))
    assert told["used"] == "the 39 tasks that can be read, and nothing else"
    assert "let the database serve" in told["to do"]


def test_status_with_a_damaged_snapshot_and_a_database(
    run: Run, migrated_url: str, base: Path, opened: MakePersistence
) -> None:
    opened(base, url=migrated_url)
    path = base / "data/scheduler/scheduled_tasks.json"
    path.write_text(path.read_text()[:-3])
    told = damage_told(run("status", url=migrated_url))
    assert told["used"].startswith("the database, and what the 39 tasks that can be read add")
    assert "that the database lacks" in told["to do"]


def test_status_with_a_snapshot_that_cannot_be_read(run: Run, base: Path) -> None:
    path = base / "data/scheduler/scheduled_tasks.json"
    path.unlink()
    assert "missing\n" in run("status").stdout
    path.mkdir()
    failed(run("status"), "scheduled_tasks.json")


def test_status_asks_about_a_data_directory_that_is_not_there(run: Run, tmp_path: Path) -> None:
    result = run("status", "--data-dir", str(tmp_path / "no such"))
    assert result.exit_code == 0  # the first start makes it
    assert "is the --data-dir right?" in result.stdout


# verify


def test_verify_equal(run: Run, database_url: str) -> None:
    assert run("upgrade", url=database_url).exit_code == 0
    result = run("verify", url=database_url)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "database: 40 tasks, 1,500 runs",
        "files:    40 tasks, 1,500 runs",
        "equal",
    ]
    assert json.loads(run("verify", "--json", url=database_url).stdout)["equal"] is True


def test_verify_different(run: Run, database_url: str, base: Path) -> None:
    run("upgrade", url=database_url)
    path = base / "data/scheduler/scheduled_tasks.json"
    tasks = json.loads(path.read_text())
    for task in tasks[:3]:
        task["task_config"]["settings"] = {"password": "hush"}
    path.write_text(json.dumps(tasks, indent=2))
    result = run("verify", "--limit", "2", url=database_url)
    assert result.exit_code == 1
    assert result.stdout.count("task_config") == 2
    assert "and 1 more" in result.stdout
    assert result.stdout.splitlines()[-2:] == [
        "DIFFERENT: 3 differences",
        "what a start would carry over: datahound-storage reconcile --dry-run",
    ]
    assert "hush" not in result.output
    result = run("verify", "--json", url=database_url)
    assert result.exit_code == 1
    assert len(json.loads(result.stdout)["tasks_different"]) == 3


def test_verify_names_the_tasks_that_an_import_left_out(
    run: Run, database_url: str, base: Path, opened: MakePersistence
) -> None:
    path = base / "data/scheduler/scheduled_tasks.json"
    first, *middle, last = path.read_text().split("\n  {")
    middle[19] = middle[19][:60]
    path.write_text("\n  {".join([first, *middle, last]))
    assert run("upgrade", "--on-error", "quarantine", url=database_url).exit_code == 0
    result = run("verify", "--limit", "50", url=database_url)
    assert result.exit_code == 1
    assert result.stdout.count("only in scheduled_tasks.json, unread") == 21
    # The start keeps the damaged file aside, and writes one that shows what the database has.
    opened(base, url=database_url).load_tasks()
    result = run("verify", "--limit", "50", url=database_url)
    assert result.exit_code == 1
    assert "equal" not in result.stdout
    assert result.stdout.count("only in scheduled_tasks.json.damaged-") == 21
    assert "DIFFERENT: 21 differences\ntasks in a damaged file only: mend" in result.stdout
    assert "a start would carry over" not in result.stdout
    kept = next(path.parent.glob("*.damaged-*"))
    found = json.loads(run("verify", "--json", url=database_url).stdout)
    assert {task["file"] for task in found["tasks_unread"]} == {kept.name}
    kept.unlink()
    assert run("verify", url=database_url).stdout.endswith("\nequal\n")


def test_verify_forgets_what_a_damaged_file_names_once_it_was_in_the_database(
    run: Run, migrated_url: str, base: Path, opened: MakePersistence
) -> None:
    persistence = opened(base, url=migrated_url)
    path = base / "data/scheduler/scheduled_tasks.json"
    path.with_name(f"{path.name}.damaged-by-hand").write_bytes(path.read_bytes()[:-5] + b"\xff")
    assert persistence.delete_task(persistence.load_tasks()[3]["task_id"])
    assert run("verify", url=migrated_url).stdout.endswith("\nequal\n")


def test_verify_names_the_choice_where_the_sides_do_not_belong_together(
    run: Run, migrated_url: str, base: Path, opened: MakePersistence
) -> None:
    opened(base, url=migrated_url).add_task(make_task("a"))
    sql(migrated_url, "UPDATE scheduler_storage SET identity = gen_random_uuid()")
    sql(migrated_url, "UPDATE scheduler_tasks SET status = 'paused'")
    result = run("verify", url=migrated_url)
    assert result.exit_code == 1
    step = result.stdout.splitlines()[-1]
    assert step.startswith("another database wrote the snapshot than the one that the URL leads to")
    assert "datahound-storage reconcile --keep both|files|database (with --dry-run:" in step
    assert "a start would carry over" not in result.stdout
    assert run("reconcile", "--keep", "both", "--dry-run", url=migrated_url).exit_code == 0


def test_verify_notes_what_makes_no_difference(run: Run, database_url: str, base: Path) -> None:
    run("upgrade", url=database_url)
    with (base / "logging/scheduler/task_history.jsonl").open("a") as file:
        file.write("torn\n")
    result = run("verify", url=database_url)
    assert result.exit_code == 0
    assert "1 line that cannot be read" in result.stdout


def test_verify_without_tables(run: Run, database_url: str) -> None:
    failed(run("verify", url=database_url), "run `datahound-storage upgrade`")


def test_verify_with_a_newer_schema(run: Run, migrated_url: str) -> None:
    make_newer(migrated_url, breaking=True)
    failed(run("verify", url=migrated_url), "9999", "pip install --upgrade")


def test_verify_without_files(run: Run, migrated_url: str, tmp_path: Path) -> None:
    result = run("verify", "--data-dir", str(tmp_path / "nowhere"), url=migrated_url)
    failed(result, "nowhere/scheduler", "--data-dir")
    assert not (tmp_path / "nowhere").exists()


def test_verify_with_an_unreadable_snapshot(run: Run, migrated_url: str, base: Path) -> None:
    path = base / "data/scheduler/scheduled_tasks.json"
    path.unlink()
    path.mkdir()
    failed(run("verify", url=migrated_url), "scheduled_tasks.json")


def test_printable_leaves_letters_alone() -> None:
    assert printable("Café 中 [red]") == "Café 中 [red]"
    assert printable("\x1b]0;\r\n\x00") == "\\x1b]0;\\r\\n\\x00"


def test_status_with_a_schema_that_does_not_exist(run: Run, database_url: str) -> None:
    separator = "&" if "?" in database_url else "?"
    result = run("status", url=f"{database_url}{separator}options=-csearch_path%3Dnowhere")
    assert result.exit_code == 1
    assert "create the schema" in " ".join(result.output.split())


def test_status_with_a_role_that_may_not_create(run: Run, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE ROLE datahound_status_reader")
    separator = "&" if "?" in database_url else "?"
    try:
        result = run(
            "status", url=f"{database_url}{separator}options=-crole%3Ddatahound_status_reader"
        )
    finally:
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("DROP ROLE datahound_status_reader")
    assert result.exit_code == 1
    assert "GRANT CREATE" in result.output


def test_upgrade_with_a_file_that_does_not_exist(run: Run, migrated_url: str) -> None:
    result = run("upgrade", "--snapshot", "none.json", url=migrated_url)
    assert result.exit_code == 2
    assert "none.json" in result.output
