"""The connection breaks between a commit and its answer: what is done is done once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from datahound_storage import SchedulerPersistence
from datahound_storage.errors import FileStoreError
from datahound_storage.files import atomic
from tests.fault.fix_faults import (
    CALLS,
    Told,
    bounded,
    check_files,
    check_left,
    fill,
    impatient,
    secret_task,
)
from tests.fault.proxy import Proxy
from tests.fault.standby import value
from tests.fix_persistence import MakePersistence, as_another
from tests.scheduler import OldCode

WRITES = {
    "add_task": "INSERT",
    "update_task": "UPDATE",
    "delete_task": "DELETE",
    "save_tasks": "COMMIT",
    "log_task_execution": "INSERT",
}
every_write = pytest.mark.parametrize("name", WRITES)


def check_rows(url: str, name: str) -> None:
    """The tables hold what the call leaves, each once, and nothing came into conflict."""
    call = CALLS[name]
    with psycopg.connect(url) as connection:
        tasks = connection.execute("SELECT task_key FROM scheduler_tasks ORDER BY 1").fetchall()
        runs = connection.execute("SELECT message FROM scheduler_runs ORDER BY 1").fetchall()
    assert tasks == [(key,) for key in sorted(call.keys)]
    assert runs == [(message,) for message in sorted(call.runs)]
    check_no_conflict(url)


def check_no_conflict(url: str) -> None:
    with psycopg.connect(url) as connection:
        lost = connection.execute("SELECT task_key, reason FROM scheduler_conflicts").fetchall()
    assert lost == []


@every_write
def test_the_outcome_is_found_out_on_another_connection(
    opened: MakePersistence, base: Path, proxy: Proxy, migrated_url: str, told: Told, name: str
) -> None:
    persistence = opened(base, url=proxy.url)
    fill(persistence)
    proxy.lose_answer(WRITES[name])
    with bounded():
        assert CALLS[name].make(persistence) == CALLS[name].answer
    assert proxy.has_lost
    told.on_database(persistence)
    check_rows(migrated_url, name)
    check_left(persistence, CALLS[name])
    check_files(persistence, CALLS[name])


@pytest.mark.parametrize("fault", ["refused", "stalled"])
@every_write
def test_the_server_stays_away(
    opened: MakePersistence,
    base: Path,
    proxy: Proxy,
    migrated_url: str,
    told: Told,
    name: str,
    fault: str,
) -> None:
    persistence = opened(base, url=proxy.url, settings=impatient())
    fill(persistence)
    proxy.lose_answer(WRITES[name], then=proxy.refuse if fault == "refused" else proxy.stall)
    with bounded():
        assert CALLS[name].make(persistence) == CALLS[name].answer
    assert proxy.has_lost
    told.fallen_back(persistence)
    check_left(persistence, CALLS[name])
    check_files(persistence, CALLS[name])
    persistence.close()
    persistence = opened(base, url=migrated_url)
    assert persistence.health().store == "database"
    check_left(persistence, CALLS[name])
    check_rows(migrated_url, name)
    check_files(persistence, CALLS[name])


@pytest.fixture
def stayed_away(
    opened: MakePersistence, base: Path, proxy: Proxy
) -> Callable[[str], SchedulerPersistence]:
    """A process on the files; the database has done its last call as well, and cannot tell."""

    def call(name: str) -> SchedulerPersistence:
        persistence = opened(base, url=proxy.url, settings=impatient())
        fill(persistence)
        proxy.lose_answer(WRITES[name], then=proxy.refuse)
        assert CALLS[name].make(persistence) == CALLS[name].answer
        assert (proxy.has_lost, persistence.health().store) == (True, "files")
        return persistence

    return call


CHANGED_KEY = {"add_task": "c", "update_task": "a", "save_tasks": "c"}
each_change = pytest.mark.parametrize("name", CHANGED_KEY)


@each_change
@pytest.mark.parametrize("by", ["this process", "old code"])
def test_deleted_in_the_files_it_is_not_brought_back(
    opened: MakePersistence,
    base: Path,
    migrated_url: str,
    stayed_away: Callable[[str], SchedulerPersistence],
    name: str,
    by: str,
) -> None:
    persistence, key = stayed_away(name), CHANGED_KEY[name]
    if by == "this process":
        assert persistence.delete_task(key)
    else:
        OldCode(base).save([task for task in OldCode(base).load() if task["task_id"] != key])
    persistence.close()
    persistence = opened(base, url=migrated_url)
    assert persistence.get_task(key) is None
    left = [task_key for task_key in CALLS[name].keys if task_key != key]
    assert [task["task_id"] for task in persistence.load_tasks()] == left


@each_change
@pytest.mark.parametrize("run_by", ["nobody", "the files", "the database"])
def test_deleted_in_the_database_it_is_not_brought_back(
    opened: MakePersistence,
    base: Path,
    migrated_url: str,
    stayed_away: Callable[[str], SchedulerPersistence],
    name: str,
    run_by: str,
) -> None:
    persistence, key = stayed_away(name), CHANGED_KEY[name]
    elsewhere = opened(base.parent / "elsewhere", url=migrated_url)
    if run_by != "nobody":
        at = persistence if run_by == "the files" else elsewhere
        assert at.update_task({**at.get_task(key), "run_count": 1, "last_error": "failed"})
    assert elsewhere.delete_task(key)
    for one in (persistence, elsewhere):
        one.close()
    persistence = opened(base, url=migrated_url)
    assert persistence.health().store == "database"
    assert key not in [task["task_id"] for task in persistence.load_tasks()]
    with psycopg.connect(migrated_url) as connection:
        kept = connection.execute("SELECT task_key, half, kept FROM scheduler_conflicts").fetchall()
    assert kept == [(key, "task", "database")]


@each_change
@pytest.mark.parametrize("how", ["edited", "renamed"])
def test_deleted_by_hand_it_is_not_brought_back(
    opened: MakePersistence,
    base: Path,
    migrated_url: str,
    stayed_away: Callable[[str], SchedulerPersistence],
    name: str,
    how: str,
) -> None:
    """By SQL, after an edit by SQL, or by giving the row another key."""
    persistence, key = stayed_away(name), CHANGED_KEY[name]
    persistence.close()
    with psycopg.connect(migrated_url, autocommit=True) as connection:
        row = "scheduler_tasks SET {} WHERE task_key = %s"
        if how == "edited":
            connection.execute("UPDATE " + row.format("company = 'by hand'"), [key])
            connection.execute("DELETE FROM scheduler_tasks WHERE task_key = %s", [key])
        else:
            connection.execute("UPDATE " + row.format("task_key = 'renamed'"), [key])
    persistence = opened(base, url=migrated_url)
    assert key not in [task["task_id"] for task in persistence.load_tasks()]


def test_where_all_tasks_were_truncated_what_comes_back_is_told(
    opened: MakePersistence,
    base: Path,
    migrated_url: str,
    stayed_away: Callable[[str], SchedulerPersistence],
    told: Told,
) -> None:
    persistence = stayed_away("add_task")
    persistence.close()
    with psycopg.connect(migrated_url, autocommit=True) as connection:
        connection.execute("TRUNCATE scheduler_tasks")
    persistence = opened(base, url=migrated_url)
    assert [task["task_id"] for task in persistence.load_tasks()] == ["c"]
    assert any("'c' was deleted in the database, which may not" in text for text in told.warnings())


def test_a_deletion_that_is_undone_is_told(
    opened: MakePersistence, base: Path, migrated_url: str, proxy: Proxy, told: Told
) -> None:
    """Deleted in the files, where it could not be in the database, and added again; then there."""
    persistence = opened(base, url=proxy.url, settings=impatient())
    fill(persistence)
    task = persistence.get_task("a")
    proxy.lose_statement(then=proxy.refuse)
    assert persistence.delete_task("a")
    assert persistence.add_task(task)
    persistence.close()
    elsewhere = opened(base.parent / "elsewhere", url=migrated_url)
    assert elsewhere.delete_task("a")
    persistence = opened(base, url=migrated_url)
    assert persistence.get_task("a") is not None
    assert any("'a' was deleted in the database, which may not" in text for text in told.warnings())


@pytest.mark.parametrize("touched", ["the operator's half", "the scheduler's half", "nothing"])
def test_taken_back_in_the_database_it_is_kept(
    opened: MakePersistence,
    base: Path,
    migrated_url: str,
    stayed_away: Callable[[str], SchedulerPersistence],
    touched: str,
) -> None:
    """The files win, as it looks as if the database had never had the change."""
    before = secret_task("a")
    persistence = stayed_away("update_task")
    changed = persistence.get_task("a")
    persistence.close()
    elsewhere = opened(base.parent / "elsewhere", url=migrated_url)
    if touched == "the operator's half":
        taken_back = elsewhere.get_task("a") | {"name": before["name"]}
        assert taken_back["name"] != changed["name"]
        assert elsewhere.update_task(taken_back)
    elif touched == "the scheduler's half":
        assert elsewhere.update_task(elsewhere.get_task("a") | {"last_error": "failed"})
    elsewhere.close()
    persistence = opened(base, url=migrated_url)
    assert persistence.get_task("a")["name"] == changed["name"]
    with psycopg.connect(migrated_url) as connection:
        kept = connection.execute("SELECT task_key, half, kept FROM scheduler_conflicts").fetchall()
    assert kept == ([("a", "operator", "files")] if touched == "the operator's half" else [])


@each_change
def test_what_is_done_in_the_files_after_it_wins(
    opened: MakePersistence,
    base: Path,
    migrated_url: str,
    stayed_away: Callable[[str], SchedulerPersistence],
    name: str,
) -> None:
    """Whoever changes it there has seen the change that the database has as well."""
    persistence, key = stayed_away(name), CHANGED_KEY[name]
    # As old code writes it, whose time says nothing here.
    tasks = [
        {**task, "name": "later", "updated_at": None} if task["task_id"] == key else task
        for task in OldCode(base).load()
    ]
    OldCode(base).save(tasks)
    persistence.close()
    persistence = opened(base, url=migrated_url)
    found = persistence.get_task(key)
    assert found is not None
    assert found["name"] == "later"
    # Somebody else may have made the same change there: it is kept.
    with psycopg.connect(migrated_url) as connection:
        kept = connection.execute("SELECT task_key, half, kept FROM scheduler_conflicts").fetchall()
    assert kept == [(key, "operator", "files")]


def test_the_same_change_of_another_is_kept(
    opened: MakePersistence, base: Path, migrated_url: str, proxy: Proxy
) -> None:
    """Noted, though the database never got it; then somebody else makes the very same change."""
    persistence = opened(base, url=proxy.url, settings=impatient())
    fill(persistence)
    elsewhere = opened(base.parent / "elsewhere", url=migrated_url)
    proxy.lose_statement(then=proxy.refuse)
    assert persistence.update_task(secret_task("a", status="paused"))
    assert proxy.has_lost
    assert persistence.health().store == "files"
    assert elsewhere.update_task({**elsewhere.get_task("a"), "status": "paused"})
    assert persistence.delete_task("a")
    assert persistence.get_task("a") is None
    for one in (persistence, elsewhere):
        one.close()
    persistence = opened(base, url=migrated_url)
    assert persistence.get_task("a") is None
    with psycopg.connect(migrated_url) as connection:
        kept = connection.execute("SELECT task_key, half FROM scheduler_conflicts").fetchall()
    assert ("a", "task") in kept


@pytest.mark.parametrize("refusal", ["ended while idle", "ended by the server", "no right"])
def test_what_the_database_refused_is_not_taken_for_done(
    opened: MakePersistence, base: Path, migrated_url: str, proxy: Proxy, refusal: str
) -> None:
    """Added and deleted in the files; the same that somebody else adds stays."""
    persistence = opened(base, url=proxy.url, settings=impatient())
    fill(persistence)
    elsewhere = opened(base.parent / "elsewhere", url=migrated_url)
    with refusing(migrated_url, proxy, refusal):
        assert persistence.add_task(secret_task("c"))
    assert persistence.health().store == "files"
    assert persistence.delete_task("c")
    assert elsewhere.add_task(secret_task("c"))
    for one in (persistence, elsewhere):
        one.close()
    persistence = opened(base, url=migrated_url)
    assert [task["task_id"] for task in persistence.load_tasks()] == ["a", "b", "c"]
    check_no_conflict(migrated_url)


@contextmanager
def refusing(url: str, proxy: Proxy, how: str) -> Iterator[None]:
    """A database that certainly does not do what it is asked for."""
    if how == "ended while idle":
        proxy.refuse()
        yield
    elif how == "ended by the server":
        with ended_in_the_statement(url, proxy):
            yield
    else:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(_REFUSE_INSERTS)
            yield
            connection.execute("DROP TRIGGER refuse ON scheduler_tasks")


_REFUSE_INSERTS = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE insufficient_privilege; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON scheduler_tasks EXECUTE FUNCTION refuse()"""


@contextmanager
def ended_in_the_statement(url: str, proxy: Proxy) -> Iterator[None]:
    """An administrator ends the session while its statement waits for a lock."""
    with psycopg.connect(url) as holder, psycopg.connect(url, autocommit=True) as other:
        holder.execute("LOCK TABLE scheduler_tasks")
        ender = threading.Thread(target=end_waiting, args=(other, proxy))
        ender.start()
        yield
        ender.join()


def end_waiting(connection: psycopg.Connection, proxy: Proxy) -> None:
    for _ in range(400):
        if waiting := connection.execute(_WAITING).fetchall():
            proxy.stop_listening()
            for (pid,) in waiting:
                connection.execute("SELECT pg_terminate_backend(%s)", [pid])
            return
        time.sleep(0.01)


_WAITING = """SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock'"""


def test_a_snapshot_that_could_not_be_renamed_deletes_nothing(
    opened: MakePersistence, base: Path, migrated_url: str, proxy: Proxy
) -> None:
    """The sidecar was written, the disk refuses the snapshot's name; then the files go on."""
    persistence = opened(base, url=proxy.url, settings=impatient())
    fill(persistence)
    with no_name_for_snapshots():
        assert persistence.add_task(secret_task("c"))
    assert list(persistence.tasks_file.parent.glob(".*.tmp")) == []
    proxy.refuse()
    proxy.drop()
    assert persistence.add_task(secret_task("d"))
    assert persistence.health().store == "files"
    persistence.close()
    persistence = opened(base, url=migrated_url)
    assert {task["task_id"] for task in persistence.load_tasks()} == {"a", "b", "c", "d"}


@contextmanager
def no_name_for_snapshots() -> Iterator[None]:
    """A disk that refuses to rename a file over the snapshot."""
    really_publish = atomic.publish

    def publish(path: Path) -> None:
        if path.name == "scheduled_tasks.json":
            raise FileStoreError("cannot replace the snapshot: device or resource busy")
        really_publish(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "publish", publish)
        yield


def test_what_the_files_could_not_show_is_not_taken_for_deleted_there(
    opened: MakePersistence, base: Path, migrated_url: str, proxy: Proxy
) -> None:
    """The database has a task that the full disk has no room for; then it goes away."""
    persistence = opened(base, url=proxy.url, settings=impatient())
    fill(persistence)
    with no_room_for_snapshots():
        assert persistence.add_task(secret_task("c"))
        proxy.refuse()
        proxy.drop()
        assert [task["task_id"] for task in persistence.load_tasks()] == ["a", "b"]
        assert persistence.health().store == "files"
        persistence.close()
    persistence = opened(base, url=migrated_url)
    assert [task["task_id"] for task in persistence.load_tasks()] == ["a", "b", "c"]


def test_what_was_deleted_and_added_again_is_there(
    opened: MakePersistence, base: Path, proxy: Proxy, migrated_url: str
) -> None:
    """The deletion is done on both sides, its answer got lost; then somebody takes it back."""
    persistence = opened(base, url=proxy.url, settings=impatient())
    fill(persistence)
    task = persistence.get_task("a")
    proxy.lose_answer("DELETE", then=proxy.refuse)
    assert persistence.delete_task("a")
    assert persistence.add_task(task)
    assert persistence.health().store == "files"
    persistence.close()
    persistence = opened(base, url=migrated_url)
    assert [task["task_id"] for task in persistence.load_tasks()] == ["b", "a"]


@contextmanager
def no_room_for_snapshots() -> Iterator[None]:
    """A disk that has room for a sidecar still, and for no snapshot."""
    really_prepare = atomic.prepare

    def prepare(path: Path, content: atomic.Content, like: Path | None = None) -> atomic.Signature:
        if path.name == "scheduled_tasks.json":
            atomic.discard(path)
            raise FileStoreError("no space left on device")
        return really_prepare(path, content, like)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "prepare", prepare)
        yield


@pytest.mark.parametrize("by", ["the files", "the database"])
def test_the_same_task_added_by_another_is_not_taken_for_the_deleted_one(
    opened: MakePersistence, base: Path, migrated_url: str, proxy: Proxy, by: str
) -> None:
    """One side adds and deletes a task, afterwards the other one adds the very same."""
    persistence = opened(base, url=proxy.url, settings=impatient())
    fill(persistence)
    elsewhere = opened(base.parent / "elsewhere", url=migrated_url)
    proxy.refuse()
    proxy.drop()
    persistence.load_tasks()
    assert persistence.health().store == "files"
    first, last = (persistence, elsewhere) if by == "the files" else (elsewhere, persistence)
    assert first.add_task(secret_task("c"))
    assert first.delete_task("c")
    assert last.add_task(secret_task("c"))
    for one in (persistence, elsewhere):
        one.close()
    persistence = opened(base, url=migrated_url)
    assert [task["task_id"] for task in persistence.load_tasks()] == ["a", "b", "c"]


def test_added_anew_in_the_files_it_stays_though_the_same_was_deleted_before(
    opened: MakePersistence, base: Path, migrated_url: str
) -> None:
    """Somebody takes back a deletion that both sides have shown."""
    persistence = opened(base, url=migrated_url)
    fill(persistence)
    before = OldCode(base).load()
    assert persistence.delete_task("a")
    persistence.close()
    OldCode(base).save(before)
    persistence = opened(base, url=migrated_url)
    assert persistence.get_task("a") == before[0]


def test_a_change_that_the_deletion_has_not_seen_survives(
    opened: MakePersistence, base: Path, migrated_url: str, proxy: Proxy
) -> None:
    """The database never got the change: what was deleted there is the task before it."""
    persistence = opened(base, url=proxy.url, settings=impatient())
    fill(persistence)
    proxy.refuse()
    proxy.drop()
    assert persistence.update_task(secret_task("a", name="changed"))
    assert persistence.health().store == "files"
    persistence.close()
    with psycopg.connect(migrated_url) as connection:
        connection.execute("DELETE FROM scheduler_tasks WHERE task_key = 'a'")
    persistence = opened(base, url=migrated_url)
    found = persistence.get_task("a")
    assert found is not None
    assert found["name"] == "changed"


def test_an_answer_to_a_reading_is_lost(
    opened: MakePersistence, base: Path, proxy: Proxy, told: Told
) -> None:
    persistence = opened(base, url=proxy.url)
    fill(persistence)
    for name in ("get_task", "load_tasks", "get_active_tasks", "get_task_history"):
        proxy.lose_answer("SELECT")
        assert CALLS[name].make(persistence) == CALLS[name].answer
        assert proxy.has_lost
    told.on_database(persistence)


@pytest.mark.parametrize(("call", "answer"), [("delete", False), ("add", False), ("update", True)])
def test_a_broken_connection_makes_no_wrong_answer(
    opened: MakePersistence, base: Path, proxy: Proxy, told: Told, call: str, answer: bool
) -> None:
    """What was done before, by an earlier call, is not taken for the lost one's work."""
    persistence = opened(base, url=proxy.url)
    persistence.add_task(secret_task("a"))
    if call == "delete":
        persistence.delete_task("a")
    proxy.drop()
    made = {
        "delete": lambda: persistence.delete_task("a"),
        "add": lambda: persistence.add_task(secret_task("a", name="another")),
        "update": lambda: persistence.update_task(secret_task("a", name="another")),
    }[call]()
    assert made is answer
    told.on_database(persistence)


def test_a_run_is_one_row_and_one_line(
    opened: MakePersistence, base: Path, proxy: Proxy, migrated_url: str
) -> None:
    persistence = opened(base, url=proxy.url)
    for number in range(5):
        proxy.lose_answer("INSERT")
        persistence.log_task_execution("a", True, f"run {number}")
        assert proxy.has_lost
    lines = [json.loads(line) for line in persistence.history_file.read_text().splitlines()]
    assert [line["message"] for line in lines] == [f"run {number}" for number in range(5)]
    assert value(migrated_url, "SELECT count(*) FROM scheduler_runs") == 5
    assert value(migrated_url, "SELECT count(DISTINCT run_id) FROM scheduler_runs") == 5


def test_a_task_that_a_peer_shows_already_was_added(
    opened: MakePersistence, base: Path, migrated_url: str, proxy: Proxy
) -> None:
    """Its answer got lost; before the files take over, a peer has written it to the snapshot."""
    persistence = opened(base, url=proxy.url, settings=impatient())
    fill(persistence)
    peer = opened(base, url=as_another(migrated_url, "peer"))

    def show_and_refuse() -> None:
        peer.load_tasks()
        proxy.refuse()

    proxy.lose_answer("INSERT", then=show_and_refuse)
    assert persistence.add_task(secret_task("c"))
    assert (proxy.has_lost, persistence.health().store) == (True, "files")
    assert not persistence.add_task(secret_task("c"))
    assert [task["task_id"] for task in OldCode(base).load()] == ["a", "b", "c"]
