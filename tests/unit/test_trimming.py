"""Old lines leave the history file, and no other ones do."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path

import pytest

from datahound_storage import runs
from datahound_storage.errors import FileStoreError
from datahound_storage.files import history
from datahound_storage.files.trimming import trim
from datahound_storage.files.usual import BLOCK
from tests.unit import files_limited_to
from tests.unit.test_history import START, line, pacific, path

__all__ = ["pacific", "path"]  # the fixtures

EDGE = (START + timedelta(hours=300)).isoformat()


class TestTrim:
    def test_older_lines_go_and_the_edge_stays(self, path: Path) -> None:
        history.append(path, [line(1), line(2), line(3)], durable=True)
        assert trim(path, START + timedelta(hours=2)) == 1
        assert path.read_text() == f"{line(2)}\n{line(3)}\n"

    def test_old_lines_go_wherever_they_stand(self, path: Path) -> None:
        """Clocks differ, and what is carried over comes late."""
        times = [500, 1, 600, 2, 300, 3]
        # Each of them has a block of its own, and then they share one.
        long = [line(number, message="x" * BLOCK) for number in times]
        short = [line(number, run_id=str(number)) for number in times]
        history.append(path, long + short, durable=True)
        assert trim(path, START + timedelta(hours=300)) == 6
        kept = [text for text in long + short if json.loads(text)["timestamp"] >= EDGE]
        assert path.read_text() == "".join(f"{text}\n" for text in kept)

    @pytest.mark.parametrize("usual", [True, False])
    def test_the_edge_is_exact(self, path: Path, usual: bool) -> None:
        for offset in (-1, 0, 1):
            entry = runs.new_entry("t1", True, "", 1.5, "name", "download")
            ended_at = START + timedelta(microseconds=offset)
            text = runs.line_text(entry | {"timestamp": ended_at.isoformat()})
            path.write_text((text if usual else text.replace('": ', '":')) + "\n")
            assert trim(path, START) == (offset < 0)

    def test_a_second_time_in_a_line_is_the_one_that_counts(self, path: Path) -> None:
        text = f'{line(500)[:-1]}, "timestamp": "{START.isoformat()}"}}'
        path.write_text(f"{line(501)}\n{text}\n{line(502)}\n")
        assert trim(path, START + timedelta(hours=1)) == 1
        assert path.read_text() == f"{line(501)}\n{line(502)}\n"

    def test_what_is_kept_keeps_its_line_ends(self, path: Path) -> None:
        kept = f"\n  {line(5)}\r\n{line(500)}\n\n".encode()
        path.write_bytes(f"{line(1)}\r\n".encode() + kept)
        assert trim(path, START + timedelta(hours=2)) == 1
        assert path.read_bytes() == kept

    def test_what_cannot_be_parsed_is_kept_byte_by_byte(self, path: Path) -> None:
        bad = [b"{torn", b"\x00" * 30, b"\xff\xfe\x80", "日本".encode(), b'{"task_id": "t1"}']
        path.write_bytes(b"\n".join([bad[0], line(1).encode(), *bad[1:], b""]))
        assert trim(path, START + timedelta(hours=2)) == 1
        assert path.read_bytes() == b"\n".join([*bad, b""])

    def test_raw_letters_and_spelling_are_kept(self, path: Path) -> None:
        text = line(3, message="日本").replace('": ', '":')
        raw = json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))
        path.write_text(f"{line(1)}\n{raw}\n", encoding="utf-8")
        trim(path, START + timedelta(hours=2))
        assert path.read_text(encoding="utf-8") == f"{raw}\n"

    def test_a_torn_last_line_is_closed_and_kept(self, path: Path) -> None:
        path.write_text(f'{line(1)}\n{{"timestamp": "2026')
        trim(path, START + timedelta(hours=2))
        assert path.read_text() == '{"timestamp": "2026\n'

    def test_a_last_line_without_its_end_gets_it(self, path: Path) -> None:
        # A block of its own, of which nothing else is to be changed.
        path.write_text(f"{line(1, message='x' * BLOCK)}\n{line(500)}")
        assert trim(path, START + timedelta(hours=2)) == 1
        assert path.read_text() == f"{line(500)}\n"

    def test_nothing_to_remove_leaves_the_file_alone(self, path: Path) -> None:
        path.write_text(f"{line(3)}\n\n")
        inode = path.stat().st_ino
        assert trim(path, START) == 0
        assert (path.read_text(), path.stat().st_ino) == (f"{line(3)}\n\n", inode)

    def test_a_missing_file_needs_no_trim(self, path: Path) -> None:
        assert trim(path, START) == 0
        assert not path.exists()

    def test_a_full_disk_leaves_the_whole_history(self, path: Path) -> None:
        history.append(path, [line(n) for n in range(100)], durable=True)
        before = path.read_bytes()
        with files_limited_to(200), pytest.raises(FileStoreError):
            trim(path, START + timedelta(hours=10))
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == [path.name]

    def test_naive_times_are_local(self, path: Path, pacific: None) -> None:
        naive = json.dumps({"timestamp": "2026-09-20T01:00:00", "task_id": "t1"})
        history.append(path, [naive], durable=True)
        assert trim(path, START + timedelta(hours=8)) == 0
        assert trim(path, START + timedelta(hours=10)) == 1
