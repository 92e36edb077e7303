"""History lines as this code and the old code spell them: what they say, without parsing them.

Nothing here is a guess: a line of another shape is not usual, and is to be parsed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from datahound_storage.files.lock import cannot

# What is read at once, in bytes; the memory that a file of any length takes.
BLOCK = 1 << 20

_PLAIN = rb"[ !#-\[\]-~]"
_STRING = rb'"' + _PLAIN + rb'*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})' + _PLAIN + rb'*+)*+"'
_KEY = rb'"(' + _PLAIN + rb'{1,255}+)"'
# Days that every year has, so that such a time is one that can be read.
_DAY = (
    rb"(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])"
    rb"|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)"
)
_TIME = rb"([12]\d{3}-" + _DAY + rb"T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{6})?)\+00:00"
_NUMBER = rb"-?(?:0|[1-9]\d{0,15})(?:\.\d{1,30})?(?:[eE][+-]?\d{1,2})?"
_LINE = (
    rb'\{"timestamp": "' + _TIME + rb'", "task_id": ' + _KEY
    + rb', "task_name": ' + _STRING + rb', "task_type": ' + _STRING
    + rb', "success": (?:true|false), "message": ' + _STRING
    + rb', "duration_seconds": ' + _NUMBER + rb'(?:, "run_id": ' + _KEY + rb")?+\}"
)  # fmt: skip
# The groups: the time without its offset, the task's id, the run's id (None where it has none).
LINE = re.compile(_LINE)
_LINES = re.compile(rb"(?:" + re.sub(rb"\((?!\?)", rb"(?:", _LINE) + rb"\n)*+")

_HEAD = re.compile(rb'\{"timestamp": "(\d{4}-\d\d-\d\d)T')
_HEAD_LENGTH = len(b'{"timestamp": "2026-09-20T')


def time_text(instant: datetime) -> bytes:
    """An instant as in the first group of LINE: their order is that of the instants."""
    return instant.astimezone(UTC).replace(tzinfo=None).isoformat().encode()


def blocks(file: BinaryIO) -> Iterator[bytes]:
    """The rest of a file, in blocks of whole lines. Raises FileStoreError."""
    try:
        while block := file.read(BLOCK):
            yield block if block.endswith(b"\n") else block + file.readline()
    except OSError as error:
        raise cannot("read", Path(file.name), error) from error


def lines_of(block: bytes) -> list[bytes]:
    """The lines of a block, without their ends."""
    found = block.split(b"\n")
    if not found[-1]:
        found.pop()
    return found


class Days:
    """Tells blocks whose lines all ended before, or all after, a time by the days they begin with.

    A day is remembered once it is known, so that a line costs a look-up.
    """

    def __init__(self, cutoff: datetime) -> None:
        day = cutoff.astimezone(UTC).date()
        self._edge = day.isoformat().encode()
        try:
            # Whatever offset follows, or the local one: it is less than a day.
            self._first_later = (day + timedelta(days=2)).isoformat().encode()
        except OverflowError:
            self._first_later = b"~"
        self._later: set[bytes] = set()
        self._earlier: set[bytes] = set()

    def are_later(self, block: bytes, lines: list[bytes]) -> bool:
        """Whether no line of a block can be one that ended before the time. False says nothing."""
        if not self._begin_with(self._later, lines, self._is_later):
            return False
        # The time that counts is the one with which they begin: there is no other, escaped or not.
        is_only = block.count(b'"timestamp"') == len(lines)
        return is_only and (b"\\" not in block or rb"\u00" not in block)

    def are_earlier(self, block: bytes, lines: list[bytes]) -> bool:
        """Whether all lines of a block are usual and ended before the time. False says nothing."""
        begin = self._begin_with(self._earlier, lines, self._is_earlier)
        return begin and _LINES.fullmatch(block) is not None

    def _begin_with(
        self, known: set[bytes], lines: list[bytes], belongs: Callable[[bytes], bool]
    ) -> bool:
        if lines[0][:_HEAD_LENGTH] not in known and not belongs(lines[0][:_HEAD_LENGTH]):
            return False
        heads = {line[:_HEAD_LENGTH] for line in lines}
        known.update(head for head in heads - known if belongs(head))
        return heads <= known

    def _is_later(self, head: bytes) -> bool:
        found = _HEAD.fullmatch(head)
        return found is not None and found[1] >= self._first_later

    def _is_earlier(self, head: bytes) -> bool:
        found = _HEAD.fullmatch(head)
        return found is not None and found[1] < self._edge
