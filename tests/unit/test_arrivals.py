from __future__ import annotations

import threading

import pytest

from datahound_storage.arrivals import Arrivals


def test_nobody_waits_where_nobody_comes() -> None:
    arrivals = Arrivals()
    with arrivals.one():
        pass
    arrivals.wait(1e9)


def test_the_last_one_ends_the_wait() -> None:
    arrivals, first, second = Arrivals(), threading.Event(), threading.Event()

    def come(leave: threading.Event, came: threading.Event) -> None:
        with arrivals.one():
            came.set()
            leave.wait(10)

    threads = []
    for leave in (first, second):
        came = threading.Event()
        threads.append(threading.Thread(target=come, args=(leave, came)))
        threads[-1].start()
        assert came.wait(10)
    waiting = threading.Thread(target=arrivals.wait, args=(60,))
    waiting.start()
    first.set()
    threads[0].join(10)
    waiting.join(0.01)
    assert waiting.is_alive()
    second.set()
    waiting.join(10)
    assert not waiting.is_alive()


def test_a_change_that_fails_is_over_and_a_long_one_is_not_waited_for() -> None:
    arrivals = Arrivals()
    with pytest.raises(ValueError, match="x"), arrivals.one():
        raise ValueError("x")
    arrivals.wait(1e9)
    with arrivals.one():
        arrivals.wait(0.001)
