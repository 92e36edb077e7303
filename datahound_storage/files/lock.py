"""The file lock that all code which touches the state files takes, the old code included."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from datahound_storage.errors import FileStoreError, LockTimeoutError

_FIRST_PAUSE = 0.0005
# Who has waited long must not poll more rarely than who comes now, or it never gets its turn.
_LONGEST_PAUSE = 0.002

_mutexes: dict[Path, threading.Lock] = {}


_held: set[int] = set()


def _forget_locks() -> None:
    # A mutex that another thread held at the fork would stay locked in the child for ever; and the
    # child's copy of a descriptor would keep the file locked after the parent has closed its own.
    _mutexes.clear()
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_locks)


@contextmanager
def locked(path: Path, timeout: float) -> Iterator[None]:
    """Hold the exclusive lock on `path` (made if missing), waiting `timeout` seconds at most.

    Not reentrant. Raises LockTimeoutError, and FileStoreError where the file cannot be opened.
    """
    deadline = time.monotonic() + timeout
    # Threads of this process queue at a mutex; only the first of them polls the file.
    mutex = _mutexes.setdefault(path, threading.Lock())
    if not mutex.acquire(timeout=max(timeout, 0)):
        raise _timed_out(path, timeout)
    try:
        descriptor, owner = _acquire(path, deadline, timeout), os.getpid()
        try:
            yield
        finally:
            _release(descriptor, owner)
    finally:
        mutex.release()


def _acquire(path: Path, deadline: float, timeout: float) -> int:
    """Lock the file that has the name when the wait is over; return its descriptor."""
    while True:
        descriptor, owner = _open(path), os.getpid()
        _held.add(descriptor)
        try:
            _wait(descriptor, path, deadline, timeout)
            if _has_name(descriptor, path):
                return descriptor
        except BaseException:
            _release(descriptor, owner)
            raise
        # Somebody removed it as stale: later comers take another file.
        _release(descriptor, owner)


def _release(descriptor: int, owner: int) -> None:
    if os.getpid() == owner:  # a forked child has closed its copy
        _held.discard(descriptor)
        # Nothing was written through it: a failure takes nothing back that was done.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        with suppress(OSError):
            os.close(descriptor)


def _has_name(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise cannot("lock", path, error) from error


def _open(path: Path) -> int:
    try:
        return open_or_create(path, os.O_RDWR)
    except PermissionError:
        # Another user made it: reading is enough for a lock.
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise cannot("lock", path, error) from error
    except OSError as error:
        raise cannot("lock", path, error) from error


def open_or_create(path: Path, flags: int) -> int:
    """Open a file; a new one is for its owner, in a shared directory for the directory's group.

    What root makes is for the directory's owner.
    """
    flags |= os.O_CLOEXEC
    # It is there nearly always.
    with suppress(FileNotFoundError):
        return os.open(path, flags)
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(path, flags | os.O_CREAT, 0o600)
    directory = path.parent.stat()
    give_as_root(descriptor, directory.st_uid)
    if directory.st_mode & 0o020:
        # Whatever the umask is. Who is no member of the group cannot give a file to it.
        with suppress(PermissionError):
            os.fchown(descriptor, -1, directory.st_gid)
            os.fchmod(descriptor, 0o660)
    return descriptor


def give_as_root(descriptor: int, owner: int) -> None:
    """What root makes belongs to those whose directory or file it is; others cannot give."""
    if os.geteuid() == 0:
        # A network file system may not let root do it.
        with suppress(PermissionError):
            os.fchown(descriptor, owner, -1)


def _wait(descriptor: int, path: Path, deadline: float, timeout: float) -> None:
    pause = _FIRST_PAUSE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EINTR):
                raise cannot("lock", path, error) from error
        else:
            return
        if time.monotonic() >= deadline:
            raise _timed_out(path, timeout)
        # flock has no wait with a bound that a thread could use: polling it is the way.
        time.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)


def _timed_out(path: Path, timeout: float) -> LockTimeoutError:
    return LockTimeoutError(
        f"another process held {path} for more than {timeout:g} s. "
        "Look for a stopped or hanging scheduler or web process (fuser -v shows who has it open)."
    )


def cannot(verb: str, path: Path, error: OSError) -> FileStoreError:
    """The error for a failed operation on a file."""
    mend = {
        errno.EACCES: "give this user write permission on the file and its directory",
        errno.EPERM: "give this user write permission on the file and its directory",
        errno.EROFS: "the file system is read-only: remount it",
        errno.ENOSPC: "free space on that disk",
        errno.EDQUOT: "free space on that disk or raise the quota",
        errno.EFBIG: "raise this process's limit for the size of a file (ulimit -f)",
        errno.EBUSY: "it is mounted by itself: mount its directory instead",
        errno.ENOENT: "create its directory",
        errno.EIO: "check the disk",
    }.get(error.errno or 0, "see the system's message")
    return FileStoreError(f"cannot {verb} {path}: {error.strerror or error}; {mend}.")
