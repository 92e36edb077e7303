"""Making many objects that stay without the garbage collector looking at each of them again."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Pause:
    """How many threads want the collector to rest; the last one wakes it, if it was awake."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._users = 0
        self._was_enabled = False

    def begin(self) -> None:
        with self._mutex:
            if self._users == 0:
                self._was_enabled = gc.isenabled()
                gc.disable()
            self._users += 1

    def end(self) -> None:
        with self._mutex:
            self._users -= 1
            if self._users == 0 and self._was_enabled:
                gc.enable()

    def renew(self) -> None:
        """In a forked child: its other threads, which would end their pause, are gone."""
        if self._users and self._was_enabled:
            gc.enable()
        self.__init__()  # type: ignore[misc]


_pause = _Pause()
os.register_at_fork(after_in_child=_pause.renew)


@contextmanager
def uncollected() -> Iterator[None]:
    """Around work that makes many objects and no cycles: the collector would find nothing."""
    _pause.begin()
    try:
        yield
    finally:
        _pause.end()
