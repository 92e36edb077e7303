"""What is committed and not shown yet: whoever dies, and whatever a server counts anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from datahound_storage import SchedulerPersistence
from datahound_storage.dal import StorageDAL
from datahound_storage.errors import FileStoreError
from datahound_storage.files import atomic
from datahound_storage.files.paths import StatePaths
from datahound_storage.testing import EmbeddedServer
from tests.fault.fix_faults import fill, impatient, secret_task
from tests.fault.proxy import Proxy
from tests.fault.test_crash import count_up
from tests.fault.test_lost_answers import no_room_for_snapshots
from tests.fix_persistence import MakePersistence, as_another
from tests.scheduler import OldCode, make_task


class Killed(BaseException):
    """The process ends here."""


def keys(persistence: SchedulerPersistence) -> list[str]:
    return [task["task_id"] for task in persistence.load_tasks()]


@contextmanager
def killed_before_the_snapshot() -> Iterator[None]:
    """A process dies when it has written the sidecar."""
    really_publish = atomic.publish

    def publish(path: Path) -> None:
        if path.name == "scheduled_tasks.json":
            raise Killed
        really_publish(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "publish", publish)
        with pytest.raises(Killed):
            yield


def test_a_process_on_the_files_does_not_make_its_sidecar_true(
    opened: MakePersistence, base: Path, migrated_url: str, proxy: Proxy
) -> None:
    """It writes a snapshot of its own, beside the sidecar of the peer that was killed."""
    here = opened(base, url=proxy.url, settings=impatient())
    fill(here)
    peer = opened(base, url=as_another(migrated_url, "peer"))
    on_files = opened(base)
    with no_room_for_snapshots():
        assert here.add_task(secret_task("c"))
    with killed_before_the_snapshot():
        peer.load_tasks()
    assert on_files.update_task({**on_files.get_task("a"), "name": "changed"})
    proxy.refuse()
    assert keys(here) == ["a", "b", "c"]
    assert here.get_task("a")["name"] == "changed"


def test_a_sidecar_whose_name_the_disk_does_not_keep_has_shown_nothing(
    opened: MakePersistence, base: Path, migrated_url: str, proxy: Proxy
) -> None:
    """It stands there all the same, and the snapshot that it speaks of was never published."""
    here = opened(base, url=proxy.url, settings=impatient())
    fill(here)
    really_replace = atomic.replace

    def replace(path: Path, content: bytes) -> atomic.Signature:
        made = really_replace(path, content)
        if path.name.endswith(".state.json"):
            raise FileStoreError("cannot sync the directory")
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "replace", replace)
        assert here.add_task(secret_task("c"))
    proxy.refuse()
    assert keys(here) == ["a", "b", "c"]
    assert here.health().store == "files"
    here.close()
    here = opened(base, url=migrated_url)
    assert keys(here) == ["a", "b", "c"]


def test_a_peer_that_is_killed_between_sidecar_and_snapshot_has_shown_nothing(
    opened: MakePersistence, base: Path, migrated_url: str, proxy: Proxy
) -> None:
    here = opened(base, url=proxy.url, settings=impatient())
    fill(here)
    peer = opened(base, url=as_another(migrated_url, "peer"))
    with no_room_for_snapshots():
        assert here.add_task(secret_task("c"))
    with killed_before_the_snapshot():
        peer.load_tasks()
    proxy.refuse()
    assert keys(here) == ["a", "b", "c"]
    assert here.health().store == "files"


def test_a_deletion_that_the_files_did_not_show_keeps_a_later_edit(
    opened: MakePersistence, base: Path, migrated_url: str, proxy: Proxy
) -> None:
    here = opened(base, url=proxy.url, settings=impatient())
    fill(here)
    with no_room_for_snapshots():
        assert here.delete_task("b")
    tasks = OldCode(base).load()
    OldCode(base).save([tasks[0], {**tasks[1], "name": "edited"}])
    proxy.refuse()
    assert keys(here) == ["a"]
    here.close()
    here = opened(base, url=migrated_url)
    assert keys(here) == ["a"]
    assert "edited" in StatePaths.below(base / "data").conflicts_file.read_text()


@pytest.fixture
def crashed(opened: MakePersistence, base: Path, embedded_directory: Path) -> Any:
    """A server that will give numbers again that it gave before, and a process on it."""
    with EmbeddedServer(embedded_directory) as server:
        here = opened(base, url=server.url, settings=impatient(3))
        here.add_task(make_task("a"))
        here.add_task(make_task("b"))
        with psycopg.connect(server.url) as connection:
            connection.execute("UPDATE scheduler_tasks SET company = 'Another'")
        count_up(server.url, 100)
        here.load_tasks()
        server.stop("immediate")
        server.start()
        yield server, here
        here.close()


def test_a_deletion_after_a_crash_of_the_server_is_answered(crashed: Any, base: Path) -> None:
    _, here = crashed
    assert here.delete_task("a")
    assert [task["task_id"] for task in OldCode(base).load()] == ["b"]


def test_a_change_after_a_crash_of_the_server_is_not_taken_for_shown(crashed: Any) -> None:
    server, here = crashed
    with no_room_for_snapshots():
        assert here.add_task(make_task("c"))
        assert here.health().store == "database"
    server.stop("immediate")
    assert keys(here) == ["a", "b", "c"]
    assert here.health().store == "files"
    server.start()


@pytest.mark.parametrize("what", ["save_tasks", "a meeting"])
def test_another_transaction_with_the_same_number_is_not_ours(
    opened: MakePersistence, base: Path, embedded_directory: Path, what: str
) -> None:
    """The server crashes before the commit; the next one gets the number again."""
    with EmbeddedServer(embedded_directory) as server:
        here = opened(base, url=server.url, settings=impatient(20))
        here.add_task(make_task("a"))
        here.add_task(make_task("b"))
        tasks = here.load_tasks()
        if what == "a meeting":
            here.close()
            OldCode(base).save([*tasks, make_task("c")])
        with crash_in_the_first_bulk_change(server):
            if what == "a meeting":
                here = opened(base, url=server.url, settings=impatient(20))
            else:
                assert here.save_tasks([*tasks, make_task("c")])
        assert keys(here) == ["a", "b", "c"]
        assert here.health().store == "database"
        here.close()


@contextmanager
def crash_in_the_first_bulk_change(server: EmbeddedServer) -> Iterator[None]:
    """The server crashes before the commit; afterwards the transaction's number is used up."""
    really_apply, numbers = StorageDAL.apply, []

    def apply(dal: StorageDAL, connection: Any, change: Any, *more: Any) -> None:
        really_apply(dal, connection, change, *more)
        if not numbers:
            numbers.append(int(connection.execute(_NUMBER).fetchone()[0]))
            server.stop("immediate")
            server.start()
            use_up(server.url, numbers[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StorageDAL, "apply", apply)
        yield


def use_up(url: str, number: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for attempt in range(20):
            found = connection.execute(_TOUCH, [f"company {attempt}"]).fetchone()
            if found and int(found[0]) >= number:
                return


_NUMBER = "SELECT pg_current_xact_id()::text"
_TOUCH = """UPDATE scheduler_tasks SET company = %s WHERE task_key = 'b'
RETURNING pg_current_xact_id()::text"""
