"""Removing old lines from a history file, in one pass and with little memory."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from datahound_storage.files import atomic, history
from datahound_storage.files.lock import cannot
from datahound_storage.files.usual import LINE, Days, blocks, lines_of, time_text
from datahound_storage.runs import parse_line


def trim(path: Path, cutoff: datetime) -> int:
    """Remove the lines of runs that ended before `cutoff`; return how many. Atomic and durable.

    Wherever they stand; what cannot be parsed is kept. Holds a few MB of the file at a time.
    Callers hold the file lock. Raises FileStoreError.
    """
    try:
        with path.open("rb") as file:
            return _trim(path, file, cutoff)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise cannot("read", path, error) from error


def _trim(path: Path, file: BinaryIO, cutoff: datetime) -> int:
    trimming = _Trimming(cutoff)
    for _ in trimming.kept(file):
        if trimming.removed:
            break
    if not trimming.removed:
        return 0  # the file is left alone
    file.seek(0)
    trimming = _Trimming(cutoff)
    atomic.replace(path, trimming.kept(file))
    # Who has no patience for the lock appends without it: what came too late to be copied is in the
    # old file. Whoever comes later still sees that the name leads to another one, and comes again.
    history.append_bytes(path, file.read(), durable=True)
    return trimming.removed


class _Trimming:
    def __init__(self, cutoff: datetime) -> None:
        self._cutoff, self._edge = cutoff, time_text(cutoff)
        self._days = Days(cutoff)
        self.removed = 0

    def kept(self, file: BinaryIO) -> Iterator[bytes]:
        """What is to stay of each block of a file; a torn last line is closed off."""
        for block in blocks(file):
            lines = lines_of(block)
            if self._days.are_earlier(block, lines):
                self.removed += len(lines)
                yield b""
            elif self._days.are_later(block, lines) and block.endswith(b"\n"):
                yield block
            else:
                yield self._kept_of(lines)

    def _kept_of(self, lines: list[bytes]) -> bytes:
        kept = [line + b"\n" for line in lines if not self._is_old(line)]
        self.removed += len(lines) - len(kept)
        return b"".join(kept)

    def _is_old(self, line: bytes) -> bool:
        usual = LINE.fullmatch(line)
        if usual is not None:
            return usual[1] < self._edge
        parsed = parse_line(line.strip().decode("utf-8", "surrogateescape"))
        return parsed is not None and parsed.ended_at < self._cutoff
