"""The layout of a snapshot of ours: what it is put together from, and its digest."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import islice
from typing import BinaryIO

_SEPARATOR = ",\n  "
_FIRST, _BETWEEN, _LAST = b"[\n  {", b",\n  {", b"}\n]"
# Tasks that are joined at once: memory for all of them together would cost more than the joining.
_BLOCK = 256
_SIZE = 16
# Bytes that are read at once, and more than any task has.
_READ, _LONGEST = 2**20, 2**24


def assemble(texts: Iterable[str]) -> Iterator[bytes]:
    """The bytes of a snapshot that shows these tasks, in this order; block by block."""
    remaining = iter(texts)
    block = list(islice(remaining, _BLOCK))
    if not block:
        yield b"[]"
        return
    # What stands around a block is put to its ends: the block itself is copied once less.
    block[0] = f"[\n  {block[0]}"
    while block:
        following = list(islice(remaining, _BLOCK))
        block[-1] += _SEPARATOR if following else "\n]"
        yield _SEPARATOR.join(block).encode("ascii")
        block = following


def digest(content: bytes) -> str:
    """The hash by which a snapshot is recognised.

    Of one in our layout it is a hash of hashes, so that it can be told without its content.
    """
    try:
        return digest_of_texts(map(hash_of, texts_in(io.BytesIO(content))))
    except OtherLayoutError:
        return blake2b(content, digest_size=_SIZE).hexdigest()


class OtherLayoutError(Exception):
    """A file is not laid out as we do it."""


def texts_in(file: BinaryIO) -> Iterator[bytes]:
    """What stands between the places where one task ends and the next one begins.

    Nothing else is looked at. Raises OtherLayoutError, perhaps after the first ones.
    """
    if file.read(len(_FIRST)) != _FIRST:
        raise OtherLayoutError
    rest = b""
    while block := file.read(_READ):
        *whole, rest = (rest + block).split(_BETWEEN)
        if len(rest) > _LONGEST or any(len(text) > _LONGEST for text in whole):
            raise OtherLayoutError
        yield from (b"{" + text for text in whole)
    if not rest.endswith(_LAST):
        raise OtherLayoutError
    yield b"{" + rest.removesuffix(b"\n]")


def digest_of_texts(digests: Iterable[bytes]) -> str:
    """The hash of a snapshot in our layout, from the `text_digest` of its tasks in order."""
    joined = b"".join(digests)
    if not joined:
        return digest(b"[]")
    return blake2b(joined, digest_size=_SIZE, person=b"texts").hexdigest()


def text_digest(text: str) -> bytes | None:
    """The part of a task in the hash of its snapshot; None of a text in another layout."""
    is_other = not (text.startswith("{") and text.endswith("}")) or _SEPARATOR + "{" in text
    # A reader may meet it with a part of what stands around it.
    if is_other or len(text) > _LONGEST - len(_BETWEEN) - len(_LAST):
        return None
    return hash_of(text.encode())


def hash_of(text: bytes) -> bytes:
    """The part of a task in the hash of its snapshot, from its bytes."""
    return blake2b(text, digest_size=_SIZE).digest()
