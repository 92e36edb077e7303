"""Disks that a test may fill up, or take the power from; unmounted however the test ends."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import pytest

_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN
_NO_LOG_FLUSH = 2  # EXT4_GOING_FLAGS_NOLOGFLUSH: the journal stays as it is on the disk
_IMAGE_SIZE = 16 * 1024**2
# Nothing reaches the disk by itself: not after a while, and not because a file is renamed.
_OPTIONS = "loop,noauto_da_alloc,commit=3600"
_CHUNK = 64 * 1024


class SmallDisk:
    """A file system in memory that can be filled to the last byte."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self, spare: int = 0) -> None:
        """Leave no room, or some pages of it."""
        with self._ballast.open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(_CHUNK))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
            file.truncate(file.tell() - spare)

    def free(self) -> None:
        """Make room again."""
        self._ballast.unlink()


class PowerDisk:
    """An ext4 on a loop device whose power can be cut."""

    def __init__(self, image: Path, path: Path) -> None:
        self.path = path
        self._image = image
        self._numbers = count()

    def mount(self) -> None:
        _run("mount", "-t", "ext4", "-o", _OPTIONS, str(self._image), str(self.path))

    def unmount(self) -> None:
        if not self.path.is_mount():
            return  # it did not come up again
        try:
            _run("umount", str(self.path))
        except OSError:
            _run("umount", "--lazy", str(self.path))
            raise

    def stop(self) -> None:
        """Cut the power: what is not on the disk at this instant will never be."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def start(self) -> None:
        """Come up again: the journal is replayed. Nobody may have a file open.

        From a copy: where another process has just made itself a mount namespace, the old file
        system lives on in there, and mounting its image again would give the dead one.
        """
        self.unmount()
        old = self._image
        self._image = old.with_suffix(f".{next(self._numbers)}")
        _run("cp", "--sparse=always", str(old), str(self._image))
        old.unlink()
        self.mount()

    def cut(self) -> None:
        """The power fails and comes back."""
        self.stop()
        self.start()


@contextmanager
def small_disk(size: int = 1024**2) -> Iterator[SmallDisk]:
    """A tmpfs of its own; skips where it cannot be mounted."""
    with ExitStack() as resources:
        path = resources.enter_context(open_directory()) / "mounted"
        path.mkdir()
        try:
            _run("mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", str(path))
        except OSError as error:
            pytest.skip(f"needs root to mount a tmpfs: {_reason(error, path)}")
        resources.callback(_run, "umount", str(path))
        yield SmallDisk(path)


@contextmanager
def power_disk() -> Iterator[PowerDisk]:
    """An ext4 of its own; skips where it cannot be made or its power cannot be cut."""
    with ExitStack() as resources:
        directory = resources.enter_context(open_directory())
        image, path = directory / "image", directory / "mounted"
        path.mkdir()
        disk = PowerDisk(image, path)
        try:
            with image.open("wb") as file:
                file.truncate(_IMAGE_SIZE)
            _run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0", str(image))
            disk.mount()
        except OSError as error:
            pytest.skip(f"needs root, mkfs.ext4 and a loop device: {_reason(error, directory)}")
        resources.callback(disk.unmount)
        _try_cut(disk)
        yield disk


def _try_cut(disk: PowerDisk) -> None:
    """See whether a cut loses what was not synced: else a test that passes says nothing."""
    witness = disk.path / "witness"
    try:
        witness.write_bytes(b"never synced")
        disk.cut()
    except OSError as error:
        pytest.skip(f"this kernel cannot cut the power of an ext4: {error}")
    assert not witness.exists()


@contextmanager
def mounted_by_itself(path: Path) -> Iterator[None]:
    """A file that is a mount, as in a container that was given this file only."""
    try:
        _run("mount", "--bind", str(path), str(path))
    except OSError as error:
        pytest.skip(f"needs root to mount a file: {_reason(error, path)}")
    try:
        yield
    finally:
        _run("umount", str(path))


@contextmanager
def open_directory() -> Iterator[Path]:
    """A directory that every user may pass, unlike pytest's own ones."""
    path = Path(tempfile.mkdtemp(prefix="datahound-disk-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        # Never into a file system that is still mounted.
        if not (path / "mounted").is_mount():
            shutil.rmtree(path, ignore_errors=True)


def _reason(error: OSError, path: Path) -> str:
    """The error without random names: equal ones are printed once."""
    return str(error.strerror).splitlines()[0].replace(str(path), "...")


def _run(*command: str) -> None:
    """Run one of the system's tools. Raises OSError with what it said."""
    found = shutil.which(command[0], path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise FileNotFoundError(errno.ENOENT, f"{command[0]} is not installed")
    result = subprocess.run([found, *command[1:]], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise OSError(errno.EIO, result.stderr.strip() or f"{command[0]} failed")
