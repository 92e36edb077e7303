"""The snapshot: a JSON list of tasks, as the old code writes and reads it."""

from __future__ import annotations

import glob
import json
import re
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import BinaryIO, NamedTuple

from datahound_storage.codec import Task, as_in_snapshot, is_in_layout
from datahound_storage.codec import read as read_value
from datahound_storage.errors import FileStoreError, InvalidTaskError, SnapshotError
from datahound_storage.files import atomic
from datahound_storage.files.layout import (
    OtherLayoutError,
    digest,
    digest_of_texts,
    hash_of,
    texts_in,
)
from datahound_storage.files.lock import cannot
from datahound_storage.reporting import Reporter, counted
from datahound_storage.tasks import check
from datahound_storage.writes import TaskText, decode_item

log = Reporter()

_DECODER = json.JSONDecoder()
_BLANK = " \t\r\n"
_TASK_ID = re.compile(r'"task_id"\s*:\s*("(?:[^"\\]|\\.)*")')
_ASIDE = ".damaged-"


class SnapshotItem(NamedTuple):
    """One task of a snapshot: its exact text, in the snapshot's layout.

    `digest` is the `text_digest`, where it is known; `is_read_alike` as in `TaskText`.
    """

    task_key: str
    text: str
    digest: bytes | None = None
    is_read_alike: bool = False

    @property
    def task(self) -> Task:
        """Its value; read anew each time, as all together they would take a lot of memory."""
        return decode_item(TaskText(self.task_key, self.text, self.is_read_alike))


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


def read(path: Path, known: Snapshot | None = None) -> Snapshot:
    """Read a snapshot as far as it can be used. A missing file is an empty one that does not exist.

    `known` need not be taken apart again, where its content is still that of the file. Raises
    FileStoreError where the file is there but cannot be read: that is not an empty file.
    """
    before = atomic.signature(path)
    try:
        with path.open("rb") as file:
            found = _read_plain(file, known)
            if found is None:
                file.seek(0)
                found = _read_any(file.read())
    except FileNotFoundError:
        return Snapshot()
    except OSError as error:
        raise cannot("read", path, error) from error
    return replace(found, signature=before)


def former_digest(path: Path, signature: atomic.Signature | None) -> str | None:
    """What sidecars of format 1 call the content of a file; None if it is not that file any more.

    Raises FileStoreError.
    """
    try:
        with path.open("rb") as file:
            found = file_digest(file, partial(blake2b, digest_size=16)).hexdigest()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise cannot("read", path, error) from error
    return found if atomic.signature(path) == signature else None


def _read_any(content: bytes) -> Snapshot:
    items, problems = parse(content)
    return Snapshot(True, digest(content), None, items, problems)


def _read_plain(file: BinaryIO, known: Snapshot | None = None) -> Snapshot | None:
    """A snapshot in our layout, in which nothing is odd; else None. Takes memory for the texts."""
    try:
        if known is not None and digest_of_texts(map(hash_of, texts_in(file))) == known.digest:
            return known
        file.seek(0)
        items: dict[str, SnapshotItem] = {}
        for number, text in enumerate(texts_in(file), 1):
            item = _plain_item(text)
            items[item.task_key] = item
            if len(items) < number:
                return None  # the same key twice
    except OtherLayoutError:
        return None
    whole = digest_of_texts(item.digest for item in items.values() if item.digest)
    return Snapshot(True, whole, None, list(items.values()))


def _plain_item(content: bytes) -> SnapshotItem:
    if not content.isascii() or b"\x7f" in content or b"\r" in content:
        raise OtherLayoutError
    text = content.decode("ascii")
    if not is_in_layout(text):
        raise OtherLayoutError
    try:
        value, is_read_alike = read_value(text)
        task_key = check(value)["task_id"]
    except (ValueError, RecursionError, InvalidTaskError):
        raise OtherLayoutError from None
    return SnapshotItem(task_key, text, hash_of(content), is_read_alike)


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
        self._items.append(SnapshotItem(key, as_in_snapshot(self._text[start:end])))

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
