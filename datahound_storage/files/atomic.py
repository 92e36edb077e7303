"""Replacing a file so that a crash at any instruction leaves the old one or the new one, whole.

Two steps, so that two files can become durable together: `prepare` writes and syncs a temporary
file beside the target, `publish` renames it. Callers hold the file lock; the temporary name is
fixed, so what a crash leaves behind is removed by the next write.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from datahound_storage.errors import FileStoreError
from datahound_storage.files.lock import cannot, give_as_root


class Signature(NamedTuple):
    """What `stat` says of a file; equal signatures mean an unchanged file (see `prepare`)."""

    inode: int
    size: int
    mtime_ns: int


# A file's content, as a whole or block by block.
Content = bytes | Iterable[bytes]


def signature(path: Path) -> Signature | None:
    """The file's signature, None if there is no such file. Raises FileStoreError."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise cannot("read", path, error) from error
    return Signature(status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache
def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name.lstrip('.')}.tmp")


def prepare(path: Path, content: Content, like: Path | None = None) -> Signature:
    """Write `content` durably beside `path`; return the signature that `publish` will give it.

    Content that comes in pieces takes the memory of one of them.

    The modification time gets a nanosecond part of its own, which no later write by anybody can
    hit: so the signature alone tells whether the file was changed since. Mode and group are those
    of the file at `like`, else at `path`. Raises FileStoreError.
    """
    try:
        descriptor = _create(_temporary(path))
        try:
            _copy_permissions(like or path, descriptor)
            for block in (content,) if isinstance(content, bytes) else content:
                _write_all(descriptor, block)
            now = time.time_ns()
            os.utime(descriptor, ns=(now, now - random.randrange(1, 1_000_000)))  # noqa: S311
            os.fsync(descriptor)
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        discard(path)
        raise cannot("write", path, error) from error
    except BaseException:
        discard(path)
        raise
    return Signature(status.st_ino, status.st_size, status.st_mtime_ns)


def _create(temporary: Path) -> int:
    """Open a new file; what a crash has left under its name is removed."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(temporary, flags, 0o600)
    except FileExistsError:
        temporary.unlink(missing_ok=True)
        return os.open(temporary, flags, 0o600)


def unpublished(path: Path) -> Signature | None:
    """The signature of what a crash left between `prepare` and `publish`, None if nothing."""
    try:
        status = os.lstat(_temporary(path))
    except OSError:
        return None
    return Signature(status.st_ino, status.st_size, status.st_mtime_ns)


def publish(path: Path) -> None:
    """Rename what `prepare` wrote to `path`, durably.

    Raises FileStoreError; then the caller calls `discard`, or leaves what tells of a crash.
    """
    try:
        os.replace(_temporary(path), path)
        sync_directory(path.parent)
    except OSError as error:
        raise cannot("replace", path, error) from error


def replace(path: Path, content: Content) -> Signature:
    """Put `content` in the place of `path`, durably. Raises FileStoreError."""
    made = prepare(path, content)
    _publish_or_discard(path)
    return made


def _publish_or_discard(path: Path) -> None:
    try:
        publish(path)
    except FileStoreError:
        discard(path)
        raise


def duplicate(path: Path, copy: Path) -> None:
    """Give a file a second name, durable with its content; a copy where it cannot be linked.

    Raises OSError and FileStoreError, and FileExistsError where the name is taken.
    """
    try:
        copy.hardlink_to(path)
        sync(copy)  # who wrote it may not have waited for the disk
    except FileExistsError:
        raise
    except OSError:
        # No links on this file system, or none to a file of another user.
        prepare(copy, path.read_bytes(), like=path)
        _publish_or_discard(copy)


def sync(path: Path) -> None:
    """Make a file durable that was written without waiting, and its name. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_directory(path.parent)


def settle(path: Path) -> None:
    """Make a file durable that somebody else has written, if it exists. Raises FileStoreError."""
    try:
        sync(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise cannot("write", path, error) from error


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, content: bytes | Iterable[bytes]) -> None:
    for piece in (content,) if isinstance(content, bytes) else content:
        view = memoryview(piece)
        while view:
            view = view[os.write(descriptor, view) :]


def discard(path: Path) -> None:
    """Remove what `prepare` wrote and nobody published: on a full disk it takes up room."""
    try:
        _temporary(path).unlink(missing_ok=True)
    except OSError:
        return  # the error that brought us here is the one to tell; the next write removes it


def _copy_permissions(path: Path, descriptor: int) -> None:
    """Mode and group of the file that is replaced; for a new one, those of a shared directory.

    Root, who runs a command, keeps the owner too: the scheduler could not read it otherwise.
    """
    try:
        # Of a link it is its target that counts: the link itself is open to all.
        old = os.stat(path)
        mode, group = old.st_mode & 0o777, old.st_gid
        give_as_root(descriptor, old.st_uid)
    except FileNotFoundError:
        directory = os.stat(path.parent)
        give_as_root(descriptor, directory.st_uid)
        shared = bool(directory.st_mode & 0o020)
        mode, group = (0o660, directory.st_gid) if shared else (0o600, -1)
    if group not in (-1, os.fstat(descriptor).st_gid):
        try:
            os.fchown(descriptor, -1, group)
        except PermissionError:
            # Not a member of that group: its members must not gain or lose more than that.
            mode &= 0o707
    os.fchmod(descriptor, mode)
