from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from datahound_storage.errors import FileStoreError
from datahound_storage.files import history
from datahound_storage.files.file_store import FileStore
from datahound_storage.files.paths import StatePaths
from datahound_storage.files.trimming import trim
from tests.unit import files_limited_to, make_shared, mode_of, umask

START = datetime(2026, 9, 20, tzinfo=UTC)


def line(number: int, task_id: str = "t1", **fields: object) -> str:
    """The text of a run that ended `number` hours after the start."""
    ended_at = (START + timedelta(hours=number)).isoformat()
    return json.dumps({"timestamp": ended_at, "task_id": task_id, "message": ""} | fields)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    return tmp_path / "task_history.jsonl"


@pytest.fixture
def pacific(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process's local time is eight hours behind UTC."""
    monkeypatch.setenv("TZ", "PST8")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def texts_of(lines: list[history.Line]) -> list[str]:
    return [line.text for line in lines]


class TestAppend:
    @pytest.mark.parametrize("durable", [True, False])
    def test_lines_are_appended_in_order(self, path: Path, durable: bool) -> None:
        history.append(path, [line(1)], durable=durable)
        history.append(path, [line(2), line(3)], durable=durable)
        assert path.read_text() == f"{line(1)}\n{line(2)}\n{line(3)}\n"

    def test_nothing_to_append_makes_no_file(self, path: Path) -> None:
        history.append(path, [], durable=True)
        assert not path.exists()

    @pytest.mark.parametrize("cut", [1, 10, len(line(2)) - 1, len(line(2))])
    def test_a_torn_last_line_is_closed_off(self, path: Path, cut: int) -> None:
        path.write_text(f"{line(1)}\n{line(2)[:cut]}")
        history.append(path, [line(3)], durable=True)
        assert path.read_text() == f"{line(1)}\n{line(2)[:cut]}\n{line(3)}\n"
        whole = [line(1), line(2), line(3)] if cut == len(line(2)) else [line(1), line(3)]
        assert texts_of(list(history.lines([path]))) == whole

    def test_an_empty_file_gets_no_empty_line(self, path: Path) -> None:
        path.touch()
        history.append(path, [line(1)], durable=True)
        assert path.read_text() == f"{line(1)}\n"

    @pytest.mark.parametrize("room", [0, 1, 20, len(line(2))])
    def test_a_full_disk_is_an_error_and_leaves_no_part_of_a_line(
        self, path: Path, room: int
    ) -> None:
        history.append(path, [line(1)], durable=True)
        before = path.read_bytes()
        with files_limited_to(len(before) + room), pytest.raises(FileStoreError):
            history.append(path, [line(2)], durable=True)
        assert path.read_bytes() == before

    def test_a_full_disk_leaves_a_torn_last_line_to_the_next_call(self, path: Path) -> None:
        path.write_text("torn")
        with files_limited_to(10), pytest.raises(FileStoreError):
            history.append(path, [line(2)], durable=True)
        assert path.read_text() == "torn"
        history.append(path, [line(2)], durable=True)
        assert path.read_text() == f"torn\n{line(2)}\n"

    @pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
    def test_a_new_file_is_for_its_owner_only(self, path: Path, mask: int) -> None:
        with umask(mask):
            history.append(path, [line(1)], durable=True)
        assert mode_of(path) == 0o600

    @pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
    def test_a_new_file_in_a_shared_directory_is_for_its_group(self, path: Path, mask: int) -> None:
        group = make_shared(path.parent)
        with umask(mask):
            history.append(path, [line(1)], durable=True)
        assert (mode_of(path), path.stat().st_gid) == (0o660, group)

    def test_a_line_that_somebody_else_left_torn_is_closed_off_too(self, path: Path) -> None:
        history.append(path, [line(1)], durable=False)
        as_left = path.stat().st_mtime_ns
        with path.open("a") as file:
            file.write("{torn")
        os.utime(path, ns=(as_left, as_left))
        history.append(path, [line(2)], durable=False)
        assert path.read_text() == f"{line(1)}\n{{torn\n{line(2)}\n"
        # One that is as long as what was left.
        whole = path.read_text()
        path.write_text(whole[:-1] + "x")
        later = path.stat().st_mtime_ns + 10_000_000
        os.utime(path, ns=(later, later))  # the clock that stamps files goes by some milliseconds
        history.append(path, [line(3)], durable=False)
        assert path.read_text() == f"{whole[:-1]}x\n{line(3)}\n"

    def test_an_existing_mode_is_kept(self, path: Path) -> None:
        path.touch()
        path.chmod(0o640)
        history.append(path, [line(1)], durable=True)
        assert mode_of(path) == 0o640

    def test_a_link_to_a_file_that_is_not_there_yet_is_followed(self, path: Path) -> None:
        target = path.with_name("elsewhere.jsonl")
        path.symlink_to(target)
        history.append(path, [line(1)], durable=True)
        assert target.read_text() == f"{line(1)}\n"

    def test_a_missing_directory_is_named(self, path: Path) -> None:
        with pytest.raises(FileStoreError, match="create its directory"):
            history.append(path / "missing" / "file", [line(1)], durable=True)

    def test_a_line_goes_to_the_file_that_has_the_name_after_a_trim(self, path: Path) -> None:
        history.append(path, [line(1), line(2)], durable=True)
        trim(path, START + timedelta(hours=2))
        history.append(path, [line(3)], durable=True)
        assert path.read_text() == f"{line(2)}\n{line(3)}\n"


class TestRead:
    def test_a_missing_file_has_no_lines(self, path: Path) -> None:
        assert list(history.lines([path])) == []

    def test_a_file_that_cannot_be_read_is_not_an_empty_one(self, path: Path) -> None:
        path.mkdir()
        with pytest.raises(FileStoreError, match="cannot read"):
            list(history.texts(path))

    def test_blank_lines_and_line_ends_do_not_matter(self, path: Path) -> None:
        path.write_bytes(f"\r\n{line(1)}\r\n\n  {line(2)} \n\n{line(3)}".encode())
        assert texts_of(list(history.lines([path]))) == [line(1), line(2), line(3)]

    def test_what_is_no_line_hides_no_other(self, path: Path) -> None:
        bad = [b"{torn", b"\x00" * 30, b"\xff\xfe", b"[1]", b'"text"', line(1)[:-1].encode()]
        path.write_bytes(b"\n".join([*bad, line(2).encode(), b""]))
        assert texts_of(list(history.lines([path]))) == [line(2)]

    def test_the_same_file_read_twice_gives_the_same_ids(self, path: Path) -> None:
        history.append(path, [line(1), line(1), line(2), line(1)], durable=True)
        first = [found.run_id for found in history.lines([path])]
        assert len(set(first)) == 4
        assert first == [found.run_id for found in history.lines([path])]

    def test_a_line_that_was_copied_from_the_older_file_is_one_run(self, path: Path) -> None:
        legacy = path.with_name("legacy.jsonl")
        history.append(legacy, [line(1), line(1)], durable=True)
        history.append(path, [line(1), line(1), line(2)], durable=True)
        found = texts_of(list(history.lines([legacy, path])))
        assert found == [line(1), line(1), line(2)]

    def test_a_run_id_that_comes_again_is_the_same_run(self, path: Path) -> None:
        history.append(path, [line(1, run_id="r"), line(1, run_id="r")], durable=True)
        assert len(list(history.lines([path]))) == 1

    def test_the_newest_are_by_the_runs_end_and_then_by_insertion(self, path: Path) -> None:
        texts = [line(3), line(1), line(2, message="a"), line(2, message="b")]
        history.append(path, texts, durable=True)
        expected = [line(3), line(2, message="b"), line(2, message="a"), line(1)]
        assert texts_of(history.newest([path], None, 10)) == expected
        assert texts_of(history.newest([path], None, 2)) == expected[:2]

    def test_the_newest_of_a_task_are_not_crowded_out_by_others(self, path: Path) -> None:
        history.append(path, [line(1, "a"), *[line(n, "b") for n in range(2, 50)]], durable=True)
        assert texts_of(history.newest([path], "a", 1)) == [line(1, "a")]
        assert history.newest([path], "c", 1) == []

    def test_no_limit_is_no_line(self, path: Path) -> None:
        history.append(path, [line(1)], durable=True)
        assert history.newest([path], None, 0) == []

    def test_naive_times_of_the_older_file_are_local(self, path: Path, pacific: None) -> None:
        legacy = path.with_name("legacy.jsonl")
        naive = json.dumps({"timestamp": "2026-09-20T01:00:00", "task_id": "t1"})
        history.append(legacy, [naive], durable=True)
        history.append(path, [line(8), line(10)], durable=True)
        newest = history.newest([legacy, path], None, 10)
        assert texts_of(newest) == [line(10), naive, line(8)]
        assert newest[1].ended_at == START + timedelta(hours=9)


class TestCutoff:
    def test_the_newest_cutoff_is_remembered(self, path: Path) -> None:
        assert history.remembered_cutoff(path) is None
        history.remember_cutoff(path, START)
        history.remember_cutoff(path, START - timedelta(days=1))
        assert history.remembered_cutoff(path) == START

    @pytest.mark.parametrize("content", [b"", b"{torn", b"[]", b'{"cutoff": 5}', b"\xff", b"null"])
    def test_a_damaged_cutoff_is_none_and_can_be_written_again(
        self, path: Path, content: bytes
    ) -> None:
        path.write_bytes(content)
        assert history.remembered_cutoff(path) is None
        history.remember_cutoff(path, START)
        assert history.remembered_cutoff(path) == START


def test_a_store_trims_the_older_file_too_and_remembers_it(tmp_path: Path) -> None:
    paths = StatePaths.below(tmp_path / "data")
    paths.make_directories()
    for file in paths.history_files:
        history.append(file, [line(1), line(2, timestamp="2999-01-01T00:00:00Z")], durable=True)
    assert FileStore(paths, 1).trim_history(30) == 2
    assert [file.read_text().count("\n") for file in paths.history_files] == [1, 1]
    assert history.remembered_cutoff(paths.history_state_file) is not None


def test_a_store_gives_the_newest_entries_with_their_keys(tmp_path: Path) -> None:
    paths = StatePaths.below(tmp_path / "data")
    paths.make_directories()
    store = FileStore(paths, 1)
    for number in (1, 2):
        store.log_run(json.loads(line(number)))
    assert store.history("t1", 1) == [json.loads(line(2))]
