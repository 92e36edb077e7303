from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator

import pytest

from datahound_storage.collecting import uncollected


@pytest.fixture(autouse=True)
def _awake() -> Iterator[None]:
    gc.enable()
    yield
    gc.enable()


def test_the_collector_rests_meanwhile_and_only_then() -> None:
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_it_is_woken_by_the_last_user_and_by_an_error() -> None:
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with uncollected():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(10)
    with pytest.raises(ValueError, match="x"), uncollected():
        raise ValueError("x")
    assert not gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled()


def test_who_has_switched_it_off_finds_it_off() -> None:
    gc.disable()
    with uncollected():
        pass
    assert not gc.isenabled()


def test_a_forked_child_does_not_wait_for_its_parents_threads() -> None:
    inside, leave = threading.Event(), threading.Event()

    def work() -> None:
        with uncollected():
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(5)
    pid = os.fork()
    if pid == 0:
        with uncollected():
            pass
        os._exit(0 if gc.isenabled() else 7)
    leave.set()
    thread.join()
    assert gc.isenabled()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
