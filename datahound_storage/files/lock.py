"""The file lock that all code which touches the state files takes, the old code included."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datahound_storage.errors import FileStoreError, LockTimeoutError

_FIRST_PAUSE = 0.0005
_LONGEST_PAUSE = 0.02

_mutexes: dict[Path, threading.Lock] = {}


def _forget_mutexes() -> None:
    # A mutex that another thread held at the fork would stay locked in the child for ever.
    _mutexes.clear()


os.register_at_fork(after_in_child=_forget_mutexes)


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
        descriptor = _open(path)
        try:
            _wait(descriptor, path, deadline, timeout)
            yield
        finally:
            os.close(descriptor)
    finally:
        mutex.release()


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _mode(path))
    except PermissionError:
        # Another user made it: reading is enough for a lock.
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise cannot("lock", path, error) from error
    except OSError as error:
        raise cannot("lock", path, error) from error


def _mode(path: Path) -> int:
    return 0o660 if path.parent.stat().st_mode & 0o020 else 0o600


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
        errno.ENOENT: "create its directory",
        errno.EIO: "check the disk",
    }.get(error.errno or 0, "see the system's message")
    return FileStoreError(f"cannot {verb} {path}: {error.strerror or error}; {mend}.")
