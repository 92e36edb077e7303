"""Removing old lines from a history file, in one pass and with little memory."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from datahound_storage.files import atomic
from datahound_storage.files.lock import cannot
from datahound_storage.files.usual import LINE, LaterLines, blocks, lines_of, time_text
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
    else:
        return 0  # nothing to remove leaves the file alone
    file.seek(0)
    trimming = _Trimming(cutoff)
    atomic.replace(path, trimming.kept(file))
    return trimming.removed


class _Trimming:
    def __init__(self, cutoff: datetime) -> None:
        self._cutoff, self._edge = cutoff, time_text(cutoff)
        self._later = LaterLines(cutoff)
        self.removed = 0

    def kept(self, file: BinaryIO) -> Iterator[bytes]:
        """What is to stay of a file, in blocks; a torn last line is closed off."""
        for block in blocks(file):
            lines = lines_of(block)
            if self._later.are_all_of(block, lines) and block.endswith(b"\n"):
                yield block
                continue
            kept = [line for line in lines if not self._is_old(line)]
            self.removed += len(lines) - len(kept)
            yield b"".join([line + b"\n" for line in kept])

    def _is_old(self, line: bytes) -> bool:
        usual = LINE.fullmatch(line)
        if usual is not None:
            return usual[1] < self._edge
        parsed = parse_line(line.strip().decode("utf-8", "surrogateescape"))
        return parsed is not None and parsed.ended_at < self._cutoff
