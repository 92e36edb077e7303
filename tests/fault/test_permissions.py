"""Files that may not be read, written or linked: told, never taken for empty, never overwritten.

As root the calls are made as `nobody`: nothing is forbidden to root.
"""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from datahound_storage import SchedulerPersistence
from datahound_storage.errors import FileStoreError, SnapshotError, StorageError
from datahound_storage.files import atomic, snapshot
from datahound_storage.files.paths import StatePaths
from tests.fault.disks import SmallDisk, mounted_by_itself, open_directory, small_disk
from tests.fix_persistence import MakePersistence
from tests.scheduler import OldCode, make_task

DAMAGED = json.dumps([make_task("a"), {"task_id": ""}], indent=2).encode()


@contextmanager
def ordinary_user() -> Iterator[None]:
    """What runs in here runs without root's powers."""
    if os.geteuid() != 0:
        yield
        return
    nobody, groups = pwd.getpwnam("nobody"), os.getgroups()
    os.setgroups([])
    os.setegid(nobody.pw_gid)
    os.seteuid(nobody.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.fixture
def base() -> Iterator[Path]:
    """A base directory of the ordinary user's own."""
    with open_directory() as directory:
        give_away(directory)
        yield directory / "base"


def give_away(path: Path) -> None:
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(path, nobody.pw_uid, nobody.pw_gid)


@contextmanager
def forbidden(path: Path, mode: int = 0o000) -> Iterator[None]:
    """Take permissions away from a file or directory."""
    old = path.stat().st_mode
    path.chmod(mode)
    try:
        yield
    finally:
        path.chmod(old)


WRITES: list[Callable[[SchedulerPersistence], object]] = [
    lambda p: p.add_task(make_task("b")),
    lambda p: p.update_task(make_task("a", name="changed")),
    lambda p: p.delete_task("a"),
    lambda p: p.save_tasks([]),
]


def test_a_snapshot_that_may_not_be_read_is_not_an_empty_one(
    base: Path, opened: MakePersistence
) -> None:
    with ordinary_user():
        persistence = opened(base)
        persistence.add_task(make_task("a"))
        before = atomic.signature(persistence.tasks_file)
        with forbidden(persistence.tasks_file):
            for call in [SchedulerPersistence.load_tasks, *WRITES]:
                with pytest.raises(FileStoreError, match=r"cannot read /.*give this user"):
                    call(persistence)
        assert atomic.signature(persistence.tasks_file) == before
        assert len(list(persistence.scheduler_dir.iterdir())) == 2  # snapshot and lock
        assert [task["task_id"] for task in persistence.load_tasks()] == ["a"]


def test_a_start_on_a_snapshot_that_may_not_be_read_changes_nothing(
    base: Path, migrated_url: str, opened: MakePersistence
) -> None:
    with ordinary_user():
        persistence = opened(base, url=migrated_url)
        persistence.add_task(make_task("a"))
        persistence.close()
        OldCode(base).save([make_task("a"), make_task("b")])
        before = persistence.tasks_file.read_bytes()
        with forbidden(persistence.tasks_file), pytest.raises(FileStoreError, match="cannot read"):
            opened(base, url=migrated_url)
        assert persistence.tasks_file.read_bytes() == before
        persistence = opened(base, url=migrated_url)
        assert [task["task_id"] for task in persistence.load_tasks()] == ["a", "b"]


def test_the_database_goes_on_beside_a_snapshot_that_may_not_be_read(
    base: Path, migrated_url: str, opened: MakePersistence
) -> None:
    with ordinary_user():
        persistence = opened(base, url=migrated_url)
        persistence.add_task(make_task("a"))
        OldCode(base).save([make_task("a"), make_task("b")])
        before = persistence.tasks_file.read_bytes()
        with forbidden(persistence.tasks_file):
            assert persistence.add_task(make_task("c"))
            assert [task["task_id"] for task in persistence.load_tasks()] == ["a", "c"]
            problem = persistence.health().backup_problem
            assert problem is not None
            assert "cannot read" in problem
        assert persistence.tasks_file.read_bytes() == before
        assert {task["task_id"] for task in persistence.load_tasks()} == {"a", "b", "c"}
        assert persistence.health().backup_problem is None


def test_a_history_that_may_not_be_read_is_not_an_empty_one(
    base: Path, opened: MakePersistence, caplog: pytest.LogCaptureFixture
) -> None:
    with ordinary_user():
        persistence = opened(base)
        persistence.log_task_execution("a", True, message="before")
        with forbidden(persistence.history_file):
            for call in (
                SchedulerPersistence.get_task_history,
                SchedulerPersistence.clear_old_history,
            ):
                with pytest.raises(FileStoreError, match=r"cannot read /.*give this user"):
                    call(persistence)
            persistence.log_task_execution("a", True, message="refused")
        assert "could not be kept" in caplog.text
        persistence.log_task_execution("a", True, message="after")
        messages = [run["message"] for run in persistence.get_task_history()]
        assert messages == ["after", "before"]


def test_a_directory_that_may_not_be_written_keeps_the_old_state(
    base: Path, opened: MakePersistence
) -> None:
    with ordinary_user():
        persistence = opened(base)
        persistence.add_task(make_task("a"))
        before = persistence.tasks_file.read_bytes()
        with forbidden(persistence.scheduler_dir, 0o500):
            for write in WRITES:
                with pytest.raises(FileStoreError, match=r"cannot write /.*give this user"):
                    write(persistence)
            assert [task["task_id"] for task in persistence.load_tasks()] == ["a"]
            assert persistence.tasks_file.read_bytes() == before
        assert persistence.add_task(make_task("b"))


def test_the_database_goes_on_beside_a_directory_that_may_not_be_written(
    base: Path, migrated_url: str, opened: MakePersistence
) -> None:
    with ordinary_user():
        persistence = opened(base, url=migrated_url)
        with forbidden(persistence.scheduler_dir, 0o500):
            assert persistence.add_task(make_task("a"))
            assert "cannot write" in str(persistence.health().backup_problem)
            assert persistence.tasks_file.read_bytes() == b"[]"
        assert persistence.update_task(make_task("a", name="later"))
        assert persistence.health().backup_problem is None
        assert [t["name"] for t in json.loads(persistence.tasks_file.read_bytes())] == ["later"]


def test_links_in_the_place_of_temporary_files_are_not_followed(
    make: MakePersistence, base: Path
) -> None:
    with ordinary_user():
        persistence = make()
        victim = base / "victim"
        victim.write_bytes(b"somebody else's")
        for path in (persistence.scheduler_dir, persistence.history_file.parent):
            for name in (
                "scheduled_tasks.json",
                "scheduled_tasks.state.json",
                "task_history.jsonl",
            ):
                (path / f".{name}.tmp").symlink_to(victim)
            (path / ".task_history.state.json.tmp").symlink_to(victim)
        persistence.add_task(make_task("a"))
        persistence.history_file.write_text('{"timestamp": "2020-01-01T00:00Z", "task_id": "a"}\n')
        persistence.clear_old_history(30)
        assert victim.read_bytes() == b"somebody else's"
        assert persistence.history_file.read_bytes() == b""
        assert [t["task_id"] for t in json.loads(persistence.tasks_file.read_bytes())] == ["a"]


def damage(base: Path) -> StatePaths:
    """A damaged snapshot, as root one of another user, whose files must not be linked."""
    paths = StatePaths.below(base / "data")
    with ordinary_user():
        paths.make_directories()
    paths.tasks_file.write_bytes(DAMAGED)
    paths.tasks_file.chmod(0o644)
    with ordinary_user():
        link = paths.tasks_file.with_name("link")
        try:
            link.hardlink_to(paths.tasks_file)
        except PermissionError:
            return paths
        link.unlink()
    pytest.skip("needs root, and a kernel that protects the files of others from being linked")


def test_a_damaged_snapshot_that_cannot_be_linked_is_copied(base: Path) -> None:
    paths = damage(base)
    inode = paths.tasks_file.stat().st_ino
    with ordinary_user():
        kept = snapshot.set_aside(paths.tasks_file)
    assert kept.read_bytes() == DAMAGED
    assert kept.stat().st_mode & 0o777 == 0o604  # not for a group that it cannot be given to
    assert (paths.tasks_file.read_bytes(), paths.tasks_file.stat().st_ino) == (DAMAGED, inode)
    assert sorted(paths.scheduler_dir.iterdir()) == [paths.tasks_file, kept]


def test_both_stores_go_on_from_a_damaged_snapshot_that_cannot_be_linked(
    base: Path, make: MakePersistence
) -> None:
    paths = damage(base)
    with ordinary_user():
        assert make().add_task(make_task("b"))
        (kept,) = paths.scheduler_dir.glob("*.damaged-*")
        assert kept.read_bytes() == DAMAGED
        tasks = json.loads(paths.tasks_file.read_bytes())
        assert [task["task_id"] for task in tasks] == ["a", "b"]


@pytest.fixture
def disk() -> Iterator[SmallDisk]:
    with small_disk(size=256 * 1024) as disk:
        yield disk


def test_a_damaged_snapshot_that_can_be_neither_linked_nor_copied_stays(disk: SmallDisk) -> None:
    give_away(disk.path)
    paths = damage(disk.path / "base")
    with ordinary_user():
        disk.fill()
        persistence = SchedulerPersistence(paths.data_dir)
        for write in WRITES:
            with pytest.raises(
                SnapshotError, match=r"free space on that disk.*copy it away by hand"
            ):
                write(persistence)
        assert paths.tasks_file.read_bytes() == DAMAGED
        assert list(paths.scheduler_dir.glob("*.damaged-*")) == []
        disk.free()
        assert persistence.add_task(make_task("b"))


def test_a_name_that_is_taken_is_not_overwritten(tmp_path: Path) -> None:
    path, copy = tmp_path / "path", tmp_path / "copy"
    path.write_bytes(b"new")
    copy.write_bytes(b"old")
    with pytest.raises(FileExistsError):
        atomic.duplicate(path, copy)
    assert copy.read_bytes() == b"old"


def test_a_snapshot_that_is_mounted_by_itself_is_told_apart(
    base: Path, opened: MakePersistence
) -> None:
    persistence = opened(base)
    persistence.add_task(make_task("a"))
    with mounted_by_itself(persistence.tasks_file):
        with pytest.raises(StorageError, match="mount its directory instead"):
            persistence.add_task(make_task("b"))
        assert [task["task_id"] for task in persistence.load_tasks()] == ["a"]
        assert len(list(persistence.scheduler_dir.iterdir())) == 2
