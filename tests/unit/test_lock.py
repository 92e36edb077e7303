from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from datahound_storage.errors import FileStoreError, LockTimeoutError
from datahound_storage.files.lock import locked
from tests.unit import make_shared, mode_of, umask

# Takes the lock as the old code does, until its input is closed.
OLD_CODE = """
import fcntl, sys
with open(sys.argv[1], "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("locked", flush=True)
    sys.stdin.read()
"""
COUNT_UP = """
import sys
from pathlib import Path
from datahound_storage.files.lock import locked
lock, counter = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(25):
    with locked(lock, 60):
        counter.write_text(str(int(counter.read_text()) + 1))
"""
FORK_INSIDE = """
import os, sys
from pathlib import Path
from datahound_storage.files.lock import locked
reader, writer = os.pipe()
with locked(Path(sys.argv[1]), 5):
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
try:
    with locked(Path(sys.argv[1]), 0.3):
        print("free")
finally:
    os.write(writer, b"x")
    os.waitpid(child, 0)
"""
FORK_BESIDE_A_THREAD = """
import os, sys, threading
from pathlib import Path
from datahound_storage.files.lock import locked
path, held, done = Path(sys.argv[1]), threading.Event(), threading.Event()
def hold():
    with locked(path, 5):
        held.set()
        done.wait()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    os.close(writer)
    os.read(reader, 1)
    with locked(path, 2):
        os._exit(7)
done.set()
thread.join()
os.write(writer, b"x")
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    return tmp_path / ".scheduler.lock"


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


@contextmanager
def held_by_old_code(path: Path) -> Iterator[None]:
    command = [sys.executable, "-c", OLD_CODE, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        yield
        process.communicate()


@contextmanager
def held_by_a_thread(path: Path) -> Iterator[None]:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(path, 5):
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        yield
    finally:
        done.set()
        thread.join()


def is_free(path: Path) -> bool:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_the_lock_is_the_old_codes_and_is_given_back(path: Path) -> None:
    with locked(path, 0):
        assert not is_free(path)
    assert is_free(path)


def test_the_lock_is_given_back_after_a_failure(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(path, 0):
        raise ZeroDivisionError
    assert is_free(path)
    with locked(path, 0):
        pass


@pytest.mark.parametrize("timeout", [0, 0.05, -1])
def test_waiting_for_the_old_code_has_a_bound(path: Path, timeout: float) -> None:
    refused = pytest.raises(LockTimeoutError, match=r"\.scheduler\.lock")
    with held_by_old_code(path), refused, locked(path, timeout):
        pytest.fail("the lock was held by another process")
    with locked(path, 5):
        assert not is_free(path)


@pytest.mark.parametrize("timeout", [0, 0.05, -1])
def test_waiting_for_a_thread_has_a_bound(path: Path, timeout: float) -> None:
    with held_by_a_thread(path), pytest.raises(LockTimeoutError), locked(path, timeout):
        pytest.fail("the lock was held by another thread")
    with locked(path, 5):
        assert not is_free(path)


def test_running_out_of_patience_is_a_timeout_and_no_failure_of_the_file() -> None:
    assert issubclass(LockTimeoutError, TimeoutError)
    assert not issubclass(LockTimeoutError, FileStoreError)


def test_another_spelling_of_the_path_is_the_same_lock(path: Path) -> None:
    (path.parent / "sub").mkdir()
    same = path.parent / "sub" / ".." / path.name
    with locked(path, 0), pytest.raises(LockTimeoutError), locked(same, 0):
        pytest.fail("the lock was held")


def test_one_thread_at_a_time_is_inside(path: Path) -> None:
    counter = path.with_name("counter")
    counter.write_text("0")

    def count_up() -> None:
        for _ in range(25):
            with locked(path, 60):
                counter.write_text(str(int(counter.read_text()) + 1))

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.read_text() == "100"


def test_one_process_at_a_time_is_inside(path: Path) -> None:
    counter = path.with_name("counter")
    counter.write_text("0")
    command = [sys.executable, "-c", COUNT_UP, str(path), str(counter)]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert counter.read_text() == "75"


def test_a_child_forked_inside_does_not_keep_the_lock(path: Path) -> None:
    assert run(FORK_INSIDE, path) == "free\n"


def test_a_child_forked_beside_a_thread_that_holds_the_lock_can_take_it_later(path: Path) -> None:
    assert run(FORK_BESIDE_A_THREAD, path) == "7\n"


def test_a_program_that_is_started_inside_does_not_inherit_the_lock(path: Path) -> None:
    with locked(path, 0):
        process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    try:
        assert is_free(path)
    finally:
        process.communicate()


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_a_new_lock_file_is_for_its_owner_only(path: Path, mask: int) -> None:
    with umask(mask), locked(path, 0):
        assert mode_of(path) == 0o600


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_a_new_lock_file_in_a_shared_directory_is_for_its_group(path: Path, mask: int) -> None:
    group = make_shared(path.parent)
    with umask(mask), locked(path, 0):
        assert (mode_of(path), path.stat().st_gid) == (0o660, group)


def test_an_existing_lock_file_keeps_its_mode_and_content(path: Path) -> None:
    path.write_bytes(b"4711")
    path.chmod(0o664)
    with locked(path, 0):
        assert (mode_of(path), path.read_bytes()) == (0o664, b"4711")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_lock_file_that_may_only_be_read_can_be_locked(path: Path) -> None:
    path.touch(mode=0o400)
    with locked(path, 0):
        assert not os.access(path, os.W_OK)


def test_a_missing_directory_is_named(path: Path) -> None:
    refused = pytest.raises(FileStoreError, match="create its directory")
    with refused, locked(path / "missing", 0):
        pytest.fail("there is no such directory")


def test_a_directory_in_the_place_of_the_lock_is_an_error_and_the_next_try_is_free(
    path: Path,
) -> None:
    path.mkdir()
    with pytest.raises(FileStoreError, match="cannot lock"), locked(path, 0):
        pytest.fail("a directory was locked")
    path.rmdir()
    with locked(path, 0):
        assert path.is_file()


def is_open_here(path: Path) -> bool:
    wanted = path.stat()
    for descriptor in range(3, 256):
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), wanted):
                return True
    return False


def test_a_lock_file_that_was_removed_while_somebody_waited_for_it_is_not_held(path: Path) -> None:
    entered = threading.Event()

    def enter() -> None:
        with locked(path, 60):
            entered.set()

    waiting = threading.Thread(target=enter)
    with held_by_old_code(path):
        waiting.start()
        while not is_open_here(path):
            time.sleep(0.001)  # it has to have opened the file that is removed now
        path.unlink()
        second = held_by_old_code(path)
        second.__enter__()
    try:
        # What is asked for is that nothing happens: half a second is many polls of the lock.
        assert not entered.wait(0.5)
    finally:
        second.__exit__(None, None, None)
        waiting.join()
    assert entered.is_set()
