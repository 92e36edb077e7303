"""First launch, fall-back, roll-back and roll-forward: how files and database meet."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from datahound_storage.errors import FileStoreError, SettingsError
from datahound_storage.migrations import downgrade, upgrade
from datahound_storage.testing import EmbeddedServer
from tests.fix_persistence import MakePersistence
from tests.migrations.support import make_newer
from tests.scheduler import EXAMPLES, OldCode, make_task

Opened = MakePersistence


@pytest.fixture
def sample(base: Path) -> list[dict[str, Any]]:
    """The sample's files in the base directory; returns its tasks."""
    shutil.copytree(EXAMPLES / "data", base / "data")
    shutil.copytree(EXAMPLES / "logging", base / "logging")
    tasks: list[dict[str, Any]] = OldCode(base).load()
    return tasks


@pytest.fixture
def outage(embedded_directory: Path) -> Iterator[EmbeddedServer]:
    """A server of the test's own, that it can stop and start."""
    with EmbeddedServer(embedded_directory, settings={"fsync": "off"}) as server:
        yield server


def count(url: str, table: str) -> int:
    with psycopg.connect(url) as connection:
        query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))
        row = connection.execute(query).fetchone()
        assert row is not None
        return int(row[0])


def test_the_first_launch_makes_the_tables_and_imports_everything(
    opened: Opened, base: Path, database_url: str, sample: list[dict[str, Any]]
) -> None:
    persistence = opened(base, url=database_url)
    assert persistence.health().store == "database"
    assert json.dumps(persistence.load_tasks()) == json.dumps(sample)
    assert count(database_url, "scheduler_tasks") == 40
    assert count(database_url, "scheduler_runs") == 1500


def test_a_second_launch_imports_nothing(
    opened: Opened, base: Path, database_url: str, sample: list[dict[str, Any]]
) -> None:
    opened(base, url=database_url).close()
    before = (base / "data/scheduler/scheduled_tasks.json").read_bytes()
    with psycopg.connect(database_url) as connection:
        stamps = connection.execute("SELECT changed_xid::text FROM scheduler_tasks").fetchall()
    persistence = opened(base, url=database_url)
    assert persistence.load_tasks() == sample
    assert persistence.tasks_file.read_bytes() == before
    with psycopg.connect(database_url) as connection:
        again = connection.execute("SELECT changed_xid::text FROM scheduler_tasks").fetchall()
    assert again == stamps
    assert count(database_url, "scheduler_runs") == 1500


def test_alembic_first_and_then_the_first_launch(
    opened: Opened, base: Path, database_url: str, sample: list[dict[str, Any]]
) -> None:
    tasks_file = base / "data/scheduler/scheduled_tasks.json"
    history = base / "logging/scheduler/task_history.jsonl"
    before = tasks_file.read_bytes(), history.read_bytes()
    upgrade(database_url, x=[f"snapshot={tasks_file}", f"history={history}"])
    persistence = opened(base, url=database_url)
    assert json.dumps(persistence.load_tasks()) == json.dumps(sample)
    assert count(database_url, "scheduler_tasks") == 40
    assert count(database_url, "scheduler_runs") == 1500
    assert (tasks_file.read_bytes(), history.read_bytes()) == before


def test_many_processes_that_start_at_once_import_once(
    base: Path, database_url: str, sample: list[dict[str, Any]]
) -> None:
    code = (
        "import sys; from datahound_storage import SchedulerPersistence\n"
        "p = SchedulerPersistence(sys.argv[1])\n"
        "assert p.health().store == 'database', p.health()\n"
        "assert len(p.load_tasks()) == 40\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(base / "data")],
            env={**os.environ, "DATAHOUND_STORAGE_URL": database_url},
        )
        for _ in range(6)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0] * 6
    assert count(database_url, "scheduler_tasks") == 40
    assert count(database_url, "scheduler_runs") == 1500
    assert OldCode(base).load() == sample


def test_the_environment_turns_the_database_on_and_off(
    opened: Opened, base: Path, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert opened(base).health().store == "files"
    monkeypatch.setenv("DATABASE_URL", f" {migrated_url}\n")
    persistence = opened(base)
    assert persistence.health().store == "database"
    persistence.add_task(make_task("a"))
    persistence.close()
    monkeypatch.setenv("DATAHOUND_STORAGE_URL", "")
    assert opened(base).health().store == "files"
    assert [task["task_id"] for task in opened(base).load_tasks()] == ["a"]


def test_rolled_back_to_the_old_code_for_a_week_and_forward_again(
    opened: Opened, base: Path, migrated_url: str
) -> None:
    persistence = opened(base, url=migrated_url)
    for key in ("kept", "edited", "deleted", "edited in the database"):
        persistence.add_task(make_task(key))
    persistence.close()
    old = OldCode(base)
    tasks = {task["task_id"]: task for task in old.load()}
    del tasks["deleted"]
    tasks["edited"]["name"] = "edited by the old code"
    tasks["added"] = make_task("added")
    old.save(list(tasks.values()))
    with psycopg.connect(migrated_url) as connection:
        connection.execute(
            "UPDATE scheduler_tasks SET company = 'Bolt' WHERE task_key = 'edited in the database'"
        )
    persistence = opened(base, url=migrated_url)
    found = {task["task_id"]: task for task in persistence.load_tasks()}
    assert list(found) == ["kept", "edited", "edited in the database", "added"]
    assert found["edited"]["name"] == "edited by the old code"
    assert found["edited in the database"]["task_config"]["company"] == "Bolt"
    assert old.load() == list(found.values())


def test_both_sides_changed_the_loser_is_kept(
    opened: Opened, base: Path, migrated_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    persistence = opened(base, url=migrated_url)
    persistence.add_task(make_task("a"))
    persistence.close()
    old = OldCode(base)
    old.save([{**old.load()[0], "name": "older, in the files"}])
    with psycopg.connect(migrated_url) as connection:
        connection.execute("UPDATE scheduler_tasks SET company = 'newer, in the database'")
    persistence = opened(base, url=migrated_url)
    task = persistence.load_tasks()[0]
    assert task["name"] == "Task a"
    assert task["task_config"]["company"] == "newer, in the database"
    assert "'a'" in caplog.text
    with psycopg.connect(migrated_url) as connection:
        row = connection.execute(
            "SELECT task_key, half, kept, lost_text FROM scheduler_conflicts"
        ).fetchone()
    assert row is not None
    assert row[:3] == ("a", "operator", "database")
    assert "older, in the files" in row[3]


def test_an_outage_in_the_middle_and_the_way_back(
    opened: Opened, base: Path, outage: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    persistence = opened(base, url=outage.url)
    for key in ("a", "b", "c"):
        persistence.add_task(make_task(key))
    persistence.log_task_execution("a", True, "before")
    outage.stop("immediate")
    assert persistence.update_task(make_task("a", name="during"))
    assert persistence.health().store == "files"
    assert caplog.text.count("going on with the JSON files") == 1
    assert persistence.delete_task("b")
    assert not persistence.add_task(make_task("c"))
    assert persistence.add_task(make_task("d"))
    persistence.log_task_execution("a", False, "during")
    assert [e["message"] for e in persistence.get_task_history("a")] == ["during", "before"]
    outage.start()
    assert persistence.add_task(make_task("e"))
    assert persistence.health().store == "files", "it stays there until the process restarts"
    shown = persistence.load_tasks()
    persistence.close()
    persistence = opened(base, url=outage.url)
    assert persistence.health().store == "database"
    assert persistence.load_tasks() == shown
    assert [task["task_id"] for task in shown] == ["a", "c", "d", "e"]
    assert [e["message"] for e in persistence.get_task_history("a")] == ["during", "before"]
    assert count(outage.url, "scheduler_runs") == 2
    assert len(persistence.history_file.read_text().splitlines()) == 2


def test_a_restart_of_the_server_is_not_an_outage(
    opened: Opened, base: Path, outage: EmbeddedServer
) -> None:
    persistence = opened(base, url=outage.url)
    persistence.add_task(make_task("a"))
    outage.stop()
    outage.start()
    assert persistence.update_task(make_task("a", name="after"))
    persistence.log_task_execution("a", True)
    assert persistence.health().store == "database"


def test_a_start_without_the_server_goes_on_with_the_files(
    opened: Opened, base: Path, outage: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    OldCode(base).tasks_file.parent.mkdir(parents=True)
    OldCode(base).save([make_task("a")])
    outage.stop()
    persistence = opened(base, url=outage.url)
    assert persistence.health().store == "files"
    assert "cannot connect" in caplog.text
    assert persistence.load_tasks() == [make_task("a")]


def test_all_facades_of_a_process_agree(opened: Opened, base: Path, outage: EmbeddedServer) -> None:
    one, two = opened(base, url=outage.url), opened(base, url=outage.url)
    outage.stop("immediate")
    one.add_task(make_task("a"))
    outage.start()
    assert two.health().store == opened(base, url=outage.url).health().store == "files"
    assert two.load_tasks() == [make_task("a")]


def test_trimmed_while_fallen_back_stays_trimmed(
    opened: Opened, base: Path, outage: EmbeddedServer, sample: list[dict[str, Any]]
) -> None:
    persistence = opened(base, url=outage.url)
    outage.stop("immediate")
    assert persistence.clear_old_history(30) > 0
    left = persistence.get_task_history(limit=5000)
    outage.start()
    persistence.close()
    persistence = opened(base, url=outage.url)
    assert persistence.get_task_history(limit=5000) == left
    assert count(outage.url, "scheduler_runs") == len(left)
    assert len(persistence.history_file.read_text().splitlines()) == len(left)


def test_missing_lines_and_rows_are_carried_over(
    opened: Opened, base: Path, migrated_url: str
) -> None:
    persistence = opened(base, url=migrated_url)
    for message in ("both", "no row", "no line"):
        persistence.log_task_execution("a", True, message)
    persistence.close()
    with psycopg.connect(migrated_url) as connection:
        connection.execute("DELETE FROM scheduler_runs WHERE message = 'no row'")
    lines = persistence.history_file.read_text().splitlines(keepends=True)
    persistence.history_file.write_text("".join(lines[:2]))
    found = opened(base, url=migrated_url).get_task_history("a")
    assert [entry["message"] for entry in found] == ["no line", "no row", "both"]
    assert persistence.history_file.read_text() == "".join(lines)
    assert count(migrated_url, "scheduler_runs") == 3


# What goes wrong at a start.


@pytest.mark.parametrize("content", ["", "[", "{}", '[{"task_id": "a"}, {"task_id": "a"}]', "nul"])
def test_a_damaged_snapshot_is_kept_aside_and_used_as_far_as_it_goes(
    opened: Opened,
    base: Path,
    store: str,
    request: pytest.FixtureRequest,
    content: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = request.getfixturevalue("migrated_url") if store == "database" else None
    file = base / "data/scheduler/scheduled_tasks.json"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    persistence = opened(base, url=url)
    persistence.add_task(make_task("new"))
    kept = list(file.parent.glob("scheduled_tasks.json.damaged-*"))
    assert [path.read_text() for path in kept] == [content]
    assert str(file) in caplog.text
    assert "damaged" in caplog.text
    assert [task["task_id"] for task in persistence.load_tasks()][-1] == "new"


def test_a_torn_snapshot_deletes_nothing_from_the_database(
    opened: Opened, base: Path, migrated_url: str
) -> None:
    persistence = opened(base, url=migrated_url)
    for key in ("a", "b", "c"):
        persistence.add_task(make_task(key))
    persistence.close()
    text = persistence.tasks_file.read_text()
    persistence.tasks_file.write_text(text[: len(text) // 2].replace("Task a", "edited"))
    persistence = opened(base, url=migrated_url)
    found = {task["task_id"]: task["name"] for task in persistence.load_tasks()}
    assert found == {"a": "edited", "b": "Task b", "c": "Task c"}


def test_a_lost_snapshot_deletes_nothing_from_the_database(
    opened: Opened, base: Path, migrated_url: str
) -> None:
    persistence = opened(base, url=migrated_url)
    persistence.add_task(make_task("a"))
    persistence.tasks_file.unlink()
    assert persistence.load_tasks() == [make_task("a")]
    persistence.tasks_file.unlink()
    persistence.close()
    assert opened(base, url=migrated_url).load_tasks() == [make_task("a")]
    assert OldCode(base).load() == [make_task("a")]


def test_another_database_overwrites_nothing(
    opened: Opened, base: Path, server: Any, migrated_template: str, migrated_url: str
) -> None:
    persistence = opened(base, url=migrated_url)
    persistence.add_task(make_task("mine"))
    persistence.close()
    other_url = server.create_database()
    try:
        other = opened(base.parent / "other", url=other_url)
        other.add_task(make_task("theirs"))
        other.close()
        persistence = opened(base, url=other_url)
        assert persistence.health().store == "files"
        assert "another database" in persistence.health().reason
        assert OldCode(base).load() == [make_task("mine")]
        assert count(other_url, "scheduler_tasks") == 1
        persistence.close()
    finally:
        server.drop_database(other_url)


def test_a_url_that_cannot_be_used_is_refused_without_showing_it(
    opened: Opened, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url in ("mysql://u:hunter2@h/d", "postgresql+asyncpg://u:hunter2@h/d", "nonsense"):
        monkeypatch.setenv("DATAHOUND_STORAGE_URL", url)
        with pytest.raises(SettingsError, match="DATAHOUND_STORAGE_URL") as raised:
            opened(base)
        assert "hunter2" not in str(raised.value)


def test_a_wrong_password_is_reported_without_it(
    opened: Opened, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = "postgresql://user:hunter2@127.0.0.1:1/db"
    persistence = opened(base, url=url)
    assert persistence.health().store == "files"
    assert "hunter2" not in caplog.text + persistence.health().reason + repr(persistence)
    assert persistence.add_task(make_task("a"))


def test_an_unwritable_directory_is_a_clear_error(opened: Opened, tmp_path: Path) -> None:
    blocker = tmp_path / "base"
    blocker.write_text("a file where a directory is wanted")
    with pytest.raises(FileStoreError, match="base"):
        opened(blocker)


def test_an_unreadable_snapshot_is_not_an_empty_one(
    opened: Opened, base: Path, migrated_url: str
) -> None:
    (base / "data/scheduler/scheduled_tasks.json").mkdir(parents=True)
    with pytest.raises(FileStoreError, match=r"scheduled_tasks\.json"):
        opened(base, url=migrated_url)
    with pytest.raises(FileStoreError, match=r"scheduled_tasks\.json"):
        opened(base).load_tasks()


def test_a_missing_schema_without_permission_to_make_it(
    opened: Opened, base: Path, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS datahound_reader")
        connection.execute("CREATE ROLE datahound_reader LOGIN PASSWORD 'secret1'")
        connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    parts = psycopg.conninfo.conninfo_to_dict(database_url)
    host, port = parts.get("host", ""), parts.get("port", 5432)
    url = f"postgresql://datahound_reader:secret1@/{parts['dbname']}?host={host}&port={port}"
    try:
        persistence = opened(base, url=url)
        assert persistence.health().store == "files"
        assert "datahound-storage upgrade" in persistence.health().reason
        assert "secret1" not in caplog.text
        persistence.close()
    finally:
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("DROP OWNED BY datahound_reader")
            connection.execute("DROP ROLE datahound_reader")


def test_auto_upgrade_can_be_switched_off(
    opened: Opened, base: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATAHOUND_STORAGE_AUTO_UPGRADE", "0")
    persistence = opened(base, url=database_url)
    assert persistence.health().store == "files"
    assert "datahound-storage upgrade" in persistence.health().reason
    persistence.close()
    upgrade(database_url)
    assert opened(base, url=database_url).health().store == "database"


def test_a_newer_schema_is_left_alone(opened: Opened, base: Path, migrated_url: str) -> None:
    make_newer(migrated_url, breaking=True)
    persistence = opened(base, url=migrated_url)
    assert persistence.health().store == "files"
    assert "9999" in persistence.health().reason


@pytest.mark.parametrize("auto_upgrade", ["on", "off"])
def test_a_newer_schema_that_breaks_nothing_is_used(
    opened: Opened, base: Path, migrated_url: str, auto_upgrade: str, monkeypatch
) -> None:
    monkeypatch.setenv("DATAHOUND_STORAGE_AUTO_UPGRADE", auto_upgrade)
    opened(base, url=migrated_url).close()
    make_newer(migrated_url, breaking=False)
    persistence = opened(base, url=migrated_url)
    assert persistence.health().store == "database"
    assert persistence.add_task(make_task("by older code"))
    assert persistence.update_task(make_task("by older code", name="changed"))
    persistence.log_task_execution("by older code", True)
    assert persistence.get_task_history("by older code", limit=1) != []
    assert persistence.delete_task("by older code")


def test_a_schema_that_goes_away_under_a_running_process(
    opened: Opened, base: Path, migrated_url: str
) -> None:
    persistence = opened(base, url=migrated_url)
    persistence.add_task(make_task("a"))
    downgrade(migrated_url, "base", x=["drop=yes"])
    assert persistence.update_task(make_task("a", name="still here"))
    assert persistence.health().store == "files"
    assert persistence.load_tasks()[0]["name"] == "still here"


def test_sql_is_logged_without_values(
    opened: Opened,
    base: Path,
    migrated_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("DATAHOUND_STORAGE_ECHO", "1")
    caplog.set_level(logging.INFO)
    persistence = opened(base, url=migrated_url)
    persistence.add_task(make_task("a", secret="hunter2"))
    assert "INSERT INTO scheduler_tasks" in caplog.text
    assert "hunter2" not in caplog.text


def test_a_run_with_strange_metadata_costs_only_itself(
    opened: Opened, base: Path, migrated_url: str
) -> None:
    persistence = opened(base, url=migrated_url)
    persistence.log_task_execution("a", True)
    with psycopg.connect(migrated_url) as connection:
        connection.execute("UPDATE scheduler_runs SET metadata_json = '[1]'")
    assert persistence.get_task_history("a")[0]["success"] is True
    persistence.close()
    assert opened(base, url=migrated_url).health().store == "database"


def test_a_deletion_by_the_old_code_after_a_first_launch_is_no_conflict(
    opened: Opened, base: Path, migrated_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    old = OldCode(base)
    old.tasks_file.parent.mkdir(parents=True)
    old.save([make_task("a"), make_task("b")])
    opened(base, url=migrated_url).close()
    old.save([make_task("b")])
    assert opened(base, url=migrated_url).load_tasks() == [make_task("b")]
    assert count(migrated_url, "scheduler_conflicts") == 0
    assert "scheduler_conflicts" not in caplog.text
