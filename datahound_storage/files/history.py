"""The history file: one JSON object a line, appended, now and then trimmed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from datahound_storage.files import atomic
from datahound_storage.files.lock import cannot, open_or_create
from datahound_storage.runs import Line, identify, parse_line
from datahound_storage.tasks import parse_time


def append(path: Path, texts: Iterable[str], *, durable: bool) -> None:
    """Append lines in one write; `durable`: on disk when the call returns. Raises FileStoreError.

    Callers hold the file lock. A last line that a crash left torn is closed off first.
    """
    content = "".join(f"{text}\n" for text in texts).encode("utf-8", "surrogatepass")
    append_bytes(path, content, durable=durable)


def append_bytes(path: Path, content: bytes, *, durable: bool) -> None:
    """As `append`, whole lines as they are to stand there."""
    if not content:
        return
    try:
        descriptor = open_or_create(path, os.O_RDWR | os.O_APPEND)
        try:
            _append(descriptor, content)
        finally:
            os.close(descriptor)
        if durable:
            _make_durable(path, content)
    except OSError as error:
        raise cannot("append to", path, error) from error


def append_unlocked(path: Path, texts: Iterable[str]) -> None:
    """Append lines beside whoever holds the lock. On disk when it returns.

    A trim that ends meanwhile gives the name to another file: then they are appended to that one
    too. Sending a run twice is harmless, as both lines have its id. Raises FileStoreError.
    """
    lines = list(texts)
    for _ in range(3):
        before = mark(path)
        append(path, lines, durable=True)
        if before.inode in (0, mark(path).inode):
            return


# The files as this process has left them, after a whole line: their size, and when they last were
# written or touched (which nobody can put back). Looking at the last byte of a file
# costs more than it seems: the disk has to remember that it was read.
_left: dict[tuple[int, int], tuple[int, int]] = {}
_MOST_LEFT = 64


def _append(descriptor: int, content: bytes) -> None:
    status = os.fstat(descriptor)
    file, size = (status.st_dev, status.st_ino), status.st_size
    is_as_left = _left.get(file) == (size, status.st_ctime_ns)
    torn = size > 0 and not is_as_left and os.pread(descriptor, 1, size - 1) != b"\n"
    data = b"\n" + content if torn else content
    try:
        written = os.write(descriptor, data)
        if written < len(data):
            # A full disk took a part of it; the next write tells why.
            _write_rest(descriptor, data[written:])
    except OSError:
        # A part of a line is worse than none. Where it cannot be cut off, the next line closes it.
        with suppress(OSError):
            os.ftruncate(descriptor, size)
        raise
    _remember(descriptor, file, size + len(data))


def _remember(descriptor: int, file: tuple[int, int], size: int) -> None:
    if len(_left) >= _MOST_LEFT:
        _left.clear()
    with suppress(OSError):  # the line is written
        status = os.fstat(descriptor)
        # Others may have appended without a lock.
        if status.st_size == size:
            _left[file] = (size, status.st_ctime_ns)


def _make_durable(path: Path, tail: bytes = b"") -> None:
    """Put the file on disk, and its name: whoever made it may not have waited for that.

    Where the disk refuses, a new file takes its place: a second sync of the old one would succeed
    without what the first one has dropped, `tail` of it.
    """
    try:
        atomic.sync(path)
    except OSError:
        whole = path.read_bytes()
        atomic.replace(path, whole[: len(whole) - len(tail)] + tail)


def _write_rest(descriptor: int, rest: bytes) -> None:
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def texts(path: Path, start: int = 0) -> Iterator[str]:
    """The lines of a history file without their ends, from a place on; none where no file is.

    Raises FileStoreError where it cannot be read.
    """
    try:
        with path.open("rb") as file:
            file.seek(start)
            for raw in file:
                stripped = raw.strip()
                if stripped:
                    yield stripped.decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return
    except OSError as error:
        raise cannot("read", path, error) from error


def lines(paths: Iterable[Path]) -> Iterator[Line]:
    """The usable lines of several history files, each run once."""
    seen: set[str] = set()
    for path in paths:
        for line in identify(texts(path)):
            if line.run_id not in seen:
                seen.add(line.run_id)
                yield line


class Mark(NamedTuple):
    """A place in the history file: which file, and how much of it there was."""

    inode: int
    size: int


def mark(path: Path) -> Mark:
    """The end of the history file as it is now. Raises FileStoreError."""
    found = atomic.signature(path)
    return Mark(0, 0) if found is None else Mark(found.inode, found.size)


def lines_after(path: Path, place: Mark) -> Iterator[Line]:
    """The usable lines with an id of their own that were appended after a mark.

    All of them where the file is another one by now: adding one twice is harmless.
    """
    now = mark(path)
    start = place.size if now.inode == place.inode and now.size >= place.size else 0
    for text in texts(path, start):
        line = parse_line(text)
        if line is not None and line.run_id:
            yield line


def newest(paths: Iterable[Path], task_key: str | None, limit: int) -> list[Line]:
    """The newest `limit` lines (of one task), newest first: by the run's end, then insertion."""
    wanted = [
        (line.ended_at, number, line)
        for number, line in enumerate(lines(paths))
        if task_key is None or line.entry["task_id"] == task_key
    ]
    wanted.sort(key=lambda item: item[:2], reverse=True)
    return [line for _, _, line in wanted[:limit]]


def remember_cutoff(path: Path, cutoff: datetime) -> None:
    """Keep the time before which runs were trimmed, for the next meeting with a database."""
    known = remembered_cutoff(path)
    newest = cutoff if known is None else max(known, cutoff)
    atomic.replace(path, json.dumps({"cutoff": newest.isoformat()}).encode())


def remembered_cutoff(path: Path) -> datetime | None:
    """The time before which runs were trimmed without a database, None if they never were.

    Raises FileStoreError where it cannot be read: taken for none, trimmed runs would come back.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise cannot("read", path, error) from error
    except ValueError:
        return None  # somebody else wrote it; the next trim removes the runs again
    return parse_time(value.get("cutoff")) if isinstance(value, dict) else None


def sync(path: Path) -> None:
    """Make lines that were appended without waiting durable. Raises FileStoreError."""
    try:
        _make_durable(path)
    except OSError as error:
        raise cannot("write", path, error) from error
