"""The file of versions that lost: read, and forgotten line by line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from datahound_storage.errors import FileStoreError
from datahound_storage.files import conflicts
from datahound_storage.writes import Conflict
from tests.unit import files_limited_to, mode_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".scheduled_tasks.conflicts.jsonl"


def lost(key: str) -> Conflict:
    return Conflict(key, "operator", "later", f'{{"task_id": "{key}"}}', "a reason")


def numbered(path: Path) -> dict[int, str]:
    return {noted.line: noted.conflict.task_key for noted in conflicts.read(path)}


def test_a_missing_file_has_none(path: Path) -> None:
    assert conflicts.read(path) == []
    assert conflicts.forget(path, [1]) == 0
    assert not path.exists()


def test_what_is_forgotten_goes_and_the_others_keep_their_lines(path: Path) -> None:
    conflicts.append(path, map(lost, "abcd"))
    assert conflicts.forget(path, [2, 4, 9]) == 2
    assert numbered(path) == {1: "a", 3: "c"}
    conflicts.append(path, [lost("e")])
    assert numbered(path) == {1: "a", 3: "c", 5: "e"}
    assert conflicts.forget(path, [2]) == 0


def test_the_last_one_that_is_forgotten_leaves_an_empty_file(path: Path) -> None:
    conflicts.append(path, map(lost, "ab"))
    assert conflicts.forget(path, [1, 2]) == 2
    assert path.read_bytes() == b""
    conflicts.append(path, [lost("c")])
    assert numbered(path) == {1: "c"}


def test_what_cannot_be_parsed_is_kept(path: Path) -> None:
    conflicts.append(path, [lost("a")])
    with path.open("ab") as file:
        file.write(b'\xff{"torn')
    conflicts.append(path, [lost("b")])
    assert numbered(path) == {1: "a", 3: "b"}
    assert conflicts.forget(path, [1, 2, 3]) == 2
    assert b'\xff{"torn' in path.read_bytes().splitlines()


def test_mode_is_kept_and_no_other_file_is_left(path: Path) -> None:
    conflicts.append(path, map(lost, "ab"))
    path.chmod(0o640)
    conflicts.forget(path, [1])
    assert mode_of(path) == 0o640
    assert os.listdir(path.parent) == [path.name]


def test_a_full_disk_leaves_the_file_as_it_was(path: Path) -> None:
    conflicts.append(path, map(lost, "ab"))
    before = path.read_bytes()
    with files_limited_to(10), pytest.raises(FileStoreError):
        conflicts.forget(path, [1])
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_file_that_cannot_be_read_is_an_error(path: Path) -> None:
    path.mkdir()
    with pytest.raises(FileStoreError, match="cannot read"):
        conflicts.read(path)
    with pytest.raises(FileStoreError, match="cannot read"):
        conflicts.forget(path, [1])
