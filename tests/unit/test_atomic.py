from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from datahound_storage.errors import FileStoreError
from datahound_storage.files import atomic
from tests.unit import files_limited_to, make_shared, mode_of, umask

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    return tmp_path / "tasks.json"


def test_a_file_is_made_and_replaced(target: Path) -> None:
    atomic.replace(target, b"one")
    assert target.read_bytes() == b"one"
    atomic.replace(target, b"two" * 100_000)
    assert target.read_bytes() == b"two" * 100_000
    assert os.listdir(target.parent) == [target.name]


def test_content_may_come_in_pieces(target: Path) -> None:
    atomic.replace(target, (bytes([number]) * 100_000 for number in range(3)))
    assert target.read_bytes() == b"\0" * 100_000 + b"\1" * 100_000 + b"\2" * 100_000


def test_pieces_that_cannot_be_read_leave_the_old_content_alone(target: Path) -> None:
    target.write_bytes(b"old")

    def pieces() -> Iterator[bytes]:
        yield b"new"
        raise FileStoreError("cannot read it")

    with pytest.raises(FileStoreError, match="cannot read it"):
        atomic.replace(target, pieces())
    assert target.read_bytes() == b"old"
    assert os.listdir(target.parent) == [target.name]


def test_an_open_reader_keeps_the_old_file(target: Path) -> None:
    target.write_bytes(b"old")
    with target.open("rb") as reader:
        atomic.replace(target, b"new")
        assert reader.read() == b"old"


def test_nothing_shows_before_it_is_published(target: Path) -> None:
    target.write_bytes(b"old")
    made = atomic.prepare(target, b"new")
    assert target.read_bytes() == b"old"
    atomic.publish(target)
    assert target.read_bytes() == b"new"
    assert atomic.signature(target) == made


def test_what_a_crash_left_behind_is_replaced(target: Path) -> None:
    atomic.prepare(target, b"torn by a crash, and longer")
    atomic.replace(target, b"new")
    assert target.read_bytes() == b"new"
    assert os.listdir(target.parent) == [target.name]


def test_a_signature_changes_with_every_write(target: Path) -> None:
    assert atomic.signature(target) is None
    seen = {atomic.replace(target, b"same") for _ in range(20)}
    assert len(seen) == 20
    assert atomic.signature(target) in seen


def test_a_write_in_place_of_the_same_size_changes_the_signature(target: Path) -> None:
    made = atomic.replace(target, b"same")
    target.write_bytes(b"emas")
    assert atomic.signature(target) != made


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_a_new_file_is_for_its_owner_only(target: Path, mask: int) -> None:
    with umask(mask):
        atomic.replace(target, b"x")
    assert mode_of(target) == 0o600


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_a_new_file_in_a_shared_directory_is_for_its_group(target: Path, mask: int) -> None:
    group = make_shared(target.parent)
    with umask(mask):
        atomic.replace(target, b"x")
    assert (mode_of(target), target.stat().st_gid) == (0o660, group)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o606, 0o444])
def test_an_existing_mode_is_kept(target: Path, mode: int) -> None:
    target.write_bytes(b"old")
    target.chmod(mode)
    with umask(0o077):
        atomic.replace(target, b"new")
    assert (mode_of(target), target.read_bytes()) == (mode, b"new")


@only_root
def test_an_existing_group_is_kept(target: Path) -> None:
    target.write_bytes(b"old")
    os.chown(target, -1, 4242)
    target.chmod(0o660)
    atomic.replace(target, b"new")
    assert (mode_of(target), target.stat().st_gid) == (0o660, 4242)


@pytest.mark.parametrize("exists", [True, False])
def test_the_target_of_a_symbolic_link_is_not_touched(target: Path, exists: bool) -> None:
    other = target.with_name("other")
    if exists:
        other.write_bytes(b"other")
    target.symlink_to(other)
    atomic.replace(target, b"new")
    assert target.read_bytes() == b"new"
    assert other.exists() is exists
    assert not exists or other.read_bytes() == b"other"


def test_what_takes_the_place_of_a_symbolic_link_is_not_open_to_all(target: Path) -> None:
    target.symlink_to(target.with_name("other"))
    atomic.replace(target, b"new")
    assert mode_of(target) & 0o007 == 0


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(target: Path) -> None:
    atomic.prepare(target, b"x")
    (temporary,) = target.parent.iterdir()
    other = target.with_name("other")
    other.write_bytes(b"other")
    temporary.unlink()
    temporary.symlink_to(other)
    atomic.replace(target, b"new")
    assert (target.read_bytes(), other.read_bytes()) == (b"new", b"other")


@pytest.mark.parametrize("limit", [0, 10, 4096])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(target: Path, limit: int) -> None:
    target.write_bytes(b"old")
    before = atomic.signature(target)
    with (
        files_limited_to(limit),
        pytest.raises(FileStoreError, match=r"cannot write .*tasks\.json"),
    ):
        atomic.replace(target, b"x" * 100_000)
    assert target.read_bytes() == b"old"
    assert atomic.signature(target) == before
    assert os.listdir(target.parent) == [target.name]


def test_a_write_after_a_full_disk_succeeds(target: Path) -> None:
    with files_limited_to(10), pytest.raises(FileStoreError):
        atomic.replace(target, b"x" * 100)
    atomic.replace(target, b"x" * 100)
    assert target.read_bytes() == b"x" * 100


def test_a_missing_directory_is_named(target: Path) -> None:
    with pytest.raises(FileStoreError, match="create its directory"):
        atomic.replace(target / "missing" / "tasks.json", b"x")


def test_a_directory_in_the_place_of_the_file_stays(target: Path) -> None:
    (target / "inside").mkdir(parents=True)
    with pytest.raises(FileStoreError, match="cannot replace"):
        atomic.replace(target, b"x")
    assert (target / "inside").is_dir()


def test_a_file_below_a_file_is_an_error_and_not_a_missing_one(target: Path) -> None:
    target.write_bytes(b"")
    with pytest.raises(FileStoreError, match="cannot read"):
        atomic.signature(target / "below")


def test_names_of_several_files_do_not_collide(tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    atomic.prepare(first, b"a")
    atomic.prepare(second, b"b")
    atomic.publish(first)
    atomic.publish(second)
    assert (first.read_bytes(), second.read_bytes()) == (b"a", b"b")
