"""A save of many tasks leaves what changing them one by one would, whatever comes in between."""

from __future__ import annotations

import fcntl
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import psycopg
import pytest

from datahound_storage import SchedulerPersistence
from datahound_storage.errors import InvalidTaskError
from datahound_storage.files import sidecar, snapshot
from datahound_storage.files.paths import StatePaths
from datahound_storage.halves import hashes_of
from datahound_storage.testing import EmbeddedServer
from tests.fault.fix_faults import Told, impatient
from tests.fault.proxy import Proxy
from tests.fault.standby import execute, until, value
from tests.fault.test_crash import count_up
from tests.fix_persistence import MakePersistence, as_another
from tests.scheduler import OldCode, make_task
from tests.servers import TestServer
from tests.situations import Installation

Tasks = list[dict[str, Any]]
MANY = 500
# Half of it is for retries: a busy machine may need some seconds to start a server.
PATIENT = 30.0
# As a file spells them, in place of what json.dumps writes.
SPELLED = {
    "nan": '{"ratio": NaN, "most": Infinity, "least": [-Infinity]}',
    "nul": '{"text": "a\\u0000b", "k\\u0000": 1}',
    "lone": '{"text": "\\ud800x", "pair": "\\ud83d\\ude00"}',
    "big": '{"n": 123456789012345678901234567890, "e": 1e400}',
    "spelled": '{"price": 1.50, "all": 1E5, "none": -0.0, "small": 1e-05}',
}
PLAIN = 250
# The last one by others only.
BY_HAND_EDITED = ("hand", "hand nan", "hand kept")
MINE = "mine \u00e4\u20ac\U0001f600"


@pytest.fixture
def pair(
    server: TestServer, migrated_template: str, tmp_path: Path
) -> Iterator[list[Installation]]:
    """Two installations that have the same tasks."""
    urls = [server.create_database(migrated_template) for _ in range(2)]
    made = [Installation(tmp_path / name, url) for name, url in zip("ab", urls, strict=True)]
    for one in made:
        fill(one)
    yield made
    for url in urls:
        server.drop_database(url)


def fill(installation: Installation) -> None:
    """Files of the old code; the tasks that are odd are there twice, to be changed and to stay."""
    tasks = [make_task(f"{name} {kept}") for name in SPELLED for kept in ("changed", "kept")]
    others = ("peer", "peer both", "deleted", "theirs", "gone", *BY_HAND_EDITED, "textless")
    tasks += [make_task(name, name=f"{name}: a name") for name in others]
    tasks += [make_task(f"plain {number}") for number in range(PLAIN)]
    for task in tasks:
        task["task_config"]["settings"] = f"@{task['task_id'].split()[0]}@"
    text = json.dumps(tasks, indent=2).replace('"@hand@"', SPELLED["nan"])
    text = re.sub(r'"@(\w+)@"', lambda found: SPELLED.get(found[1], '{"depth": 1}'), text)
    installation.paths.scheduler_dir.mkdir(parents=True)
    installation.paths.tasks_file.write_text(text)


def meddle(installation: Installation) -> None:
    """What others do after the tasks were listed."""
    base = installation.base.with_name(f"{installation.base.name}-elsewhere")
    peer = SchedulerPersistence(base / "data", url=as_another(installation.url, "peer"))
    for key in ("peer", "peer both"):
        assert peer.update_task(peer.get_task(key) | {"description": "theirs", "name": "theirs"})
    assert peer.delete_task("deleted")
    assert peer.delete_task("theirs")
    assert peer.add_task(make_task("added by the peer"))
    peer.close()
    by_hand = "config_json = jsonb_set(config_json, '{description}', '\"by hand\"')"
    for key in BY_HAND_EDITED:
        columns = f"status = 'paused', {by_hand}" if key == "hand" else by_hand
        installation.sql(f"UPDATE scheduler_tasks SET {columns} WHERE task_key = '{key}'")
    installation.sql(
        "UPDATE scheduler_tasks SET task_text = NULL, config_json = jsonb_set(config_json, "
        "'{last_error}', '\"by hand\"') WHERE task_key = 'textless'"
    )


def edited(tasks: Tasks) -> tuple[Tasks, Tasks, list[str]]:
    """What a caller makes of the list: the list itself, what he changed in it, what he left out."""
    left_out = [task["task_id"] for task in tasks if task["task_id"] == "gone"]
    kept = [task for task in tasks if task["task_id"] != "gone"]
    changed = [task for task in kept if not task["task_id"].endswith(" kept")]
    for task in changed:
        task["run_count"] += 1
        if task["task_id"] in ("peer both", "deleted", "nan changed", "lone changed", "hand nan"):
            task["name"] = MINE
    return kept, changed, left_out


NEW = [make_task("new"), make_task("new \u00e4", name="x\x7f\u2028", n=2**70, half="\udc00")]
UPDATED_AT = re.compile(r'"updated_at": "[^"]*"')


def table(installation: Installation) -> dict[str, tuple[Any, ...]]:
    """The rows as they are, but for the times of the change."""
    rows = installation.sql(
        "SELECT task_key, task_type, company, schedule_type, schedule_expr, status, created_at, "
        "(config_json - 'updated_at')::text, task_text, edited_columns::text, timezone "
        "FROM scheduler_tasks ORDER BY position, task_key"
    )
    return {
        row[0]: tuple(UPDATED_AT.sub("", v) if isinstance(v, str) else v for v in row)
        for row in rows
    }


def shown(installation: Installation) -> dict[str, str]:
    """The texts in the snapshot, but for the times of the change."""
    found = snapshot.read(installation.paths.tasks_file)
    assert found.problems == []
    return {item.task_key: UPDATED_AT.sub("", item.text) for item in found.items}


def spelled(tasks: Tasks) -> dict[str, str]:
    """A listing, to be compared where NaN is equal to nothing."""
    return {t["task_id"]: UPDATED_AT.sub("", json.dumps(t, indent=2)) for t in tasks}


def check_files(paths: StatePaths, listed: Tasks) -> None:
    """The snapshot shows the listing; the sidecar tells of that file, and of each task in it."""
    found, known = snapshot.read(paths.tasks_file), sidecar.read(paths.sidecar_file)
    assert known is not None
    assert [json.dumps(item.task) for item in found.items] == [json.dumps(t) for t in listed]
    assert known.tasks == {item.task_key: hashes_of(item.task) for item in found.items}
    assert list(known.tasks) == [item.task_key for item in found.items]
    assert known.header.after == found.digest == snapshot.digest(paths.tasks_file.read_bytes())
    assert known.header.file == found.signature


@pytest.mark.parametrize("others", [False, True], ids=["alone", "with others"])
@pytest.mark.parametrize("order", ["kept", "reversed"])
def test_a_save_leaves_what_changing_one_by_one_does(
    pair: list[Installation], order: str, others: bool
) -> None:
    at_once, one_by_one = pair
    fast, slow = (one.open() for one in pair)
    kept, _, _ = edited(fast.load_tasks())
    _, changed, left_out = edited(slow.load_tasks())
    if others:
        for one in pair:
            meddle(one)
    wanted = kept[::-1] if order == "reversed" else kept
    assert fast.save_tasks([*wanted, *NEW])
    assert fast.health().backup_problem is None
    saved = at_once.paths.tasks_file.read_bytes()
    for task in changed:
        there = not others or task["task_id"] not in ("deleted", "theirs")
        assert slow.update_task(task) is there
    for key in left_out:
        assert slow.delete_task(key)
    for task in NEW:
        assert slow.add_task(task)
    listed, listed_slowly = fast.load_tasks(), slow.load_tasks()
    assert at_once.paths.tasks_file.read_bytes() == saved
    assert spelled(listed) == spelled(listed_slowly)
    assert table(at_once) == table(one_by_one)
    assert shown(at_once) == shown(one_by_one)
    # An update tells its caller that the task is gone; a save keeps what it could not do.
    lost = [("peer both", "theirs")] if others else []
    assert one_by_one.lost() == lost
    assert at_once.lost() == ([("deleted", MINE), *lost] if others else [])
    if order == "reversed":
        there = {task["task_id"] for task in listed}
        wanted_keys = [task["task_id"] for task in [*wanted, *NEW] if task["task_id"] in there]
        added = ["added by the peer"] if others else []
        assert [task["task_id"] for task in listed] == [*wanted_keys, *added]
    for one, persistence, tasks in ((at_once, fast, listed), (one_by_one, slow, listed_slowly)):
        check_files(one.paths, tasks)
        health = persistence.health()
        assert (health.store, health.backup_problem) == ("database", None)
        persistence.close()
        one.require_equal()


def test_a_save_writes_what_the_old_file_had_as_it_was_spelled(pair: list[Installation]) -> None:
    installation = pair[0]
    persistence = installation.open()
    kept, _, _ = edited(persistence.load_tasks())
    assert persistence.save_tasks(kept)
    persistence.close()
    texts = {key: row[8] for key, row in table(installation).items()}
    for name in SPELLED:
        tail = re.sub(r"\s", "", SPELLED[name])
        assert tail in re.sub(r"\s", "", texts[f"{name} kept"])
    for name in ("nan", "nul", "lone", "big"):
        assert re.sub(r"\s", "", SPELLED[name]).replace("1e400", "Infinity") in re.sub(
            r"\s", "", texts[f"{name} changed"]
        )


@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
def test_two_saves_of_the_same_list_by_two_processes_add_up(
    pair: list[Installation], again: bool
) -> None:
    """Each knows what it wrote by itself, and reads what the other one wrote."""
    installation = pair[0]
    first = installation.open()
    second = SchedulerPersistence(
        installation.base / "data", url=as_another(installation.url, "second")
    )
    lists = [process.load_tasks() for process in (first, second)]
    for _ in range(1 + again):
        for process, tasks in zip((first, second), lists, strict=True):
            for task in tasks:
                task["run_count"] += 1
            assert process.save_tasks(tasks)
    for process in (first, second):
        listed = process.load_tasks()
        assert {task["run_count"] for task in listed} == {2 * (1 + again)}
        check_files(installation.paths, listed)
        process.close()
    installation.require_equal()


def test_a_task_that_others_deleted_is_added_where_the_caller_brings_a_new_one(
    pair: list[Installation],
) -> None:
    installation = pair[0]
    persistence = installation.open()
    tasks = persistence.load_tasks()
    [place] = [n for n, task in enumerate(tasks) if task["task_id"] == "plain 7"]
    tasks[place] = make_task("plain 7", name="new", updated_at="2026-11-01T00:00:00")
    installation.sql("DELETE FROM scheduler_tasks WHERE task_key = 'plain 7'")
    assert persistence.save_tasks(tasks)
    listed = persistence.load_tasks()
    assert json.dumps(listed) == json.dumps(tasks)
    check_files(installation.paths, listed)
    persistence.close()
    installation.require_equal()


def test_a_save_touches_what_it_changes_and_nothing_else(pair: list[Installation]) -> None:
    """Not even where others have deleted a task, so that the list has another length."""
    installation = pair[0]
    persistence = installation.open()
    tasks = persistence.load_tasks()
    installation.sql("DELETE FROM scheduler_tasks WHERE task_key = 'plain 7'")
    stamps = "SELECT task_key, changed_xid::text FROM scheduler_tasks"
    before = dict(installation.sql(stamps))
    for task in tasks:
        if task["task_id"] in ("plain 9", "nan changed"):
            task["run_count"] += 1
    assert persistence.save_tasks(tasks)
    after = dict(installation.sql(stamps))
    assert after.keys() == before.keys()
    assert {key for key in after if after[key] != before[key]} == {"plain 9", "nan changed"}
    persistence.close()


def test_the_sidecar_tells_what_the_snapshot_before_it_showed(pair: list[Installation]) -> None:
    """Also of what becomes again what it was, and of what comes again."""
    installation = pair[0]
    installation.open().close()
    by_hand = "UPDATE scheduler_tasks SET company = '{}' WHERE task_key = 'plain 7'"
    installation.sql(by_hand.format("Bolt"))
    persistence = installation.open()
    before = {task["task_id"]: hashes_of(task) for task in persistence.load_tasks()}
    for number in range(4):
        tasks = [task for task in persistence.load_tasks() if task["task_id"] != "comes and goes"]
        for task in tasks:
            if task["task_id"] == "plain 7":
                task["task_config"]["company"] = "Bolt" if number % 2 else "Acme"
            elif task["task_id"] == "nul changed":
                task["run_count"] = number % 2
        tasks += [make_task("comes and goes")] if number % 2 == 0 else []
        assert persistence.save_tasks(tasks)
        known = sidecar.read(installation.paths.sidecar_file)
        assert known is not None
        keys = {*known.tasks, *before}
        unlike = {key for key in keys if known.tasks.get(key) != before.get(key)}
        assert {"plain 7", "comes and goes"} <= unlike
        assert known.previous == {key: before.get(key) for key in unlike}
        before = known.tasks
    persistence.close()


def test_an_edit_by_hand_that_a_save_takes_back_is_taken_back(pair: list[Installation]) -> None:
    """The text is then the one that the row has already."""
    installation = pair[0]
    persistence = installation.open()
    edited_ones = ("plain 7", "nul kept")
    for key in edited_ones:
        # So that its text is laid out as a save lays it out.
        assert persistence.update_task(persistence.get_task(key) | {"run_count": 3})
    before = table(installation)
    for key in edited_ones:
        installation.sql(f"UPDATE scheduler_tasks SET company = 'Bolt' WHERE task_key = '{key}'")
    tasks = persistence.load_tasks()
    taken_back = [task for task in tasks if task["task_config"]["company"] == "Bolt"]
    assert len(taken_back) == 2
    for task in taken_back:
        task["task_config"]["company"] = "Acme"
    assert persistence.save_tasks(tasks)
    assert table(installation) == before
    listed = persistence.load_tasks()
    assert {task["task_config"]["company"] for task in listed} == {"Acme"}
    check_files(installation.paths, listed)
    persistence.close()
    installation.require_equal()


@pytest.mark.parametrize("changed", [None, "name"], ids=["as it was", "changed"])
@pytest.mark.parametrize("at_once", [True, False], ids=["saved", "updated"])
def test_a_nan_of_an_old_file_stays_where_somebody_else_changed_the_object_around_it(
    pair: list[Installation], at_once: bool, changed: str | None
) -> None:
    installation = pair[0]
    persistence = installation.open()
    tasks = persistence.load_tasks()
    [task] = [task for task in tasks if task["task_id"] == "nan kept"]
    task.update({changed: "mine"} if changed else {})
    installation.sql("UPDATE scheduler_tasks SET company = 'Bolt' WHERE task_key = 'nan kept'")
    assert persistence.save_tasks(tasks) if at_once else persistence.update_task(task)
    found = persistence.get_task("nan kept")
    assert found["task_config"]["company"] == "Bolt"
    assert found["name"] == ("mine" if changed else "Task nan kept")
    assert json.dumps(found["task_config"]["settings"]) == SPELLED["nan"]
    persistence.close()


# A save that cannot be.


def many(opened: MakePersistence, base: Path, url: str, **options: Any) -> SchedulerPersistence:
    """A facade on a store with many tasks."""
    persistence = opened(base, url=url, **options)
    assert persistence.save_tasks([make_task(f"task {number}") for number in range(MANY)])
    return persistence


SAVER = "saver"
INVALID: dict[str, Any] = {
    "NaN": {"settings": {"ratio": float("nan")}},
    "an object": {"settings": {"path": Path("x")}},
    "a status": {"status": "unknown"},
    "a huge number": {"interval_minutes": 10**5000},
    "a cycle": {"settings": None},
}


@pytest.mark.parametrize("problem", INVALID)
@pytest.mark.parametrize("kind", ["changed", "new"])
def test_an_invalid_task_in_the_middle_of_a_list_changes_nothing(
    opened: MakePersistence, base: Path, migrated_url: str, kind: str, problem: str
) -> None:
    persistence = many(opened, base, as_another(migrated_url, SAVER))
    installation = Installation(base, migrated_url)
    tasks = persistence.load_tasks()
    for task in tasks:
        task["run_count"] = 1
    new = [make_task(f"new {number}") for number in range(MANY)]
    spoilt = tasks[MANY // 2] if kind == "changed" else new[MANY // 2]
    right = dict(spoilt)
    spoilt.update(INVALID[problem])
    if problem == "a cycle":
        spoilt["settings"] = spoilt
    before, sessions = installation.fingerprint(), pids(migrated_url)
    assert sessions
    with pytest.raises(InvalidTaskError):
        persistence.save_tasks([*tasks[1:], *new])
    assert installation.fingerprint() == before
    assert {task["run_count"] for task in persistence.load_tasks()} == {0}
    spoilt.clear()
    spoilt.update(right)
    assert persistence.save_tasks([*tasks[1:], *new])
    # On the connection on which it was refused.
    assert pids(migrated_url) == sessions
    listed = persistence.load_tasks()
    assert [t["task_id"] for t in listed] == [t["task_id"] for t in [*tasks[1:], *new]]
    assert {task["run_count"] for task in listed[: MANY - 1]} == {1}
    check_files(installation.paths, listed)


def pids(url: str) -> set[int]:
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name = %s",
            [SAVER],
        ).fetchall()
    return {pid for (pid,) in found}


# A save that is cut off.


class Armed:
    """A task class that does something in the middle of a save: when it is asked for the 100th."""

    action: Callable[[], None] | None = None
    asked = 0

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Armed:
        if cls.action is not None:
            cls.asked += 1
            if cls.asked == 100:
                cls.action()
        return cls(data)

    def to_dict(self) -> dict[str, Any]:
        return dict(self.data)


@pytest.fixture
def armed() -> Iterator[type[Armed]]:
    Armed.action, Armed.asked = None, 0
    yield Armed
    Armed.action = None


COPYING = "%COPY incoming_tasks%"
UPDATING = "%UPDATE scheduler_tasks AS t SET%task_type = i.task_type%"
_WAITING = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND query LIKE '{}' AND wait_event_type = '{}'"""
_TERMINATE = """
SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity
WHERE datname = current_database() AND query LIKE '{}' AND pid <> pg_backend_pid()"""


def changed_list(persistence: SchedulerPersistence) -> list[Any]:
    """The tasks, each with a change, without the first one, and with some new ones."""
    listed = persistence.load_tasks()[1:]
    for task in listed:
        (task if isinstance(task, dict) else task.data)["run_count"] = 1
    made = type(listed[0]) if not isinstance(listed[0], dict) else dict
    return [*listed, *(made(make_task(f"new {number}")) for number in range(5))]


def check_saved(
    persistence: SchedulerPersistence, told: Told, opened: MakePersistence, url: str
) -> None:
    """All of it is there, once; and everything goes on from there."""
    told.on_database(persistence)
    paths = StatePaths.below(persistence.data_dir)
    for _ in range(2):
        listed = [
            task if isinstance(task, dict) else task.data for task in persistence.load_tasks()
        ]
        wanted = [*(f"task {n}" for n in range(1, MANY)), *(f"new {n}" for n in range(5))]
        assert [task["task_id"] for task in listed] == wanted
        assert [task["run_count"] for task in listed] == [1] * (MANY - 1) + [0] * 5
        check_files(paths, listed)
        # Somebody else, who only has the database, sees the same.
        other = opened(persistence.data_dir.parent.parent / "other", url=as_another(url, "other"))
        assert [json.dumps(t) for t in other.load_tasks()] == [json.dumps(t) for t in listed]
        other.close()
        assert persistence.update_task(persistence.get_task("task 1"))
    Installation(paths.data_dir.parent, url).require_equal()


def test_a_save_whose_connection_is_ended_while_it_sends_is_made_again(
    opened: MakePersistence, base: Path, migrated_url: str, told: Told, armed: type[Armed]
) -> None:
    settings = impatient(PATIENT)
    persistence = many(opened, base, migrated_url, task_class=armed, settings=settings)
    tasks = changed_list(persistence)
    ended: list[object] = []
    armed.action = lambda: ended.append(value(migrated_url, _TERMINATE.format(COPYING)))
    assert persistence.save_tasks(tasks)
    assert ended == [1]
    assert armed.asked >= 100 + MANY - 1
    armed.action = None
    check_saved(persistence, told, opened, migrated_url)


def in_the_background(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(work()), daemon=True)
    thread.start()
    return thread, answers


def test_a_save_whose_connection_is_ended_in_the_update_is_made_again(
    opened: MakePersistence, base: Path, migrated_url: str, told: Told
) -> None:
    persistence = many(opened, base, migrated_url, settings=impatient(PATIENT))
    tasks = changed_list(persistence)
    with psycopg.connect(migrated_url) as rival:
        rival.execute("SELECT FROM scheduler_tasks WHERE task_key = 'task 400' FOR UPDATE")
        thread, answers = in_the_background(lambda: persistence.save_tasks(tasks))
        until(lambda: value(migrated_url, _WAITING.format(UPDATING, "Lock")) == 1)
        assert value(migrated_url, _TERMINATE.format(UPDATING)) >= 1
        rival.rollback()
        thread.join(60)
    assert answers == [True]
    check_saved(persistence, told, opened, migrated_url)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_save_in_which_the_server_restarts_is_made_again(
    opened: MakePersistence,
    base: Path,
    embedded_directory: Path,
    told: Told,
    mode: Literal["fast", "immediate"],
) -> None:
    with EmbeddedServer(embedded_directory) as server:
        persistence = many(opened, base, server.url, settings=impatient(PATIENT))
        tasks = changed_list(persistence)
        with psycopg.connect(server.url) as rival:
            rival.execute("SELECT FROM scheduler_tasks WHERE task_key = 'task 400' FOR UPDATE")
            thread, answers = in_the_background(lambda: persistence.save_tasks(tasks))
            until(lambda: value(server.url, _WAITING.format(UPDATING, "Lock")) == 1)
            server.stop(mode)
            rival.close()
        server.start()
        thread.join(60)
        assert answers == [True]
        check_saved(persistence, told, opened, server.url)
        persistence.close()


def test_a_save_that_was_committed_when_its_answer_got_lost_is_made_once(
    opened: MakePersistence, base: Path, migrated_url: str, proxy: Proxy, told: Told
) -> None:
    persistence = many(opened, base, proxy.url, settings=impatient(PATIENT))
    tasks = changed_list(persistence)
    proxy.lose_answer("COMMIT")
    assert persistence.save_tasks(tasks)
    assert proxy.has_lost
    stamps = "SELECT count(DISTINCT changed_xid) FROM scheduler_tasks"
    assert value(migrated_url, stamps) == 1
    check_saved(persistence, told, opened, migrated_url)


def test_what_comes_between_a_commit_and_its_lost_answer_stays(
    opened: MakePersistence, base: Path, migrated_url: str, proxy: Proxy, told: Told
) -> None:
    persistence = many(opened, base, proxy.url, settings=impatient(PATIENT))
    tasks = changed_list(persistence)

    def meddle_and_drop() -> None:
        execute(
            migrated_url,
            "UPDATE scheduler_tasks SET company = 'Bolt' WHERE task_key = 'task 7'",
            "DELETE FROM scheduler_tasks WHERE task_key IN ('task 9', 'new 3')",
        )
        proxy.drop()

    proxy.lose_answer("COMMIT", then=meddle_and_drop)
    assert persistence.save_tasks(tasks)
    assert proxy.has_lost
    told.on_database(persistence)
    listed = persistence.load_tasks()
    found = {task["task_id"]: task for task in listed}
    assert found["task 7"]["task_config"]["company"] == "Bolt"
    assert {task["run_count"] for key, task in found.items() if "new" not in key} == {1}
    assert not found.keys() & {"task 0", "task 9", "new 3"}
    assert len(found) == MANY - 2 + 4
    check_files(StatePaths.below(base / "data"), listed)
    Installation(base, migrated_url).require_equal()


def test_a_save_that_was_not_committed_when_its_connection_broke_heeds_what_came_in_between(
    opened: MakePersistence, base: Path, migrated_url: str, told: Told, armed: type[Armed]
) -> None:
    """What is known from before is out of date for the second attempt."""
    settings = impatient(PATIENT)
    persistence = many(opened, base, migrated_url, task_class=armed, settings=settings)
    tasks = changed_list(persistence)

    ended: list[object] = []

    def end_and_meddle() -> None:
        ended.append(value(migrated_url, _TERMINATE.format(COPYING)))
        with psycopg.connect(migrated_url) as connection:
            connection.execute(
                "UPDATE scheduler_tasks SET config_json = jsonb_set(config_json, '{name}', "
                "'\"theirs\"') WHERE task_key = 'task 7'"
            )
            connection.execute("DELETE FROM scheduler_tasks WHERE task_key = 'task 9'")

    armed.action = end_and_meddle
    assert persistence.save_tasks(tasks)
    armed.action = None
    assert ended == [1]
    told.on_database(persistence)
    listed = {task.data["task_id"]: task.data for task in persistence.load_tasks()}
    assert (listed["task 7"]["name"], listed["task 7"]["run_count"]) == ("theirs", 1)
    assert "task 9" not in listed
    assert len(listed) == MANY - 2 + 5
    check_files(StatePaths.below(base / "data"), list(listed.values()))
    Installation(base, migrated_url).require_equal()


BY_HAND = (
    "UPDATE scheduler_tasks SET company = 'Bolt' WHERE task_key = 'task 1'",
    "UPDATE scheduler_tasks SET task_text = NULL WHERE task_key = 'task 2'",
    """UPDATE scheduler_tasks SET config_json = config_json || '{"name": "by hand"}'
    WHERE task_key = 'task 3'""",
    "DELETE FROM scheduler_tasks WHERE task_key = 'task 4'",
    """INSERT INTO scheduler_tasks
        (id, task_key, task_type, company, config_json, schedule_type, schedule_expr, status)
    SELECT gen_random_uuid(), 'by hand', task_type, company,
        config_json || '{"task_id": "by hand"}', schedule_type, schedule_expr, status
    FROM scheduler_tasks WHERE task_key = 'task 5'""",
    """UPDATE scheduler_tasks SET task_text = replace(task_text, 'Task task 6', 'theirs'),
        config_json = config_json || '{"name": "theirs"}' WHERE task_key = 'task 6'""",
)


def test_what_comes_between_a_commit_and_its_showing_is_not_taken_for_what_was_saved(
    opened: MakePersistence, base: Path, migrated_url: str, told: Told
) -> None:
    persistence = many(opened, base, migrated_url, settings=impatient(PATIENT))
    tasks = changed_list(persistence)
    saved = "SELECT count(*) FROM scheduler_tasks WHERE config_json ->> 'run_count' = '1'"
    with persistence.lock_file.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread, answers = in_the_background(lambda: persistence.save_tasks(tasks))
        until(lambda: value(migrated_url, saved) == MANY - 1)
        execute(migrated_url, *BY_HAND)
    thread.join(60)
    assert answers == [True]
    told.on_database(persistence)
    listed = persistence.load_tasks()
    found = {task["task_id"]: task for task in listed}
    assert found["task 1"]["task_config"]["company"] == "Bolt"
    assert [found[f"task {n}"]["name"] for n in (3, 6)] == ["by hand", "theirs"]
    assert "task 4" not in found
    assert "by hand" in found
    other = opened(base.with_name("other"), url=as_another(migrated_url, "other"))
    assert [json.dumps(task) for task in other.load_tasks()] == [json.dumps(t) for t in listed]
    check_files(StatePaths.below(base / "data"), listed)
    Installation(base, migrated_url).require_equal()


# A server that crashes counts its transactions anew.


@pytest.mark.parametrize("work", ["save", "change", "listing", "second listing"])
def test_what_was_known_before_a_crash_of_the_server_is_read_again(
    opened: MakePersistence, base: Path, embedded_directory: Path, work: str
) -> None:
    with EmbeddedServer(embedded_directory) as server:
        persistence = many(opened, base, server.url)
        count_up(server.url, 100)
        # From here on the numbers that were counted mean: seen already.
        with psycopg.connect(server.url) as connection:
            connection.execute(
                "UPDATE scheduler_tasks SET company = 'Bolt' WHERE task_key='task 1'"
            )
        # The server writes its count down now and then: a crash right after that forgets nothing.
        for _ in range(10):
            count_up(server.url, 100)
            tasks = persistence.load_tasks()
            server.stop("immediate")
            server.start()
            known = xmax(base)
            if (
                value(server.url, "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::int")
                < known - 20
            ):
                break
        with psycopg.connect(server.url, autocommit=True) as connection:
            for number in range(2, 7):
                stamp = connection.execute(
                    "UPDATE scheduler_tasks SET company = 'Corp' WHERE task_key = %s "
                    "RETURNING changed_xid::text",
                    [f"task {number}"],
                ).fetchone()
                assert stamp is not None
                assert int(stamp[0]) < known
            connection.execute("DELETE FROM scheduler_tasks WHERE task_key = 'task 7'")
        # Past what was known, so that not even the count tells that it began anew.
        count_up(server.url, 300)
        if work == "save":
            for task in tasks:
                task["run_count"] = 1
            assert persistence.save_tasks(tasks)
        elif work == "change":
            assert persistence.update_task(tasks[300])
        elif work == "second listing":
            persistence.load_tasks()
        listed = persistence.load_tasks()
        assert persistence.health().store == "database"
        companies = {task["task_id"]: task["task_config"]["company"] for task in listed}
        expected = {"task 1": "Bolt"} | {f"task {number}": "Corp" for number in range(2, 7)}
        assert {key: c for key, c in companies.items() if c != "Acme"} == expected
        assert len(listed) == MANY - 1
        assert "task 7" not in companies
        assert {task["run_count"] for task in listed} == {1 if work == "save" else 0}
        check_files(StatePaths.below(base / "data"), listed)
        assert OldCode(base).load() == listed
        persistence.close()
        Installation(base, server.url).require_equal()


def xmax(base: Path) -> int:
    """The number from which on a change is new to the snapshot."""
    known = sidecar.read(StatePaths.below(base / "data").sidecar_file)
    assert known is not None
    return int(known.header.watermark.split(":")[1])
