"""Which runs the history files show, and where: read once, with little memory.

For each usable line its file's number, its place in bytes, and its run id; for a line that has none
a digest of its text, from which, with its number among equal lines of the file, its id is made.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from datahound_storage.errors import FileStoreError
from datahound_storage.files.history import Mark
from datahound_storage.files.lock import cannot
from datahound_storage.files.usual import LINE, blocks, lines_of
from datahound_storage.runs import Line, derived_from, parse_line


class FilesChangedError(FileStoreError):
    """Somebody has written a history file anew while it was being read."""


class Place(NamedTuple):
    """Where a line stands, and its run's id."""

    file: int
    offset: int
    run_id: str


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise cannot("read", path, error) from error


class ShownRuns:
    """The lines of history files that stay open: what is renamed over them changes nothing.

    Raises FileStoreError where they cannot be read.
    """

    def __init__(self, paths: Sequence[Path], files: Sequence[BinaryIO | None]) -> None:
        self._paths, self._files = paths, files
        self.has_unnamed, self.is_empty, self.is_torn = False, True, False
        self.marks: list[Mark] = []
        for path, file in zip(paths, files, strict=True):
            with _reading(path):
                status = None if file is None else os.fstat(file.fileno())
            self.marks.append(Mark(0 if status is None else status.st_ino, 0))
            self.is_empty = self.is_empty and (status is None or status.st_size == 0)

    def rows(self, encoding: str) -> Iterator[bytes]:
        """The rows for COPY (file, place, run_id, digest), in blocks; each call reads anew.

        Afterwards `marks` has the end of each file, but for a last line without its end. Raises
        FileStoreError.
        """
        self.has_unnamed = self.is_torn = False
        for number, file in enumerate(self._files):
            if file is not None:
                yield from self._rows_of(number, file, encoding)

    def _rows_of(self, number: int, file: BinaryIO, encoding: str) -> Iterator[bytes]:
        with _reading(self._paths[number]):
            file.seek(0)
        place, self.is_torn = 0, False
        for block in blocks(file):
            rows: list[bytes] = []
            for line in lines_of(block):
                usual = LINE.fullmatch(line)
                if usual is not None and usual[3]:
                    rows.append(b"%d\t%d\t%b\t\\N\n" % (number, place, usual[3]))
                else:
                    rows.append(self._unusual_row(number, place, line, encoding))
                place += len(line) + 1
            yield b"".join(rows)
            if not block.endswith(b"\n"):
                # Torn, or not written to its end yet: whoever looks later takes it from its start,
                # and what is written by now is not taken for another line.
                place -= len(line) + 1
                self.is_torn = True
                break
        self.marks[number] = Mark(self.marks[number].inode, place)

    def _unusual_row(self, number: int, place: int, raw: bytes, encoding: str) -> bytes:
        line = parse_line(_text_of(raw))
        if line is None:
            return b""
        if line.run_id:
            return b"%d\t%d\t%b\t\\N\n" % (number, place, _for_copy(line.run_id, encoding))
        self.has_unnamed = True
        return b"%d\t%d\t\\N\t%b\n" % (number, place, derived_from(line.text).encode())

    def lines_at(self, places: Iterable[Place]) -> Iterator[Line]:
        """The lines at places that `rows` has told. Raises FileStoreError, FilesChangedError."""
        for place in places:
            file = self._files[place.file]
            if file is None:
                raise AssertionError("a place in a file that was not read")
            with _reading(self._paths[place.file]):
                file.seek(place.offset)
                raw = file.readline()
            line = parse_line(_text_of(raw))
            if line is None or not _is_at(line, place):
                raise FilesChangedError(f"{self._paths[place.file]} was changed while it was read.")
            yield line._replace(run_id=place.run_id)


def _is_at(line: Line, place: Place) -> bool:
    if line.run_id:
        return line.run_id == place.run_id
    return place.run_id.startswith(f"{derived_from(line.text)}-")


def _text_of(raw: bytes) -> str:
    return raw.strip().decode("utf-8", "surrogateescape")


def _for_copy(value: str, encoding: str) -> bytes:
    escaped = value.replace("\\", "\\\\").replace("\t", "\\t")
    return escaped.replace("\n", "\\n").replace("\r", "\\r").encode(encoding)


@contextmanager
def open_runs(paths: Sequence[Path]) -> Iterator[ShownRuns]:
    """Open those of the history files that exist. Raises FileStoreError where one cannot be."""
    with ExitStack() as stack:
        files: list[BinaryIO | None] = []
        for path in paths:
            with _reading(path):
                files.append(_open(path))
            stack.callback(_close, files[-1])
        yield ShownRuns(paths, files)


def _open(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None


def _close(file: BinaryIO | None) -> None:
    # Nothing was written through it.
    with suppress(OSError):
        if file is not None:
            file.close()
