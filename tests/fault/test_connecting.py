"""No connection can be made when a process starts: it goes on with the files, in bound."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from datahound_storage.errors import DatabaseUnavailableError
from datahound_storage.postgres.pool import POOL_SIZE, Database
from datahound_storage.testing import EmbeddedServer
from tests import servers
from tests.fault.fix_faults import BOUND, PASSWORD, Told, bounded, secret_task
from tests.fault.proxy import Proxy
from tests.fix_persistence import MakePersistence

_SMALL = {
    "max_connections": "4",
    "superuser_reserved_connections": "0",
    "max_wal_senders": "0",
    "autovacuum_worker_slots": "1",
    "fsync": "off",
}


@pytest.fixture(scope="module")
def small() -> Iterator[EmbeddedServer]:
    """A server that asks for a password and has few connections."""
    with (
        servers.embedded_directory() as directory,
        EmbeddedServer(directory, tcp=True, settings=_SMALL) as server,
    ):
        yield server


def _port(server: EmbeddedServer) -> int:
    return int(str(conninfo_to_dict(server.url)["port"]))


@contextmanager
def _nobody_there(server: EmbeddedServer) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    yield f"postgresql://user:{PASSWORD}@127.0.0.1:{port}/db"


@contextmanager
def _unknown_host(server: EmbeddedServer) -> Iterator[str]:
    yield f"postgresql://user:{PASSWORD}@no-such-host.invalid/db"


@contextmanager
def _silent_hosts(server: EmbeddedServer) -> Iterator[str]:
    """Eight hosts that accept and never answer: alone, each would use up the time allowed."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(8)]
        hosts = ",".join(f"127.0.0.1:{listener.getsockname()[1]}" for listener in listeners)
        yield f"postgresql://user:{PASSWORD}@{hosts}/db"


@contextmanager
def _wrong_password(server: EmbeddedServer) -> Iterator[str]:
    yield f"postgresql://postgres:{PASSWORD}@127.0.0.1:{_port(server)}/postgres"


@contextmanager
def _no_such_database(server: EmbeddedServer) -> Iterator[str]:
    yield server.url.removesuffix("/postgres") + "/not_there"


@contextmanager
def _too_many_clients(server: EmbeddedServer) -> Iterator[str]:
    with ExitStack() as stack:
        for _ in range(int(_SMALL["max_connections"])):
            stack.enter_context(psycopg.connect(server.url))
        yield server.url


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (_nobody_there, "refused"),
        (_unknown_host, "no-such-host.invalid"),
        (_silent_hosts, "no answer within the time allowed"),
        (_wrong_password, "password authentication failed"),
        (_no_such_database, "not_there"),
        (_too_many_clients, "too many clients"),
    ],
)
def test_a_start_goes_on_with_the_files(
    opened: MakePersistence,
    base: Path,
    told: Told,
    small: EmbeddedServer,
    fault: Callable[[EmbeddedServer], AbstractContextManager[str]],
    words: str,
) -> None:
    with fault(small) as url:
        with bounded():
            persistence = opened(base, url=url)
        reason = told.fallen_back(persistence)
        assert words in reason
        told.check_secrets()
        password = conninfo_to_dict(url)["password"]
        assert str(password) not in reason + "".join(told.errors())
        with bounded():
            assert persistence.add_task(secret_task("a"))
            persistence.log_task_execution("a", True, "kept")
            assert persistence.get_task("a")["name"] == "Task a"
            assert [entry["message"] for entry in persistence.get_task_history()] == ["kept"]
        told.fallen_back(persistence)


def test_a_connection_that_arrives_too_late_is_closed(migrated_url: str) -> None:
    with Proxy(migrated_url) as proxy:
        proxy.stall()
        database = Database(proxy.url, timeout=0.5)
        with pytest.raises(DatabaseUnavailableError, match="no answer"):
            database.run(lambda connection: connection.execute("SELECT 1").fetchone())
        threads = [t for t in threading.enumerate() if t.name == "datahound-connect"]
        assert threads
        proxy.resume()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        assert proxy.wait_until_unused(10)
        assert database.run(lambda c: c.execute("SELECT 1").fetchone()).result == (1,)
        database.close()


def test_threads_that_connect_do_not_pile_up(migrated_url: str) -> None:
    with Proxy(migrated_url) as proxy:
        proxy.stall()
        database = Database(proxy.url, timeout=0.5)

        def use(_: int) -> None:
            with pytest.raises(DatabaseUnavailableError, match="cannot connect"):
                database.run(lambda connection: connection.execute("SELECT 1").fetchone())

        with ThreadPoolExecutor(12) as threads, bounded(5):
            list(threads.map(use, range(24)))
        connecting = [t for t in threading.enumerate() if t.name == "datahound-connect"]
        assert 0 < len(connecting) <= POOL_SIZE
        proxy.refuse()
        for thread in connecting:
            thread.join(10)
        assert not any(thread.is_alive() for thread in connecting)


_IN_A_NETWORK_OF_ITS_OWN = """
import fcntl, socket, struct, sys, time
from datahound_storage import SchedulerPersistence

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
    request = struct.pack("16sH", b"lo", 0x1 | 0x40)  # up and running
    fcntl.ioctl(control, 0x8914, request + b"\\0" * 22)
resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
resolver.bind(("127.0.0.1", 53))
start = time.monotonic()
persistence = SchedulerPersistence(sys.argv[1], url=sys.argv[2])
took = time.monotonic() - start
assert resolver.recv(512), "nobody asked the resolver"
assert persistence.add_task({TASK!r})
health = persistence.health()
assert health.store == "files", health
print(f"{took:.1f} s: {health.reason}")
"""


def test_a_look_up_that_hangs_is_left_within_the_bound(tmp_path: Path) -> None:
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.1\noptions timeout:30 attempts:2\n")
    apart = ["unshare", "--net", "--mount", "sh", "-c"]
    mount = 'mount --bind "$1" /etc/resolv.conf && shift && exec "$@"'
    if shutil.which("unshare") is None:
        pytest.skip("there is no `unshare` to make a network of its own with")
    tried = subprocess.run([*apart, mount, "sh", resolv, "true"], capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"needs root to make a network of its own: {tried.stderr.strip()}")
    code = _IN_A_NETWORK_OF_ITS_OWN.replace("{TASK!r}", repr(secret_task("a")))
    url = f"postgresql://user:{PASSWORD}@database.example.test/db"
    command = [sys.executable, "-c", code, str(tmp_path / "base/data"), url]
    with bounded(25):
        done = subprocess.run(
            [*apart, mount, "sh", resolv, *command], capture_output=True, text=True, timeout=100
        )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[0]) < BOUND
    assert PASSWORD not in done.stdout + done.stderr
