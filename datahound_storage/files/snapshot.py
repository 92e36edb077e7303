"""The snapshot: a JSON list of tasks, as the old code writes and reads it."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from datahound_storage.codec import Task, as_in_snapshot
from datahound_storage.errors import FileStoreError, InvalidTaskError, SnapshotError
from datahound_storage.files import atomic
from datahound_storage.files.lock import cannot
from datahound_storage.reporting import Reporter, counted
from datahound_storage.tasks import check

log = Reporter()

_DECODER = json.JSONDecoder()
_BLANK = " \t\r\n"
_TASK_ID = re.compile(r'"task_id"\s*:\s*("(?:[^"\\]|\\.)*")')
_ASIDE = ".damaged-"
_SEPARATOR = ",\n  "
_FIRST, _BETWEEN, _LAST = b"[\n  {", b",\n  {", b"}\n]"
# Tasks that are joined at once: memory for all of them together would cost more than the joining.
_BLOCK = 256
_SIZE = 16


class SnapshotItem(NamedTuple):
    """One task of a snapshot: its exact text, in the snapshot's layout, and its value."""

    task_key: str
    text: str
    task: Task


@dataclass
class Snapshot:
    """What a snapshot file holds. `problems` tells, by position, what could not be used."""

    exists: bool = False
    digest: str = ""
    signature: atomic.Signature | None = None
    items: list[SnapshotItem] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def damaged(self) -> bool:
        """Whether something in the file could not be used: then it must not be overwritten."""
        return bool(self.problems)


def assemble(texts: Iterable[str]) -> Iterator[bytes]:
    """The bytes of a snapshot that shows these tasks, in this order; block by block."""
    remaining = iter(texts)
    block = list(islice(remaining, _BLOCK))
    before, empty = "[\n  ", not block
    while block:
        following = list(islice(remaining, _BLOCK))
        after = "" if following else "\n]"
        yield f"{before}{_SEPARATOR.join(block)}{after}".encode("ascii")
        before, block = _SEPARATOR, following
    if empty:
        yield b"[]"


def digest(content: bytes) -> str:
    """The hash by which a snapshot is recognised.

    Of one in our layout it is a hash of hashes, so that it can be told without its content.
    """
    if not (content.startswith(_FIRST) and content.endswith(_LAST)):
        return blake2b(content, digest_size=_SIZE).hexdigest()
    return digest_of_texts(map(_hash, _parts(memoryview(content)[4:-2], content)))


def _parts(body: memoryview, content: bytes) -> Iterator[memoryview]:
    """What stands between the places where one task ends and the next one begins."""
    start, offset = 0, 4
    while (end := content.find(_BETWEEN, start + offset, len(content) - 2)) >= 0:
        yield body[start : end - offset]
        start = end - offset + len(_SEPARATOR)
    yield body[start:]


def digest_of_texts(digests: Iterable[bytes]) -> str:
    """The hash of a snapshot in our layout, from the `text_digest` of its tasks in order."""
    joined = b"".join(digests)
    if not joined:
        return digest(b"[]")
    return blake2b(joined, digest_size=_SIZE, person=b"texts").hexdigest()


def text_digest(text: str) -> bytes | None:
    """The part of a task in the hash of its snapshot; None of a text in another layout."""
    if not text.startswith("{") or not text.endswith("}") or _SEPARATOR + "{" in text:
        return None
    return _hash(text.encode())


def _hash(text: bytes | memoryview) -> bytes:
    return blake2b(text, digest_size=_SIZE).digest()


def read(path: Path) -> Snapshot:
    """Read a snapshot as far as it can be used. A missing file is an empty one that does not exist.

    Raises FileStoreError where the file is there but cannot be read: that is not an empty file.
    """
    before = atomic.signature(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Snapshot()
    except OSError as error:
        raise cannot("read", path, error) from error
    items, problems = parse(content)
    return Snapshot(True, digest(content), before, items, problems)


def parse(content: bytes) -> tuple[list[SnapshotItem], list[str]]:
    """The usable items of a snapshot, and what is wrong with the others."""
    # A byte that is not UTF-8 costs its own item only.
    text = content.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    start = _skip_blank(text, 0)
    if start == len(text):
        return [], ["the file is empty"]
    if text[start] != "[":
        return [], [f"the file is not {'a JSON list' if _is_utf8(text) else 'UTF-8'}"]
    return _Reader(text).read(start + 1)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _skip_blank(text: str, position: int) -> int:
    while position < len(text) and text[position] in _BLANK:
        position += 1
    return position


class _Reader:
    """Takes a list apart item by item, so that each keeps its own text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._items: list[SnapshotItem] = []
        self._problems: list[str] = []
        self._keys: set[str] = set()

    def read(self, position: int) -> tuple[list[SnapshotItem], list[str]]:
        text = self._text
        position = _skip_blank(text, position)
        number = 0
        if text[position : position + 1] == "]":
            self._check_end(position + 1)
            return self._items, self._problems
        while True:
            number += 1
            start = _skip_blank(text, position)
            try:
                value, end = _DECODER.raw_decode(text, start)
            except (json.JSONDecodeError, RecursionError, ValueError):
                self._report(number, start, "is torn or not JSON; nothing after it could be read")
                return self._items, self._problems
            self._take(number, start, end, value)
            position = _skip_blank(text, end)
            mark = text[position : position + 1]
            if mark == "]":
                self._check_end(position + 1)
                return self._items, self._problems
            if mark != ",":
                self._report(number, position, "is not followed by a comma or the end of the list")
                return self._items, self._problems
            position += 1

    def _take(self, number: int, start: int, end: int, value: object) -> None:
        if not _is_utf8(self._text[start:end]):
            self._report(number, start, "is not UTF-8")
            return
        try:
            task = check(value)
        except InvalidTaskError as error:
            self._report(number, start, f"cannot be used: {error}")
            return
        key = task["task_id"]
        if key in self._keys:
            self._report(number, start, f"has the task_id {key[:80]!r} of an item before it")
            return
        self._keys.add(key)
        self._items.append(SnapshotItem(key, as_in_snapshot(self._text[start:end]), task))

    def _check_end(self, position: int) -> None:
        if _skip_blank(self._text, position) != len(self._text):
            self._problems.append("there is text after the end of the list")

    def _report(self, number: int, position: int, problem: str) -> None:
        line = self._text.count("\n", 0, position) + 1
        self._problems.append(f"item {number} (line {line}) {problem}")


def report_damage(path: Path, found: Snapshot) -> None:
    """Tell, item by item, what in a snapshot could not be used."""
    for problem in found.problems:
        log.error("%s: %s", path, problem)
    log.error(
        "%s is damaged: %s can be read, and used. Before it is written again it is "
        "kept aside. What it lacks comes from the database, where one serves; the rest has to be "
        "added again by hand, from the kept file.",
        path,
        counted(len(found.items), "task"),
    )


def set_aside(path: Path) -> Path:
    """Keep a damaged snapshot under a name with the time; return that name. Raises SnapshotError.

    Durable when it returns. The file is linked or copied, not moved, so that its own name is never
    missing. Once for each file, however often it is met.
    """
    for known in kept_aside(path):
        with suppress(OSError):  # somebody removes it just now
            if known.samefile(path):
                return known
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    kept = path.with_name(f"{path.name}{_ASIDE}{stamp}")
    try:
        atomic.duplicate(path, kept)
    except (OSError, FileStoreError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).removesuffix(".")
        raise SnapshotError(
            f"{path} is damaged and could not be kept aside as {kept.name}: {reason}. "
            "It is left as it is; copy it away by hand, then write again."
        ) from error
    log.error("the damaged snapshot is kept as %s", kept)
    return kept


def kept_aside(path: Path) -> list[Path]:
    """The damaged snapshots that were kept aside, oldest first."""
    return sorted(path.parent.glob(f"{glob.escape(path.name)}{_ASIDE}*"))


def named_ids(path: Path) -> list[str]:
    """The task_ids that a file names, also in what cannot be read as tasks; each once.

    Raises FileStoreError.
    """
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise cannot("read", path, error) from error
    return list(dict.fromkeys(_unquoted(spelled) for spelled in _TASK_ID.findall(text)))


def _unquoted(spelled: str) -> str:
    try:
        return str(json.loads(spelled))
    except ValueError:
        return spelled[1:-1]  # a line break in it, for instance
