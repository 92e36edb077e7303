"""The upgrade through PgBouncer in transaction mode, where nothing may belong to a session."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from datahound_storage.errors import DatabaseUnavailableError, LockTimeoutError, SchemaError
from datahound_storage.migrations import SchemaState, environment, status, upgrade
from datahound_storage.migrations.lock import lock_key
from tests.fix_persistence import MakePersistence, as_another
from tests.migrations import support
from tests.migrations.test_upgrade import BY_API, HOLDERS, start
from tests.scheduler import make_task

_PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = pytest.mark.skipif(
    _PGBOUNCER is None, reason="pgbouncer is not installed (Debian: apt-get install pgbouncer)"
)

POOL_SIZE = 6
_SETTINGS = """
[databases]
* = {target}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {pool_size}
server_round_robin = 1
max_client_conn = 100
ignore_startup_parameters = extra_float_digits
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def directory() -> Iterator[Path]:
    """One that the pooler's user can enter: it does not run as root."""
    with tempfile.TemporaryDirectory(prefix="datahound-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def pooled_url(database_url: str, directory: Path) -> Iterator[str]:
    """The empty database by way of a pooler."""
    parts = conninfo_to_dict(database_url)
    known = {name: parts[name] for name in ("host", "port", "user", "password") if parts.get(name)}
    port = free_port()
    settings = directory / "pgbouncer.ini"
    target = " ".join(f"{name}={value}" for name, value in known.items())
    settings.write_text(_SETTINGS.format(target=target, port=port, pool_size=POOL_SIZE))
    log = (directory / "log").open("w")
    settings.chmod(0o644)
    command = [_PGBOUNCER, str(settings)]
    account = {"user": "nobody", "group": "nogroup", "extra_groups": []}
    process = subprocess.Popen(
        command,
        stdout=log,
        stderr=log,
        **(account if os.geteuid() == 0 else {}),
    )
    url = f"postgresql://{known.get('user', 'postgres')}@127.0.0.1:{port}/{parts['dbname']}"
    try:
        wait_until_it_answers(url, process, directory / "log")
        yield url
    finally:
        process.kill()
        process.wait()
        log.close()


def wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(200):
        try:
            psycopg.connect(url, connect_timeout=5).close()
        except psycopg.OperationalError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        else:
            return
    raise AssertionError(log.read_text())


def test_eight_processes_by_way_of_a_pooler(database_url: str, pooled_url: str) -> None:
    sample = {"DATAHOUND_DATA_DIR": str(support.ROOT / "examples" / "data")}
    commands = [("-m", "alembic", "upgrade", "head"), ("-c", BY_API, pooled_url)] * 4
    processes = [start(pooled_url, *command, **sample) for command in commands]
    ends = [(*process.communicate(timeout=120), process.returncode) for process in processes]
    assert [code for *_, code in ends] == [0] * 8, ends
    assert status(database_url).state is SchemaState.CURRENT
    assert support.value(database_url, "SELECT count(*) FROM scheduler_tasks") == 40
    assert support.query(database_url, HOLDERS) == []
    assert settings_left(pooled_url) == set(support.query(database_url, _LEFT))


_LEFT = """SELECT current_setting('lock_timeout'), current_setting('statement_timeout'),
    current_setting('search_path')"""


def settings_left(pooled_url: str) -> set[tuple[str, ...]]:
    """What whoever comes next finds on the pooler's connections, each of which is held once."""
    with ExitStack() as held:
        found = set()
        for _ in range(POOL_SIZE):
            connection = held.enter_context(psycopg.connect(pooled_url))
            found |= set(connection.execute(_LEFT).fetchall())
    return found


def test_no_transaction_needs_the_session_of_another(database_url: str, pooled_url: str) -> None:
    support.query(database_url, support.LEGACY.encode())
    before = settings_left(pooled_url)  # now the pooler has sessions to go round with
    assert upgrade(pooled_url).state is SchemaState.CURRENT
    assert settings_left(pooled_url) == before


def test_an_index_does_not_wait_for_ever(
    database_url: str, pooled_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade(database_url, "0001")
    monkeypatch.setattr(environment, "POOLED_TIMEOUT", 1.0)
    with psycopg.connect(database_url) as old:
        old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        old.execute("SELECT 1")
        with pytest.raises(SchemaError, match="QueryCanceled"):
            upgrade(pooled_url)
    assert upgrade(pooled_url).state is SchemaState.CURRENT


def test_the_lock_holds_through_a_pooler(pooled_url: str) -> None:
    with psycopg.connect(pooled_url) as holder:
        holder.execute(f"SELECT pg_advisory_xact_lock({lock_key('public')})".encode())
        with pytest.raises(LockTimeoutError, match="another process has been upgrading"):
            upgrade(pooled_url, lock_wait=0.5)
        assert status(pooled_url).state is SchemaState.MISSING
    assert upgrade(pooled_url).state is SchemaState.CURRENT


def test_a_search_path_in_the_url_is_refused_by_the_pooler_and_told(pooled_url: str) -> None:
    """It would be the pooler's connection that has it; `ALTER ROLE ... SET search_path` does."""
    with pytest.raises(DatabaseUnavailableError, match="startup parameter"):
        upgrade(f"{pooled_url}?options=-csearch_path%3Delsewhere")


def test_the_scheduler_by_way_of_a_pooler(
    database_url: str, pooled_url: str, opened: MakePersistence, base: Path
) -> None:
    scheduler, ui = opened(base, url=pooled_url), opened(base, url=as_another(pooled_url, "ui"))
    assert scheduler.add_task(make_task("a"))
    for number in range(20):
        for persistence in (scheduler, ui):
            task = persistence.get_task("a")
            task["name"] = f"name {number}"
            assert persistence.update_task(task)
            persistence.log_task_execution("a", True, f"run {number}")
    assert {scheduler.health().store, ui.health().store} == {"database"}
    assert support.value(database_url, "SELECT count(*) FROM scheduler_runs") == 40
