"""A server that accepts and never answers, or freezes: neither may hold up the scheduler."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datahound_storage.testing import EmbeddedServer
from tests.fix_persistence import MakePersistence
from tests.scheduler import make_task

# Five seconds are promised; the rest is for a busy machine.
BOUND = 15.0


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


@contextmanager
def frozen(server: EmbeddedServer) -> Iterator[None]:
    """Every process of the server stopped, while its kernel still answers for it."""
    assert server.pid is not None
    pids = [server.pid, *children_of(server.pid)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_a_frozen_server_is_left_within_the_bound(
    opened: MakePersistence, base: Path, embedded_directory: Path
) -> None:
    with EmbeddedServer(embedded_directory) as server:
        persistence = opened(base, url=server.url)
        persistence.add_task(make_task("a"))
        with frozen(server):
            start = time.monotonic()
            assert persistence.update_task(make_task("a", name="during"))
            assert time.monotonic() - start < BOUND
            assert persistence.health().store == "files"
            assert persistence.load_tasks()[0]["name"] == "during"
        persistence.close()
        persistence = opened(base, url=server.url)
        assert persistence.health().store == "database"
        assert persistence.get_task("a")["name"] == "during"


def test_a_server_that_never_answers_is_left_within_the_bound(
    opened: MakePersistence, base: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        start = time.monotonic()
        persistence = opened(base, url=f"postgresql://user:hunter2@127.0.0.1:{port}/db")
        assert time.monotonic() - start < BOUND
        assert persistence.health().store == "files"
        assert "hunter2" not in persistence.health().reason
        assert persistence.add_task(make_task("a"))
