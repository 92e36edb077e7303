"""Writers that are about to commit, so that one snapshot can show the changes of them all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Arrivals:
    """Counts the threads of this process whose change is with the server now."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._count = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Around a change."""
        with self._condition:
            self._count += 1
        try:
            yield
        finally:
            with self._condition:
                self._count -= 1
                if self._count == 0:
                    self._condition.notify_all()

    def wait(self, seconds: float) -> None:
        """Wait until none is under way, so many seconds at most."""
        if self._count:
            with self._condition:
                self._condition.wait_for(lambda: self._count == 0, seconds)
